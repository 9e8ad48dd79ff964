//! Convolution as a candle operation.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::super::ConvGeometry;
use super::super::cpu::conv::{self, Grouped};
use super::super::cpu::geometry::ConvShape;
use super::super::cpu::isa::Isa;
use super::{tensor, values, with_values};

/// See [`super::super::conv2d`]; the shapes are checked.
pub(in super::super) fn conv2d(x: &Tensor, w: &Tensor, g: ConvGeometry) -> Result<Tensor> {
    let (batch, _, h, width) = x.dims4()?;
    let (co, ci, kh, kw) = w.dims4()?;
    let (co, stride, padding) = (co / g.groups, g.stride, g.padding);
    let group = ConvShape { batch, ci, h, w: width, co, kh, kw, stride, padding };
    x.contiguous()?.apply_op2(&w.contiguous()?, Conv2d(Grouped { group, groups: g.groups }))
}

struct Conv2d(Grouped);

impl CustomOp2 for Conv2d {
    fn name(&self) -> &'static str {
        "cohort-conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Grouped { group: s, groups } = self.0;
        let y = conv::forward(Isa::current(), self.0, values(x, lx)?, values(w, lw)?);
        Ok((CpuStorage::F32(y), (s.batch, groups * s.co, s.out_h(), s.out_w()).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (s, isa) = (self.0, Isa::current());
        with_values(dy, |dy| {
            // The images of the first layer need no gradient.
            let dx = match x.track_op() {
                true => Some(tensor(with_values(w, |w| Ok(conv::backward_data(isa, s, w, dy)))?, x.shape())?),
                false => None,
            };
            let dw = match w.track_op() {
                true => {
                    Some(tensor(with_values(x, |x| Ok(conv::backward_weights(isa, s, x, dy)))?, w.shape())?)
                }
                false => None,
            };
            Ok((dx, dw))
        })
    }
}
