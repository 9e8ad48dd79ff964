//! Confidence penalty (Pereyra et al., ICLR 2017 workshop, section 3): answers of low entropy cost.
//!
//! With `Ent_n = -Σ_c p·ls(z)`, `p = softmax(z)`, the loss is `CE + β·mean(term)`: the term is `-Ent_n`, or with the hinge
//! `max(0, Γ - Ent_n)`, which leaves answers alone whose entropy is at least Γ nats. The gradient flows through p.
//! Published weight: β = 0.1.

use candle_core::{D, Result, Tensor};

use super::checks::{ParamsError, weight};
use crate::methods::primitives::log_softmax;

/// Hyper-parameters of the confidence penalty.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ConfidencePenaltyParams {
    /// Γ in nats: entropy from which on nothing is punished. None punishes confidence without end.
    pub gamma: Option<f64>,
}

impl ConfidencePenaltyParams {
    /// Whether the term can be used, with any number of classes.
    ///
    /// # Errors
    /// A Γ that is negative or not finite.
    pub fn check(&self, _classes: usize) -> std::result::Result<(), ParamsError> {
        self.gamma.map_or(Ok(()), |gamma| weight("gamma", gamma))
    }
}

/// `-Ent_n`, or `max(0, Γ - Ent_n)`, of each sample, `[B]`; logits `[B, C]`.
///
/// # Errors
/// If the device fails, or logits are no floats.
pub fn rows(logits: &Tensor, params: &ConfidencePenaltyParams) -> Result<Tensor> {
    let ls = log_softmax(logits)?;
    let certainty = (ls.exp()? * ls)?.sum(D::Minus1)?;
    let Some(gamma) = params.gamma else { return Ok(certainty) };
    let lack = (certainty + gamma)?;
    // A mask, since the derivative of candle's own hinge is 1 where it should be 0: at the bend.
    let punished = lack.gt(0.0)?.to_dtype(lack.dtype())?;
    lack * punished
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::methods::cross_entropy::cross_entropy;
    use crate::methods::terms::mean;
    use crate::methods::tests::*;

    const HINGE: ConfidencePenaltyParams = ConfidencePenaltyParams { gamma: Some(1.0) };

    #[test]
    fn has_the_printed_values_and_the_slopes_of_its_values() {
        let (z, y) = (logits_of(0).unwrap(), labels(&LABELS).unwrap());
        let ce = value(&cross_entropy(&z, &y).unwrap());
        let cases = [(ConfidencePenaltyParams::default(), 3.212669536251), (HINGE, 3.320485888708)];
        for (params, expected) in cases {
            let term = |z: &Tensor| mean(&rows(z, &params)?);
            close(ce + 0.1 * value(&term(&z).unwrap()), expected, 1e-12);
            check_gradient(&z, term);
        }
    }

    #[test]
    fn an_even_answer_has_the_highest_entropy() {
        let z = Tensor::zeros((1, 4), candle_core::DType::F64, &Device::Cpu).unwrap();
        let rows_of = |params: &ConfidencePenaltyParams| entries(&rows(&z, params).unwrap());
        close(rows_of(&ConfidencePenaltyParams::default())[0], -(4f64.ln()), 1e-15);
        assert_eq!(rows_of(&HINGE), [0.0]);
    }

    #[test]
    fn where_the_hinge_bends_there_is_no_slope() {
        // A certain answer has entropy 0 exactly.
        let z = Var::from_tensor(&Tensor::new(&[[1e4, 0.0, -1e4]], &Device::Cpu).unwrap()).unwrap();
        let at_bend = ConfidencePenaltyParams { gamma: Some(0.0) };
        let rows = rows(z.as_tensor(), &at_bend).unwrap();
        assert_eq!(entries(&rows), [0.0]);
        assert_eq!(gradient(&mean(&rows).unwrap(), &z), [0.0; 3]);
    }

    #[test]
    fn stays_finite() {
        for params in [ConfidencePenaltyParams::default(), HINGE] {
            check_finite(|z, _, _| rows(z, &params));
        }
    }

    #[test]
    fn refuses_an_entropy_that_none_has() {
        assert!(HINGE.check(10).is_ok() && ConfidencePenaltyParams::default().check(10).is_ok());
        for gamma in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(ConfidencePenaltyParams { gamma: Some(gamma) }.check(10).is_err());
        }
    }
}
