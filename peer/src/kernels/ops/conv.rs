//! Convolution of feature maps.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::super::ConvGeometry;
use super::super::cpu::conv::{self, Grouped};
use super::super::cpu::geometry::ConvShape;
use super::super::cpu::isa::Isa;
use super::flow::Flow;
use super::{tensor, with_values};

/// See [`super::super::conv2d`]; the shapes are checked.
pub(in super::super) fn conv2d(x: &Flow, w: &Tensor, g: ConvGeometry) -> Result<Flow> {
    let (batch, _, h, width) = x.shape().dims4()?;
    let (co, ci, kh, kw) = w.dims4()?;
    let (co_of_group, stride, padding) = (co / g.groups, g.stride, g.padding);
    let group = ConvShape { batch, ci, h, w: width, co: co_of_group, kh, kw, stride, padding };
    let shape = Grouped { group, groups: g.groups };
    let w = w.contiguous()?;
    let y = with_values(&w, |w| Ok(conv::forward(Isa::current(), shape, x.values(), w)))?;
    let (of_x, of_w) = (x.clone(), w.clone());
    let dims = (batch, co, group.out_h(), group.out_w()).into();
    Flow::new("cohort-conv2d", &[x.token(), &w], dims, y, move |_, dy| {
        let isa = Isa::current();
        let (mut dx, mut dw) = (None, None);
        // The images of the first layer need no gradient.
        if of_x.wants_gradient() {
            let by_x = with_values(&of_w, |w| Ok(conv::backward_data(isa, shape, w, &dy)))?;
            dx = of_x.send(Arc::new(by_x))?;
        }
        if of_w.track_op() {
            dw = Some(tensor(conv::backward_weights(isa, shape, of_x.values(), &dy), of_w.shape())?);
        }
        Ok([dx, dw, None])
    })
}
