//! The loss terms of the field, one file each: what an edge between two peers, or a peer by itself, adds to a loss.
//!
//! Every term is a function `rows` of tensors. It returns what each sample contributes, `[B]`, before any weight, in the
//! dtype of losses; [`mean`] makes it the scalar that the paper writes. Whoever builds a loss stands between the two: a
//! gate may take samples out ([`gate::gated_mean`]), and weight and schedule are factors of the scalar. So
//! no weight of a whole term is among its parameters (DKD's `alpha` and `beta` divide one term in two), and
//! cross-entropy with the labels, which nearly every paper adds, is a term of its own.
//!
//! | who takes part | signature | terms |
//! |---|---|---|
//! | the network itself | `rows(logits, labels, params)` | [`label_smoothing`], [`anisotropic`], [`confidence_penalty`], [`tsd`], [`ps_kd`] (with its past), [`hypersphere`] (of features) |
//! | a source and a target | `rows(student, teacher, .., params)` | [`kd`], [`dkd`], [`kd_fn`], [`ktg`] |
//! | all peers | a target of everybody's logits, then `rows(student, target, params)` | [`kdcl`], [`one`] |
//! | two networks against each other | of what discriminators say | [`afd`] |
//!
//! Deep Mutual Learning and tolerant students (TSD) are [`kd`] at temperature 1 along each edge. What comes from a
//! teacher is a constant: no gradient reaches it, whatever graph it brings. Parameters are plain; `check` refuses, in a
//! sentence and before training, what cannot be meant. Functions stay finite for anything finite: logits of ±10⁴, zero
//! features, a batch of one.

use candle_core::{Result, Tensor};

pub mod checks;
pub mod label_smoothing;
pub mod anisotropic;
pub mod confidence_penalty;
pub mod hypersphere;
pub mod kd;
pub mod dkd;
pub mod kd_fn;
pub mod tsd;
pub mod ps_kd;
pub mod past;
pub mod kdcl;
pub mod one;
pub mod gate;
pub mod ktg;
pub mod afd;

pub use checks::ParamsError;

/// The mean of what the samples contribute, `[B]` to a scalar.
///
/// # Errors
/// If the device fails.
pub fn mean(rows: &Tensor) -> Result<Tensor> {
    rows.sum_all()? / rows.elem_count().max(1) as f64
}
