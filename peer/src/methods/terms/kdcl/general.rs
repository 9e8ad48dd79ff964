//! One combination of the networks for all samples, from their errors on data that none of them learns from
//! (Guo et al., CVPR 2020, section 3.2.4, after Perrone and Cooper 1993).
//!
//! `C_ij = mean_n ⟨softmax(z_i)_n - onehot_n, softmax(z_j)_n - onehot_n⟩` and `w = C⁻¹1 / (1ᵀC⁻¹1)`: of all w that add up to
//! 1, the one with the least squared error. Weights may be negative. Networks that err alike make C singular;
//! then 1e-8 of the mean of its diagonal is added to the diagonal, and equal networks share their weight.

use candle_core::{DType, Result, Tensor};

use crate::methods::primitives::{check_alike, log_softmax, one_hot};

/// A pivot of less than this part of the largest entry is none.
const PIVOT_MIN: f64 = 1e-12;

/// What is added to the diagonal of a singular C, in units of its mean.
const RIDGE: f64 = 1e-8;

/// C `[M][M]` from the logits `[N, C]` of all M networks on the same N samples and their labels `[N]`.
///
/// # Errors
/// No networks or samples, logits of different shapes, a label that is no class.
pub fn error_products(logits: &[Tensor], labels: &Tensor) -> Result<Vec<Vec<f64>>> {
    let Some(first) = logits.first().filter(|z| z.elem_count() > 0) else {
        candle_core::bail!("weights of networks need at least one network and one sample");
    };
    let onehot = one_hot(labels, first)?;
    let mut errors = Vec::with_capacity(logits.len());
    for z in logits {
        check_alike(first, z)?;
        errors.push((log_softmax(&z.detach())?.exp()? - &onehot)?);
    }
    let samples = first.dim(0)? as f64;
    let mut products = vec![vec![0.0; errors.len()]; errors.len()];
    for (i, a) in errors.iter().enumerate() {
        for (j, b) in errors.iter().enumerate().take(i + 1) {
            let product = (a * b)?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            products[i][j] = product / samples;
            products[j][i] = products[i][j];
        }
    }
    Ok(products)
}

/// w `[M]` from C `[M][M]`. Networks without any error share equally.
///
/// # Errors
/// C is not square, or not finite.
pub fn weights(products: &[Vec<f64>]) -> Result<Vec<f64>> {
    let m = products.len();
    if m == 0 || products.iter().any(|row| row.len() != m || row.iter().any(|x| !x.is_finite())) {
        candle_core::bail!("the products of errors of {m} networks are no square of finite numbers");
    }
    let ridge = RIDGE * (0..m).map(|i| products[i][i]).sum::<f64>() / m as f64;
    let solved = solve(products, 0.0).or_else(|| solve(products, ridge));
    let Some(solved) = solved else { return Ok(vec![1.0 / m as f64; m]) };
    let total: f64 = solved.iter().sum();
    Ok(solved.into_iter().map(|x| x / total).collect())
}

/// `(C + ridge·I)⁻¹ 1` by elimination with the largest pivot of each column; none if there is no pivot.
fn solve(products: &[Vec<f64>], ridge: f64) -> Option<Vec<f64>> {
    let m = products.len();
    let largest = products.iter().flatten().fold(0f64, |top, x| top.max(x.abs()));
    let mut rows: Vec<Vec<f64>> = products.to_vec();
    for (i, row) in rows.iter_mut().enumerate() {
        row[i] += ridge;
        row.push(1.0);
    }
    for column in 0..m {
        let pivot = (column..m).max_by(|a, b| rows[*a][column].abs().total_cmp(&rows[*b][column].abs()))?;
        rows.swap(column, pivot);
        let pivot = rows[column].clone();
        if pivot[column].abs() <= PIVOT_MIN * largest {
            return None;
        }
        for row in rows.iter_mut().skip(column + 1) {
            let factor = row[column] / pivot[column];
            row.iter_mut().zip(&pivot).for_each(|(x, p)| *x -= factor * p);
        }
    }
    let mut solved = vec![0.0; m];
    for i in (0..m).rev() {
        let known: f64 = (i + 1..m).map(|j| rows[i][j] * solved[j]).sum();
        solved[i] = (rows[i][m] - known) / rows[i][i];
    }
    let total: f64 = solved.iter().sum();
    (total.is_finite() && total != 0.0).then_some(solved)
}
