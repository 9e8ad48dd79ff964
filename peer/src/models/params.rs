//! The numbers of one peer: trainable variables and buffers by their full PyTorch name, in one fixed order.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};
use cohort_proto::rng::{SplitMix64, key_of};

use super::state::{self, Expected, LoadReport, StateDict, StateError, Strictness};

/// The last part of the name of a batch-norm layer's step counter.
pub(super) const COUNTER: &str = "num_batches_tracked";

/// How a trainable tensor starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Normal with variance `2 / (out * k * k)` for a convolution weight `[out, in / groups, k, k]`: fan-out mode of
    /// He et al. 2015 with the gain of ReLU. The Wide ResNet code writes the same number as `sqrt(2 / n)`.
    KaimingNormalFanOut,
    /// Uniform in `±1/sqrt(fan_in)`: how PyTorch starts both weight and bias of a linear layer.
    TorchLinear {
        /// Inputs of the layer; a bias does not tell it by its own shape.
        fan_in: usize,
    },
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
}

/// Ordered registry of every trainable variable and buffer of a peer: the network and what methods add to it.
///
/// A tensor's first value depends on the seed, the peer's name and the tensor's own name alone, so neither the order
/// of construction nor another head changes it.
#[derive(Debug)]
pub struct Params {
    seed: u64,
    peer: String,
    dtype: DType,
    device: Device,
    trainable: BTreeMap<String, Var>,
    buffers: BTreeMap<String, Var>,
}

impl Params {
    /// An empty registry whose tensors will be `dtype` (`F32`, or `F64` in tests) on `device`.
    ///
    /// # Errors
    /// If `dtype` is neither `F32` nor `F64`.
    pub fn new(seed: u64, peer: &str, dtype: DType, device: &Device) -> Result<Self> {
        if !matches!(dtype, DType::F32 | DType::F64) {
            candle_core::bail!("parameters are f32 or f64, not {dtype:?}");
        }
        let (trainable, buffers) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { seed, peer: peer.to_owned(), dtype, device: device.clone(), trainable, buffers })
    }

    /// An empty registry like this one, whose tensors will be `dtype`: for the same network in other precision.
    ///
    /// # Errors
    /// If `dtype` is neither `F32` nor `F64`.
    pub fn empty_twin(&self, dtype: DType) -> Result<Self> {
        Self::new(self.seed, &self.peer, dtype, &self.device)
    }

    /// Where names without a prefix go: the network itself.
    pub fn root(&mut self) -> Scope<'_> {
        Scope { params: self, prefix: String::new() }
    }

    /// Where names under `prefix` go, such as `embed.0`.
    pub fn scope(&mut self, prefix: &str) -> Scope<'_> {
        Scope { params: self, prefix: prefix.to_owned() }
    }

    /// The element type of trainable tensors and running statistics.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the tensors live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The trainable variables in the order of their names.
    pub fn trainable(&self) -> &BTreeMap<String, Var> {
        &self.trainable
    }

    /// The buffers (running statistics and counters) in the order of their names.
    pub fn buffers(&self) -> &BTreeMap<String, Var> {
        &self.buffers
    }

    /// Number of trainable scalars.
    pub fn trainable_count(&self) -> usize {
        self.trainable.values().map(|var| var.elem_count()).sum()
    }

    /// The gradients of the trainable variables by name; a variable that the loss did not reach is absent.
    pub fn gradients(&self, store: &GradStore) -> BTreeMap<String, Tensor> {
        let found =
            self.trainable.iter().filter_map(|(name, var)| Some((name.clone(), store.get(var)?.clone())));
        found.collect()
    }

    /// A copy of every tensor by name; later training does not change it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn state_dict(&self) -> Result<StateDict> {
        self.all().map(|(name, var)| Ok((name.clone(), var.copy()?.detach()))).collect()
    }

    /// Replaces the tensors by those of `source`, all of them or none.
    ///
    /// Element types are converted. A `module.` in front of every name (as DataParallel writes) is dropped; a
    /// classifier called `classifier.*` (as the MCL authors call it) is taken for `fc.*`; counters of batches may be
    /// missing and then keep their value.
    ///
    /// # Errors
    /// [`StateError::Mismatch`] lists every missing, unexpected, wrongly shaped, wrongly typed or non-finite tensor
    /// that `strictness` does not allow; nothing has been replaced then.
    pub fn load(
        &self,
        source: &StateDict,
        strictness: Strictness<'_>,
    ) -> std::result::Result<LoadReport, StateError> {
        let source = state::normalise_names(source, &self.names());
        let expected = self.all().map(|(name, var)| {
            let optional = name.ends_with(COUNTER);
            (name.as_str(), Expected { shape: var.dims().to_vec(), dtype: var.dtype(), optional })
        });
        let (fitted, report) = state::fit(expected.collect(), &source, strictness)?;
        for (name, tensor) in &fitted {
            if let Some(var) = self.trainable.get(name).or_else(|| self.buffers.get(name)) {
                var.set(&tensor.to_device(var.device())?)?;
            }
        }
        Ok(report)
    }

    /// Puts back the values of [`Params::state_dict`] of these same parameters, bit by bit and unchecked.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape or type, or the device fails.
    pub fn restore(&self, snapshot: &StateDict) -> Result<()> {
        self.all().try_for_each(|(name, var)| match snapshot.get(name) {
            Some(tensor) if tensor.dtype() == var.dtype() => var.set(tensor),
            _ => candle_core::bail!("a snapshot without `{name}` in {:?}", var.dtype()),
        })
    }

    /// Takes over every value of a registry with the same names, converted to the own element type.
    ///
    /// # Errors
    /// If a name is missing there or has another shape, or the device fails.
    pub fn copy_from(&self, other: &Self) -> Result<()> {
        self.all().try_for_each(|(name, var)| {
            match other.trainable.get(name).or_else(|| other.buffers.get(name)) {
                Some(value) => var.set(&value.as_detached_tensor().to_dtype(var.dtype())?),
                None => candle_core::bail!("`{name}` has no twin"),
            }
        })
    }

    fn all(&self) -> impl Iterator<Item = (&String, &Var)> {
        self.trainable.iter().chain(&self.buffers)
    }

    fn names(&self) -> BTreeSet<&str> {
        self.all().map(|(name, _)| name.as_str()).collect()
    }

    fn draw(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        let count: usize = shape.iter().product();
        let mut rng = SplitMix64::keyed(&[self.seed, key_of(&self.peer), key_of(name)]);
        let values = match init {
            Init::KaimingNormalFanOut => {
                let [out, _, k_h, k_w] = shape else {
                    candle_core::bail!(
                        "`{name}`: fan-out is defined for a convolution weight, not for {shape:?}"
                    );
                };
                normal(&mut rng, count, (2.0 / (out * k_h * k_w) as f64).sqrt())
            }
            Init::TorchLinear { fan_in } => {
                let bound = 1.0 / (fan_in.max(1) as f64).sqrt();
                (0..count).map(|_| (2.0 * rng.unit_f64() - 1.0) * bound).collect()
            }
            Init::Zeros => vec![0.0; count],
            Init::Ones => vec![1.0; count],
        };
        Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(self.dtype)?.to_device(&self.device)
    }
}

