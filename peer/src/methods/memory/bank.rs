//! What a network remembers of every training sample.

use candle_core::{DType, Device, Result, Tensor};

use super::super::primitives::SQUARED_LENGTH_MIN;

/// Most bytes of one bank: 1.3 million samples of width 128 are 656 MB.
pub const BANK_BYTES_MAX: u64 = 4 << 30;

/// One embedding a training sample; its size never changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Bank {
    values: Vec<f32>,
    width: usize,
}

/// What the rows of some samples become, before they do.
#[derive(Debug, Clone, PartialEq)]
pub struct Blended {
    /// The samples.
    pub samples: Vec<u32>,
    /// Their rows, one after another.
    pub rows: Vec<f64>,
}

impl Bank {
    /// Of `samples` rows, each value drawn from `unit`, which gives numbers in [0, 1): uniform in `±1/√(E/3)`, not scaled
    /// to unit length, as in the authors' code.
    ///
    /// # Errors
    /// More than [`BANK_BYTES_MAX`] bytes, or nothing to remember.
    pub fn new(samples: usize, width: usize, mut unit: impl FnMut() -> f64) -> Result<Self> {
        let len = Self::checked(samples, width)?;
        let bound = (3.0 / width as f64).sqrt();
        let values = (0..len).map(|_| ((2.0 * unit() - 1.0) * bound) as f32).collect();
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

    /// E.
    pub fn width(&self) -> usize {
        self.width
    }

    /// What the rows of the samples `indices` become: `unit((1 - momentum)·v + momentum·m)`, each from its row as it is
    /// now. `embeddings` `[B, E]`. Computed in f64 in a fixed order, so that every peer finds the same bits on any device.
    ///
    /// # Errors
    /// A sample that the bank does not hold, or shapes that differ.
    pub fn blended(&self, indices: &[u32], embeddings: &Tensor, momentum: f64) -> Result<Blended> {
        if embeddings.dims() != [indices.len(), self.width] {
            let (shape, width) = (embeddings.dims(), self.width);
            candle_core::bail!(
                "{} samples of width {width} to remember, but {shape:?} embeddings",
                indices.len()
            );
        }
        let new = embeddings.detach().to_dtype(DType::F64)?.to_vec2::<f64>()?;
        let mut rows = Vec::with_capacity(indices.len() * self.width);
        for (index, new) in indices.iter().zip(new) {
            let old = self.row(*index)?;
            let mixed = new.iter().zip(old).map(|(v, m)| (1.0 - momentum) * v + momentum * f64::from(*m));
            let mixed: Vec<f64> = mixed.collect();
            let length = mixed.iter().map(|x| x * x).sum::<f64>().max(SQUARED_LENGTH_MIN).sqrt();
            rows.extend(mixed.into_iter().map(|x| x / length));
        }
        Ok(Blended { samples: indices.to_vec(), rows })
    }

    /// Remembers a batch. Of a sample that the batch holds twice, the last row stays.
    pub fn remember(&mut self, blended: &Blended) {
        let width = self.width;
        for (sample, new) in blended.samples.iter().zip(blended.rows.chunks(width)) {
            let from = *sample as usize * width;
            if let Some(row) = self.values.get_mut(from..from + width) {
                row.iter_mut().zip(new).for_each(|(m, x)| *m = *x as f32);
            }
        }
    }

    /// The rows of samples as they are, for [`Bank::remember`] to put back. A sample that is none has no row in the bank
    /// to put back either.
    pub fn rows_of(&self, samples: &[u32]) -> Blended {
        let known: Vec<u32> = samples.iter().copied().filter(|sample| self.row(*sample).is_ok()).collect();
        let rows = known.iter().flat_map(|sample| self.row(*sample).unwrap_or_default());
        let rows = rows.map(|x| f64::from(*x)).collect();
        Blended { samples: known, rows }
    }

    /// The row of a sample, `[E]`.
    pub(super) fn row(&self, sample: u32) -> Result<&[f32]> {
        match self.values.get(sample as usize * self.width..(sample as usize + 1) * self.width) {
            Some(row) => Ok(row),
            None => candle_core::bail!("the bank holds {} samples, not sample {sample}", self.samples()),
        }
    }

    fn checked(samples: usize, width: usize) -> Result<usize> {
        let fits = |len: &usize| *len > 0 && *len as u64 <= BANK_BYTES_MAX / 4;
        let len = samples.checked_mul(width).filter(fits);
        match len {
            Some(len) => Ok(len),
            None => candle_core::bail!(
                "a bank of {samples} rows of {width} has nothing in it or more than {BANK_BYTES_MAX} bytes"
            ),
        }
    }
}
