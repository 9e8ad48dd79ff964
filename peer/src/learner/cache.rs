//! What a teacher has said of each training sample: its network never changes and images that are not augmented do not
//! either, so that a sample that comes back need not pass through the network again.
//!
//! The rows are kept as the bytes that travelled. In evaluation mode a network makes the same bits of an image at any place
//! and in any company, among batches of one size (a matrix product of one row may be summed in another order than one of many);
//! so a batch that is put together of rows said in others as large is the batch that would be said.

use candle_core::{Device, Result, Tensor};
use cohort_proto::contribution;
use cohort_proto::schema::{DType, TensorSpec};
use cohort_proto::spec::RunSpec;

use crate::error::PeerError;
use crate::models::state::Mismatch;
use crate::models::{StateDict, StateError};

/// Where the names of the rows begin in a checkpoint: `cache.NAME` `[N, width]` of each tensor that is said.
pub const CACHE_PREFIX: &str = "cache.";

/// Which of them are known, in a checkpoint: `[N]`, 1 or 0. No tensor is said under this name.
const KNOWN: &str = "cache.known";

/// Bytes of a number.
const NUMBER: usize = size_of::<f32>();

/// Rows of N samples; its size never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// Samples in a batch.
    batch: usize,
    known: Vec<bool>,
    words: Vec<Word>,
}

/// One of the tensors that are said.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Word {
    name: String,
    /// Of a row.
    shape: Vec<usize>,
    /// Numbers of a row.
    width: usize,
    /// Little-endian f32, sample after sample.
    rows: Vec<u8>,
}

impl Cache {
    /// That of a peer over so many training samples, with nothing in it; none if the run spec asks for none.
    ///
    /// # Errors
    /// More than a peer keeps.
    pub fn new(spec: &RunSpec, index: usize, samples: usize) -> std::result::Result<Option<Self>, PeerError> {
        if !spec.peers.get(index).is_some_and(|peer| peer.cache) {
            return Ok(None);
        }
        spec.check_cache(index, samples)?;
        let schema =
            spec.contribution_schema(index).map_err(|error| PeerError::Mismatch(error.to_string()))?;
        let word = |tensor: &TensorSpec| {
            let shape = tensor.shape.get(1..).unwrap_or_default().to_vec();
            let width = shape.iter().product();
            Word { name: tensor.name.clone(), shape, width, rows: vec![0; samples * width * NUMBER] }
        };
        let words = schema.tensors().iter().map(word).collect();
        Ok(Some(Self { batch: spec.data.batch, known: vec![false; samples], words }))
    }

    /// What is said of the samples `indices`, if they are as many as a batch has and all of them are known.
    pub fn recall(&self, indices: &[u32]) -> Option<Vec<contribution::Tensor>> {
        let fills = indices.len() == self.batch;
        if !fills || !indices.iter().all(|index| self.known.get(*index as usize) == Some(&true)) {
            return None;
        }
        self.words.iter().map(|word| word.recall(indices)).collect()
    }

    /// Keeps what was said of a batch of the samples `indices`.
    ///
    /// # Errors
    /// Another number of samples, other tensors than those that are said, or a sample that there is not; nothing has changed then.
    pub fn keep(&mut self, indices: &[u32], said: &[contribution::Tensor]) -> Result<()> {
        let fits = |(word, tensor): (&Word, &contribution::Tensor)| {
            word.name == tensor.spec.name
                && tensor.spec.dtype == DType::F32
                && tensor.data.len() == indices.len() * word.width * NUMBER
        };
        if indices.len() != self.batch
            || said.len() != self.words.len()
            || !self.words.iter().zip(said).all(fits)
        {
            candle_core::bail!("what was said is not what the cache is for");
        }
        if let Some(index) = indices.iter().find(|index| **index as usize >= self.known.len()) {
            candle_core::bail!("the cache is for {} samples, not for sample {index}", self.known.len());
        }
        for (word, tensor) in self.words.iter_mut().zip(said) {
            let length = word.width * NUMBER;
            for (index, row) in indices.iter().zip(tensor.data.chunks_exact(length.max(1))) {
                let from = *index as usize * length;
                if let Some(place) = word.rows.get_mut(from..from + length) {
                    place.copy_from_slice(row);
                }
            }
        }
        for index in indices {
            if let Some(known) = self.known.get_mut(*index as usize) {
                *known = true;
            }
        }
        Ok(())
    }

    /// Everything under its name in a checkpoint.
    ///
    /// # Errors
    /// If the device fails.
    pub fn state_dict(&self) -> Result<StateDict> {
        let known: Vec<f32> = self.known.iter().map(|known| f32::from(u8::from(*known))).collect();
        let mut state = StateDict::from([(KNOWN.to_owned(), Tensor::new(known, &Device::Cpu)?)]);
        for word in &self.words {
            let shape = [self.known.len(), word.width];
            let rows = Tensor::from_raw_buffer(&word.rows, candle_core::DType::F32, &shape, &Device::Cpu)?;
            state.insert(format!("{CACHE_PREFIX}{}", word.name), rows);
        }
        Ok(state)
    }

    /// Goes back to that of a checkpoint.
    ///
    /// # Errors
    /// If it is not one of these samples and tensors; nothing has changed then.
    pub fn load(&mut self, state: &StateDict) -> std::result::Result<(), StateError> {
        let numbers = |name: &str, shape: &[usize]| -> std::result::Result<Vec<f32>, StateError> {
            let missing = || Mismatch { missing: vec![name.to_owned()], ..Mismatch::default() };
            let tensor = state.get(name).ok_or_else(|| StateError::Mismatch(missing()))?;
            if tensor.dims() != shape {
                let wrong_shape = vec![(name.to_owned(), shape.to_vec(), tensor.dims().to_vec())];
                return Err(StateError::Mismatch(Mismatch { wrong_shape, ..Mismatch::default() }));
            }
            Ok(tensor.flatten_all()?.to_vec1::<f32>()?)
        };
        let samples = self.known.len();
        let known = numbers(KNOWN, &[samples])?.into_iter().map(|known| known != 0.0).collect();
        let mut words = Vec::with_capacity(self.words.len());
        for Word { name, shape, width, .. } in &self.words {
            let rows = numbers(&format!("{CACHE_PREFIX}{name}"), &[samples, *width])?;
            let rows = rows.into_iter().flat_map(f32::to_le_bytes).collect();
            words.push(Word { name: name.clone(), shape: shape.clone(), width: *width, rows });
        }
        *self = Self { batch: self.batch, known, words };
        Ok(())
    }
}

impl Word {
    fn recall(&self, indices: &[u32]) -> Option<contribution::Tensor> {
        let length = self.width * NUMBER;
        let mut data = Vec::with_capacity(indices.len() * length);
        for index in indices {
            let from = *index as usize * length;
            data.extend_from_slice(self.rows.get(from..from + length)?);
        }
        let shape = std::iter::once(indices.len()).chain(self.shape.iter().copied()).collect();
        let spec = TensorSpec { name: self.name.clone(), dtype: DType::F32, shape };
        Some(contribution::Tensor { spec, data: data.into() })
    }
}

#[cfg(test)]
mod tests;
