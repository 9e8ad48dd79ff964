//! Pooling as candle operations.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::super::PoolGeometry;
use super::super::cpu::pool::{self, Grid, MaxPool};
use super::{tensor, values, with_values};

/// See [`super::super::max_pool2d`]; the shapes are checked.
pub(in super::super) fn max_pool2d(x: &Tensor, g: PoolGeometry) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    let PoolGeometry { kernel, stride, padding } = g;
    x.contiguous()?.apply_op1(Max(MaxPool { h, w, kernel, stride, padding }))
}

/// See [`super::super::adaptive_avg_pool2d`]; the shapes are checked.
pub(in super::super) fn adaptive_avg_pool2d(x: &Tensor, out: (usize, usize)) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    x.contiguous()?.apply_op1(Mean(Grid { size: (h, w), out }))
}

struct Max(MaxPool);

impl CustomOp1 for Max {
    fn name(&self) -> &'static str {
        "cohort-max-pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, c, _, _) = lx.shape().dims4()?;
        let y = pool::max(self.0, values(x, lx)?);
        Ok((CpuStorage::F32(y), (b, c, self.0.out_h(), self.0.out_w()).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_values(x, |xs| with_values(dy, |dy| Ok(pool::max_backward(self.0, xs, dy))))?;
        Ok(Some(tensor(dx, x.shape())?))
    }
}

struct Mean(Grid);

impl CustomOp1 for Mean {
    fn name(&self) -> &'static str {
        "cohort-adaptive-avg-pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, c, _, _) = lx.shape().dims4()?;
        let (h, w) = self.0.out;
        Ok((CpuStorage::F32(pool::grid_means(self.0, values(x, lx)?)), (b, c, h, w).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_values(dy, |dy| Ok(pool::grid_means_backward(self.0, dy)))?;
        Ok(Some(tensor(dx, x.shape())?))
    }
}
