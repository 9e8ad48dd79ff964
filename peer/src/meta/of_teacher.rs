//! A teacher's part of the bilevel problem: none but its words. It has no θ that the inner descent could move and no φ
//! that is learnt; all it says of the batch is the same at every place of the path.

use candle_core::{DType, Result, Tensor};

use super::problem::{Bilevel, Gradient, Words};
use crate::error::PeerError;
use crate::kernels::GateTape;
use crate::kernels::threads::compute;
use crate::learner::Learner;
use crate::models::Pass;

/// What a frozen network says of the batch of a meta-update.
pub struct OfTeacher {
    words: Words,
}

impl OfTeacher {
    /// Of images `[B, channels, height, width]`, computing in `precision` (f32 or f64) with the running statistics.
    ///
    /// # Errors
    /// If the images do not fit, or the device fails.
    pub fn new(
        learner: &mut Learner,
        images: &Tensor,
        precision: DType,
    ) -> std::result::Result<Self, PeerError> {
        if learner.model.params.dtype() != precision {
            learner.refresh_twin(precision)?;
        }
        let (model, images) = (learner.in_precision(precision), images.to_dtype(precision)?);
        let outputs = compute(|| model.forward(&images, &mut Pass::eval()))?;
        Ok(Self { words: Words { embeddings: outputs.embeddings, matching: outputs.matching } })
    }
}

impl Bilevel for OfTeacher {
    type Forward = ();
    type Targets = ();
    type Statistics = ();

    fn theta(&self) -> Result<Vec<f64>> {
        Ok(Vec::new())
    }

    fn phi_count(&self) -> usize {
        0
    }

    fn set_theta(&mut self, _: &[f64]) -> Result<()> {
        Ok(())
    }

    fn record(&self) -> Result<((), GateTape)> {
        Ok(((), GateTape::default()))
    }

    fn replay(&self, _: &GateTape) -> Result<()> {
        Ok(())
    }

    fn words(&self, (): &()) -> Words {
        self.words.clone()
    }

    fn targets(&self, (): &(), _: &[(usize, Words)]) -> Result<()> {
        Ok(())
    }

    fn inner_gradient(&self, (): &(), _: &[(usize, Words)], (): &()) -> Result<Gradient> {
        Ok(Gradient { theta: Vec::new(), phi: Vec::new() })
    }

    fn remember(&mut self, (): &(), _: &[(usize, Words)]) -> Result<()> {
        Ok(())
    }

    fn forget(&mut self) {}

    fn outer_gradient(&self, (): &()) -> Result<Vec<f64>> {
        Ok(Vec::new())
    }

    fn statistics(&self, (): ()) {}

    fn write_statistics(&mut self, (): ()) -> Result<()> {
        Ok(())
    }

    fn step_phi(&mut self, _: &[f64], _: f64) -> Result<()> {
        Ok(())
    }
}
