//! One network of a cohort: trained alone or in company.
//!
//! A batch passes through [`step`], act by act; read that first. Around it, from the outside in:
//!
//! - [`cli`]: arguments → configuration → run → exit code
//! - [`driver`]: the network side, one loop over everything that can happen; tonic lives in [`net`]
//! - [`trainer`]: the training thread, which owns every tensor in a [`learner`]
//! - [`round`]: what a peer waits for and may do next; [`log`]: what it has said
//! - [`meta`]: how the weights of layer pairs are learnt across peers
//! - [`data`], [`models`], [`methods`], [`optim`], [`kernels`]: samples, networks, losses, updates, arithmetic
//! - [`checkpoint`]: what survives a crash; [`evaluate`], [`probe`] and [`bench`]: what a network is worth, here and on other
//!   data, and how fast it learns

pub mod cli;
pub mod driver;
pub mod trainer;
pub mod step;
pub mod learner;
pub mod round;
pub mod standing;
pub mod waits;
pub mod log;
pub mod relay;
pub mod data;
pub mod models;
pub mod methods;
pub mod meta;
pub mod optim;
pub mod kernels;
pub mod checkpoint;
pub mod evaluate;
pub mod probe;
pub mod bench;
pub mod net;
pub mod device;
pub mod clock;
pub mod error;
