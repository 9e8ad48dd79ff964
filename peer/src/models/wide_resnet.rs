//! Wide residual networks (Zagoruyko and Komodakis 2016), pre-activated: `wrn_DEPTH_WIDEN`.
//!
//! Names and structure are those of megvii-research/mdistiller (`mdistiller/models/cifar/wrn.py`), which winycg/MCL
//! (`models/wrn.py`) shares. Both pool with a window of 8x8, so they take 32x32 images only; here it is the global average,
//! the same number at 32x32. Their dropout is off by default and absent here. mdistiller names 16_1, 16_2, 40_1 and
//! 40_2, MCL 16_2, 28_4 and 40_2; 10_1 follows the same rule. With more than two networks MCL shares stem and first
//! stage and starts its linear biases at random; that variant is not offered.

use candle_core::{Result, Tensor};

use super::auxiliary::{AuxiliaryClassifier, Extractor};
use super::layers::{BatchNorm2d, Conv2d, Linear};
use super::params::{Init, Scope};
use super::pass::Pass;
use super::registry::ImageShape;
use super::{Network, Output};
use crate::kernels::{self, Activation, Maps};

/// Channels of the stem, whatever the widening factor.
const STEM: usize = 16;

/// A wide residual network of three stages. Its stage maps are the sums, before batch norm and ReLU.
#[derive(Debug)]
pub struct WideResNet {
    conv1: Conv2d,
    stages: Vec<Stage>,
    bn1: BatchNorm2d,
    fc: Linear,
    /// Blocks in a stage.
    blocks: usize,
    widths: [usize; 3],
    classes: usize,
    image: ImageShape,
}

impl WideResNet {
    /// Registers the network. `depth` is `6n + 4`, with `n` blocks a stage; `widen` multiplies the stages' channels.
    ///
    /// # Errors
    /// If a name is taken or the device fails.
    pub(super) fn new(
        scope: &mut Scope<'_>,
        depth: usize,
        widen: usize,
        image: ImageShape,
        classes: usize,
    ) -> Result<Self> {
        let widths = [16 * widen, 32 * widen, 64 * widen];
        let [first, second, third] = widths;
        let blocks = (depth - 4) / 6;
        let conv1 = Conv2d::new(scope.child("conv1"), image.channels, STEM, 3, 1)?;
        let stages = vec![
            Stage::new(scope.child("block1.layer"), blocks, STEM, first, 1)?,
            Stage::new(scope.child("block2.layer"), blocks, first, second, 2)?,
            Stage::new(scope.child("block3.layer"), blocks, second, third, 2)?,
        ];
        let bn1 = BatchNorm2d::new(scope.child("bn1"), third)?;
        let fc = Linear::with_bias(scope.child("fc"), third, classes, Init::Zeros)?;
        Ok(Self { conv1, stages, bn1, fc, blocks, widths, classes, image })
    }
}

impl Network for WideResNet {
    fn forward(&self, x: &Tensor, pass: &mut Pass) -> Result<Output> {
        self.image.check_batch(x)?;
        let mut x = self.conv1.forward(&Maps::from_tensor(x)?, pass)?;
        let mut stages = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            x = stage.forward(&x, pass)?;
            stages.push(x.clone());
        }
        let feature = kernels::global_avg_pool(&self.bn1.forward(&x, None, Activation::Relu, pass)?)?;
        Ok(Output { logits: self.fc.forward(&feature, pass)?, feature, stages })
    }

    fn auxiliary_classifier(&self, scope: Scope<'_>) -> Result<AuxiliaryClassifier> {
        let ends = (self.feature_width(), self.classes);
        AuxiliaryClassifier::new(scope, self.widths.len() - 1, ends, |scope, k| {
            let mut blocks = scope.child(format!("block_extractor{}", k + 1));
            let stages = self.widths[k..].windows(2).enumerate();
            let stages = stages.map(|(j, ends)| {
                Stage::new(blocks.child(format!("{j}.layer")), self.blocks, ends[0], ends[1], 2)
            });
            let stages = stages.collect::<Result<_>>()?;
            let bn = BatchNorm2d::new(scope.child(format!("bn{}", k + 1)), self.feature_width())?;
            Ok(Box::new(Remaining { stages, bn }))
        })
    }

    fn feature_width(&self) -> usize {
        self.widths[2]
    }

    fn stage_widths(&self) -> &[usize] {
        &self.widths
    }

    fn classifier(&self) -> &Linear {
        &self.fc
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn image(&self) -> ImageShape {
        self.image
    }
}

/// The stages after another one, and the activation in front of the pooling.
#[derive(Debug)]
struct Remaining {
    stages: Vec<Stage>,
    bn: BatchNorm2d,
}

impl Extractor for Remaining {
    fn forward(&self, x: &Maps, pass: &mut Pass) -> Result<Maps> {
        let x = self.stages.iter().try_fold(x.clone(), |x, stage| stage.forward(&x, pass))?;
        self.bn.forward(&x, None, Activation::Relu, pass)
    }
}

/// Blocks, of which the first changes width and stride.
#[derive(Debug)]
struct Stage(Vec<PreActivationBlock>);

impl Stage {
    fn new(
        mut scope: Scope<'_>,
        blocks: usize,
        inputs: usize,
        outputs: usize,
        stride: usize,
    ) -> Result<Self> {
        let block = |index| {
            let (inputs, stride) = if index == 0 { (inputs, stride) } else { (outputs, 1) };
            PreActivationBlock::new(scope.child(index), inputs, outputs, stride)
        };
        Ok(Self((0..blocks).map(block).collect::<Result<_>>()?))
    }

    fn forward(&self, x: &Maps, pass: &mut Pass) -> Result<Maps> {
        self.0.iter().try_fold(x.clone(), |x, block| block.forward(&x, pass))
    }
}

/// Batch norm and ReLU in front of each of two 3x3 convolutions.
#[derive(Debug)]
struct PreActivationBlock {
    bn1: BatchNorm2d,
    conv1: Conv2d,
    bn2: BatchNorm2d,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

impl PreActivationBlock {
    fn new(mut scope: Scope<'_>, inputs: usize, outputs: usize, stride: usize) -> Result<Self> {
        let bn1 = BatchNorm2d::new(scope.child("bn1"), inputs)?;
        let conv1 = Conv2d::new(scope.child("conv1"), inputs, outputs, 3, stride)?;
        let bn2 = BatchNorm2d::new(scope.child("bn2"), outputs)?;
        let conv2 = Conv2d::new(scope.child("conv2"), outputs, outputs, 3, 1)?;
        let shortcut = if inputs == outputs {
            None
        } else {
            Some(Conv2d::new(scope.child("convShortcut"), inputs, outputs, 1, stride)?)
        };
        Ok(Self { bn1, conv1, bn2, conv2, shortcut })
    }

    fn forward(&self, x: &Maps, pass: &mut Pass) -> Result<Maps> {
        let active = self.bn1.forward(x, None, Activation::Relu, pass)?;
        let inner = self.bn2.forward(&self.conv1.forward(&active, pass)?, None, Activation::Relu, pass)?;
        let inner = self.conv2.forward(&inner, pass)?;
        // A block that changes width takes its shortcut after the activation, the others before it.
        match &self.shortcut {
            None => kernels::add(x, &inner),
            Some(conv) => kernels::add(&conv.forward(&active, pass)?, &inner),
        }
    }
}
