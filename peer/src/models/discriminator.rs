//! The discriminator of adversarial distillation: whose feature maps are these?

use candle_core::{Result, Tensor};

use super::layers::{BatchNorm2d, Conv2d, Linear};
use super::params::Scope;
use super::pass::Pass;
use crate::kernels::{self, Activation, Maps};

/// Slope of a leaky rectifier below 0.
const LEAK: f64 = 0.2;

/// Two convolutions of stride 2, each with batch norm and a leaky rectifier, the mean over what is left of the map, a
/// linear layer and the logistic function (after Chung et al., ICML 2020, which do not say what theirs is).
#[derive(Debug)]
pub struct Discriminator {
    halvings: [(Conv2d, BatchNorm2d); 2],
    linear: Linear,
}

impl Discriminator {
    /// A discriminator of maps of `channels` channels, which all its layers have. Its tensors are `{prefix}.conv1`, `bn1`,
    /// `conv2`, `bn2` and `fc`.
    ///
    /// # Errors
    /// If a name is taken or the device fails.
    pub fn new(mut scope: Scope<'_>, channels: usize) -> Result<Self> {
        let mut halving = |k: usize| {
            let conv = Conv2d::new(scope.child(format!("conv{k}")), channels, channels, 3, 2)?;
            Ok::<_, candle_core::Error>((conv, BatchNorm2d::new(scope.child(format!("bn{k}")), channels)?))
        };
        let halvings = [halving(1)?, halving(2)?];
        Ok(Self { halvings, linear: Linear::new(scope.child("fc"), channels, 1)? })
    }

    /// How sure it is that maps `[B, C, H, W]` are another network's, `[B, 1]` between 0 and 1.
    ///
    /// # Errors
    /// If the channels do not fit, a training batch has one value per channel, or the device fails.
    pub fn forward(&self, maps: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let mut maps = Maps::from_tensor(maps)?;
        for (conv, norm) in &self.halvings {
            let normalised = norm.forward(&conv.forward(&maps, pass)?, None, Activation::None, pass)?;
            maps = Maps::from_tensor(&leaky(&normalised.to_tensor()?)?)?;
        }
        let said = self.linear.forward(&kernels::global_avg_pool(&maps)?, pass)?;
        // By the hyperbolic tangent, since the exponential in the usual form overflows.
        (said / 2.0)?.tanh()?.affine(0.5, 0.5)
    }
}

/// `max(x, 0) + 0.2 min(x, 0)`.
fn leaky(x: &Tensor) -> Result<Tensor> {
    kernels::relu(x)?.affine(1.0 - LEAK, 0.0)? + x.affine(LEAK, 0.0)?
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::super::Params;
    use super::*;

    fn filled(shape: &[usize], from: f64, scale: f64, dtype: DType) -> Tensor {
        let values: Vec<f64> =
            (0..shape.iter().product()).map(|i: usize| (0.7 * i as f64 + from).sin() * scale).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    }

    /// Two channels; each parameter in the order of names is `sin(0.7 i + k) / 2` with k from 1.
    fn discriminator(dtype: DType) -> (Params, Discriminator) {
        let mut params = Params::new(7, "a", dtype, &Device::Cpu).unwrap();
        let discriminator = Discriminator::new(params.scope("d"), 2).unwrap();
        for (k, var) in params.trainable().values().enumerate() {
            var.set(&filled(var.dims(), (k + 1) as f64, 0.5, dtype)).unwrap();
        }
        (params, discriminator)
    }

    fn numbers(tensor: &Tensor) -> Vec<f64> {
        tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
    }

    fn norm(tensor: &Tensor) -> f64 {
        numbers(tensor).iter().map(|x| x * x).sum::<f64>().sqrt()
    }

    /// Values and gradients of the same network in PyTorch, float64.
    #[test]
    fn says_what_pytorch_says() {
        let gradients = [
            0.0021622978641827055,
            0.0031260910960525337,
            0.035754294536249606,
            0.017388418781701002,
            0.0015513422850658334,
            0.00829279889980539,
            0.09794784010833368,
            0.017831043959414167,
        ];
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-4)] {
            let close = |a: f64, b: f64, what: &str| {
                assert!((a - b).abs() < tolerance * b.abs(), "{dtype:?} {what}: {a} instead of {b}");
            };
            let (params, discriminator) = discriminator(dtype);
            let own = Var::from_tensor(&filled(&[3, 2, 5, 5], 0.3, 1.0, dtype)).unwrap();
            let other = filled(&[3, 2, 5, 5], 2.3, 1.0, dtype);
            let ask = |maps: &Tensor| discriminator.forward(maps, &mut Pass::train()).unwrap();
            let (of_own, of_other) = (ask(own.as_tensor()), ask(&other));
            let expected = [0.6122215140841449, 0.5938310320181449, 0.6026973577823956];
            numbers(&of_own).iter().zip(expected).for_each(|(a, b)| close(*a, b, "of its own"));
            let expected = [0.5939856239663724, 0.6218569335217738, 0.5901455844589718];
            numbers(&of_other).iter().zip(expected).for_each(|(a, b)| close(*a, b, "of the other"));
            let doubt = |said: &Tensor| said.affine(-1.0, 1.0).unwrap().sqr().unwrap().mean_all().unwrap();
            let generator = doubt(&of_own);
            close(numbers(&generator)[0], 0.15773159140124265, "the generator's loss");
            let slope = generator.backward().unwrap().get(&own).unwrap().clone();
            close(norm(&slope), 0.0006745652181578081, "the slope by the maps");
            close(numbers(&slope)[0], -2.804670299667632e-05, "its first entry");
            let fake = ask(&own.as_detached_tensor()).sqr().unwrap().mean_all().unwrap();
            let loss = (doubt(&of_other) + fake).unwrap();
            close(numbers(&loss)[0], 0.5221716920610362, "the discriminator's loss");
            let store = loss.backward().unwrap();
            for ((name, var), expected) in params.trainable().iter().zip(gradients) {
                close(norm(store.get(var).unwrap()), expected, name);
            }
        }
    }

    /// However sure it is, it says a number between 0 and 1, with a slope.
    #[test]
    fn stays_finite() {
        let (params, discriminator) = discriminator(DType::F32);
        for sure in [1e6, -1e6] {
            let bias = &params.trainable()["d.fc.bias"];
            bias.set(&Tensor::new(&[sure as f32], &Device::Cpu).unwrap()).unwrap();
            for scale in [0.0, 1.0, 1e4] {
                let maps = Var::from_tensor(&filled(&[2, 2, 3, 3], 0.3, scale, DType::F32)).unwrap();
                let said = discriminator.forward(maps.as_tensor(), &mut Pass::train()).unwrap();
                assert_eq!(numbers(&said), [if sure > 0.0 { 1.0 } else { 0.0 }; 2]);
                let store = said.sum_all().unwrap().backward().unwrap();
                let finite = |tensor: &Tensor| numbers(tensor).iter().all(|x| x.is_finite());
                assert!(params.trainable().values().all(|var| finite(store.get(var).unwrap())));
                assert!(finite(store.get(&maps).unwrap()));
            }
        }
    }
}
