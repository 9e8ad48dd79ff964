//! The residual networks for small images of He et al. 2016 (section 4.2): resnet8 to resnet110, and the x4 widths.
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

use super::layers::{BatchNorm2d, Conv2d, Linear};
use super::params::Scope;
use super::pass::Pass;
use super::registry::ImageShape;
use super::{Network, Output};
use crate::kernels::{self, Activation, Maps};

/// A residual network of three stages.
#[derive(Debug)]
pub struct ResNet {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    stages: Vec<Vec<BasicBlock>>,
    fc: Linear,
    widths: [usize; 3],
    classes: usize,
    image: ImageShape,
}

impl ResNet {
    /// Registers the network. `widths` are the channels of the stem and of the three stages; `depth` is `6n + 2`, with
    /// `n` blocks a stage.
    ///
    /// # Errors
    /// If a name is taken or the device fails.
    pub(super) fn new(
        scope: &mut Scope<'_>,
        depth: usize,
        widths: [usize; 4],
        image: ImageShape,
        classes: usize,
    ) -> Result<Self> {
        let [stem, first, second, third] = widths;
        let blocks = (depth - 2) / 6;
        let conv1 = Conv2d::new(scope.child("conv1"), image.channels, stem, 3, 1)?;
        let bn1 = BatchNorm2d::new(scope.child("bn1"), stem)?;
        let stages = vec![
            stage(scope.child("layer1"), blocks, stem, first, 1)?,
            stage(scope.child("layer2"), blocks, first, second, 2)?,
            stage(scope.child("layer3"), blocks, second, third, 2)?,
        ];
        let fc = Linear::new(scope.child("fc"), third, classes)?;
        Ok(Self { conv1, bn1, stages, fc, widths: [first, second, third], classes, image })
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
            for block in stage {
                x = block.forward(&x, pass)?;
            }
            stages.push(x.clone());
        }
        let feature = kernels::global_avg_pool(&x)?;
        Ok(Output { logits: self.fc.forward(&feature, pass)?, feature, stages })
    }

    fn feature_width(&self) -> usize {
        self.widths[2]
    }

    fn stage_widths(&self) -> &[usize] {
        &self.widths
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn image(&self) -> ImageShape {
        self.image
    }
}

/// `blocks` basic blocks, of which the first changes width and stride.
fn stage(
    mut scope: Scope<'_>,
    blocks: usize,
    inputs: usize,
    outputs: usize,
    stride: usize,
) -> Result<Vec<BasicBlock>> {
    let block = |index| {
        let (inputs, stride) = if index == 0 { (inputs, stride) } else { (outputs, 1) };
        BasicBlock::new(scope.child(index), inputs, outputs, stride)
    };
    (0..blocks).map(block).collect()
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
