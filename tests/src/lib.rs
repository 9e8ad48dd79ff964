//! The harness: what tests of more than one crate share.

/// The bundled part of Fashion-MNIST.
pub const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/data/fashion-mnist");

pub mod cluster;
pub mod joint;
pub mod joint_loss;
pub mod joint_graph;
pub mod joint_lmcl;
pub mod joint_meta;
pub mod joint_memory;
pub mod joint_adversary;
pub mod process;
pub mod net;