/// `count` normal numbers of mean 0 by the method of Box and Muller (1958), in f64, two from each pair of draws.
fn normal(rng: &mut SplitMix64, count: usize, deviation: f64) -> Vec<f64> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        // The logarithm needs a number in (0, 1].
        let radius = (-2.0 * (1.0 - rng.unit_f64()).ln()).sqrt() * deviation;
        let angle = std::f64::consts::TAU * rng.unit_f64();
        values.extend([radius * angle.cos(), radius * angle.sin()]);
    }
    values.truncate(count);
    values
}

/// A place in the tree of names, where layers register what they own.
#[derive(Debug)]
pub struct Scope<'a> {
    params: &'a mut Params,
    prefix: String,
}

impl Scope<'_> {
    /// The place `name` below this one: `layer1` then `0` gives `layer1.0`.
    pub fn child(&mut self, name: impl std::fmt::Display) -> Scope<'_> {
        let prefix = self.full_name(name);
        Scope { params: self.params, prefix }
    }

    /// Registers a trainable variable.
    ///
    /// # Errors
    /// If the full name is taken or the device fails.
    pub fn trainable(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Var> {
        let full = self.free_name(name)?;
        let var = Var::from_tensor(&self.params.draw(&full, shape, init)?)?;
        self.params.trainable.insert(full, var.clone());
        Ok(var)
    }

    /// Registers a buffer: saved with the weights, never trained. `init` is [`Init::Zeros`] or [`Init::Ones`].
    ///
    /// # Errors
    /// If the full name is taken or the device fails.
    pub fn buffer(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Var> {
        let full = self.free_name(name)?;
        let var = Var::from_tensor(&self.params.draw(&full, shape, init)?)?;
        self.params.buffers.insert(full, var.clone());
        Ok(var)
    }

    /// Registers the counter of batches of a batch-norm layer: an i64 scalar, always on the CPU.
    ///
    /// # Errors
    /// If the full name is taken.
    pub fn counter(&mut self) -> Result<Var> {
        let full = self.free_name(COUNTER)?;
        let var = Var::zeros((), DType::I64, &Device::Cpu)?;
        self.params.buffers.insert(full, var.clone());
        Ok(var)
    }

    fn full_name(&self, name: impl std::fmt::Display) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    fn free_name(&self, name: &str) -> Result<String> {
        let full = self.full_name(name);
        if self.params.trainable.contains_key(&full) || self.params.buffers.contains_key(&full) {
            candle_core::bail!("two tensors are called `{full}`");
        }
        Ok(full)
    }
}
