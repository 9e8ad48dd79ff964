//! Who is in the cohort, which steps may run, and what is durable. The coordinator is not on the data path: peers ask
//! it to join, hear from it which steps they may take, and report the steps they took.
//!
//! Deciding and doing are apart. Read in this order:
//!
//! - [`event`]: what can happen, and what can follow
//! - [`admission`], [`membership`], [`lease`], [`agreement`]: the parts of the deciding machine; no clock, no socket
//! - [`cluster`]: the machine, which composes them
//! - [`journal`]: the SQLite file that survives it
//! - [`status`]: what runs and how far it is
//! - [`driver`]: the one loop around the machine
//! - [`service`], [`server`]: the tonic side
//! - [`clock`]: the only reader of real time
//! - [`cli`]: arguments to exit codes

pub mod event;
pub mod admission;
pub mod membership;
pub mod lease;
pub mod agreement;
pub mod cluster;
pub mod journal;
pub mod status;
pub mod driver;
pub mod service;
pub mod server;
pub mod clock;
pub mod cli;
