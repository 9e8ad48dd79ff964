//! Rectifier, its gates and global average pooling as candle operations.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use super::super::cpu::isa::Isa;
use super::super::cpu::pointwise;
use super::{tensor, values, with_values};

/// See [`super::super::relu`].
pub(in super::super) fn relu(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Relu)
}

/// See [`super::super::global_avg_pool`].
pub(in super::super) fn global_avg_pool(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(GlobalAvgPool)
}

/// See [`super::super::Gate::apply`]; the shapes are checked.
pub(in super::super) fn gate(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op2(&y.contiguous()?, Gate)
}

struct Relu;

impl CustomOp1 for Relu {
    fn name(&self) -> &'static str {
        "cohort-relu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(pointwise::relu(Isa::current(), values(x, lx)?)), lx.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx =
            with_values(y, |y| with_values(dy, |dy| Ok(pointwise::relu_backward(Isa::current(), y, dy))))?;
        Ok(Some(tensor(dx, y.shape())?))
    }
}

/// The first argument where the second, a rectifier's output, is not zero.
struct Gate;

impl CustomOp2 for Gate {
    fn name(&self) -> &'static str {
        "cohort-gate"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        y: &CpuStorage,
        ly: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let gated = pointwise::relu_backward(Isa::current(), values(y, ly)?, values(x, lx)?);
        Ok((CpuStorage::F32(gated), lx.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        y: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx =
            with_values(y, |y| with_values(dy, |dy| Ok(pointwise::relu_backward(Isa::current(), y, dy))))?;
        Ok((Some(tensor(dx, y.shape())?), None))
    }
}

struct GlobalAvgPool;

impl CustomOp1 for GlobalAvgPool {
    fn name(&self) -> &'static str {
        "cohort-global-avg-pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, c, h, w) = lx.shape().dims4()?;
        Ok((CpuStorage::F32(pointwise::plane_means(Isa::current(), values(x, lx)?, h * w)), (b, c).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, h, w) = x.dims4()?;
        let dx = with_values(dy, |dy| Ok(pointwise::plane_means_backward(dy, h * w)))?;
        Ok(Some(tensor(dx, x.shape())?))
    }
}
