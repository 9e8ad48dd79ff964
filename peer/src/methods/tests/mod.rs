//! The losses against printed reference values (float64, an independent PyTorch implementation that was checked
//! against the authors' code), finite differences and closed forms.

use candle_core::{DType, Device, Result, Tensor, Var};

mod logits;
mod mcl;
mod memory;
mod primitives;
mod vocabulary;

pub(super) const BATCH: usize = 6;
pub(super) const CLASSES: usize = 5;
pub(super) const WIDTH: usize = 4;
pub(super) const LABELS: [i64; BATCH] = [0, 0, 1, 1, 2, 2];

pub(super) fn labels(values: &[i64]) -> Result<Tensor> {
    Tensor::from_slice(values, values.len(), &Device::Cpu)
}

pub(super) fn filled(rows: usize, columns: usize, f: impl Fn(f64, f64) -> f64) -> Result<Tensor> {
    let values = (0..rows).flat_map(|n| (0..columns).map(move |c| (n, c)));
    let values: Vec<f64> = values.map(|(n, c)| f(n as f64, c as f64)).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu)
}

/// `z_i[n,c] = 3 sin(0.7(i+1) + 1.3n + 2.1c)`.
pub(super) fn logits_of(i: usize) -> Result<Tensor> {
    filled(BATCH, CLASSES, |n, c| 3.0 * (0.7 * (i + 1) as f64 + 1.3 * n + 2.1 * c).sin())
}

/// `v_i = unit(cos(0.9(i+1) + 1.1n + 1.7d) + 0.1d)`.
pub(super) fn embedding_of(i: usize) -> Result<Tensor> {
    let raw = filled(BATCH, WIDTH, |n, d| (0.9 * (i + 1) as f64 + 1.1 * n + 1.7 * d).cos() + 0.1 * d)?;
    super::primitives::unit(&raw)
}

/// `f_i[n,d] = 1 + sin(0.5(i+1) + 0.9n + 1.2d)`.
pub(super) fn feature_of(i: usize) -> Result<Tensor> {
    filled(BATCH, WIDTH, |n, d| 1.0 + (0.5 * (i + 1) as f64 + 0.9 * n + 1.2 * d).sin())
}

/// `W[c,d] = cos(0.8c + 0.3d)`, the weight of a classifier.
pub(super) fn classifier() -> Result<Tensor> {
    filled(CLASSES, WIDTH, |c, d| (0.8 * c + 0.3 * d).cos())
}

pub(super) fn all(m: usize, one: impl Fn(usize) -> Result<Tensor>) -> Result<Vec<Tensor>> {
    (0..m).map(one).collect()
}

/// The same tensors as variables, and as the tensors that a loss is made of.
pub(super) fn variables(tensors: &[Tensor]) -> Result<(Vec<Var>, Vec<Tensor>)> {
    let variables: Vec<Var> = tensors.iter().map(Var::from_tensor).collect::<Result<_>>()?;
    let tensors = variables.iter().map(|v| v.as_tensor().clone()).collect();
    Ok((variables, tensors))
}

pub(super) fn value(scalar: &Tensor) -> f64 {
    scalar.to_dtype(DType::F64).and_then(|t| t.to_scalar()).unwrap()
}

pub(super) fn entries(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).and_then(|t| t.flatten_all()?.to_vec1()).unwrap()
}

/// The gradient of a scalar for one variable; zeros where none arrives.
pub(super) fn gradient(loss: &Tensor, of: &Var) -> Vec<f64> {
    match loss.backward().unwrap().get(of.as_tensor()) {
        Some(gradient) => entries(gradient),
        None => vec![0.0; of.elem_count()],
    }
}

pub(super) fn frobenius(entries: &[f64]) -> f64 {
    entries.iter().map(|x| x * x).sum::<f64>().sqrt()
}

pub(super) fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[track_caller]
pub(super) fn close(got: f64, expected: f64, tolerance: f64) {
    let allowed = tolerance * expected.abs().max(1.0);
    assert!((got - expected).abs() <= allowed, "got {got}, expected {expected} within {allowed:e}");
}

/// Compares the gradient of `loss` for its argument with central differences in f64.
#[track_caller]
pub(super) fn check_gradient(at: &Tensor, loss: impl Fn(&Tensor) -> Result<Tensor>) {
    const STEP: f64 = 1e-6;
    let variable = Var::from_tensor(at).unwrap();
    let analytic = gradient(&loss(variable.as_tensor()).unwrap(), &variable);
    let base = entries(at);
    for (k, analytic) in analytic.iter().enumerate() {
        let shifted = |sign: f64| {
            let mut moved = base.clone();
            moved[k] += sign * STEP;
            value(&loss(&Tensor::from_vec(moved, at.dims(), at.device()).unwrap()).unwrap())
        };
        let numeric = (shifted(1.0) - shifted(-1.0)) / (2.0 * STEP);
        close(*analytic, numeric, 1e-7);
    }
}

/// Calls a term with a student's logits, a teacher's and labels from the edges of what networks say (±10⁴, ties, all
/// zero, a batch of one), in both precisions: its values and its gradient for the student must be finite.
#[track_caller]
pub(super) fn check_finite(rows: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>) {
    let extreme = [[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, 0.0], [1e4, 1e4, 1e4], [-1e4, 0.0, 9.9e3]];
    let opposite = [[-1e4, 1e4, 0.0], [-1e4, 1e4, 1e4], [1e4, 0.0, -1e4], [0.0, 0.0, 0.0], [1e4, -1e4, 1e4]];
    let y = labels(&[0, 1, 2, 0, 1]).unwrap();
    for dtype in [DType::F32, DType::F64] {
        let of = |rows: &[[f64; 3]]| {
            let tensor = Tensor::from_vec(rows.concat(), (rows.len(), 3), &Device::Cpu);
            tensor.and_then(|rows| rows.to_dtype(dtype)).unwrap()
        };
        for (student, teacher) in [(&extreme, &opposite), (&opposite, &extreme), (&extreme, &extreme)] {
            for (from, count) in [(0, 5), (0, 1), (1, 1), (2, 1), (3, 1), (4, 1)] {
                let part = from..from + count;
                let student = Var::from_tensor(&of(&student[part.clone()])).unwrap();
                let term = rows(student.as_tensor(), &of(&teacher[part]), &y.narrow(0, from, count).unwrap())
                    .unwrap();
                assert!(entries(&term).iter().all(|x| x.is_finite()), "{dtype:?} {term}");
                let slopes = gradient(&term.sum_all().unwrap(), &student);
                assert!(slopes.iter().all(|g| g.is_finite()), "{dtype:?} {slopes:?}");
            }
        }
    }
}
