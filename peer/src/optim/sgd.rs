//! Stochastic gradient descent with momentum, Nesterov's look-ahead and weight decay.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Result, Var};

use super::{Gradients, OptimError, clip_global_norm};
use crate::kernels;
use crate::models::state::{self, Expected};
use crate::models::{LoadReport, Params, StateDict, StateError, Strictness};

/// What PyTorch calls a parameter's velocity in the optimiser's state.
const VELOCITY: &str = "momentum_buffer";

/// The hyper-parameters that stay the same over a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdConfig {
    /// Share of the velocity that survives a step, in 0..1.
    pub momentum: f64,
    /// Whether the step looks ahead along the new velocity.
    pub nesterov: bool,
    /// Coefficient of the parameter that is added to its gradient; it acts on every trainable tensor.
    pub weight_decay: f64,
    /// Largest global norm of the gradients before weight decay; 0 is off.
    pub clip_norm: f64,
}

impl SgdConfig {
    /// Refuses what PyTorch would refuse, and what cannot converge.
    ///
    /// # Errors
    /// [`OptimError`] naming the key.
    pub fn check(&self) -> std::result::Result<(), OptimError> {
        let refuse = |name, value, range| Err(OptimError::OutOfRange { name, value, range });
        if !(0.0..1.0).contains(&self.momentum) {
            return refuse("momentum", self.momentum, "at least 0 and less than 1");
        }
        for (name, value) in [("weight_decay", self.weight_decay), ("clip_norm", self.clip_norm)] {
            if !(value.is_finite() && value >= 0.0) {
                return refuse(name, value, "0 or a positive number");
            }
        }
        if self.nesterov && self.momentum == 0.0 {
            return Err(OptimError::NesterovWithoutMomentum);
        }
        Ok(())
    }
}

/// The optimiser of one peer: a velocity for every trainable tensor, by the tensor's name.
#[derive(Debug)]
pub struct Sgd {
    config: SgdConfig,
    velocity: BTreeMap<String, Var>,
    /// Trainable parameters that are left to others.
    left_out: BTreeSet<String>,
}

impl Sgd {
    /// An optimiser for everything that `params` can train at this moment, with velocities of 0.
    ///
    /// # Errors
    /// If the configuration is impossible (see [`SgdConfig::check`]) or the device fails.
    pub fn new(params: &Params, config: SgdConfig) -> Result<Self> {
        Self::over(params, config, |_| true)
    }

    /// As [`Sgd::new`], for the parameters whose names are `included`; it never touches the others.
    ///
    /// # Errors
    /// Those of [`Sgd::new`].
    pub fn over(params: &Params, config: SgdConfig, included: impl Fn(&str) -> bool) -> Result<Self> {
        config.check().map_err(candle_core::Error::wrap)?;
        let zero = |(name, var): (&String, &Var)| {
            Ok((name.clone(), Var::zeros(var.shape(), var.dtype(), var.device())?))
        };
        let (stepped, left_out): (Vec<_>, Vec<_>) =
            params.trainable().iter().partition(|(name, _)| included(name));
        let velocity = stepped.into_iter().map(zero).collect::<Result<_>>()?;
        let left_out = left_out.into_iter().map(|(name, _)| name.clone()).collect();
        Ok(Self { config, velocity, left_out })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> SgdConfig {
        self.config
    }

    /// One step, as `torch.optim.SGD` makes it: `d = g + weight_decay p`, `v <- momentum v + d`,
    /// `p <- p - lr (nesterov ? d + momentum v : v)`. Returns the global norm of `gradients` before clipping, or
    /// nothing if clipping is off.
    ///
    /// A parameter without a gradient takes part with `g = 0`: weight decay and momentum still act on it, so what is
    /// trained does not depend on which loss terms were present in a step.
    ///
    /// # Errors
    /// If a gradient has another shape or element type than its parameter, or none that this optimiser steps, or if a
    /// parameter is new: nothing has changed then. Or if the device fails.
    pub fn step(&mut self, params: &Params, mut gradients: Gradients, lr: f64) -> Result<Option<f64>> {
        self.check_step(params, &gradients)?;
        let clip = self.config.clip_norm;
        let norm = if clip > 0.0 { Some(clip_global_norm(&mut gradients, clip)?) } else { None };
        let SgdConfig { momentum, nesterov, weight_decay, .. } = self.config;
        let settings = kernels::Sgd { lr, momentum, weight_decay, nesterov };
        for (name, velocity) in &self.velocity {
            if let Some(var) = params.trainable().get(name) {
                kernels::sgd_step(var, velocity, gradients.get(name), settings)?;
            }
        }
        Ok(norm)
    }

    /// Refuses a step before it has touched anything.
    fn check_step(&self, params: &Params, gradients: &Gradients) -> Result<()> {
        for (name, gradient) in gradients {
            let Some(var) = params.trainable().get(name).filter(|_| self.velocity.contains_key(name)) else {
                candle_core::bail!("a gradient for `{name}`, which this optimiser does not step");
            };
            if (gradient.dims(), gradient.dtype()) != (var.dims(), var.dtype()) {
                let (found, expected) = ((gradient.dims(), gradient.dtype()), (var.dims(), var.dtype()));
                candle_core::bail!("the gradient of `{name}` is {found:?}, the tensor is {expected:?}");
            }
        }
        let known = |name: &String| self.velocity.contains_key(name) || self.left_out.contains(name);
        match params.trainable().keys().find(|name| !known(name)) {
            Some(name) => candle_core::bail!("`{name}` became trainable after the optimiser was made"),
            None => Ok(()),
        }
    }

    /// A copy of the velocities, named `{parameter}.momentum_buffer`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn state_dict(&self) -> Result<StateDict> {
        self.velocity
            .iter()
            .map(|(name, var)| Ok((format!("{name}.{VELOCITY}"), var.copy()?.detach())))
            .collect()
    }

    /// Replaces the velocities, all of them or none.
    ///
    /// # Errors
    /// [`StateError::Mismatch`] if the names, shapes or numbers do not fit.
    pub fn load(&mut self, source: &StateDict) -> std::result::Result<LoadReport, StateError> {
        let names: BTreeMap<String, &Var> =
            self.velocity.iter().map(|(name, var)| (format!("{name}.{VELOCITY}"), var)).collect();
        let expected = names.iter().map(|(name, var)| {
            (name.as_str(), Expected { shape: var.dims().to_vec(), dtype: var.dtype(), optional: false })
        });
        let (fitted, report) = state::fit(expected.collect(), source, Strictness::Strict)?;
        for (name, var) in &names {
            if let Some(tensor) = fitted.get(name) {
                var.set(&tensor.to_device(var.device())?)?;
            }
        }
        Ok(report)
    }

    /// Sets every velocity to 0.
    ///
    /// # Errors
    /// If the device fails.
    pub fn reset(&mut self) -> Result<()> {
        self.velocity.values().try_for_each(|var| var.set(&var.zeros_like()?))
    }
}
