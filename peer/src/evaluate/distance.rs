//! How near the classes lie to each other that a network takes for similar, in the space of its last features.
//!
//! The names Dist^C and Dist^S are those of Yang et al. (AAAI 2019), who want networks that tolerate similar classes. Their
//! definitions are not public; these are ours, and values are not comparable with the paper's:
//!
//! ```text
//! μ_c     = unit(mean of unit(f_n) over the samples n of class c)        δ(c, c') = 1 - ⟨μ_c, μ_c'⟩
//! Dist^S  = mean over samples of 1/(K-1)·Σ_{k=2..K} δ(a_1, a_k)          a_k the class of the k-th highest logit
//! Dist^C  = mean over classes of 1/(K-1)·Σ δ(c, c')                       over the K-1 other classes c' that have the
//!                                                                         highest mean probability on samples of c
//! ```

use serde::{Deserialize, Serialize};

use super::{EvaluateError, check, log_softmax};

/// The smallest squared length that a feature is divided by.
const SQUARED_LENGTH_MIN: f64 = 1e-24;

/// Both distances, 0 (the same direction) to 2 (opposite). Smaller is nearer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Distances {
    /// Dist^C, by classes.
    #[serde(rename = "dist_c")]
    pub by_class: f64,
    /// Dist^S, by samples.
    #[serde(rename = "dist_s")]
    pub by_sample: f64,
}

/// Features `[N, D]` of samples, row after row.
#[derive(Debug, Clone, Copy)]
pub struct Features<'a> {
    /// N·D numbers.
    pub values: &'a [f64],
    /// D.
    pub width: usize,
}

/// The distances on N samples with logits `[N, C]` and labels; `ranks` is K, usually 5.
///
/// Classes without samples have no direction and take no part, as if there were fewer classes; K is at most the number of
/// the others, at least 2. Of equal logits or probabilities the lower class goes first.
///
/// # Errors
/// Slices that do not fit, a label outside `0..classes`, numbers that are not finite, samples of fewer than two classes.
pub fn distances(
    features: Features<'_>,
    logits: &[f64],
    classes: usize,
    labels: &[usize],
    ranks: usize,
) -> Result<Distances, EvaluateError> {
    check(logits, classes, labels)?;
    let samples = labels.len();
    let present = present(features, classes, labels)?;
    let secondary = ranks.clamp(2, present.len()) - 1;
    let directions = directions(features, classes, labels);
    let mean_distance = |from: usize, order: &[usize]| {
        let others = order.iter().filter(|class| **class != from).take(secondary);
        others.map(|to| 1.0 - dot(&directions[from], &directions[*to])).sum::<f64>() / secondary as f64
    };
    let mut by_sample = 0.0;
    let mut probabilities = vec![vec![0.0; classes]; classes];
    for (row, &label) in logits.chunks_exact(classes).zip(labels) {
        let order = descending(&present, row);
        by_sample += mean_distance(order[0], &order);
        probabilities[label].iter_mut().zip(log_softmax(row)).for_each(|(sum, ls)| *sum += ls.exp());
    }
    let of_class = |class: &usize| mean_distance(*class, &descending(&present, &probabilities[*class]));
    let by_class = present.iter().map(of_class).sum::<f64>() / present.len() as f64;
    Ok(Distances { by_class, by_sample: by_sample / samples as f64 })
}

/// The classes that have samples, at least two, if the features are those of the samples.
pub(super) fn present(
    Features { values, width }: Features<'_>,
    classes: usize,
    labels: &[usize],
) -> Result<Vec<usize>, EvaluateError> {
    let samples = labels.len();
    if width == 0 || samples.checked_mul(width) != Some(values.len()) {
        return Err(EvaluateError::Features { values: values.len(), samples, width });
    }
    if let Some(at) = values.iter().position(|x| !x.is_finite()) {
        return Err(EvaluateError::NotFinite { sample: at / width });
    }
    let present: Vec<usize> = (0..classes).filter(|class| labels.contains(class)).collect();
    match present.len() {
        0 | 1 => Err(EvaluateError::FewClasses { present: present.len() }),
        _ => Ok(present),
    }
}

