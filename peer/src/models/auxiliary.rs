//! Auxiliary classifiers: at the end of every stage but the last, the stages that follow once more, and a classifier.
//!
//! Names are those of winycg/L-MCL and winycg/HSAKD (`models/`, class `Auxiliary_Classifier`), under
//! `auxiliary_classifier.`: `block_extractorK.*` with the blocks of branch K = 1, 2, ..., `bnK.*` where the network
//! normalises in front of its pooling, `fcK.*`. All branches end in the width of the network's own feature.

use candle_core::{Result, Tensor};

use super::layers::Linear;
use super::params::{Init, Scope};
use super::pass::Pass;
use crate::kernels::{self, Maps};

/// What lies between the end of a stage and the pooling of its branch.
pub(super) trait Extractor: std::fmt::Debug + Send + Sync {
    /// The map of stage k, `[B, stage_widths[k], H_k, W_k]`, to the map that is pooled, `[B, d, H, W]`.
    fn forward(&self, x: &Maps, pass: &mut Pass) -> Result<Maps>;
}

/// What the classifier of one stage makes of a batch.
#[derive(Debug, Clone)]
pub struct StageOutput {
    /// The globally averaged feature that the stage's classifier reads, `[B, d]`.
    pub feature: Tensor,
    /// `[B, classes]`.
    pub logits: Tensor,
}

/// The branches of a network of S stages: S - 1, first stage first.
#[derive(Debug)]
pub struct AuxiliaryClassifier {
    branches: Vec<Branch>,
}

#[derive(Debug)]
struct Branch {
    extractor: Box<dyn Extractor>,
    fc: Linear,
}

impl AuxiliaryClassifier {
    /// Registers `branches` branches that end in features of width `width`; `extractor(scope, k)` registers what is
    /// special to the family for stage k, counted from 0. The biases of the classifiers start at 0, as in L-MCL's
    /// networks for small images.
    pub(super) fn new(
        mut scope: Scope<'_>,
        branches: usize,
        (width, classes): (usize, usize),
        extractor: impl Fn(&mut Scope<'_>, usize) -> Result<Box<dyn Extractor>>,
    ) -> Result<Self> {
        let branch = |k| {
            let extractor = extractor(&mut scope, k)?;
            let fc = Linear::with_bias(scope.child(format!("fc{}", k + 1)), width, classes, Init::Zeros)?;
            Ok(Branch { extractor, fc })
        };
        Ok(Self { branches: (0..branches).map(branch).collect::<Result<_>>()? })
    }

    /// Features and logits of all stages but the last, from the maps at the end of all stages
    /// ([`Output::stages`](super::Output::stages)).
    ///
    /// # Errors
    /// If the maps are those of another network, or the device fails.
    pub fn forward(&self, stages: &[Maps], pass: &mut Pass) -> Result<Vec<StageOutput>> {
        if stages.len() != self.branches.len() + 1 {
            candle_core::bail!("{} stages for {} branches", stages.len(), self.branches.len());
        }
        let branches = self.branches.iter().zip(stages);
        let output = branches.map(|(branch, x)| {
            let feature = kernels::global_avg_pool(&branch.extractor.forward(x, pass)?)?;
            Ok(StageOutput { logits: branch.fc.forward(&feature, pass)?, feature })
        });
        output.collect()
    }
}
