//! Tolerant teachers (Yang et al., "Training Deep Neural Networks in Generations", AAAI 2019, equation 3): a teacher that
//! leaves room for the classes that resemble the first one.
//!
//! With `s_(1) ≥ … ≥ s_(C)` the sorted softmax scores of a sample, the term is
//! `gap = s_(1) - 1/(K-1)·Σ_{k=2..K} s_(k)`, and the teacher's whole loss is `η·CE + (1-η)·mean(gap)`. The first score is
//! the largest, not that of the label. Of equal scores the lower class goes first. The order is a constant, the gradient
//! flows through the K scores: `∂gap/∂z_c = p_c·(h_c - Σ p·h)` with h = 1 at rank 1, `-1/(K-1)` at ranks 2 to K, else 0.
//!
//! The generations after learn by [`super::kd`] at temperature 1: `λ·CE + (1-λ)·KL` (equation 2).

use candle_core::{D, DType, Result, Tensor};

use super::checks::{ParamsError, share};
use crate::methods::primitives::{constant, log_softmax};

/// Hyper-parameters of training in generations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TsdParams {
    /// K: how many classes count, the first included; 2 to C.
    pub k: usize,
    /// η: the share of cross-entropy in the loss of the first teacher, against the gap.
    pub eta: f64,
    /// λ: the share of cross-entropy in the loss of the later generations, against the teacher.
    pub lambda: f64,
}

impl Default for TsdParams {
    fn default() -> Self {
        Self { k: 5, eta: 0.6, lambda: 0.6 }
    }
}

impl TsdParams {
    /// Whether the terms can be used with that many classes.
    ///
    /// # Errors
    /// K outside 2..=C, shares outside 0..=1.
    pub fn check(&self, classes: usize) -> std::result::Result<(), ParamsError> {
        share("eta", self.eta)?;
        share("lambda", self.lambda)?;
        check_ranks(self.k, classes)
    }
}

fn check_ranks(k: usize, classes: usize) -> std::result::Result<(), ParamsError> {
    if (2..=classes).contains(&k) { Ok(()) } else { Err(ParamsError::Ranks { k, classes }) }
}

/// The gap of each sample, `[B]`; logits `[B, C]`.
///
/// # Errors
/// K outside 2..=C.
pub fn rows(logits: &Tensor, params: &TsdParams) -> Result<Tensor> {
    let (batch, classes) = logits.dims2()?;
    if let Err(refused) = check_ranks(params.k, classes) {
        candle_core::bail!("{refused}");
    }
    let secondary = -1.0 / (params.k - 1) as f64;
    let mut weights = vec![0.0; batch * classes];
    // Logits rank as scores do, also where the scores are too small to differ.
    let all = logits.detach().to_dtype(DType::F64)?.to_vec2::<f64>()?;
    for (weights, z) in weights.chunks_exact_mut(classes).zip(all) {
        let mut order: Vec<usize> = (0..classes).collect();
        // 0 and -0 are equal, and of equal ones the lower class comes first.
        order.sort_by(|a, b| (z[*b] + 0.0).total_cmp(&(z[*a] + 0.0)));
        for (rank, class) in order.into_iter().take(params.k).enumerate() {
            weights[class] = if rank == 0 { 1.0 } else { secondary };
        }
    }
    (log_softmax(logits)?.exp()? * constant(weights, (batch, classes), logits)?)?.sum(D::Minus1)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::methods::cross_entropy::cross_entropy;
    use crate::methods::terms::mean;
    use crate::methods::tests::*;

    fn k(k: usize) -> TsdParams {
        TsdParams { k, ..TsdParams::default() }
    }

    #[test]
    fn has_the_printed_values_and_the_slope_of_its_value() {
        let z = logits_of(0).unwrap();
        let gap = |z: &Tensor| mean(&rows(z, &k(3))?);
        close(value(&gap(&z).unwrap()), 0.312435541675, 1e-12);
        check_gradient(&z, gap);
        let (v, leaf) = variables(&[z]).unwrap();
        let ce = cross_entropy(&leaf[0], &labels(&LABELS).unwrap()).unwrap();
        let teacher = ((ce * 0.6).unwrap() + (gap(&leaf[0]).unwrap() * 0.4).unwrap()).unwrap();
        close(value(&teacher), 2.107145794162, 1e-12);
        close(frobenius(&gradient(&teacher, &v[0])), 0.273230311879, 1e-11);
    }

    #[test]
    fn of_equal_scores_the_lower_class_goes_first() {
        let z = Var::from_tensor(&Tensor::new(&[[1.0, 3.0, 1.0, 3.0, 1.0]], &Device::Cpu).unwrap()).unwrap();
        let gap = rows(z.as_tensor(), &k(3)).unwrap();
        let total = 2.0 * 3f64.exp() + 3.0 * 1f64.exp();
        let (high, low) = (3f64.exp() / total, 1f64.exp() / total);
        close(entries(&gap)[0], high - (high + low) / 2.0, 1e-14);
        // p_c·(h_c - gap) with h = 1 for class 1, -1/2 for classes 3 and 0.
        let gap_value = entries(&gap)[0];
        let h = [-0.5, 1.0, 0.0, -0.5, 0.0];
        let p = [low, high, low, high, low];
        let expected: Vec<f64> = h.iter().zip(p).map(|(h, p)| p * (h - gap_value)).collect();
        assert!(largest_difference(&gradient(&mean(&gap).unwrap(), &z), &expected) < 1e-14);
    }

    #[test]
    fn stays_finite() {
        check_finite(|z, _, _| rows(z, &k(2)));
        check_finite(|z, _, _| rows(z, &k(z.dim(1)?)));
    }

    #[test]
    fn refuses_ranks_that_are_not_there() {
        assert!(TsdParams::default().check(5).is_ok());
        for (ranks, classes) in [(5, 4), (1, 10), (0, 10), (2, 1)] {
            assert_eq!(k(ranks).check(classes), Err(ParamsError::Ranks { k: ranks, classes }));
        }
        assert!(rows(&logits_of(0).unwrap(), &k(6)).is_err());
        assert!(TsdParams { eta: 1.5, ..TsdParams::default() }.check(10).is_err());
        assert!(TsdParams { lambda: -0.5, ..TsdParams::default() }.check(10).is_err());
    }

    /// 0 and -0 are one score: the lower class comes first, whatever its sign.
    #[test]
    fn zeros_of_either_sign_are_equal() {
        let of = |zero: f64| {
            let z = Tensor::new(&[[zero, 0.0, -1.0, 0.0]], &Device::Cpu).unwrap();
            rows(&z, &TsdParams { k: 2, ..TsdParams::default() }).unwrap().to_vec1::<f64>().unwrap()
        };
        assert_eq!(of(-0.0), of(0.0));
    }
}
