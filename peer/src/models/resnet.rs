//! The residual networks for small images of He et al. 2016 (section 4.2): resnet8 to resnet110, and the x4 widths.
//! By the same rule, `2 n S + 2` layers with n blocks in each of S stages: resnet6 with two stages; resnet10 and resnet18
//! with the four stages of ImageNet's networks, named as torchvision does, behind the stem for small images (3x3, stride 1).
//!
//! Names and structure are those of megvii-research/mdistiller (`mdistiller/models/cifar/resnet.py`), whose weights load
//! as they are. The network of winycg/MCL (`models/resnet.py`), where it differs:
//!
//! | | mdistiller, and here | winycg/MCL |
//! | --- | --- | --- |
//! | classifier's name | `fc` | `classifier` (accepted when weights are loaded) |
//! | pooling | a window of 8x8, so 32x32 images only; here the global average, the same number at 32x32 | global average |
//! | depth 110 | 18 basic blocks a stage, 64 features | 12 bottlenecks a stage, 256 features: another network, its weights are refused |
//! | depths and widths | 8 to 110, and 8x4, 32x4 | 32, 56, 110 with widths 16, 32, 64 |
//! | several networks | one a file | all in one file under `module_list.N.`, or with a shared stem |
//! | feature | taken after the last ReLU; the maps before ReLU are given besides | after the last ReLU |
//!
//! Shortcuts across a change of width or stride are 1x1 convolutions with batch norm (option B), in both. Basic blocks
//! are used at every depth; bottlenecks from depth 44 on, as some older code has them, are not.

use candle_core::{Result, Tensor};

use super::auxiliary::{AuxiliaryClassifier, Extractor};
use super::layers::{BatchNorm2d, Conv2d, Linear};
use super::params::Scope;
use super::pass::Pass;
use super::registry::ImageShape;
use super::{Network, Output};
use crate::kernels::{self, Activation, Maps};

/// A residual network of two to four stages.
#[derive(Debug)]
pub struct ResNet {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    stages: Vec<Stage>,
    fc: Linear,
    /// Blocks in a stage.
    blocks: usize,
    widths: &'static [usize],
    classes: usize,
    image: ImageShape,
}

impl ResNet {
    /// Registers the network. `widths` are the channels of the stem and of the S stages; `depth` is `2 n S + 2`, with
    /// `n` blocks a stage.
    ///
    /// # Errors
    /// If a name is taken or the device fails.
    pub(super) fn new(
        scope: &mut Scope<'_>,
        depth: usize,
        widths: &'static [usize],
        image: ImageShape,
        classes: usize,
    ) -> Result<Self> {
        let Some((&stem, stage_widths)) = widths.split_first() else {
            candle_core::bail!("a residual network needs a stem");
        };
        let blocks = (depth - 2) / (2 * stage_widths.len());
        let conv1 = Conv2d::new(scope.child("conv1"), image.channels, stem, 3, 1)?;
        let bn1 = BatchNorm2d::new(scope.child("bn1"), stem)?;
        let stage = |(k, ends): (usize, &[usize])| {
            let stride = if k == 0 { 1 } else { 2 };
            Stage::new(scope.child(format!("layer{}", k + 1)), blocks, ends[0], ends[1], stride)
        };
        let stages = widths.windows(2).enumerate().map(stage).collect::<Result<_>>()?;
        let width = widths[widths.len() - 1];
        let fc = Linear::new(scope.child("fc"), width, classes)?;
        Ok(Self { conv1, bn1, stages, fc, blocks, widths: stage_widths, classes, image })
    }
}

impl Network for ResNet {
    fn forward(&self, x: &Tensor, pass: &mut Pass) -> Result<Output> {
        self.image.check_batch(x)?;
        let mut x = self.bn1.forward(
            &self.conv1.forward(&Maps::from_tensor(x)?, pass)?,
            None,
            Activation::Relu,
            pass,
        )?;
        let mut stages = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            x = stage.forward(&x, pass)?;
            stages.push(x.clone());
        }
        let feature = kernels::global_avg_pool(&x)?;
        Ok(Output { logits: self.fc.forward(&feature, pass)?, feature, stages })
    }

    fn auxiliary_classifier(&self, scope: Scope<'_>) -> Result<AuxiliaryClassifier> {
        let ends = (self.feature_width(), self.classes);
        AuxiliaryClassifier::new(scope, self.widths.len() - 1, ends, |scope, k| {
            let mut scope = scope.child(format!("block_extractor{}", k + 1));
            let stages = self.widths[k..].windows(2).enumerate();
            let stages = stages.map(|(j, ends)| Stage::new(scope.child(j), self.blocks, ends[0], ends[1], 2));
            Ok(Box::new(Remaining(stages.collect::<Result<_>>()?)))
        })
    }

    fn feature_width(&self) -> usize {
        self.widths[self.widths.len() - 1]
    }

    fn stage_widths(&self) -> &[usize] {
        self.widths
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

/// The stages after another one.
#[derive(Debug)]
struct Remaining(Vec<Stage>);

impl Extractor for Remaining {
    fn forward(&self, x: &Maps, pass: &mut Pass) -> Result<Maps> {
        self.0.iter().try_fold(x.clone(), |x, stage| stage.forward(&x, pass))
    }
}

/// Basic blocks, of which the first changes width and stride.
#[derive(Debug)]
struct Stage(Vec<BasicBlock>);

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
            BasicBlock::new(scope.child(index), inputs, outputs, stride)
        };
        Ok(Self((0..blocks).map(block).collect::<Result<_>>()?))
    }

    fn forward(&self, x: &Maps, pass: &mut Pass) -> Result<Maps> {
        self.0.iter().try_fold(x.clone(), |x, block| block.forward(&x, pass))
    }
}

/// Two 3x3 convolutions and a shortcut, with ReLU after the sum.
#[derive(Debug)]
struct BasicBlock {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    conv2: Conv2d,
    bn2: BatchNorm2d,
    downsample: Option<(Conv2d, BatchNorm2d)>,
}

impl BasicBlock {
    fn new(mut scope: Scope<'_>, inputs: usize, outputs: usize, stride: usize) -> Result<Self> {
        let conv1 = Conv2d::new(scope.child("conv1"), inputs, outputs, 3, stride)?;
        let bn1 = BatchNorm2d::new(scope.child("bn1"), outputs)?;
        let conv2 = Conv2d::new(scope.child("conv2"), outputs, outputs, 3, 1)?;
        let bn2 = BatchNorm2d::new(scope.child("bn2"), outputs)?;
        let downsample = if stride == 1 && inputs == outputs {
            None
        } else {
            let conv = Conv2d::new(scope.child("downsample.0"), inputs, outputs, 1, stride)?;
            Some((conv, BatchNorm2d::new(scope.child("downsample.1"), outputs)?))
        };
        Ok(Self { conv1, bn1, conv2, bn2, downsample })
    }

    fn forward(&self, x: &Maps, pass: &mut Pass) -> Result<Maps> {
        let inner = self.bn1.forward(&self.conv1.forward(x, pass)?, None, Activation::Relu, pass)?;
        let inner = self.conv2.forward(&inner, pass)?;
        let shortcut = match &self.downsample {
            None => x.clone(),
            Some((conv, bn)) => bn.forward(&conv.forward(x, pass)?, None, Activation::None, pass)?,
        };
        self.bn2.forward(&inner, Some(&shortcut), Activation::Relu, pass)
    }
}
