//! How many errors remain when only the most confident answers are kept.

use super::Outcome;

/// AURC and E-AURC as fractions (Geifman et al., ICLR 2019).
///
/// The risk at coverage k is the share of errors among the k most confident samples; AURC is its mean over
/// k = 1..N. Of equal confidences the earlier sample counts as the more confident. E-AURC subtracts the AURC of the
/// ordering that puts all errors last.
pub(super) fn aurc(outcomes: &[Outcome]) -> (f64, f64) {
    let mut order: Vec<&Outcome> = outcomes.iter().collect();
    order.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    let mut errors = 0usize;
    let mut area = 0.0;
    for (k, outcome) in order.iter().enumerate() {
        errors += usize::from(!outcome.correct);
        area += errors as f64 / (k + 1) as f64;
    }
    let n = outcomes.len();
    let best: f64 = (1..=errors).map(|i| i as f64 / (n - errors + i) as f64).sum();
    (area / n as f64, (area - best) / n as f64)
}
