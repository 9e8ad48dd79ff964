//! Rectifiers, their gates and the sum of two branches.

use std::sync::Arc;

use candle_core::{CpuStorage, Result, Tensor};

use super::super::cpu::isa::Isa;
use super::super::cpu::pointwise;
use super::flow::Flow;
use super::link::link;
use super::{tensor, with_values};

/// See [`super::super::relu`].
pub(in super::super) fn relu(x: &Tensor) -> Result<Tensor> {
    let y = with_values(x, |x| Ok(pointwise::relu(Isa::current(), x)))?;
    link("cohort-relu", &[x], (CpuStorage::F32(y), x.shape().clone()), |y, dy| {
        Ok([Some(masked(y, dy)?), None, None])
    })
}

/// See [`super::super::Gate::apply`]; the shapes are checked.
pub(in super::super) fn gate(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let gated = with_values(&masked(y, x)?, |gated| Ok(gated.to_vec()))?;
    let of_y = y.clone();
    link("cohort-gate", &[x], (CpuStorage::F32(gated), x.shape().clone()), move |_, dy| {
        Ok([Some(masked(&of_y, dy)?), None, None])
    })
}

/// As [`gate`], of maps.
pub(in super::super) fn gate_maps(x: &Flow, y: &Flow) -> Result<Flow> {
    let gated = pointwise::relu_backward(Isa::current(), y.values(), x.values());
    let (of_x, of_y) = (x.clone(), y.clone());
    Flow::new("cohort-gate-maps", &[x.token()], x.shape().clone(), gated, move |_, dy| {
        let dx = pointwise::relu_backward(Isa::current(), of_y.values(), &dy);
        Ok([of_x.send(Arc::new(dx))?, None, None])
    })
}

/// See [`super::super::add`]; the shapes are checked.
pub(in super::super) fn add(a: &Flow, b: &Flow) -> Result<Flow> {
    let sum = pointwise::sum(Isa::current(), a.values(), b.values());
    let (of_a, of_b) = (a.clone(), b.clone());
    Flow::new("cohort-add", &[a.token(), b.token()], a.shape().clone(), sum, move |_, dy| {
        Ok([of_a.send(Arc::clone(&dy))?, of_b.send(dy)?, None])
    })
}

/// `x` where `y`, a rectifier's output, is not zero.
fn masked(y: &Tensor, x: &Tensor) -> Result<Tensor> {
    let masked = with_values(y, |y| with_values(x, |x| Ok(pointwise::relu_backward(Isa::current(), y, x))))?;
    tensor(masked, y.shape())
}
