//! Classes of a kind, such as tops and shoes: how often a network takes a sample for something of another kind, and whether
//! it has classes of one kind nearer to each other than to the rest.

use serde::{Deserialize, Serialize};

use super::distance::{Features, directions, dot, present};
use super::{EvaluateError, check, predicted};

/// What groups of classes show. Distances are between the mean directions of two classes, as in [`super::distance`]: 0 (the
/// same) to 2 (opposite).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Grouped {
    /// Samples whose answer is of the same group as their label, percent.
    pub group_top1: f64,
    /// Mean distance of two classes of the same group; none if no group has two.
    pub dist_within: Option<f64>,
    /// Mean distance of two classes of different groups; none if there is one group.
    pub dist_between: Option<f64>,
}

/// Of N samples with logits `[N, C]` and labels; `groups` are those of the C classes, in their order. Classes without samples
/// take no part in distances.
///
/// # Errors
/// Slices that do not fit, a label outside `0..classes`, numbers that are not finite, samples of fewer than two classes.
pub fn grouped(
    features: Features<'_>,
    logits: &[f64],
    classes: usize,
    labels: &[usize],
    groups: &[u32],
) -> Result<Grouped, EvaluateError> {
    check(logits, classes, labels)?;
    if groups.len() != classes {
        return Err(EvaluateError::Groups { groups: groups.len(), classes });
    }
    let present = present(features, classes, labels)?;
    let answers = logits.chunks_exact(classes).map(predicted);
    let alike = answers.zip(labels).filter(|(answer, label)| groups[*answer] == groups[**label]).count();
    let directions = directions(features, classes, labels);
    let (mut within, mut between) = (Vec::new(), Vec::new());
    for (place, one) in present.iter().enumerate() {
        for other in &present[place + 1..] {
            let pairs = if groups[*one] == groups[*other] { &mut within } else { &mut between };
            pairs.push(1.0 - dot(&directions[*one], &directions[*other]));
        }
    }
    Ok(Grouped {
        group_top1: 100.0 * alike as f64 / labels.len() as f64,
        dist_within: mean(&within),
        dist_between: mean(&between),
    })
}

fn mean(of: &[f64]) -> Option<f64> {
    (!of.is_empty()).then(|| of.iter().sum::<f64>() / of.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Directions of four classes in the plane: 0°, 90°, none, and 45°.
    const FEATURES: [f64; 8] = [2.0, 0.0, 0.0, 3.0, 0.0, 0.1, 7.0, 7.0];
    const LABELS: [usize; 4] = [0, 1, 1, 3];
    /// Answers: 0, 3, 0, 2.
    const LOGITS: [f64; 16] =
        [9.0, 1.0, 5.0, 2.0, 0.0, 1.0, 2.0, 3.0, 9.0, 1.0, 5.0, 1.0, 0.0, 0.0, 1.0, 0.0];

    fn of(groups: &[u32]) -> Result<Grouped, EvaluateError> {
        grouped(Features { values: &FEATURES, width: 2 }, &LOGITS, 4, &LABELS, groups)
    }

    #[test]
    fn values_worked_out_by_hand() {
        let near = 1.0 - 0.5f64.sqrt();
        let got = of(&[7, 0, 7, 0]).unwrap();
        // Of the same kind: 0 for 0, 3 for 1; not 0 for 1, not 2 for 3.
        assert_eq!(got.group_top1, 50.0);
        assert!((got.dist_within.unwrap() - near).abs() < 1e-12, "1 and 3: {got:?}");
        assert!((got.dist_between.unwrap() - (1.0 + near) / 2.0).abs() < 1e-12, "0 and 1, 0 and 3: {got:?}");
    }

    #[test]
    fn without_pairs_there_is_no_mean() {
        let one = of(&[0; 4]).unwrap();
        assert_eq!((one.group_top1, one.dist_between), (100.0, None));
        let each = of(&[0, 1, 2, 3]).unwrap();
        assert_eq!((each.group_top1, each.dist_within), (25.0, None), "as top-1");
    }

    #[test]
    fn groups_of_other_classes_are_refused() {
        assert_eq!(of(&[0; 3]), Err(EvaluateError::Groups { groups: 3, classes: 4 }));
    }
}
