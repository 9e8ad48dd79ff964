//! From samples on disk to the batch that every peer of the cohort sees.

pub mod augment;
pub mod loader;
