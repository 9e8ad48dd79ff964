//! What crosses the network between peers and coordinator, and what all sides must agree on.

pub mod rng;
pub mod dataset;
pub mod plan;
