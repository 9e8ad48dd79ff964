//! Rectifiers that keep the pattern of an earlier forward pass, so that a network becomes smooth along a line:
//! finite differences of its gradients are then Hessian-vector products without jumps at the kinks.

use candle_core::{Result, Tensor};

use super::maps::Held;
use super::{Activation, Maps, Moments, batch_norm_train, ops, relu, stock};

/// Which units a rectifier let through, known from what it gave.
#[derive(Clone, Debug)]
pub struct Gate(Maps);

impl Gate {
    /// The gate of a rectifier with output `y`; it holds on to the values.
    pub fn of_tensor(y: &Tensor) -> Self {
        Self(Maps::stock(y.detach()))
    }

    /// As [`Gate::of_tensor`], of feature maps.
    pub fn of_maps(y: &Maps) -> Self {
        Self(y.detach())
    }

    /// `x` where the unit was let through, else 0, in value and in gradient.
    ///
    /// # Errors
    /// When `x` is not shaped as what was recorded, or that were feature maps.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        match &self.0.0 {
            Held::Tensor(y) if x.shape() == y.shape() && x.dtype() == y.dtype() => {
                if ops::accepts(&[x, y]) {
                    ops::pointwise::gate(x, y)
                } else {
                    stock::gate(x, y)
                }
            }
            _ => self.refuse(x.dims()),
        }
    }

    /// As [`Gate::apply`], to feature maps.
    ///
    /// # Errors
    /// When `x` is not shaped as what was recorded, or that was a tensor.
    pub fn apply_to_maps(&self, x: &Maps) -> Result<Maps> {
        match (&self.0.0, &x.0) {
            (Held::Flow(y), Held::Flow(x)) if x.dims() == y.dims() => {
                ops::pointwise::gate_maps(x, y).map(Maps::from)
            }
            (Held::Tensor(_), Held::Tensor(x)) => self.apply(x).map(Maps::stock),
            _ => self.refuse(x.dims()),
        }
    }

    fn refuse<T>(&self, dims: &[usize]) -> Result<T> {
        candle_core::bail!("a gate recorded at shape {:?} does not fit shape {dims:?}", self.0.dims())
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
        if let Some(gate) = self.replayed()? {
            return gate.apply(x);
        }
        let y = relu(x)?;
        self.gates.push(Gate::of_tensor(&y));
        Ok(y)
    }

    /// [`batch_norm_train`] with its rectifier treated as in [`GateTape::relu`].
    ///
    /// # Errors
    /// Those of both.
    pub fn batch_norm_train(
        &mut self,
        x: &Maps,
        gamma: &Tensor,
        beta: &Tensor,
        eps: f64,
        residual: Option<&Maps>,
        act: Activation,
    ) -> Result<(Maps, Moments)> {
        let normalise = |act| batch_norm_train(x, gamma, beta, eps, residual, act);
        if act == Activation::None {
            return normalise(act);
        }
        if let Some(gate) = self.replayed()? {
            let (y, moments) = normalise(Activation::None)?;
            return Ok((gate.apply_to_maps(&y)?, moments));
        }
        let (y, moments) = normalise(act)?;
        self.gates.push(Gate::of_maps(&y));
        Ok((y, moments))
    }

    /// That a replayed pass, which is over, has met every gate; a recording is always complete.
    ///
    /// # Errors
    /// When it had fewer rectifiers than the recorded one: it was of another network, and some gates were applied in the
    /// wrong place.
    pub fn check_complete(&self) -> Result<()> {
        match self.next {
            Some(met) if met < self.gates.len() => candle_core::bail!(
                "the network has fewer rectifiers, {met}, than the {} that were recorded",
                self.gates.len()
            ),
            _ => Ok(()),
        }
    }

    /// The next gate of a replay; none while recording.
    fn replayed(&mut self) -> Result<Option<Gate>> {
        let Some(next) = &mut self.next else { return Ok(None) };
        let Some(gate) = self.gates.get(*next) else {
            candle_core::bail!(
                "the network has more rectifiers than the {} that were recorded",
                self.gates.len()
            )
        };
        *next += 1;
        Ok(Some(gate.clone()))
    }
}
