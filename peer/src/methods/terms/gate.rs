//! The gates of the Knowledge Transfer Graph (Minami et al., ACCV 2020, section 3.3): which samples an edge lets through,
//! and how much of them over the course of a run. Any term has a gate, since gates act on what each sample contributes.

use candle_core::{DType, Result, Tensor};

use super::mean;
use crate::methods::primitives::{classes_of, constant, widen, zero};

/// What an edge lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gate {
    /// Everything: the mean over the batch.
    #[default]
    Through,
    /// Nothing: 0, and no gradient.
    Cutoff,
    /// More and more: `(k+1)/K` times the mean, at iteration k of K.
    Linear,
    /// Less and less, down to nothing: `1 - (k+1)/K` times the mean.
    NegativeLinear,
    /// The samples that the source classifies correctly, whatever the target does. The divisor stays B.
    Correct,
}

/// When in a run a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// k, from 0.
    pub iteration: u64,
    /// K, the number of steps of the run.
    pub iterations: u64,
}

impl Gate {
    /// Whether anything ever passes. A network all of whose edges are cut learns nothing and is a teacher.
    pub fn opens(self) -> bool {
        self != Self::Cutoff
    }

    /// The factor of what passes at a moment.
    ///
    /// # Errors
    /// A moment after the end of the run.
    pub fn factor(self, at: Moment) -> Result<f64> {
        if at.iteration >= at.iterations {
            candle_core::bail!("iteration {} is none of {}", at.iteration, at.iterations);
        }
        let done = (at.iteration + 1) as f64 / at.iterations as f64;
        Ok(match self {
            Self::Through | Self::Correct => 1.0,
            Self::Cutoff => 0.0,
            Self::Linear => done,
            Self::NegativeLinear => 1.0 - done,
        })
    }
}

/// The scalar that a gate makes of what each sample contributes, `rows` `[B]`.
///
/// `source` holds the logits `[B, C]` of the network that the edge comes from. Without them the edge comes from the
/// labels `[B]`, as cross-entropy does, and these are always correct.
///
/// # Errors
/// A moment after the end of the run, a label that is no class, or shapes that do not fit.
pub fn gated_mean(
    rows: &Tensor,
    gate: Gate,
    at: Moment,
    source: Option<&Tensor>,
    labels: &Tensor,
) -> Result<Tensor> {
    let factor = gate.factor(at)?;
    match (gate, source) {
        (Gate::Cutoff, _) => zero(rows),
        (Gate::Correct, Some(source)) => mean(&(widen(rows)? * correct(source, labels, rows)?)?),
        _ if factor == 1.0 => mean(rows),
        _ => mean(rows)? * factor,
    }
}

/// 1 where the largest of the logits `[B, C]` is the label's, else 0: `[B]`, a constant for losses over `like`. Of equal
/// logits the lower class counts as the larger.
///
/// # Errors
/// A label that is no class, or shapes that do not fit.
pub fn correct(logits: &Tensor, labels: &Tensor, like: &Tensor) -> Result<Tensor> {
    let classes = classes_of(labels, logits)?;
    let rows = logits.detach().to_dtype(DType::F64)?.to_vec2::<f64>()?;
    let first = |row: &[f64], class: usize| {
        row.iter().enumerate().all(|(c, z)| *z < row[class] || (c >= class && *z == row[class]))
    };
    let correct: Vec<f64> =
        rows.iter().zip(classes).map(|(row, class)| f64::from(u8::from(first(row, class)))).collect();
    let count = correct.len();
    constant(correct, (1, count), like)?.squeeze(0)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::methods::tests::*;

    const AT: Moment = Moment { iteration: 9, iterations: 40 };

    fn gated(gate: Gate, at: Moment) -> (f64, Vec<f64>) {
        let rows = Var::from_tensor(&Tensor::new(&[1.0, 2.0, 6.0], &Device::Cpu).unwrap()).unwrap();
        let source = Tensor::new(&[[0.0, 1.0], [3.0, 3.0], [0.0, 9.0]], &Device::Cpu).unwrap();
        let y = labels(&[1, 0, 0]).unwrap();
        let scalar = gated_mean(rows.as_tensor(), gate, at, Some(&source), &y).unwrap();
        (value(&scalar), gradient(&scalar, &rows))
    }

    #[test]
    fn each_gate_has_its_value_and_its_slope() {
        let third = 1.0 / 3.0;
        let cases = [
            (Gate::Through, 3.0, [third; 3]),
            (Gate::Cutoff, 0.0, [0.0; 3]),
            (Gate::Linear, 0.75, [third / 4.0; 3]),
            (Gate::NegativeLinear, 2.25, [third * 0.75; 3]),
            // The tie counts for the lower class, the divisor is the whole batch.
            (Gate::Correct, 1.0, [third, third, 0.0]),
        ];
        for (gate, expected, slopes) in cases {
            let (got, slope) = gated(gate, AT);
            close(got, expected, 1e-15);
            assert!(largest_difference(&slope, &slopes) < 1e-15, "{gate:?} {slope:?}");
            assert_eq!(gate.opens(), gate != Gate::Cutoff);
        }
    }

    #[test]
    fn the_last_iteration_is_the_end_of_the_line() {
        let last = Moment { iteration: 39, iterations: 40 };
        assert_eq!(Gate::Linear.factor(last).unwrap(), 1.0);
        assert_eq!(Gate::NegativeLinear.factor(last).unwrap(), 0.0);
        assert_eq!(gated(Gate::NegativeLinear, last), (0.0, vec![0.0; 3]));
        let after = Moment { iteration: 40, iterations: 40 };
        assert!(Gate::Through.factor(after).is_err());
    }

    #[test]
    fn labels_are_always_correct() {
        let rows = Tensor::new(&[1.0, 2.0, 6.0], &Device::Cpu).unwrap();
        let y = labels(&[1, 0, 0]).unwrap();
        close(value(&gated_mean(&rows, Gate::Correct, AT, None, &y).unwrap()), 3.0, 1e-15);
    }

    #[test]
    fn of_equal_logits_the_lower_class_counts() {
        let z = Tensor::new(&[[2.0, 2.0, 1.0], [2.0, 2.0, 1.0], [f64::NAN, 0.0, 0.0]], &Device::Cpu).unwrap();
        let y = labels(&[0, 1, 0]).unwrap();
        assert_eq!(entries(&correct(&z, &y, &z).unwrap()), [1.0, 0.0, 0.0]);
        assert!(correct(&z, &labels(&[0, 1, 3]).unwrap(), &z).is_err());
    }
}
