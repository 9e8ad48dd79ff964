//! Feature maps beside candle's graph. The graph carries a scalar token for each; values and gradients lie here.
//!
//! candle makes zeros and adds each gradient to them, even where it is the only one, and on one thread: a fifth of a
//! training step for tensors of the size of feature maps. For a token that costs nothing, while the order of the
//! backward pass, the parameters and all that is small stay candle's.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, DType, Device, Result, Shape, Tensor, Var};

use super::super::cpu::isa::Isa;
use super::super::cpu::pointwise::{add_to, sum};
use super::link::{Gradients, link};
use super::{tensor, with_values};

/// Feature maps and their token. Clones are the same maps.
#[derive(Clone, Debug)]
pub(in super::super) struct Flow {
    stored: Arc<Stored>,
    token: Tensor,
}

#[derive(Debug)]
struct Stored {
    shape: Shape,
    values: Vec<f32>,
    /// What later operations have sent back so far.
    gradient: Mutex<Option<Gradient>>,
}

/// A gradient by maps; shared where one is that of several.
pub(super) type Gradient = Arc<Vec<f32>>;

impl Flow {
    /// A tensor on its way in.
    pub(in super::super) fn enter(x: &Tensor) -> Result<Self> {
        let values = with_values(x, |values| Ok(values.to_vec()))?;
        let shape = x.shape().clone();
        Self::new("cohort-enter", &[x], x.shape().clone(), values, move |_, dy| {
            let dx = Arc::try_unwrap(dy).unwrap_or_else(|shared| shared.to_vec());
            Ok([Some(tensor(dx, &shape)?), None, None])
        })
    }

    /// See [`super::super::Maps::probe`].
    pub(in super::super) fn probe(x: &Tensor) -> Result<Self> {
        let values = with_values(x, |values| Ok(values.to_vec()))?;
        let anything = Var::zeros((), DType::F32, &Device::Cpu)?;
        Self::new("cohort-probe", &[anything.as_tensor()], x.shape().clone(), values, |_, _| {
            Ok([Some(Tensor::zeros((), DType::F32, &Device::Cpu)?), None, None])
        })
    }

    /// A tensor on its way out.
    pub(in super::super) fn leave(&self) -> Result<Tensor> {
        let of_maps = self.clone();
        let result = (CpuStorage::F32(self.values().to_vec()), self.shape().clone());
        link("cohort-leave", &[&self.token], result, move |_, dy| {
            let dx = with_values(dy, |dy| Ok(dy.to_vec()))?;
            Ok([of_maps.send(Arc::new(dx))?, None, None])
        })
    }

    /// The result of an operation on `args`, in which maps are represented by their tokens. `backward` takes the
    /// result's values and its gradient, sends gradients to those of the arguments that are maps and returns those of
    /// the others.
    pub(super) fn new<B>(
        name: &'static str,
        args: &[&Tensor],
        shape: Shape,
        values: Vec<f32>,
        backward: B,
    ) -> Result<Self>
    where
        B: Fn(&[f32], Gradient) -> Result<Gradients> + Send + Sync + 'static,
    {
        if values.len() != shape.elem_count() {
            candle_core::bail!("{name} gave {} values for shape {shape:?}", values.len())
        }
        let stored = Arc::new(Stored { shape, values, gradient: Mutex::new(None) });
        let of_token = Arc::clone(&stored);
        let token = (CpuStorage::F32(vec![0.0]), Shape::from(()));
        let token = link(name, args, token, move |_, _| {
            match of_token.gradient.lock().unwrap_or_else(PoisonError::into_inner).take() {
                Some(gradient) => backward(&of_token.values, gradient),
                None => candle_core::bail!("nothing was sent back to the result of {name}"),
            }
        })?;
        Ok(Self { stored, token })
    }

    /// The same maps as a constant of the graph.
    pub(in super::super) fn detach(&self) -> Self {
        Self { stored: Arc::clone(&self.stored), token: self.token.detach() }
    }

    pub(super) fn token(&self) -> &Tensor {
        &self.token
    }

    pub(super) fn values(&self) -> &[f32] {
        &self.stored.values
    }

    pub(in super::super) fn shape(&self) -> &Shape {
        &self.stored.shape
    }

    pub(in super::super) fn dims(&self) -> &[usize] {
        self.stored.shape.dims()
    }

    /// Whether a backward pass needs the gradient by these maps.
    pub(super) fn wants_gradient(&self) -> bool {
        self.token.track_op()
    }

    /// Adds to what has been sent back to these maps so far, and returns the token's gradient.
    pub(super) fn send(&self, gradient: Gradient) -> Result<Option<Tensor>> {
        if gradient.len() != self.values().len() {
            candle_core::bail!("a gradient of {} values by maps of shape {:?}", gradient.len(), self.shape())
        }
        if !self.wants_gradient() {
            return Ok(None);
        }
        let slot = || self.stored.gradient.lock().unwrap_or_else(PoisonError::into_inner);
        // No lock is held while the pool works.
        let before = slot().take();
        let sum = match before {
            None => gradient,
            Some(before) => added(before, gradient),
        };
        *slot() = Some(sum);
        Tensor::zeros((), DType::F32, &Device::Cpu).map(Some)
    }
}

/// The sum, in the place of the one that nobody else holds.
fn added(mut a: Gradient, mut b: Gradient) -> Gradient {
    let isa = Isa::current();
    if let Some(a_alone) = Arc::get_mut(&mut a) {
        add_to(isa, a_alone, &b);
        return a;
    }
    if let Some(b_alone) = Arc::get_mut(&mut b) {
        add_to(isa, b_alone, &a);
        return b;
    }
    Arc::new(sum(isa, &a, &b))
}
