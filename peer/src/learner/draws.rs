//! Which remembered samples an anchor is contrasted with: drawn from the run's seed, so that every peer draws the same.

use candle_core::Result;
use cohort_proto::rng::{SplitMix64, key_of};

use crate::methods::memory::Draws;

/// The training samples by class.
#[derive(Debug, Clone)]
pub struct Classes {
    /// All samples, those of a class together.
    order: Vec<u32>,
    /// Where in `order` the samples of each class lie.
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

    /// The keys of the samples `indices` of a step: `positives` of the anchor's class without replacement (the anchor's
    /// own sample may be among them), `negatives` of all other classes with replacement.
    ///
    /// # Errors
    /// A sample without a label, a class with fewer samples than positives, or only one class to draw from.
    pub fn draw(
        &self,
        indices: &[u32],
        (seed, step): (u64, u64),
        positives: usize,
        negatives: usize,
    ) -> Result<Draws> {
        let mut keys = Vec::with_capacity(indices.len());
        for (n, &sample) in indices.iter().enumerate() {
            let Some(&label) = self.labels.get(sample as usize) else {
                candle_core::bail!(
                    "sample {sample} is none of the {} that are drawn from",
                    self.labels.len()
                );
            };
            let own = self.ranges[usize::from(label)].clone();
            let others = self.order.len() - own.len();
            if own.len() < positives || (others == 0 && negatives > 0) {
                candle_core::bail!(
                    "{positives} of {} samples of class {label} and {negatives} of {others} others cannot be drawn",
                    own.len()
                );
            }
            let mut rng = SplitMix64::keyed(&[seed, key_of("bank-draws"), step, n as u64, u64::from(sample)]);
            let mut of_anchor = Vec::with_capacity(1 + positives + negatives);
            of_anchor.push(sample);
            let drawn = without_replacement(own.len(), positives, &mut rng);
            of_anchor.extend(drawn.into_iter().map(|at| self.order[own.start + at]));
            of_anchor.extend((0..negatives).map(|_| {
                let at = rng.below(others as u64) as usize;
                self.order[if at < own.start { at } else { at + own.len() }]
            }));
            keys.push(of_anchor);
        }
        Draws::new(keys, positives)
    }
}

/// `count` different numbers below `len`, by Floyd's algorithm: as many random numbers as results.
fn without_replacement(len: usize, count: usize, rng: &mut SplitMix64) -> Vec<usize> {
    let mut drawn: Vec<usize> = Vec::with_capacity(count);
    let mut seen = std::collections::BTreeSet::new();
    for top in len.saturating_sub(count)..len {
        let at = rng.below(top as u64 + 1) as usize;
        let at = if seen.contains(&at) { top } else { at };
        seen.insert(at);
        drawn.push(at);
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes() -> Classes {
        Classes::new(&(0..40).map(|x| (x % 5) as u8).collect::<Vec<_>>())
    }

    #[test]
    fn keys_have_the_classes_that_they_should_and_follow_from_the_seed() {
        let batch = [7, 12, 0, 39];
        let draw = |seed, step| classes().draw(&batch, (seed, step), 3, 30).unwrap();
        let draws = draw(1, 5);
        assert_eq!(draws, draw(1, 5));
        assert_ne!(draws, draw(2, 5));
        assert_ne!(draws, draw(1, 6));
        assert_eq!((draws.anchors(), draws.positives()), (batch.to_vec(), 3));
        for (n, sample) in batch.iter().enumerate() {
            let keys = draws.keys(n);
            let same = |x: &u32| x % 5 == sample % 5;
            assert!(keys[..4].iter().all(same) && !keys[4..].iter().any(same), "{keys:?}");
            assert_eq!((keys[0], keys.len()), (*sample, 34));
            let mut different = keys[1..4].to_vec();
            different.sort_unstable();
            different.dedup();
            assert_eq!(different.len(), 3, "drawn without replacement");
        }
    }

    #[test]
    fn what_cannot_be_drawn_is_refused() {
        assert!(Classes::new(&[1; 9]).draw(&[0], (0, 0), 1, 4).is_err(), "no negatives");
        assert!(classes().draw(&[40], (0, 0), 1, 4).is_err(), "no such sample");
        assert!(classes().draw(&[0], (0, 0), 9, 4).is_err(), "a class of eight");
        assert_eq!(classes().draw(&[0], (0, 0), 8, 4).unwrap().positives(), 8);
    }

    /// A sample that is alone in its class is its own positive, and negatives may be more than there are samples.
    #[test]
    fn a_class_of_one_sample_and_more_negatives_than_samples_can_be_drawn() {
        let draws = Classes::new(&[0, 0, 0, 4]).draw(&[3, 1], (0, 0), 1, 30).unwrap();
        assert_eq!(draws.keys(0)[..2], [3, 3]);
        assert!(draws.keys(0)[2..].iter().all(|x| *x < 3) && draws.keys(0).len() == 32);
        assert_eq!(draws.keys(1)[2..], [3; 30]);
    }

    #[test]
    fn numbers_without_replacement_are_uniform() {
        let mut counts = [0; 6];
        for seed in 0..6000 {
            for at in without_replacement(6, 2, &mut SplitMix64::keyed(&[seed])) {
                counts[at] += 1;
            }
        }
        assert!(counts.iter().all(|count| (1850..2150).contains(count)), "{counts:?}");
    }
}
