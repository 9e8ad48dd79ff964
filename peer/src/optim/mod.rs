//! The optimiser, step for step as PyTorch's.
