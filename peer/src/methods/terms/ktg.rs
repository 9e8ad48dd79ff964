//! An edge of the Knowledge Transfer Graph (Minami et al., ACCV 2020, equations 3 to 5): a divergence from each source,
//! behind a gate.
//!
//! `ℓ_ji[n] = T²·KL(softmax(z_j/T) ‖ softmax(z_i/T))` at T = 1, and the loss of network i is the sum of `gate_ji(ℓ_ji)` over
//! its incoming edges and of `gate_ii(CE)`. The authors guard the logarithm with 1e-10; here it is exact.

use candle_core::{Result, Tensor};

use super::checks::{ParamsError, positive};
use super::gate::{Gate, Moment, gated_mean};
use super::kd::{self, KdParams};
use crate::methods::cross_entropy;

/// Hyper-parameters of an edge.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KtgParams {
    /// Temperature.
    pub t: f64,
    /// What the edge lets through.
    pub gate: Gate,
}

impl Default for KtgParams {
    fn default() -> Self {
        Self { t: 1.0, gate: Gate::Through }
    }
}

impl KtgParams {
    /// Whether the edge can be used, with any number of classes.
    ///
    /// # Errors
    /// A temperature that is not greater than 0.
    pub fn check(&self, _classes: usize) -> std::result::Result<(), ParamsError> {
        positive("t", self.t)
    }
}

/// The gated divergence of a student from a source, both `[B, C]`, the source a constant; scalar.
///
/// # Errors
/// A moment after the end of the run, a label that is no class, or shapes that do not fit.
pub fn edge(
    student: &Tensor,
    source: &Tensor,
    labels: &Tensor,
    params: &KtgParams,
    at: Moment,
) -> Result<Tensor> {
    let rows = kd::rows(student, source, &KdParams { t: params.t })?;
    gated_mean(&rows, params.gate, at, Some(source), labels)
}

/// The gated cross-entropy of a network, its edge to itself: logits `[B, C]`, labels `[B]`; scalar.
///
/// # Errors
/// As [`edge`].
pub fn self_edge(logits: &Tensor, labels: &Tensor, gate: Gate, at: Moment) -> Result<Tensor> {
    gated_mean(&cross_entropy::rows(logits, labels)?, gate, at, None, labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::tests::*;

    const AT: Moment = Moment { iteration: 0, iterations: 4 };

    #[test]
    fn has_the_printed_value_and_the_slope_of_its_value() {
        let (s, t) = (logits_of(0).unwrap(), logits_of(1).unwrap());
        let y = labels(&[3, 0, 2, 0, 1, 0]).unwrap();
        let correct = KtgParams { gate: Gate::Correct, ..KtgParams::default() };
        close(value(&edge(&s, &t, &y, &correct, AT).unwrap()), 0.159285122360, 1e-12);
        for gate in [Gate::Through, Gate::Linear, Gate::NegativeLinear, Gate::Correct] {
            check_gradient(&s, |s| edge(s, &t, &y, &KtgParams { t: 1.5, gate }, AT));
        }
        let (v, z) = variables(&[t]).unwrap();
        assert_eq!(gradient(&edge(&s, &z[0], &y, &correct, AT).unwrap(), &v[0]), vec![0.0; BATCH * CLASSES]);
    }

    #[test]
    fn the_edge_to_itself_is_cross_entropy() {
        let (z, y) = (logits_of(0).unwrap(), labels(&LABELS).unwrap());
        for (gate, expected) in [(Gate::Correct, 1.0), (Gate::Linear, 0.25), (Gate::Cutoff, 0.0)] {
            close(value(&self_edge(&z, &y, gate, AT).unwrap()), expected * 3.303619295820, 1e-12);
        }
        check_gradient(&z, |z| self_edge(z, &y, Gate::Linear, AT));
    }

    #[test]
    fn stays_finite() {
        for gate in [Gate::Through, Gate::Cutoff, Gate::Linear, Gate::NegativeLinear, Gate::Correct] {
            check_finite(|s, t, y| edge(s, t, y, &KtgParams { t: 1.0, gate }, AT));
        }
        assert!(KtgParams::default().check(2).is_ok());
        assert!(KtgParams { t: 0.0, gate: Gate::Through }.check(2).is_err());
    }
}
