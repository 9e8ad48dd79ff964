//! What crosses the network between peers and coordinator, and what all sides must agree on; nothing here decides.
//!
//! Domain types are public at the top; the generated types live under [`wire`] and are turned into domain types, with
//! an error that names the field, in [`convert`]. Read in this order:
//!
//! - [`limits`]: every maximum, with the arithmetic that justifies it
//! - [`id`]: names and numbers that cannot be mixed up
//! - [`spec`]: `run.toml`, checked
//! - [`dataset`], [`plan`], [`rng`]: the samples, which of them make up step s, and the generator behind both
//! - [`view`], [`schema`], [`contribution`], [`control`]: who is in, what each says, and the words of the control plane
//! - [`meta`]: the further exchanges of a step that a meta-update follows
//! - [`exit`]: the exit codes that scripts rely on

pub mod limits;
pub mod id;
pub mod spec;
pub mod dataset;
pub mod plan;
pub mod rng;
pub mod view;
pub mod schema;
pub mod meta;
pub mod contribution;
pub mod control;
pub mod convert;
pub mod exit;

/// The types and services generated from `proto/cohort/v1`. Only services and [`convert`] touch them.
#[allow(
    missing_docs,
    clippy::all,
    unreachable_pub,
    reason = "generated code; its documentation is the schema"
)]
pub mod wire {
    tonic::include_proto!("cohort.v1");

    /// The compiled schema, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cohort.v1.bin"));
}
