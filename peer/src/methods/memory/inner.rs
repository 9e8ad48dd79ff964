//! What weighs the pairs of stages at memory banks: the slopes of the inner objective of the meta-update by λ, one anchor
//! at a time. The objective is linear in λ, so they are all that is needed for its value as well.

use candle_core::Result;

use super::Bank;
use super::anchor::{Problem, Remembering, divergence, rows, rows_of_teachers, soften};

/// Scores of some embeddings at one bank: of those that learn, and of those that are learned from.
struct Scored {
    learning: Vec<Vec<f64>>,
    teaching: Vec<Vec<f64>>,
}

impl Problem<'_> {
    /// Of anchor `n`, for every pair of stages the sum of all eight terms with their weights, as they would be with λ = 1,
    /// divided by the batch; pairs by ascending other network, own stage, stage of the other.
    ///
    /// # Errors
    /// A key that a bank does not hold.
    pub(super) fn slopes(&self, n: usize) -> Result<Vec<f64>> {
        let [alpha, gamma, beta, lam] = self.params.weights();
        let (keys, positives) = (self.draws.keys(n), self.draws.positives());
        let intra = keys.get(1..).unwrap_or_default();
        let at = |network, bank, keys| self.scored(network, bank, keys, n);
        let at_home = at(&self.own, self.own.bank, intra)?;
        let mut slopes = Vec::new();
        for other in &self.others {
            let mut sums = vec![0.0; self.own.stages.len() * other.stages.len()];
            let theirs = at(other, other.bank, intra)?;
            if self.params.form.confuses_banks() {
                // The authors' code visits a pair from both sides, each time with one bank for both.
                let half = [0.5 * alpha, 0.5 * gamma];
                self.add(&mut sums, [&at_home, &at(other, self.own.bank, intra)?], positives, half);
                self.add(&mut sums, [&at(&self.own, other.bank, intra)?, &theirs], positives, half);
            } else {
                self.add(&mut sums, [&at_home, &theirs], positives, [alpha, gamma]);
            }
            let across = [&at(&self.own, other.bank, keys)?, &at(other, self.own.bank, keys)?];
            self.add(&mut sums, across, positives + 1, [beta, lam]);
            slopes.extend(sums);
        }
        Ok(slopes)
    }

    fn scored(&self, network: &Remembering<'_>, bank: &Bank, keys: &[u32], n: usize) -> Result<Scored> {
        let width = bank.width();
        let learning = self.scores(bank, keys, &rows(network, n, width))?;
        let teaching = match network.frozen {
            Some(_) => self.scores(bank, keys, &rows_of_teachers(network, n, width))?,
            None => learning.clone(),
        };
        Ok(Scored { learning, teaching })
    }

    /// Adds a contrastive term of both sides of each pair and the divergences both ways.
    fn add(
        &self,
        sums: &mut [f64],
        [own, other]: [&Scored; 2],
        positives: usize,
        [contrasts, diverges]: [f64; 2],
    ) {
        let kd_t = self.params.kd_t;
        let stages = (own.learning.len(), other.learning.len());
        let contrast = |scores: &Vec<f64>| match contrasts {
            0.0 => 0.0,
            _ => -soften(scores, 1.0).logs.iter().take(positives).sum::<f64>() / positives as f64,
        };
        let vanilla = |side: &Scored| side.learning.iter().map(contrast).collect::<Vec<f64>>();
        let soft = |scores: &[Vec<f64>]| scores.iter().map(|z| soften(z, kd_t)).collect::<Vec<_>>();
        let (of_own, of_other) = (vanilla(own), vanilla(other));
        let (own, other) = match diverges {
            0.0 => (None, None),
            _ => (
                Some((soft(&own.learning), soft(&own.teaching))),
                Some((soft(&other.learning), soft(&other.teaching))),
            ),
        };
        let batch = self.draws.batch() as f64;
        for k in 0..stages.0 {
            for z in 0..stages.1 {
                let mut pair = contrasts * (of_own[k] + of_other[z]);
                if let (Some((ours, our_targets)), Some((theirs, their_targets))) = (&own, &other) {
                    let both =
                        divergence(&ours[k], &their_targets[z]) + divergence(&theirs[z], &our_targets[k]);
                    pair += diverges * kd_t * kd_t * both;
                }
                sums[k * stages.1 + z] +=
                    pair * self.params.form.multiplicity((k, stages.0), (z, stages.1)) / batch;
            }
        }
    }
}
