//! Softmax and cross-entropy of a batch in one pass over its logits, computed in f64.

use rayon::prelude::*;

/// Rows that are worth a thread of their own.
fn rows_together(classes: usize) -> usize {
    const VALUES: usize = 1 << 13;
    VALUES.div_ceil(classes)
}

/// The mean over rows of `log(sum_c exp z_c) - z_label`; `z` `[labels][classes]`.
pub(in crate::kernels) fn cross_entropy(z: &[f32], classes: usize, labels: &[usize]) -> f64 {
    let of_row = |(z, &label): (&[f32], &usize)| {
        let (max, sum) = shifted_sum(z);
        sum.ln() - (f64::from(z[label]) - max)
    };
    let rows: Vec<f64> =
        z.par_chunks_exact(classes).zip(labels).with_min_len(rows_together(classes)).map(of_row).collect();
    rows.iter().sum::<f64>() / labels.len() as f64
}

/// The gradient of [`cross_entropy`] times `dy`.
pub(in crate::kernels) fn cross_entropy_backward(
    z: &[f32],
    classes: usize,
    labels: &[usize],
    dy: f64,
) -> Vec<f32> {
    let share = dy / labels.len() as f64;
    let mut dz = vec![0.0; z.len()];
    dz.par_chunks_exact_mut(classes)
        .zip(z.par_chunks_exact(classes).zip(labels))
        .with_min_len(rows_together(classes))
        .for_each(|(dz, (z, &label))| {
            let (max, sum) = shifted_sum(z);
            for (c, (dz, &z)) in dz.iter_mut().zip(z).enumerate() {
                let hit = if c == label { 1.0 } else { 0.0 };
                *dz = (((f64::from(z) - max).exp() / sum - hit) * share) as f32;
            }
        });
    dz
}

/// The largest value and the sum of `exp(z - largest)`. Unlike a comparison, `max` would lose NaN.
fn shifted_sum(z: &[f32]) -> (f64, f64) {
    let max =
        z.iter().fold(f64::NEG_INFINITY, |max, &z| if f64::from(z) <= max { max } else { f64::from(z) });
    (max, z.iter().map(|&z| (f64::from(z) - max).exp()).sum())
}
