//! Arithmetic on slices of f32 for the CPU; knows nothing of candle. Results depend on the shape and the
//! instruction set only: never on the number of threads or on their timing.

pub(super) mod isa;
mod lanes;
mod lines;
mod avx;
mod parallel;
pub(super) mod geometry;
mod pack;
mod micro;
mod direct;
mod winograd;
mod depthwise;
pub(super) mod conv;
pub(super) mod batch_norm;
pub(super) mod pointwise;
pub(super) mod pool;
pub(super) mod loss;
pub(super) mod update;
