//! Stochastic gradient descent in place, in one pass.

use rayon::prelude::*;

use super::isa::{Isa, Kernel, dispatch};
use super::lanes::Lanes;

/// Values that one call of a kernel handles.
const CHUNK: usize = 1 << 14;

/// The constants of an update, rounded to the dtype of the parameters.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Constants {
    pub(in crate::kernels) lr: f32,
    pub(in crate::kernels) momentum: f32,
    pub(in crate::kernels) weight_decay: f32,
    pub(in crate::kernels) nesterov: bool,
}

/// `d = grad + weight_decay param; v <- momentum v + d; param <- param - lr (nesterov ? d + momentum v : v)`,
/// each operation rounded by itself.
pub(in crate::kernels) fn sgd(isa: Isa, param: &mut [f32], velocity: &mut [f32], grad: &[f32], c: Constants) {
    struct Sgd<'a>(&'a mut [f32], &'a mut [f32], &'a [f32], Constants);
    impl Kernel for Sgd<'_> {
        type Output = ();
        #[inline(always)]
        fn run<V: Lanes>(self) {
            let Self(param, velocity, grad, c) = self;
            for ((p, v), &g) in param.iter_mut().zip(velocity).zip(grad) {
                let d = g + *p * c.weight_decay;
                *v = *v * c.momentum + d;
                let step = if c.nesterov { d + *v * c.momentum } else { *v };
                *p -= step * c.lr;
            }
        }
    }
    param
        .par_chunks_mut(CHUNK)
        .zip(velocity.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK)))
        .for_each(|(p, (v, g))| dispatch(isa, Sgd(p, v, g, c)));
}
