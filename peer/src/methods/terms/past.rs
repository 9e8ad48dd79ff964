//! What a network said of every training sample the last time it saw it: the memory of [`super::ps_kd`].
//!
//! It begins as the labels, so that a sample is learned from its label until it has been seen (the authors' code leaves
//! zeros for samples that the first epoch passes over). It stays on its peer and belongs into the checkpoint.

use candle_core::{DType, Device, Result, Tensor};

use crate::methods::primitives::log_softmax;

/// Most bytes of a past: 1.3 million samples of 1000 classes are 5.1 GB.
pub const PAST_BYTES_MAX: u64 = 8 << 30;

/// Probabilities `[N, C]` in f32; its size never changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Past {
    values: Vec<f32>,
    classes: usize,
}

/// What some samples' rows become, before they do.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    samples: Vec<u32>,
    rows: Vec<f32>,
}

impl Past {
    /// One-hot rows of the training samples' labels, in the order of the samples.
    ///
    /// # Errors
    /// A label that is no class, no samples, or more than [`PAST_BYTES_MAX`] bytes.
    pub fn new(labels: &[usize], classes: usize) -> Result<Self> {
        let mut values = vec![0.0; Self::checked(labels.len(), classes)?];
        for (row, label) in values.chunks_exact_mut(classes).zip(labels) {
            match row.get_mut(*label) {
                Some(p) => *p = 1.0,
                None => candle_core::bail!("label {label} is none of the {classes} classes"),
            }
        }
        Ok(Self { values, classes })
    }

    /// From the rows `[N, C]` of a checkpoint, for a run with as many samples and classes.
    ///
    /// # Errors
    /// Another shape, or rows that are no distributions.
    pub fn from_tensor(rows: &Tensor, samples: usize, classes: usize) -> Result<Self> {
        Self::checked(samples, classes)?;
        if rows.dims() != [samples, classes] {
            candle_core::bail!("the past is {:?}, expected {:?}", rows.dims(), [samples, classes]);
        }
        let values: Vec<f32> = rows.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let sum = |row: &[f32]| row.iter().map(|p| f64::from(*p)).sum::<f64>();
        let distribution = |row: &[f32]| row.iter().all(|p| *p >= 0.0) && (sum(row) - 1.0).abs() < 1e-3;
        if let Some(sample) = values.chunks_exact(classes).position(|row| !distribution(row)) {
            candle_core::bail!("the past of sample {sample} is no distribution over {classes} classes");
        }
        Ok(Self { values, classes })
    }

    /// The rows `[N, C]`, f32: the whole state.
    ///
    /// # Errors
    /// If the device fails.
    pub fn to_tensor(&self) -> Result<Tensor> {
        Tensor::from_slice(&self.values, (self.samples(), self.classes), &Device::Cpu)
    }

    /// N.
    pub fn samples(&self) -> usize {
        self.values.len() / self.classes
    }

    /// C.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The rows `[B, C]` of the samples `indices`, f32 on the CPU.
    ///
    /// # Errors
    /// A sample that it does not hold.
    pub fn rows(&self, indices: &[u32]) -> Result<Tensor> {
        let mut rows = Vec::with_capacity(indices.len() * self.classes);
        for index in indices {
            match self.values.get(self.place(*index)) {
                Some(row) => rows.extend_from_slice(row),
                None => candle_core::bail!("the past holds {} samples, not sample {index}", self.samples()),
            }
        }
        Tensor::from_vec(rows, (indices.len(), self.classes), &Device::Cpu)
    }

    /// What the rows of the samples `indices` become: the softmax of `logits` `[B, C]`, those that the loss was made of.
    /// [`Past::remember`] it once the step is certain.
    ///
    /// # Errors
    /// A sample that it does not hold, logits of another shape, or logits that are not finite.
    pub fn said(&self, indices: &[u32], logits: &Tensor) -> Result<Said> {
        if logits.dims() != [indices.len(), self.classes] {
            let (count, classes, shape) = (indices.len(), self.classes, logits.dims());
            candle_core::bail!("{count} samples of {classes} classes to remember, but {shape:?} logits");
        }
        if let Some(index) = indices.iter().find(|index| **index as usize >= self.samples()) {
            candle_core::bail!("the past holds {} samples, not sample {index}", self.samples());
        }
        let rows = log_softmax(&logits.detach())?.exp()?.to_dtype(DType::F32)?;
        let rows: Vec<f32> = rows.flatten_all()?.to_vec1()?;
        if let Some(at) = rows.iter().position(|p| !p.is_finite()) {
            candle_core::bail!("the logits of sample {} are not finite", indices[at / self.classes]);
        }
        Ok(Said { samples: indices.to_vec(), rows })
    }

