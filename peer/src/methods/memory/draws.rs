//! Which remembered samples an anchor is contrasted with: drawn from the run's seed, so that every peer draws the same.

use candle_core::{Result, Tensor};
use cohort_proto::rng::{SplitMix64, key_of};

/// The training samples by class.
#[derive(Debug, Clone)]
pub struct Classes {
    /// All samples, those of a class together.
    order: Vec<u32>,
    /// Where in `order` the class of each sample lies.
    ranges: Vec<std::ops::Range<usize>>,
    /// The class of each sample.
    labels: Vec<u8>,
}

impl Classes {
    /// From the label of every training sample.
    pub fn new(labels: &[u8]) -> Self {
        let mut order: Vec<u32> = (0..labels.len() as u32).collect();
        order.sort_by_key(|sample| labels[*sample as usize]);
        let classes = labels.iter().max().map_or(0, |top| usize::from(*top) + 1);
        let start = |class: usize| order.partition_point(|at| usize::from(labels[*at as usize]) < class);
        let ranges = (0..classes).map(|class| start(class)..start(class + 1)).collect();
        Self { order, ranges, labels: labels.to_vec() }
    }
}

/// The keys of a batch: for each anchor its own sample, others of its class, and samples of other classes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draws {
    /// `[B][1 + K+]`, the own sample first.
    pos: Vec<Vec<u32>>,
    /// `[B][K-]`.
    neg: Vec<Vec<u32>>,
}

impl Draws {
    /// For the samples `indices` of step `step`: `positives` of the anchor's class without replacement (the anchor's own
    /// sample may be among them; with replacement if the class has fewer), `negatives` of all other classes with
    /// replacement.
    ///
    /// # Errors
    /// A sample without a label, or only one class to draw from.
    pub fn new(
        classes: &Classes,
        indices: &[u32],
        seed: u64,
        step: u64,
        positives: usize,
        negatives: usize,
    ) -> Result<Self> {
        let (mut pos, mut neg) = (Vec::with_capacity(indices.len()), Vec::with_capacity(indices.len()));
        for (n, &sample) in indices.iter().enumerate() {
            let Some(&label) = classes.labels.get(sample as usize) else {
                candle_core::bail!(
                    "sample {sample} is none of the {} that are drawn from",
                    classes.labels.len()
                );
            };
            let own = classes.ranges[usize::from(label)].clone();
            let others = classes.order.len() - own.len();
            if others == 0 {
                candle_core::bail!("all samples have one class, so there are no negatives to draw");
            }
            let mut rng = SplitMix64::keyed(&[seed, key_of("bank-draws"), step, n as u64, u64::from(sample)]);
            let mut of_anchor = vec![sample];
            while of_anchor.len() <= positives {
                let drawn = classes.order[own.start + rng.below(own.len() as u64) as usize];
                if positives > own.len() || !of_anchor[1..].contains(&drawn) {
                    of_anchor.push(drawn);
                }
            }
            pos.push(of_anchor);
            let draw = |_| {
                let at = rng.below(others as u64) as usize;
                classes.order[if at < own.start { at } else { at + own.len() }]
            };
            neg.push((0..negatives).map(draw).collect());
        }
        Ok(Self { pos, neg })
    }

    /// From tensors of integers: `pos` `[B, 1 + K+]`, the own sample first, and `neg` `[B, K-]`.
    ///
    /// # Errors
    /// Other shapes, or numbers that are no sample.
    pub fn from_tensors(pos: &Tensor, neg: &Tensor) -> Result<Self> {
        let lists = |keys: &Tensor| keys.to_dtype(candle_core::DType::U32)?.to_vec2::<u32>();
        if pos.dims2()?.0 != neg.dims2()?.0 || pos.dims2()?.1 == 0 {
            candle_core::bail!("positives {:?} and negatives {:?} of one batch", pos.dims(), neg.dims());
        }
        Ok(Self { pos: lists(pos)?, neg: lists(neg)? })
    }

    /// The anchors' own samples.
    pub fn anchors(&self) -> Vec<u32> {
        self.pos.iter().filter_map(|pos| pos.first().copied()).collect()
    }

    /// K+.
    pub fn positives(&self) -> usize {
        self.pos.first().map_or(0, |pos| pos.len().saturating_sub(1))
    }

    /// The keys across networks: the own sample is among the positives.
    pub(in super::super) fn all(&self) -> Vec<Vec<u32>> {
        self.pos.iter().zip(&self.neg).map(|(pos, neg)| [&pos[..], neg].concat()).collect()
    }

    /// The keys within a network.
    pub(in super::super) fn intra(&self) -> Vec<Vec<u32>> {
        self.pos.iter().zip(&self.neg).map(|(pos, neg)| [&pos[1..], neg].concat()).collect()
    }
}
