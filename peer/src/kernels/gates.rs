//! Rectifiers that keep the pattern of an earlier forward pass, so that a network becomes smooth along a line:
//! finite differences of its gradients are then Hessian-vector products without jumps at the kinks.

use candle_core::{Result, Tensor};

use super::{Activation, Moments, batch_norm_train, ops, relu, stock};

/// Which units a rectifier let through, known from what it gave.
#[derive(Clone, Debug)]
pub struct Gate(Tensor);

impl Gate {
    /// The gate of a rectifier with output `y`; it holds on to that tensor.
    pub fn of_output(y: &Tensor) -> Self {
        Self(y.detach())
    }

    /// `x` where the unit was let through, else 0, in value and in gradient.
    ///
    /// # Errors
    /// When `x` is not shaped as what was recorded.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        if x.shape() != self.0.shape() || x.dtype() != self.0.dtype() {
            candle_core::bail!(
                "a gate recorded at {:?} {:?} does not fit {:?} {:?}",
                self.0.dims(),
                self.0.dtype(),
                x.dims(),
                x.dtype()
            )
        }
        if ops::accepts(&[x, &self.0]) {
            return ops::pointwise::gate(x, &self.0);
        }
        stock::gate(x, &self.0)
    }
}

/// The gates of a forward pass in the order in which it met them: recorded at one pass, replayed at others of
/// the same network on a batch of the same shape.
#[derive(Clone, Debug, Default)]
pub struct GateTape {
    gates: Vec<Gate>,
    /// The next gate of a replay; none while recording.
    next: Option<usize>,
}

impl GateTape {
    /// An empty tape that records.
    pub fn recording() -> Self {
        Self::default()
    }

    /// The same gates from the first one on, to be replayed.
    pub fn replaying(&self) -> Self {
        Self { gates: self.gates.clone(), next: Some(0) }
    }

    /// Gates on the tape.
    pub fn len(&self) -> usize {
        self.gates.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.gates.is_empty()
    }

    /// [`relu`] while recording, else the next gate applied to `x`.
    ///
    /// # Errors
    /// When the replayed pass has more rectifiers than the recorded one, or other shapes.
    pub fn relu(&mut self, x: &Tensor) -> Result<Tensor> {
        let act = |act| match act {
            Activation::Relu => relu(x),
            Activation::None => Ok(x.clone()),
        };
        Ok(self.rectify(|a| Ok((act(a)?, ())))?.0)
    }

    /// [`batch_norm_train`] with its rectifier treated as in [`GateTape::relu`].
    ///
    /// # Errors
    /// Those of both.
    pub fn batch_norm_train(
        &mut self,
        x: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        eps: f64,
        residual: Option<&Tensor>,
        act: Activation,
    ) -> Result<(Tensor, Moments)> {
        let normalise = |act| batch_norm_train(x, gamma, beta, eps, residual, act);
        match act {
            Activation::Relu => self.rectify(normalise),
            Activation::None => normalise(act),
        }
    }

    /// What `f` gives with a rectifier while recording, else without one but through the next gate.
    fn rectify<T>(&mut self, f: impl FnOnce(Activation) -> Result<(Tensor, T)>) -> Result<(Tensor, T)> {
        let Some(next) = &mut self.next else {
            let (y, more) = f(Activation::Relu)?;
            self.gates.push(Gate::of_output(&y));
            return Ok((y, more));
        };
        let Some(gate) = self.gates.get(*next) else {
            candle_core::bail!(
                "the network has more rectifiers than the {} that were recorded",
                self.gates.len()
            )
        };
        *next += 1;
        let (x, more) = f(Activation::None)?;
        Ok((gate.apply(&x)?, more))
    }
}
