//! How far confidence is from accuracy.

use super::Outcome;

/// Expected calibration error as a fraction: samples are put into `bins` equal bins of confidence, open below and
/// closed above, and the gaps between accuracy and mean confidence are averaged by the bins' shares.
pub(super) fn expected_error(outcomes: &[Outcome], bins: usize) -> f64 {
    let mut gaps = vec![0.0; bins];
    for outcome in outcomes {
        let bin = (0..bins).find(|b| outcome.confidence <= (b + 1) as f64 / bins as f64);
        let correct = f64::from(u8::from(outcome.correct));
        gaps[bin.unwrap_or(bins - 1)] += correct - outcome.confidence;
    }
    // A bin's share times the difference of its means is the difference of its sums over all samples.
    gaps.iter().map(|gap| gap.abs()).sum::<f64>() / outcomes.len() as f64
}
