//! The arithmetic that every loss is made of, in the log domain and without a guard inside any logarithm.
//!
//! Shapes: `B` rows of a batch, `C` classes, `E` embedding width. Arguments may have any float dtype; results have that
//! of [`widen`], but for [`unit()`]. Nothing here knows a model, a peer or a clock.

use candle_core::{D, DType, Device, Result, Tensor};

use crate::kernels::class_indices;

/// Added to scores that must not enter a softmax: its exponential is exactly 0, and unlike minus infinity it leaves
/// no NaN behind when a whole row is left out.
pub(super) const LEFT_OUT: f64 = -1e30;

/// The smallest squared length that [`unit`] divides by.
pub(super) const SQUARED_LENGTH_MIN: f64 = 1e-24;

/// `x` in the dtype in which losses are computed: f64, or f32 on Metal, which has no f64.
///
/// A divergence of nearly equal networks is a small difference of logarithms of order 1: in f32 it would keep three or
/// four digits. The tensors are small beside a network's, and the gradient returns in the dtype of `x`.
pub fn widen(x: &Tensor) -> Result<Tensor> {
    if !x.dtype().is_float() {
        candle_core::bail!("a loss needs floating point numbers, these are {:?}", x.dtype());
    }
    x.to_dtype(wide(x))
}

/// The sum over no terms: a constant 0 in the dtype of losses over `like`.
pub fn zero(like: &Tensor) -> Result<Tensor> {
    Tensor::zeros((), wide(like), like.device())
}

fn wide(x: &Tensor) -> DType {
    if x.device().is_metal() { DType::F32 } else { DType::F64 }
}

/// Numbers of one row after another as a constant `[rows, columns]` for losses over `like`.
pub(super) fn constant(values: Vec<f64>, (rows, columns): (usize, usize), like: &Tensor) -> Result<Tensor> {
    // Cast before it moves: Metal has no f64 to cast from.
    let values = Tensor::from_vec(values, (rows, columns), &Device::Cpu)?;
    values.to_dtype(wide(like))?.to_device(like.device())
}

/// One-hot rows `[B, C]` of integer labels `[B]`, a constant for losses over `like` `[B, C]`.
///
/// # Errors
/// A label outside `0..C`, or another number of labels than rows.
pub fn one_hot(labels: &Tensor, like: &Tensor) -> Result<Tensor> {
    let (batch, classes) = like.dims2()?;
    let labels = classes_of(labels, like)?;
    let mut values = vec![0.0; batch * classes];
    for (row, class) in labels.into_iter().enumerate() {
        values[row * classes + class] = 1.0;
    }
    constant(values, (batch, classes), like)
}

/// The classes of the rows of `logits` `[B, C]` by integer labels `[B]`.
///
/// # Errors
/// As [`one_hot`].
pub(super) fn classes_of(labels: &Tensor, logits: &Tensor) -> Result<Vec<usize>> {
    let (batch, classes) = logits.dims2()?;
    let count = labels.dims1()?;
    if count != batch {
        candle_core::bail!("{count} labels for {batch} rows of logits");
    }
    class_indices(labels, classes)
}

/// `H(q, z)` of each row, `-Σ_c q[n,c]·ls(z)[n,c]`, `[B]`.
///
/// `target` `[B, C]` holds distributions, to which no gradient flows; `logits` `[B, C]`.
///
/// # Errors
/// If the shapes differ.
pub fn cross_entropy_rows(target: &Tensor, logits: &Tensor) -> Result<Tensor> {
    check_same_shape(logits, target)?;
    (widen(target)?.detach() * log_softmax(logits)?)?.sum(D::Minus1)?.neg()
}

/// Length of each row of `x` `[B, E]`, `[B, 1]` in the dtype of losses. A zero row has length 0 and gradient 0.
pub fn length(x: &Tensor) -> Result<Tensor> {
    let squared = widen(x)?.sqr()?.sum_keepdim(D::Minus1)?;
    // The root has no slope at 0: there, that of 1 is taken, times the 0 that arrives from the squares.
    let empty = squared.eq(0.0)?.to_dtype(squared.dtype())?;
    (squared + &empty)?.sqrt()? - empty
}

/// Logarithm of the softmax over the last dimension, any shape.
///
/// The row maximum that keeps the exponentials in range is a constant: it cancels in the exact derivative, and
/// candle would otherwise send a gradient to every tied maximum.
pub fn log_softmax(z: &Tensor) -> Result<Tensor> {
    let z = widen(z)?;
    let shifted = z.broadcast_sub(&z.max_keepdim(D::Minus1)?.detach())?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    shifted.broadcast_sub(&log_sum)
}

/// Rows `x` `[B, E]` scaled to length 1, in the dtype of `x` (f32 for half precision): part of a network, not of a loss.
///
/// The lower bound on the length sits inside the root, so that a zero row gives zeros and a finite gradient.
pub fn unit(x: &Tensor) -> Result<Tensor> {
    let x = if x.dtype() == DType::F64 { x.clone() } else { x.to_dtype(DType::F32)? };
    let squared = x.sqr()?.sum_keepdim(D::Minus1)?;
    x.broadcast_div(&squared.maximum(SQUARED_LENGTH_MIN)?.sqrt()?)
}

