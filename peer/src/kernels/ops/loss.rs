//! Softmax and cross-entropy as one operation.

use candle_core::{CpuStorage, DType, Result, Shape, Tensor};

use super::super::cpu::loss;
use super::link::link;
use super::{tensor, with_values};

/// See [`super::super::softmax_cross_entropy`]; the labels are checked.
pub(in super::super) fn softmax_cross_entropy(logits: &Tensor, labels: Vec<usize>) -> Result<Tensor> {
    let (_, classes) = logits.dims2()?;
    let mean = with_values(logits, |z| Ok(loss::cross_entropy(z, classes, &labels)))?;
    let z = logits.detach();
    let result = (CpuStorage::F64(vec![mean]), Shape::from(()));
    link("cohort-softmax-cross-entropy", &[logits], result, move |_, dy| {
        let dy = dy.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        let dz = with_values(&z, |z| Ok(loss::cross_entropy_backward(z, classes, &labels, dy)))?;
        Ok([Some(tensor(dz, z.shape())?), None, None])
    })
}
