//! The harness: what tests of more than one crate share.

pub mod cluster;
pub mod joint;
pub mod joint_loss;
pub mod joint_graph;
pub mod joint_lmcl;
pub mod joint_meta;
pub mod joint_memory;
pub mod process;
pub mod net;
