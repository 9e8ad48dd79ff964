//! Several networks asked as one. Each function returns logits `[N, C]` of the ensemble, to be evaluated like those of
//! a network.

use super::{EvaluateError, log_softmax};

/// Mean of the members' logits. Its answers are those of their sum, which is the ensemble whose accuracy the authors of
/// Mutual Contrastive Learning report.
///
/// # Errors
/// No members, or members of different length.
pub fn mean_of_logits(members: &[&[f64]]) -> Result<Vec<f64>, EvaluateError> {
    let mut mean = vec![0.0; length(members)?];
    let share = 1.0 / members.len() as f64;
    for member in members {
        for (total, z) in mean.iter_mut().zip(*member) {
            *total += share * z;
        }
    }
    Ok(mean)
}

/// Logarithm of the mean of the members' softmax outputs. Its own softmax is that mean.
///
/// # Errors
/// No members, members of different length, or no whole number of rows of `classes`.
pub fn mean_of_softmax(members: &[&[f64]], classes: usize) -> Result<Vec<f64>, EvaluateError> {
    let length = length(members)?;
    if classes == 0 || !length.is_multiple_of(classes) {
        return Err(EvaluateError::Members);
    }
    let mut mean = Vec::with_capacity(length);
    for start in (0..length).step_by(classes) {
        let rows = members.iter().map(|member| log_softmax(&member[start..start + classes]));
        let rows: Vec<Vec<f64>> = rows.collect();
        for class in 0..classes {
            let top = rows.iter().map(|row| row[class]).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = rows.iter().map(|row| (row[class] - top).exp()).sum();
            mean.push(top + (sum / rows.len() as f64).ln());
        }
    }
    Ok(mean)
}

fn length(members: &[&[f64]]) -> Result<usize, EvaluateError> {
    let first = members.first().ok_or(EvaluateError::Members)?;
    if members.iter().any(|member| member.len() != first.len()) {
        return Err(EvaluateError::Members);
    }
    Ok(first.len())
}