/// Softened Kullback-Leibler divergence of a student from a teacher, `T² · mean over rows of KL(teacher ‖ student)`
/// (Hinton et al. 2015, section 2).
///
/// Both `[B, C]`; scalar. No gradient reaches the teacher.
pub fn soft_kl(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    let student = soften(student, temperature)?;
    let teacher = soften(teacher, temperature)?;
    soft_kl_of_logs(&student, &teacher, temperature)
}

/// `ls(z / T)`: the logarithm of the softened distribution, `[B, C]`.
pub fn soften(z: &Tensor, temperature: f64) -> Result<Tensor> {
    let z = widen(z)?;
    if temperature == 1.0 { log_softmax(&z) } else { log_softmax(&(z / temperature)?) }
}

/// [`soft_kl`] of two distributions given by their logarithms, each from [`soften`] with the same temperature.
pub fn soft_kl_of_logs(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    check_same_shape(student, teacher)?;
    soft_kl_rows(student, teacher, temperature)?.sum_all()
}

/// What each row contributes to [`soft_kl_of_logs`], `[B]`: with a weight for each row, the weighted sum is the
/// weighted mean over B (Yang et al., TPAMI 2023: weights are not normalised).
pub fn soft_kl_rows(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    let rows = student.dim(0)?.max(1) as f64;
    divergence(student, teacher)? * (temperature * temperature / rows)
}

/// `T² · KL(teacher ‖ student)` of each row, `[B]`: their mean is [`soft_kl`].
///
/// Logits `[B, C]`; no gradient reaches the teacher.
///
/// # Errors
/// If the shapes differ.
pub fn soft_kl_each(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    check_same_shape(student, teacher)?;
    divergence(&soften(student, temperature)?, &soften(teacher, temperature)?)? * (temperature * temperature)
}

/// `KL(teacher ‖ student)` of each row, `[B]`, of distributions given by their logarithms.
pub(super) fn divergence(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let teacher = teacher.detach();
    (teacher.exp()? * (teacher - student)?)?.sum(D::Minus1)
}

/// That the logits of two networks of a cohort have one shape.
pub(super) fn check_alike(one: &Tensor, other: &Tensor) -> Result<()> {
    if one.dims() != other.dims() {
        candle_core::bail!("logits of a cohort differ in shape: {:?} and {:?}", one.dims(), other.dims());
    }
    Ok(())
}

pub(super) fn check_same_shape(student: &Tensor, teacher: &Tensor) -> Result<()> {
    if student.dims() != teacher.dims() {
        candle_core::bail!(
            "student and teacher differ in shape: {:?} and {:?}",
            student.dims(),
            teacher.dims()
        );
    }
    Ok(())
}

/// Which columns are positives of which anchor, from the labels of one batch: made once, used for every score matrix
/// of a step.
#[derive(Debug, Clone)]
pub struct Positives {
    /// `[B, B]`: 1 / (V · positives of the row) at the positives of a valid anchor, else 0.
    weights: Tensor,
    /// `[B, B]`: [`LEFT_OUT`] on the diagonal, else 0.
    no_self: Tensor,
}

impl Positives {
    /// From integer labels `[B]`, for scores on the device of `like`.
    ///
    /// The positives of an anchor are the *other* samples of its class. Anchors without one take no part, and the
    /// mean runs over the V anchors that are left; where the published code would divide 0 by 0 (no sample shares
    /// its class, or B = 1) the weights are all 0.
    pub fn new(labels: &Tensor, like: &Tensor) -> Result<Self> {
        let dtype = wide(like);
        let batch = labels.dims1()?;
        let labels = labels.to_device(like.device())?;
        let same = labels.reshape((batch, 1))?.broadcast_eq(&labels.reshape((1, batch))?)?;
        let eye = Tensor::eye(batch, dtype, like.device())?;
        let positive = (same.to_dtype(dtype)? - &eye)?;
        let count = positive.sum_keepdim(1)?;
        let valid = count.minimum(1.0)?.sum_all()?.maximum(1.0)?;
        let weights = positive.broadcast_div(&count.maximum(1.0)?)?.broadcast_div(&valid)?;
        Ok(Self { weights, no_self: (eye * LEFT_OUT)? })
    }

    /// `[B, B]`: 1 / (V · positives of the row) at the positives of a valid anchor, else 0.
    pub(super) fn weights(&self) -> &Tensor {
        &self.weights
    }
}

/// Supervised contrastive term of a score matrix `[B, B]` (rows are anchors, columns the samples they are contrasted
/// with, already divided by the temperature); scalar (Khosla et al. 2020, equation 2, for two views of one batch).
///
/// The anchor's own column is neither positive nor in the denominator, for scores across two networks as well.
pub fn contrastive(scores: &Tensor, positives: &Positives) -> Result<Tensor> {
    contrastive_rows(scores, positives)?.sum_all()
}

/// What each anchor contributes to [`contrastive`], `[B]`: the mean over the V anchors that have a positive is in it, so
/// with a weight for each anchor the weighted sum is the weighted mean over V. 0 for an anchor without a positive.
pub fn contrastive_rows(scores: &Tensor, positives: &Positives) -> Result<Tensor> {
    let log_share = log_softmax(&(widen(scores)? + &positives.no_self)?)?;
    (log_share * &positives.weights)?.sum(D::Minus1)?.neg()
}
