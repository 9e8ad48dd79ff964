//! Softmax and cross-entropy as one candle operation.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};

use super::super::cpu::loss;
use super::{tensor, values, with_values};

/// See [`super::super::softmax_cross_entropy`]; the labels are checked.
pub(in super::super) fn softmax_cross_entropy(logits: &Tensor, labels: Vec<usize>) -> Result<Tensor> {
    logits.contiguous()?.apply_op1(CrossEntropy(labels))
}

/// The labels of the rows.
struct CrossEntropy(Vec<usize>);

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cohort-softmax-cross-entropy"
    }

    fn cpu_fwd(&self, z: &CpuStorage, lz: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, classes) = lz.shape().dims2()?;
        let mean = loss::cross_entropy(values(z, lz)?, classes, &self.0);
        Ok((CpuStorage::F64(vec![mean]), Shape::from(())))
    }

    fn bwd(&self, z: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        let classes = z.dim(1)?;
        let dz = with_values(z, |z| Ok(loss::cross_entropy_backward(z, classes, &self.0, dy)))?;
        Ok(Some(tensor(dz, z.shape())?))
    }
}
