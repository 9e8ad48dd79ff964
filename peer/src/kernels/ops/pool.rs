//! Pooling of feature maps.

use std::sync::Arc;

use candle_core::{CpuStorage, Result, Tensor};

use super::super::PoolGeometry;
use super::super::cpu::isa::Isa;
use super::super::cpu::pointwise::{plane_means, plane_means_backward};
use super::super::cpu::pool::{self, Grid, MaxPool};
use super::flow::Flow;
use super::link::link;
use super::with_values;

/// See [`super::super::max_pool2d`]; the shapes are checked.
pub(in super::super) fn max_pool2d(x: &Flow, g: PoolGeometry) -> Result<Flow> {
    let (b, c, h, w) = x.shape().dims4()?;
    let PoolGeometry { kernel, stride, padding } = g;
    let pool = MaxPool { h, w, kernel, stride, padding };
    let (y, of_x) = (pool::max(pool, x.values()), x.clone());
    let shape = (b, c, pool.out_h(), pool.out_w()).into();
    Flow::new("cohort-max-pool", &[x.token()], shape, y, move |_, dy| {
        let dx = pool::max_backward(pool, of_x.values(), &dy);
        Ok([of_x.send(Arc::new(dx))?, None, None])
    })
}

/// See [`super::super::adaptive_avg_pool2d`]; the shapes are checked.
pub(in super::super) fn adaptive_avg_pool2d(x: &Flow, out: (usize, usize)) -> Result<Flow> {
    let (b, c, h, w) = x.shape().dims4()?;
    let grid = Grid { size: (h, w), out };
    let (y, of_x) = (pool::grid_means(grid, x.values()), x.clone());
    Flow::new("cohort-adaptive-avg-pool", &[x.token()], (b, c, out.0, out.1).into(), y, move |_, dy| {
        Ok([of_x.send(Arc::new(pool::grid_means_backward(grid, &dy)))?, None, None])
    })
}

/// See [`super::super::global_avg_pool`]; the shapes are checked.
pub(in super::super) fn global_avg_pool(x: &Flow) -> Result<Tensor> {
    let (b, c, h, w) = x.shape().dims4()?;
    let means = plane_means(Isa::current(), x.values(), h * w);
    let of_x = x.clone();
    let result = (CpuStorage::F32(means), (b, c).into());
    link("cohort-global-avg-pool", &[x.token()], result, move |_, dy| {
        let dx = with_values(dy, |dy| Ok(plane_means_backward(dy, h * w)))?;
        Ok([of_x.send(Arc::new(dx))?, None, None])
    })
}