    /// Remembers a batch. Of a sample that the batch holds twice, the last row stays. It cannot fail, so that either all
    /// of a step is done or nothing.
    pub fn remember(&mut self, said: &Said) {
        for (sample, new) in said.samples.iter().zip(said.rows.chunks_exact(self.classes)) {
            let place = self.place(*sample);
            if let Some(row) = self.values.get_mut(place) {
                row.copy_from_slice(new);
            }
        }
    }

    fn place(&self, sample: u32) -> std::ops::Range<usize> {
        let from = sample as usize * self.classes;
        from..from + self.classes
    }

    fn checked(samples: usize, classes: usize) -> Result<usize> {
        let fits = |len: &usize| *len > 0 && *len as u64 <= PAST_BYTES_MAX / 4;
        match samples.checked_mul(classes).filter(fits) {
            Some(len) => Ok(len),
            None => candle_core::bail!(
                "a past of {samples} samples of {classes} classes has nothing in it or more than {PAST_BYTES_MAX} bytes"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::tests::*;

    const OWN: [usize; 8] = [0, 1, 2, 3, 4, 0, 1, 2];

    fn past() -> Past {
        Past::new(&OWN, CLASSES).unwrap()
    }

    fn row(past: &Past, sample: u32) -> Vec<f64> {
        entries(&past.rows(&[sample]).unwrap())
    }

    #[test]
    fn begins_as_the_labels() {
        let past = past();
        assert_eq!((past.samples(), past.classes()), (8, CLASSES));
        assert_eq!(row(&past, 7), [0.0, 0.0, 1.0, 0.0, 0.0]);
        let total = past.to_tensor().unwrap().sum_all().unwrap();
        assert_eq!(value(&total), 8.0);
    }

    #[test]
    fn holds_what_was_said_last_and_the_last_of_a_batch() {
        let mut past = past();
        let z = logits_of(0).unwrap();
        let said = past.said(&[3, 6, 3, 0, 1, 7], &z).unwrap();
        assert_eq!(past, super::tests::past(), "nothing happens before it is remembered");
        past.remember(&said);
        let softmax =
            |n| entries(&log_softmax(&z.get(n).unwrap().unsqueeze(0).unwrap()).unwrap().exp().unwrap());
        for (sample, n) in [(3, 2), (6, 1), (7, 5)] {
            assert!(largest_difference(&row(&past, sample), &softmax(n)) < 1e-7, "sample {sample}");
        }
        assert_eq!(row(&past, 2), [0.0, 0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn comes_back_from_a_checkpoint_bit_by_bit() {
        let mut past = past();
        past.remember(&past.said(&[0, 1, 2, 3, 4, 5], &logits_of(2).unwrap()).unwrap());
        let saved = past.to_tensor().unwrap();
        assert_eq!(Past::from_tensor(&saved, 8, CLASSES).unwrap(), past);
        assert!(Past::from_tensor(&saved, 7, CLASSES).is_err());
        assert!(Past::from_tensor(&saved, 8, 4).is_err());
        assert!(Past::from_tensor(&(&saved * 2.0).unwrap(), 8, CLASSES).is_err());
        assert!(Past::from_tensor(&(&saved * f64::NAN).unwrap(), 8, CLASSES).is_err());
    }

    #[test]
    fn refuses_what_it_cannot_hold() {
        assert!(Past::new(&[0, 5], CLASSES).is_err());
        assert!(Past::new(&[], CLASSES).is_err() && Past::new(&[0], 0).is_err());
        assert!(Past::new(&[0, 0, 0], usize::MAX / 2).is_err());
        let past = past();
        let z = logits_of(0).unwrap();
        assert!(past.rows(&[8]).is_err());
        assert!(past.said(&[0, 1, 2, 3, 4, 8], &z).is_err());
        assert!(past.said(&[0, 1], &z).is_err());
        assert!(past.said(&[0, 1, 2, 3, 4, 5], &(&z * f64::INFINITY).unwrap()).is_err());
    }
}
