//! Runs a case in both precisions and compares.

use anyhow::{Context, Result};
use candle_core::{DType, Tensor};

use crate::case::{Case, Tensors, Trial};
use crate::terms;

/// How far a result may be from the expected one, relative to the largest absolute entry of the expected tensor.
struct Tolerance {
    dtype: DType,
    value: f64,
    gradient: f64,
}

/// Tensors whose entries are all smaller than this are compared as if one had this size: a result that is 0, or the
/// rounding error of numbers around 1, has no relative precision.
const SCALE_MIN: f64 = 1e-6;

const TOLERANCES: [Tolerance; 2] = [
    Tolerance { dtype: DType::F64, value: 1e-9, gradient: 1e-9 },
    Tolerance { dtype: DType::F32, value: 1e-5, gradient: 1e-4 },
];

/// What double precision can promise of a file whose arguments were rounded to f32 after the results had been computed.
const ROUNDED: Tolerance = Tolerance { dtype: DType::F64, value: 1e-7, gradient: 1e-7 };

/// What differs, one sentence each. Whether the arguments are `rounded` versions of those that the results belong to.
pub(crate) fn check(case: &Case, rounded: bool) -> Result<Vec<String>> {
    let term = terms::find(&case.term).with_context(|| format!("unknown term `{}`", case.term))?;
    let mut complaints = Vec::new();
    for tolerance in &TOLERANCES {
        let tolerance = if rounded && tolerance.dtype == DType::F64 { &ROUNDED } else { tolerance };
        let trial = Trial::new(case, tolerance.dtype)?;
        let outputs = term(&trial).with_context(|| format!("{:?}", tolerance.dtype))?;
        let gradients = gradients(&trial, &outputs)?;
        let mut compare = |kind: &str, expected: &Tensors, got: &Tensors, relative: f64| -> Result<()> {
            for (name, expected) in expected {
                let got = got.get(name).with_context(|| format!("the term has no {kind}.{name}"))?;
                if let Some(words) = difference(got, expected, relative)? {
                    complaints.push(format!("{:?} {kind}.{name}: {words}", tolerance.dtype));
                }
            }
            Ok(())
        };
        compare("out", &case.outputs, &outputs, tolerance.value)?;
        compare("grad", &case.gradients, &gradients, tolerance.gradient)?;
    }
    Ok(complaints)
}

/// Gradients of the loss for the variables of a trial; zeros where none arrives.
fn gradients(trial: &Trial<'_>, outputs: &Tensors) -> Result<Tensors> {
    if trial.variables.is_empty() {
        return Ok(Tensors::new());
    }
    let store =
        outputs.get("loss").context("gradients are expected, but the term has no loss")?.backward()?;
    let mut gradients = Tensors::new();
    for (name, variable) in &trial.variables {
        let gradient = store.get(variable.as_tensor()).cloned();
        gradients.insert(name.clone(), gradient.map_or_else(|| variable.zeros_like(), Ok)?);
    }
    Ok(gradients)
}

/// In words, if the tensors differ by more than allowed.
fn difference(got: &Tensor, expected: &Tensor, relative: f64) -> Result<Option<String>> {
    if got.dims() != expected.dims() {
        return Ok(Some(format!("shape {:?}, expected {:?}", got.dims(), expected.dims())));
    }
    let entries = |t: &Tensor| t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let (got, expected) = (entries(got)?, entries(expected)?);
    let scale = expected.iter().fold(SCALE_MIN, |top, x| top.max(x.abs()));
    let close = |g: f64, e: f64| (g - e).abs() <= relative * scale;
    // A comparison with NaN is false: NaN is close to nothing.
    let off = got.iter().zip(&expected).position(|(g, e)| !close(*g, *e));
    Ok(off.map(|at| {
        let (g, e) = (got[at], expected[at]);
        format!("entry {at} is {g:e}, expected {e:e}, off by {:.1e} of {scale:.3e}", (g - e).abs() / scale)
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::Device;

    use super::*;

    /// Cross-entropy of one sample with two equal logits.
    fn case(term: &str, loss: f64, gradient: [f64; 2]) -> Case {
        let cpu = &Device::Cpu;
        let metadata = HashMap::from([("term".to_owned(), term.to_owned())]);
        let tensors = HashMap::from([
            ("in.z".to_owned(), Tensor::new(&[[1f32, 1.0]], cpu).unwrap()),
            ("in.y".to_owned(), Tensor::new(&[0i32], cpu).unwrap()),
            ("out.loss".to_owned(), Tensor::new(loss, cpu).unwrap()),
            ("grad.z".to_owned(), Tensor::new(&[gradient], cpu).unwrap()),
        ]);
        Case::new(&metadata, tensors).unwrap()
    }

    const LOSS: f64 = std::f64::consts::LN_2;

    #[test]
    fn a_right_case_passes() {
        assert_eq!(check(&case("ce", LOSS, [-0.5, 0.5]), false).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn wrong_values_and_gradients_are_named_in_each_precision() {
        let complaints = check(&case("ce", LOSS * 1.0001, [-0.5, 0.501]), false).unwrap().join("\n");
        for expected in ["F64 out.loss", "F32 out.loss", "F64 grad.z: entry 1", "F32 grad.z: entry 1"] {
            assert!(complaints.contains(expected), "{complaints}");
        }
        let complaints = check(&case("ce", LOSS * (1.0 + 1e-8), [-0.5, 0.5]), false).unwrap();
        assert_eq!(complaints.len(), 1, "{complaints:?}");
    }

    #[test]
    fn nan_and_other_shapes_differ_from_everything() {
        let nan = Tensor::new(&[f64::NAN, 1.0], &Device::Cpu).unwrap();
        let one = Tensor::new(&[1f64, 1.0], &Device::Cpu).unwrap();
        assert!(difference(&nan, &one, 1.0).unwrap().is_some());
        assert!(difference(&one, &nan, 1.0).unwrap().is_some());
        assert!(difference(&one.unsqueeze(0).unwrap(), &one, 1.0).unwrap().is_some());
    }

    #[test]
    fn an_unknown_term_is_named() {
        let error = check(&case("telepathy", LOSS, [-0.5, 0.5]), false).unwrap_err();
        assert!(error.to_string().contains("unknown term `telepathy`"), "{error}");
    }
}
