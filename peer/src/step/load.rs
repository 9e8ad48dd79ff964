//! Act 1: the batch, which the loader thread prepared in plain memory, becomes tensors on the device.

use candle_core::{Device, Result, Tensor};

use crate::data::loader::Batch;

/// A batch on the device.
#[derive(Debug, Clone)]
pub struct Input {
    /// The step.
    pub step: u64,
    /// The epoch.
    pub epoch: u64,
    /// The samples [B], by their place in the training set.
    pub indices: Vec<u32>,
    /// Normalised pixels [B, channels, height, width].
    pub images: Tensor,
    /// Classes [B], u32.
    pub labels: Tensor,
    /// How networks are weighed in this epoch, by the time that the loss is formed.
    pub weights: Option<Vec<f64>>,
}

/// Moves a batch to the device.
///
/// # Errors
/// If the device fails.
pub fn load(batch: &Batch, device: &Device) -> Result<Input> {
    let images = Tensor::from_slice(&batch.images, batch.shape.as_slice(), device)?;
    let labels = Tensor::from_slice(&batch.labels, batch.labels.len(), device)?;
    let (step, epoch, indices) = (batch.step, batch.epoch, batch.indices.clone());
    Ok(Input { step, epoch, indices, images, labels, weights: None })
}