/// `μ_c` of each class; zeros without samples.
pub(super) fn directions(features: Features<'_>, classes: usize, labels: &[usize]) -> Vec<Vec<f64>> {
    let mut sums = vec![vec![0.0; features.width]; classes];
    for (feature, &label) in features.values.chunks_exact(features.width).zip(labels) {
        sums[label].iter_mut().zip(unit(feature)).for_each(|(sum, x)| *sum += x);
    }
    // The length of a sum and of a mean are cut away alike.
    sums.iter().map(|sum| unit(sum)).collect()
}

fn unit(x: &[f64]) -> Vec<f64> {
    let length = dot(x, x).max(SQUARED_LENGTH_MIN).sqrt();
    x.iter().map(|x| x / length).collect()
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Classes by what they score, the highest first.
fn descending(classes: &[usize], scores: &[f64]) -> Vec<usize> {
    let mut order = classes.to_vec();
    // + 0.0, so that -0.0 is no less than 0.0.
    order.sort_by(|a, b| (scores[*b] + 0.0).total_cmp(&(scores[*a] + 0.0)));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Directions of four classes in the plane: 0°, 90°, 180°, and 45°; the third has no samples.
    const FEATURES: [f64; 10] = [2.0, 0.0, 0.5, 0.0, 0.0, 3.0, 0.0, 0.1, 7.0, 7.0];
    const LABELS: [usize; 5] = [0, 0, 1, 1, 3];
    const LOGITS: [f64; 20] = [
        9.0, 1.0, 5.0, 2.0, // 0: 0, 3, 1
        9.0, 3.0, 5.0, 1.0, // 0: 0, 1, 3
        1.0, 9.0, 5.0, 2.0, // 1: 1, 3, 0
        2.0, 1.0, 5.0, 3.0, // 1: 3, 0, 1
        0.0, 1.0, 5.0, 9.0, // 3: 3, 1, 0
    ];

    fn of(ranks: usize) -> Distances {
        distances(Features { values: &FEATURES, width: 2 }, &LOGITS, 4, &LABELS, ranks).unwrap()
    }

    #[test]
    fn values_worked_out_by_hand() {
        let near = 1.0 - 0.5f64.sqrt();
        // Second class of each sample: 3 (near), 1 (1), 3 (near), 0 (near), 1 (near).
        let two = of(2);
        assert!((two.by_sample - (4.0 * near + 1.0) / 5.0).abs() < 1e-12, "{two:?}");
        // Likeliest other class of 0: 1 (e³ + e¹ in all against e² + e¹), at distance 1; of 1: 3; of 3: 1.
        assert!((two.by_class - (1.0 + 2.0 * near) / 3.0).abs() < 1e-12, "{two:?}");
        // All three classes that are there: 0 and 1 are far from each other, 3 is near both.
        let all = of(5);
        assert_eq!(all, of(3));
        let (far, middle) = ((1.0 + near) / 2.0, near);
        assert!((all.by_class - (2.0 * far + middle) / 3.0).abs() < 1e-12, "{all:?}");
        assert!((all.by_sample - (3.0 * far + 2.0 * middle) / 5.0).abs() < 1e-12, "{all:?}");
    }

    #[test]
    fn what_has_no_distance_is_refused() {
        let with = |values: &[f64], width, labels: &[usize]| {
            distances(Features { values, width }, &LOGITS, 4, labels, 5).unwrap_err()
        };
        assert_eq!(with(&FEATURES, 2, &[1; 5]), EvaluateError::FewClasses { present: 1 });
        let unfit = EvaluateError::Features { values: 10, samples: 5, width: 3 };
        assert_eq!(with(&FEATURES, 3, &LABELS), unfit);
        let mut diverged = FEATURES;
        diverged[5] = f64::NAN;
        assert_eq!(with(&diverged, 2, &LABELS), EvaluateError::NotFinite { sample: 2 });
    }

    #[test]
    fn a_feature_of_length_zero_points_nowhere() {
        let got = distances(Features { values: &[0.0; 4], width: 2 }, &[1.0, 0.0, 0.0, 1.0], 2, &[0, 1], 5);
        assert_eq!(got.unwrap(), Distances { by_class: 1.0, by_sample: 1.0 });
    }
}
