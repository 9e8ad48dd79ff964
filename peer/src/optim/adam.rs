//! Adam (Kingma and Ba, ICLR 2015, algorithm 1), without weight decay.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};

use super::Gradients;
use crate::models::state::{self, Expected};
use crate::models::{Params, StateDict, StateError, Strictness};

/// What PyTorch calls the moments in the optimiser's state.
const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

/// The name of the number of steps.
const STEP: &str = "step";

/// The hyper-parameters, with PyTorch's defaults but for the rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamConfig {
    /// Learning rate, the same in all steps.
    pub lr: f64,
    /// Share of the first and of the second moment that survives a step.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl AdamConfig {
    /// PyTorch's defaults at a learning rate.
    pub fn of(lr: f64) -> Self {
        Self { lr, betas: (0.9, 0.999), eps: 1e-8 }
    }
}

/// An optimiser over some parameters: two moments of each, by its name.
#[derive(Debug)]
pub struct Adam {
    config: AdamConfig,
    steps: i64,
    moments: BTreeMap<String, [Var; 2]>,
}

impl Adam {
    /// An optimiser at rest for the trainable parameters whose names are `included`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn over(params: &Params, config: AdamConfig, included: impl Fn(&str) -> bool) -> Result<Self> {
        let zero = |var: &Var| Var::zeros(var.shape(), var.dtype(), var.device());
        let those = params.trainable().iter().filter(|(name, _)| included(name));
        let moments = those.map(|(name, var)| Ok((name.clone(), [zero(var)?, zero(var)?])));
        Ok(Self { config, steps: 0, moments: moments.collect::<Result<_>>()? })
    }

    /// Whether it steps a parameter.
    pub fn steps(&self, name: &str) -> bool {
        self.moments.contains_key(name)
    }

    /// One step, as `torch.optim.Adam` makes it: `m <- b1 m + (1 - b1) g`, `v <- b2 v + (1 - b2) g²`,
    /// `p <- p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)`. A parameter without a gradient keeps everything.
    ///
    /// # Errors
    /// A gradient of a parameter that it does not step, or of another shape: nothing has changed then. Or the device fails.
    pub fn step(&mut self, params: &Params, gradients: &Gradients) -> Result<()> {
        let mut moves = Vec::with_capacity(gradients.len());
        for (name, gradient) in gradients {
            let (Some(var), Some(moments)) = (params.trainable().get(name), self.moments.get(name)) else {
                candle_core::bail!("a gradient for `{name}`, which this optimiser does not step");
            };
            if gradient.shape() != var.shape() {
                let (found, expected) = (gradient.dims(), var.dims());
                candle_core::bail!("the gradient of `{name}` is {found:?}, the tensor is {expected:?}");
            }
            moves.push((var, moments, gradient.detach()));
        }
        let AdamConfig { lr, betas: (first, second), eps } = self.config;
        self.steps += 1;
        let left = |beta: f64| 1.0 - beta.powi(self.steps.min(i64::from(i32::MAX)) as i32);
        let (rate, root) = (lr / left(first), left(second).sqrt());
        for (var, [m, v], gradient) in moves {
            let mean = (m.as_detached_tensor().affine(first, 0.0)? + gradient.affine(1.0 - first, 0.0)?)?;
            let square = gradient.sqr()?.affine(1.0 - second, 0.0)?;
            let square = (v.as_detached_tensor().affine(second, 0.0)? + square)?;
            let size = square.sqrt()?.affine(1.0 / root, eps)?;
            var.set(&(var.as_detached_tensor() - (&mean / size)?.affine(rate, 0.0)?)?)?;
            m.set(&mean)?;
            v.set(&square)?;
        }
        Ok(())
    }

    /// Copies of the moments, named `{parameter}.exp_avg` and `{parameter}.exp_avg_sq`, and `step`, the number of steps.
    ///
    /// # Errors
    /// If the device fails.
    pub fn state_dict(&self) -> Result<StateDict> {
        let mut state = StateDict::from([(STEP.to_owned(), Tensor::new(self.steps, &Device::Cpu)?)]);
        for (name, moments) in &self.moments {
            for (moment, var) in MOMENTS.iter().zip(moments) {
                state.insert(format!("{name}.{moment}"), var.copy()?.detach());
            }
        }
        Ok(state)
    }

    /// Goes on from what [`Adam::state_dict`] gave.
    ///
    /// # Errors
    /// [`StateError::Mismatch`] if the names, shapes or numbers do not fit; nothing has changed then.
    pub fn load(&mut self, source: &StateDict) -> std::result::Result<(), StateError> {
        let mut vars: BTreeMap<String, &Var> = BTreeMap::new();
        for (name, moments) in &self.moments {
            vars.extend(MOMENTS.iter().zip(moments).map(|(moment, var)| (format!("{name}.{moment}"), var)));
        }
        let want = |var: &Var| Expected { shape: var.dims().to_vec(), dtype: var.dtype(), optional: false };
        let mut expected: BTreeMap<&str, Expected> =
            vars.iter().map(|(name, var)| (name.as_str(), want(var))).collect();
        expected.insert(STEP, Expected { shape: Vec::new(), dtype: DType::I64, optional: false });
        let (fitted, _) = state::fit(expected, source, Strictness::Strict)?;
        for (name, tensor) in &fitted {
            match vars.get(name) {
                Some(var) => var.set(&tensor.to_device(var.device())?)?,
                None => self.steps = tensor.to_scalar::<i64>()?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Init;

    fn one(values: &[f64]) -> Params {
        let mut params = Params::new(7, "a", DType::F64, &Device::Cpu).unwrap();
        let var = params.root().trainable("w", &[values.len()], Init::Zeros).unwrap();
        params.root().trainable("other", &[2], Init::Ones).unwrap();
        var.set(&Tensor::new(values, &Device::Cpu).unwrap()).unwrap();
        params
    }

    fn gradient(values: &[f64]) -> Gradients {
        Gradients::from([("w".to_owned(), Tensor::new(values, &Device::Cpu).unwrap())])
    }

    fn values(params: &Params) -> Vec<f64> {
        params.trainable()["w"].to_vec1().unwrap()
    }

    const GRADIENTS: [[f64; 3]; 4] = [[-0.3, 1.2, 0.0], [-0.6, 0.6, 0.0], [1.5, 1e-6, 0.0], [0.5, -0.8, 2.0]];

    /// Four steps of `torch.optim.Adam` in float64 at a rate of 0.05.
    #[test]
    fn steps_are_those_of_pytorch() {
        let expected = [
            [0.7499999983333333, -1.5499999995833333, 0.6],
            [0.7982590986071831, -1.596608981032528, 0.6],
            [0.7843203157375256, -1.6326378825232462, 0.6],
            [0.7649342847570493, -1.6430803814595598, 0.5709435821807487],
        ];
        let params = one(&[0.7, -1.5, 0.6]);
        let mut adam = Adam::over(&params, AdamConfig::of(0.05), |name| name == "w").unwrap();
        for (gradient_of_step, expected) in GRADIENTS.iter().zip(expected) {
            adam.step(&params, &gradient(gradient_of_step)).unwrap();
            let far = values(&params).iter().zip(expected).fold(0f64, |max, (a, b)| max.max((a - b).abs()));
            assert!(far < 1e-14, "{:?} instead of {expected:?}", values(&params));
        }
        assert_eq!(params.trainable()["other"].to_vec1::<f64>().unwrap(), [1.0, 1.0]);
    }

    #[test]
    fn goes_on_from_its_state_in_the_same_bits() {
        let (first, second) = (one(&[0.7, -1.5, 0.6]), one(&[0.7, -1.5, 0.6]));
        let over = |params: &Params| Adam::over(params, AdamConfig::of(0.05), |name| name == "w").unwrap();
        let (mut whole, mut resumed) = (over(&first), over(&second));
        for step in &GRADIENTS[..2] {
            whole.step(&first, &gradient(step)).unwrap();
        }
        let state = whole.state_dict().unwrap();
        assert_eq!(state.keys().collect::<Vec<_>>(), ["step", "w.exp_avg", "w.exp_avg_sq"]);
        second.copy_from(&first).unwrap();
        resumed.load(&state).unwrap();
        for step in &GRADIENTS[2..] {
            whole.step(&first, &gradient(step)).unwrap();
            resumed.step(&second, &gradient(step)).unwrap();
        }
        assert_eq!(values(&first), values(&second));
        let mut short = state.clone();
        short.remove("step");
        assert!(resumed.load(&short).unwrap_err().to_string().contains("step"));
    }

    #[test]
    fn what_it_does_not_step_is_refused() {
        let params = one(&[1.0]);
        let mut adam = Adam::over(&params, AdamConfig::of(0.05), |name| name == "w").unwrap();
        let other = Gradients::from([("other".to_owned(), Tensor::new(&[1.0, 1.0], &Device::Cpu).unwrap())]);
        assert!(adam.step(&params, &other).unwrap_err().to_string().contains("`other`"));
        assert!(adam.step(&params, &gradient(&[1.0, 2.0])).unwrap_err().to_string().contains("`w`"));
        assert_eq!(values(&params), [1.0]);
    }
}
