//! What a network remembers of every training sample.

use candle_core::{DType, Device, Result, Tensor};
use cohort_proto::rng::{SplitMix64, key_of};

use super::super::primitives::{unit, widen};

/// Most bytes of one bank: 1.3 million samples of width 128 are 656 MB.
pub const BANK_BYTES_MAX: usize = 2 << 30;

/// One embedding a training sample; its size never changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Bank {
    values: Vec<f32>,
    width: usize,
}

impl Bank {
    /// For network `network` of a run: every value uniform in `±1/√(E/3)`, not scaled to unit length, as in the authors'
    /// code. The same seed and network give the same bank on every peer.
    ///
    /// # Errors
    /// More than [`BANK_BYTES_MAX`] bytes, or nothing to remember.
    pub fn new(samples: usize, width: usize, seed: u64, network: usize) -> Result<Self> {
        let len = Self::checked(samples, width)?;
        let mut rng = SplitMix64::keyed(&[seed, key_of("bank"), network as u64]);
        let bound = (3.0 / width as f64).sqrt();
        let values = (0..len).map(|_| ((2.0 * rng.unit_f64() - 1.0) * bound) as f32).collect();
        Ok(Self { values, width })
    }

    /// From the rows `[N, E]` of a checkpoint.
    ///
    /// # Errors
    /// As [`Bank::new`], or a tensor that has no two dimensions.
    pub fn from_tensor(rows: &Tensor) -> Result<Self> {
        let (samples, width) = rows.dims2()?;
        Self::checked(samples, width)?;
        Ok(Self { values: rows.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?, width })
    }

    /// The rows `[N, E]`, f32.
    ///
    /// # Errors
    /// If the device fails.
    pub fn to_tensor(&self) -> Result<Tensor> {
        Tensor::from_slice(&self.values, (self.samples(), self.width), &Device::Cpu)
    }

    /// N.
    pub fn samples(&self) -> usize {
        self.values.len() / self.width
    }

    /// The rows at `keys`, B lists of equal length K: `[B, K, E]` in the dtype of losses on the device of `like`.
    pub(super) fn rows(&self, keys: &[Vec<u32>], like: &Tensor) -> Result<Tensor> {
        let count = keys.first().map_or(0, Vec::len);
        let mut values = Vec::with_capacity(keys.len() * count * self.width);
        for key in keys.iter().flatten() {
            values.extend_from_slice(self.row(*key)?);
        }
        widen(&Tensor::from_vec(values, (keys.len(), count, self.width), like.device())?)
    }

    /// What the rows of the samples `indices` become: `unit((1 - momentum)·v + momentum·m)` `[B, E]` in the dtype of
    /// losses, each from its row as it is now. `embeddings` `[B, E]`.
    ///
    /// # Errors
    /// A sample that the bank does not hold, or shapes that differ.
    pub fn blended(&self, indices: &[u32], embeddings: &Tensor, momentum: f64) -> Result<Tensor> {
        let keys: Vec<Vec<u32>> = indices.iter().map(|index| vec![*index]).collect();
        let old = self.rows(&keys, embeddings)?.squeeze(1)?;
        unit(&((old * momentum)? + (widen(&embeddings.detach())? * (1.0 - momentum))?)?)
    }

    /// Remembers a batch. Of a sample that the batch holds twice, the last row stays.
    ///
    /// # Errors
    /// As [`Bank::blended`]; the bank is then as it was.
    pub fn update(&mut self, indices: &[u32], embeddings: &Tensor, momentum: f64) -> Result<()> {
        let rows = self.blended(indices, embeddings, momentum)?.to_dtype(DType::F32)?;
        for (index, row) in indices.iter().zip(rows.to_vec2::<f32>()?) {
            let from = *index as usize * self.width;
            self.values[from..from + self.width].copy_from_slice(&row);
        }
        Ok(())
    }

    fn row(&self, key: u32) -> Result<&[f32]> {
        match self.values.get(key as usize * self.width..(key as usize + 1) * self.width) {
            Some(row) => Ok(row),
            None => candle_core::bail!("the bank holds {} samples, not sample {key}", self.samples()),
        }
    }

    fn checked(samples: usize, width: usize) -> Result<usize> {
        let len = samples.checked_mul(width).filter(|len| *len > 0 && *len <= BANK_BYTES_MAX / 4);
        match len {
            Some(len) => Ok(len),
            None => candle_core::bail!(
                "a bank of {samples} rows of {width} has nothing in it or more than {BANK_BYTES_MAX} bytes"
            ),
        }
    }
}
