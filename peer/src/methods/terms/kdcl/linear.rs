//! The best convex combination of several networks' logits for one sample: α in the simplex that minimises
//! `CE(Σ α_i·z_i, c)`, a convex function.
//!
//! Weight moves between two networks at a time, from the one that raises the loss most to the one that lowers it most, as
//! far as it lowers the loss. The gap `Σ α_i·g_i - min g`, with g the slopes, bounds how far the loss is from the least
//! one (Jaggi, ICML 2013); it is brought to 1e-14 of the logits' size. What has no weight has exactly 0.

/// Most moves of weight for a sample: what is left after them is below the precision of what follows.
const MOVES_MAX: usize = 1000;

/// Most steps to the best move: as many halvings of the interval are below the precision of a number.
const STEPS_MAX: usize = 60;

/// The gap at which the weights are good enough, in units of the largest difference of logits (at least 1).
const GAP: f64 = 1e-14;

/// The weights `[M]` of the networks' logits `rows` (`[C]` each) for the class `class`.
pub(super) fn weights(rows: &[&[f64]], class: usize) -> Vec<f64> {
    let mut weights = vertex(best(rows, class), rows);
    let above: Vec<Vec<f64>> = rows.iter().map(|z| z.iter().map(|x| x - z[class]).collect()).collect();
    let above: Vec<&[f64]> = above.iter().map(Vec::as_slice).collect();
    let size = above.iter().flat_map(|z| z.iter()).fold(1f64, |top, x| top.max(x.abs()));
    for _ in 0..MOVES_MAX {
        let slopes = slopes(&above, &weights);
        let used = (0..weights.len()).filter(|i| weights[*i] > 0.0);
        let Some(from) = used.max_by(|a, b| slopes[*a].total_cmp(&slopes[*b])) else { break };
        let Some(to) = (0..weights.len()).min_by(|a, b| slopes[*a].total_cmp(&slopes[*b])) else { break };
        let mean: f64 = weights.iter().zip(&slopes).map(|(w, g)| w * g).sum();
        let gap = mean - slopes[to];
        if from == to || gap.is_nan() || gap <= GAP * size {
            break;
        }
        let moved = best_move(&above, &weights, from, to);
        if moved == 0.0 {
            break;
        }
        weights = shifted(&weights, from, to, moved);
    }
    weights
}

/// The network whose cross-entropy is the smallest; of equal ones the first.
pub(super) fn best(rows: &[&[f64]], class: usize) -> usize {
    let losses = rows.iter().map(|z| log_sum_exp(z) - z[class]);
    let mut best = (0, f64::INFINITY);
    for (i, loss) in losses.enumerate() {
        if loss < best.1 {
            best = (i, loss);
        }
    }
    best.0
}

/// All weight on one network.
pub(super) fn vertex(network: usize, rows: &[&[f64]]) -> Vec<f64> {
    (0..rows.len()).map(|i| f64::from(u8::from(i == network))).collect()
}

/// `Σ α_i·z_i[k]`; networks without weight do not enter, so that a vertex is a network's own logits to the bit.
pub(super) fn weighted(rows: &[&[f64]], weights: &[f64], k: usize) -> f64 {
    let used = rows.iter().zip(weights).filter(|(_, weight)| **weight != 0.0);
    used.map(|(z, weight)| weight * z[k]).sum()
}

/// How much weight goes from one network to another: the root of the loss's slope along the way, or all that there is.
/// Newton's steps, and the middle of the interval that holds the root where one would leave it.
fn best_move(above: &[&[f64]], weights: &[f64], from: usize, to: usize) -> f64 {
    let start: Vec<f64> = (0..above[to].len()).map(|k| weighted(above, weights, k)).collect();
    let way: Vec<f64> = above[to].iter().zip(above[from]).map(|(a, b)| a - b).collect();
    // The mean and the variance of the way are slope and curvature of the loss.
    let bend = |moved: f64| {
        let p = softmax(&start.iter().zip(&way).map(|(z, d)| z + moved * d).collect::<Vec<f64>>());
        let mean: f64 = p.iter().zip(&way).map(|(p, d)| p * d).sum();
        (mean, p.iter().zip(&way).map(|(p, d)| p * (d - mean) * (d - mean)).sum::<f64>())
    };
    let all = weights[from];
    if bend(all).0 <= 0.0 {
        return all;
    }
    let (mut low, mut high) = (0.0, all);
    let mut moved = 0.5 * all;
    for _ in 0..STEPS_MAX {
        let (slope, curvature) = bend(moved);
        if slope < 0.0 {
            low = moved;
        } else {
            high = moved;
        }
        let next = moved - slope / curvature;
        if next == moved {
            break;
        }
        moved = if next > low && next < high { next } else { 0.5 * (low + high) };
    }
    moved
}

fn shifted(weights: &[f64], from: usize, to: usize, moved: f64) -> Vec<f64> {
    let mut weights = weights.to_vec();
    weights[to] += moved;
    weights[from] = if moved == weights[from] { 0.0 } else { weights[from] - moved };
    weights
}

/// The slope of the loss by each weight: `Σ_k p_k·(z_i[k] - z_i[c])`.
fn slopes(above: &[&[f64]], weights: &[f64]) -> Vec<f64> {
    let classes = above.first().map_or(0, |z| z.len());
    let combined: Vec<f64> = (0..classes).map(|k| weighted(above, weights, k)).collect();
    let p = softmax(&combined);
    above.iter().map(|z| z.iter().zip(&p).map(|(z, p)| z * p).sum()).collect()
}

fn softmax(z: &[f64]) -> Vec<f64> {
    let log_sum = log_sum_exp(z);
    z.iter().map(|z| (z - log_sum).exp()).collect()
}

fn log_sum_exp(z: &[f64]) -> f64 {
    let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    top + z.iter().map(|x| (x - top).exp()).sum::<f64>().ln()
}
