//! The keys of a batch: which remembered samples each anchor is contrasted with. Who draws them is not known here.

use candle_core::{Result, Tensor};

/// For each anchor its own sample, others of its class, and samples of other classes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draws {
    /// `[B][1 + K+ + K-]`: the own sample, the positives, the negatives.
    keys: Vec<Vec<u32>>,
    /// K+.
    positives: usize,
}

impl Draws {
    /// From the keys of each anchor: its own sample, `positives` of its class, then those of other classes.
    ///
    /// # Errors
    /// No anchor, no positive, or anchors with unequal numbers of keys.
    pub fn new(keys: Vec<Vec<u32>>, positives: usize) -> Result<Self> {
        let count = keys.first().map_or(0, Vec::len);
        if positives == 0 || count < 1 + positives || keys.iter().any(|of| of.len() != count) {
            candle_core::bail!("{positives} positives of {count} keys for each of {} anchors", keys.len());
        }
        Ok(Self { keys, positives })
    }

    /// From tensors of integers: `pos` `[B, 1 + K+]`, the own sample first, and `neg` `[B, K-]`.
    ///
    /// # Errors
    /// Other shapes, or numbers that are no sample.
    pub fn from_tensors(pos: &Tensor, neg: &Tensor) -> Result<Self> {
        let lists = |keys: &Tensor| keys.to_dtype(candle_core::DType::U32)?.to_vec2::<u32>();
        if pos.dims2()?.0 != neg.dims2()?.0 {
            candle_core::bail!("positives {:?} and negatives {:?} of one batch", pos.dims(), neg.dims());
        }
        let keys = lists(pos)?.into_iter().zip(lists(neg)?).map(|(pos, neg)| [pos, neg].concat());
        Self::new(keys.collect(), pos.dims2()?.1.saturating_sub(1))
    }

    /// B.
    pub fn batch(&self) -> usize {
        self.keys.len()
    }

    /// The anchors' own samples.
    pub fn anchors(&self) -> Vec<u32> {
        self.keys.iter().filter_map(|keys| keys.first().copied()).collect()
    }

    /// K+.
    pub fn positives(&self) -> usize {
        self.positives
    }

    /// The keys of an anchor across networks: the own sample is the first of the positives. Within a network it is left
    /// out.
    pub fn keys(&self, anchor: usize) -> &[u32] {
        self.keys.get(anchor).map_or(&[], Vec::as_slice)
    }
}
