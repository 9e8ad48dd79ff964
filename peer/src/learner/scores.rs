//! What a model makes of labelled samples that it does not train on, in file order.

use candle_core::{Device, Tensor};
use cohort_proto::dataset::Samples;

use super::Model;
use crate::data::augment::Normalisation;
use crate::data::loader::EvaluationBatches;
use crate::error::PeerError;
use crate::kernels::threads::compute;
use crate::models::Pass;

/// Images that pass through the network at a time: enough to keep the kernels busy, little memory.
const BATCH: usize = 250;

/// Logits [N, classes], row after row: of the network, of every stage if the model has classifiers for them, and of the
/// aggregator if it has one; and the features that the network's are made of.
#[derive(Debug, Default)]
pub struct Scores {
    /// Those of the network.
    pub logits: Vec<f32>,
    /// The last features [N, width], row after row.
    pub features: Vec<f32>,
    /// The width of a feature.
    pub width: usize,
    /// Those of every stage, the last being the network's own; none without classifiers for them.
    pub stages: Vec<Vec<f32>>,
    /// Those that the aggregator mixes of all stages.
    pub aggregated: Option<Vec<f32>>,
}

impl Scores {
    /// Passes all samples through a model in evaluation mode, on the device where it is.
    ///
    /// # Errors
    /// A normalisation for other images, or the device fails.
    pub fn of(
        model: &Model,
        samples: &Samples,
        normalisation: &Normalisation,
        device: &Device,
    ) -> Result<Self, PeerError> {
        let numbers = |logits: &Tensor| logits.flatten_all()?.to_vec1::<f32>();
        let mut scores = Self { width: model.network.feature_width(), ..Self::default() };
        for batch in EvaluationBatches::new(samples, normalisation, BATCH)? {
            let images = Tensor::from_vec(batch.images, batch.shape.as_slice(), device)?;
            let outputs = compute(|| model.forward(&images, &mut Pass::eval()))?;
            scores.logits.extend(numbers(&outputs.logits)?);
            scores.features.extend(numbers(&outputs.feature)?);
            scores.stages.resize(outputs.stage_logits.len(), Vec::new());
            for (all, logits) in scores.stages.iter_mut().zip(&outputs.stage_logits) {
                all.extend(numbers(logits)?);
            }
            if let Some(aggregated) = &outputs.aggregated {
                scores.aggregated.get_or_insert_default().extend(numbers(aggregated)?);
            }
        }
        Ok(scores)
    }
}

/// As the metrics take them.
pub fn widened(logits: &[f32]) -> Vec<f64> {
    logits.iter().map(|&logit| f64::from(logit)).collect()
}
