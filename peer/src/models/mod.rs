//! Networks: one family a file, with the state-dict names that PyTorch users know.
//!
//! A network sees pixels and says logits, the pooled feature in front of the classifier and the feature map of each
//! stage. It knows neither losses nor other peers. Its numbers live in [`Params`], so that optimiser, checkpoint and
//! digest see one ordered list of names whatever the family.

pub mod registry;
pub mod resnet;
pub mod wide_resnet;
pub mod auxiliary;
pub mod projection;
pub mod aggregator;
pub mod ensemble_gate;
pub mod discriminator;
pub mod layers;
pub mod pass;
pub mod params;
pub mod state;

pub use aggregator::Aggregator;
pub use auxiliary::{AuxiliaryClassifier, StageOutput};
pub use discriminator::Discriminator;
pub use ensemble_gate::EnsembleGate;
pub use params::{Init, Params, Scope};
pub use pass::Pass;
pub use projection::Projection;
pub use registry::{ImageShape, ModelError, build, known};
pub use state::{LoadReport, StateDict, StateError, Strictness};

use candle_core::{Result, Tensor};

use crate::kernels::Maps;
use layers::Linear;

/// What a network says about a batch of `B` images.
#[derive(Debug, Clone)]
pub struct Output {
    /// Class scores before softmax, `[B, classes]`.
    pub logits: Tensor,
    /// The globally averaged feature that the classifier reads, `[B, feature_width]`.
    pub feature: Tensor,
    /// The feature map at the end of each stage, first stage first, `[B, stage_widths[k], H_k, W_k]`.
    pub stages: Vec<Maps>,
}

/// A network whose parameters are variables of a [`Params`].
pub trait Network: Send + Sync {
    /// Scores a batch `x` `[B, C, H, W]`.
    ///
    /// A training pass normalises by the batch and collects what it learnt of the running statistics in `pass`; an
    /// evaluation pass uses the running statistics and records no graph.
    ///
    /// # Errors
    /// If `x` does not have the image shape the network was built for, or the device fails.
    fn forward(&self, x: &Tensor, pass: &mut Pass) -> Result<Output>;

    /// Registers classifiers for all stages but the last, as this family's authors of layer-wise methods build them.
    ///
    /// # Errors
    /// If a name is taken or the device fails.
    fn auxiliary_classifier(&self, scope: Scope<'_>) -> Result<AuxiliaryClassifier>;

    /// Width `d` of [`Output::feature`].
    fn feature_width(&self) -> usize;

    /// Channels of each map in [`Output::stages`].
    fn stage_widths(&self) -> &[usize];

    /// What makes logits of a feature.
    fn classifier(&self) -> &Linear;

    /// Number of classes the logits cover.
    fn classes(&self) -> usize;

    /// The image the network was built for.
    fn image(&self) -> ImageShape;
}

#[cfg(test)]
mod tests;
