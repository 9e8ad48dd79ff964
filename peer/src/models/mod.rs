//! Networks: one family a file, with the state-dict names that PyTorch users know.
