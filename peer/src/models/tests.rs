//! What every family must do, against PyTorch where there is a number to compare.
