//! Feature maps of a batch: what the layers of a network hand to each other.

use candle_core::{Result, Shape, Tensor};

use super::ops;
use super::ops::flow::Flow;

/// Feature maps `[B, C, H, W]` on their way through a network. On the CPU in f32 they stay out of candle's gradient
/// store, which is what makes training fast; elsewhere they are a tensor. Clones are the same maps.
///
/// A graph with maps is walked back by one thread at a time, and not again after a walk that failed half way.
#[derive(Clone, Debug)]
pub struct Maps(pub(super) Held);

#[derive(Clone, Debug)]
pub(super) enum Held {
    Flow(Flow),
    Tensor(Tensor),
}

impl Maps {
    /// A tensor as maps. A gradient by them reaches the tensor.
    ///
    /// # Errors
    /// Those of the device.
    pub fn from_tensor(x: &Tensor) -> Result<Self> {
        if ops::accepts(&[x]) { Flow::enter(x).map(Self::from) } else { Ok(Self::stock(x.clone())) }
    }

    /// Constant maps whose gradient is computed all the same, and dropped: what a benchmark wants of an operation's input.
    ///
    /// # Errors
    /// When `x` is not in f32 on the CPU.
    pub fn probe(x: &Tensor) -> Result<Self> {
        if !ops::accepts(&[x]) {
            candle_core::bail!("a probe of maps in {:?} on {:?}: f32 on the CPU only", x.dtype(), x.device())
        }
        Flow::probe(x).map(Self::from)
    }

    /// Maps as a tensor of candle's graph.
    ///
    /// # Errors
    /// Those of the device.
    pub fn to_tensor(&self) -> Result<Tensor> {
        match &self.0 {
            Held::Flow(flow) => flow.leave(),
            Held::Tensor(x) => Ok(x.clone()),
        }
    }

    /// The same maps as a constant: nothing flows back through the result.
    pub fn detach(&self) -> Self {
        match &self.0 {
            Held::Flow(flow) => flow.detach().into(),
            Held::Tensor(x) => Self::stock(x.detach()),
        }
    }

    /// Sizes of all dimensions.
    pub fn dims(&self) -> &[usize] {
        self.shape().dims()
    }

    /// Sizes of all dimensions.
    pub fn shape(&self) -> &Shape {
        match &self.0 {
            Held::Flow(flow) => flow.shape(),
            Held::Tensor(x) => x.shape(),
        }
    }

    /// As the operand of an operation whose others are outside candle's store.
    pub(super) fn flow(&self) -> Result<Flow> {
        match &self.0 {
            Held::Flow(flow) => Ok(flow.clone()),
            Held::Tensor(x) if ops::accepts(&[x]) => Flow::enter(x),
            Held::Tensor(x) => {
                candle_core::bail!(
                    "maps in {:?} on {:?} meet others in f32 on the CPU",
                    x.dtype(),
                    x.device()
                )
            }
        }
    }

    /// What one of candle's own operations gave.
    pub(super) fn stock(x: Tensor) -> Self {
        Self(Held::Tensor(x))
    }
}

impl From<Flow> for Maps {
    fn from(flow: Flow) -> Self {
        Self(Held::Flow(flow))
    }
}
