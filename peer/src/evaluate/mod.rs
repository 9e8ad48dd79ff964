//! What a trained network is worth: accuracy, likelihood, calibration, from its logits and the labels.
//!
//! Plain slices in f64; no tensors, no data, no network. `logits` is always `[N, C]`, row after row.

use serde::{Deserialize, Serialize};

pub mod answers;
mod calibration;
pub mod distance;
pub mod ensemble;
pub mod groups;
mod risk;

#[cfg(test)]
mod tests;

/// What one set of logits is worth on N labelled samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// N.
    pub samples: usize,
    /// Samples whose label has the highest logit, percent. Of equal logits the lower class goes first.
    pub top1: f64,
    /// Samples whose label is among the min(5, C) highest logits, percent.
    pub top5: f64,
    /// Mean negative logarithm of the label's probability, nats.
    pub nll: f64,
    /// Expected calibration error in 15 bins, percent (Guo et al., ICML 2017, equation 3).
    pub ece: f64,
    /// The same in 10 bins, for tables that use them.
    pub ece10: f64,
    /// Mean over the samples of the squared distance of the probabilities from the one-hot label (Brier 1950), 0 to 2.
    pub brier: f64,
    /// Area under the risk-coverage curve, times 1000 (Geifman et al., ICLR 2019).
    pub aurc: f64,
    /// AURC less that of the best possible ordering of the same errors, times 1000.
    pub e_aurc: f64,
}

/// Why logits cannot be evaluated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EvaluateError {
    /// N = 0 or C = 0.
    #[error("there is nothing to evaluate: {samples} samples, {classes} classes")]
    Empty {
        /// N.
        samples: usize,
        /// C.
        classes: usize,
    },
    /// The slices do not belong together.
    #[error("{values} logits are not {samples} samples of {classes} classes")]
    Shape {
        /// Number of logits.
        values: usize,
        /// N, the number of labels.
        samples: usize,
        /// C.
        classes: usize,
    },
    /// A label that is no class.
    #[error("sample {sample} has label {label}, but there are only {classes} classes")]
    Label {
        /// The sample's position.
        sample: usize,
        /// Its label.
        label: usize,
        /// C.
        classes: usize,
    },
    /// A logit that is not a number, or infinite: the network has diverged.
    #[error("the logits of sample {sample} are not all finite: the network has diverged")]
    NotFinite {
        /// The sample's position.
        sample: usize,
    },
    /// An ensemble without members, or of members whose logits differ in number.
    #[error("the members of an ensemble need the same samples and classes, and at least one member")]
    Members,
    /// Features that do not belong to the samples.
    #[error("{values} numbers are not the features of {samples} samples of width {width}")]
    Features {
        /// How many numbers.
        values: usize,
        /// N.
        samples: usize,
        /// D.
        width: usize,
    },
    /// Groups that are not those of the classes.
    #[error("there are groups for {groups} classes, but {classes} classes; give one group a class")]
    Groups {
        /// How many groups are given.
        groups: usize,
        /// C.
        classes: usize,
    },
    /// Nothing is far from anything.
    #[error("distances between classes need samples of at least 2 classes, there are samples of {present}")]
    FewClasses {
        /// How many classes have samples.
        present: usize,
    },
}

/// All metrics of `logits` `[N, C]` for N labels.
///
/// # Errors
/// Slices that do not fit, a label outside `0..classes`, a logit that is not finite.
pub fn evaluate(logits: &[f64], classes: usize, labels: &[usize]) -> Result<Metrics, EvaluateError> {
    check(logits, classes, labels)?;
    let samples = labels.len();
    let mut totals = Totals::default();
    let mut outcomes = Vec::with_capacity(samples);
    for (row, &label) in logits.chunks_exact(classes).zip(labels) {
        let log_probabilities = log_softmax(row);
        let rank = rank(row, label);
        totals.top1 += usize::from(rank == 0);
        totals.top5 += usize::from(rank < classes.min(5));
        totals.nll -= log_probabilities[label];
        totals.brier += brier(&log_probabilities, label);
        let highest = log_probabilities.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        outcomes.push(Outcome { confidence: highest.exp(), correct: rank == 0 });
    }
    let n = samples as f64;
    let (aurc, e_aurc) = risk::aurc(&outcomes);
    Ok(Metrics {
        samples,
        top1: 100.0 * totals.top1 as f64 / n,
        top5: 100.0 * totals.top5 as f64 / n,
        nll: totals.nll / n,
        ece: 100.0 * calibration::expected_error(&outcomes, 15),
        ece10: 100.0 * calibration::expected_error(&outcomes, 10),
        brier: totals.brier / n,
        aurc: 1000.0 * aurc,
        e_aurc: 1000.0 * e_aurc,
    })
}

/// What calibration and risk look at in a sample.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    /// Probability of the predicted class.
    confidence: f64,
    /// Whether the predicted class is the label.
    correct: bool,
}

#[derive(Default)]
struct Totals {
    top1: usize,
    top5: usize,
    nll: f64,
    brier: f64,
}

fn check(logits: &[f64], classes: usize, labels: &[usize]) -> Result<(), EvaluateError> {
    let samples = labels.len();
    if samples == 0 || classes == 0 {
        return Err(EvaluateError::Empty { samples, classes });
    }
    if samples.checked_mul(classes) != Some(logits.len()) {
        return Err(EvaluateError::Shape { values: logits.len(), samples, classes });
    }
    for (sample, (row, &label)) in logits.chunks_exact(classes).zip(labels).enumerate() {
        if label >= classes {
            return Err(EvaluateError::Label { sample, label, classes });
        }
        if row.iter().any(|z| !z.is_finite()) {
            return Err(EvaluateError::NotFinite { sample });
        }
    }
    Ok(())
}

/// How many classes come before the label: those of a higher logit, and those of an equal one and a lower index.
fn rank(row: &[f64], label: usize) -> usize {
    let own = row[label];
    row.iter().enumerate().filter(|&(c, &z)| z > own || (z == own && c < label)).count()
}

/// The class of the highest logit; of equal ones the lower class.
fn predicted(row: &[f64]) -> usize {
    let higher = |best: usize, c: usize| if row[c] > row[best] { c } else { best };
    (0..row.len()).fold(0, higher)
}

/// Squared distance of the probabilities from the one-hot label.
fn brier(log_probabilities: &[f64], label: usize) -> f64 {
    let squared = |(c, log): (usize, &f64)| (log.exp() - f64::from(u8::from(c == label))).powi(2);
    log_probabilities.iter().enumerate().map(squared).sum()
}

/// Logarithm of the softmax of one row. The sum is made in the order of size, so that rows which differ in order alone are
/// equally confident to the last bit.
fn log_softmax(row: &[f64]) -> Vec<f64> {
    let mut ascending = row.to_vec();
    ascending.sort_by(f64::total_cmp);
    let top = ascending.last().copied().unwrap_or(f64::NEG_INFINITY);
    let log_sum = ascending.iter().map(|z| (z - top).exp()).sum::<f64>().ln();
    row.iter().map(|z| z - top - log_sum).collect()
}
