//! From samples on disk to the batch that every peer of the cohort sees.
