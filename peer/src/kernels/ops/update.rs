//! The update by stochastic gradient descent as a candle operation in place.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor, Var};

use super::super::Sgd;
use super::super::cpu::isa::Isa;
use super::super::cpu::update::{Constants, sgd};
use super::{values, values_mut};

/// See [`super::super::sgd_step`]; the shapes are checked.
pub(in super::super) fn sgd_step(param: &Var, velocity: &Var, grad: &Tensor, settings: Sgd) -> Result<()> {
    let Sgd { lr, momentum, weight_decay, nesterov } = settings;
    let constants =
        Constants { lr: lr as f32, momentum: momentum as f32, weight_decay: weight_decay as f32, nesterov };
    velocity.inplace_op2(&grad.contiguous()?, &OfVelocity { param, constants })
}

/// candle changes one tensor at a time: inside this operation, which holds the velocity, runs that of the
/// parameter.
struct OfVelocity<'a> {
    param: &'a Var,
    constants: Constants,
}

impl InplaceOp2 for OfVelocity<'_> {
    fn name(&self) -> &'static str {
        "cohort-sgd"
    }

    fn cpu_fwd(&self, v: &mut CpuStorage, lv: &Layout, g: &CpuStorage, lg: &Layout) -> Result<()> {
        let velocity = RefCell::new(values_mut(v, lv)?);
        let grad = values(g, lg)?;
        self.param.inplace_op1(&OfParameter { velocity, grad, constants: self.constants })
    }
}

struct OfParameter<'a> {
    velocity: RefCell<&'a mut [f32]>,
    grad: &'a [f32],
    constants: Constants,
}

impl InplaceOp1 for OfParameter<'_> {
    fn name(&self) -> &'static str {
        "cohort-sgd-parameter"
    }

    fn cpu_fwd(&self, p: &mut CpuStorage, lp: &Layout) -> Result<()> {
        let param = values_mut(p, lp)?;
        sgd(Isa::current(), param, &mut self.velocity.borrow_mut(), self.grad, self.constants);
        Ok(())
    }
}
