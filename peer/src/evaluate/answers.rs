//! What networks answer, right or wrong: confusion of classes, and agreement of networks. Of equal logits the lower class
//! is the answer.

use super::{EvaluateError, check, predicted};

/// How often samples of each class were taken for each class: `[C][C]`, label first, then answer.
///
/// # Errors
/// Slices that do not fit, a label outside `0..classes`, a logit that is not finite.
pub fn confusion(logits: &[f64], classes: usize, labels: &[usize]) -> Result<Vec<Vec<u64>>, EvaluateError> {
    check(logits, classes, labels)?;
    let mut counts = vec![vec![0; classes]; classes];
    for (row, &label) in logits.chunks_exact(classes).zip(labels) {
        counts[label][predicted(row)] += 1;
    }
    Ok(counts)
}

/// On how many of the same samples each two of M networks give the same answer, percent: `[M][M]`, symmetric, 100 on the
/// diagonal. `members` are logits `[N, C]` each.
///
/// # Errors
/// No members or samples, members of different length, no whole number of rows of `classes`, a logit that is not finite.
pub fn agreement(members: &[&[f64]], classes: usize) -> Result<Vec<Vec<f64>>, EvaluateError> {
    let first = members.first().ok_or(EvaluateError::Members)?;
    let samples = first.len().checked_div(classes).unwrap_or(0);
    let labels = vec![0; samples];
    let mut answers = Vec::with_capacity(members.len());
    for member in members {
        if member.len() != first.len() {
            return Err(EvaluateError::Members);
        }
        check(member, classes, &labels)?;
        answers.push(member.chunks_exact(classes).map(predicted).collect::<Vec<_>>());
    }
    let same = |a: &[usize], b: &[usize]| a.iter().zip(b).filter(|(a, b)| a == b).count();
    let percent = |a: &Vec<usize>, b: &Vec<usize>| 100.0 * same(a, b) as f64 / samples as f64;
    Ok(answers.iter().map(|a| answers.iter().map(|b| percent(a, b)).collect()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_rows_and_answers_columns() {
        let logits = [0.0, 2.0, 1.0, 5.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 3.0];
        let counts = confusion(&logits, 3, &[1, 0, 1, 0]).unwrap();
        assert_eq!(counts, [[1, 0, 1], [1, 1, 0], [0, 0, 0]]);
        assert!(confusion(&logits, 3, &[1, 0, 1, 3]).is_err());
    }

    #[test]
    fn agreement_is_counted_for_each_pair() {
        let a = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0];
        let b = [1.0, 0.0, 0.0, 1.0, 0.0, 9.0, 2.0, 1.0];
        let c = [0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 3.0, 3.0];
        let agreed = agreement(&[&a, &b, &c], 2).unwrap();
        assert_eq!(agreed, [[100.0, 50.0, 0.0], [50.0, 100.0, 50.0], [0.0, 50.0, 100.0]]);
    }

    #[test]
    fn what_has_no_answers_is_refused() {
        assert_eq!(agreement(&[], 2), Err(EvaluateError::Members));
        assert_eq!(agreement(&[&[1.0, 2.0], &[1.0]], 2), Err(EvaluateError::Members));
        assert!(agreement(&[&[1.0, 2.0, 3.0]], 2).is_err() && agreement(&[&[]], 2).is_err());
        assert!(agreement(&[&[1.0, f64::NAN]], 2).is_err() && agreement(&[&[1.0]], 0).is_err());
    }
}
