//! The four terms of one anchor, with their derivatives by its own embeddings. Anchors have nothing in common but the
//! banks, so that no more than the scores of one anchor on each thread is ever held: the rows of all keys of a batch,
//! `[B, K, E]`, would be a gigabyte.

use candle_core::Result;

use super::{Bank, Draws, Form, MemoryParams};

/// VCL, soft VCL, ICL, soft ICL.
pub(super) const TERMS: usize = 4;
/// The first of the two terms within a network, and of the two across networks.
const WITHIN: usize = 0;
const ACROSS: usize = 2;

/// A network as an anchor sees it.
pub(super) struct Remembering<'a> {
    pub(super) bank: &'a Bank,
    /// The embeddings `[B, E]` of its stages, row by row.
    pub(super) stages: Vec<Vec<f64>>,
    /// Those that distributions to learn from are made of, where they are not the same.
    pub(super) frozen: Option<Vec<Vec<f64>>>,
}

/// Everything that the terms are made of.
pub(super) struct Problem<'a> {
    pub(super) own: Remembering<'a>,
    pub(super) others: Vec<Remembering<'a>>,
    pub(super) draws: &'a Draws,
    pub(super) params: &'a MemoryParams,
    /// λ `[P, B]`, pair by pair, where it is not 1: pairs by ascending other network, own stage, stage of the other.
    pub(super) lambda: Option<Vec<f64>>,
}

/// The terms of an anchor, means over the batch included: summed over anchors they are the terms.
pub(super) struct Found {
    pub(super) values: [f64; TERMS],
    /// By term and stage, `[E]` each.
    pub(super) gradients: [Vec<Vec<f64>>; TERMS],
}

/// A contrastive term and a divergence, and their derivatives by the scores of each stage (empty where these are 0).
struct Compared {
    values: [f64; 2],
    slopes: Vec<[Vec<f64>; 2]>,
}

/// The logarithms of a softened distribution, and the distribution.
pub(super) struct Soft {
    pub(super) logs: Vec<f64>,
    pub(super) shares: Vec<f64>,
}

impl Problem<'_> {
    /// The terms of anchor `n`.
    ///
    /// # Errors
    /// A key that a bank does not hold.
    pub(super) fn anchor(&self, n: usize) -> Result<Found> {
        let width = self.own.bank.width();
        let keys = self.draws.keys(n);
        let Some((_, intra)) = keys.split_first() else {
            candle_core::bail!("anchor {n} has no keys");
        };
        let positives = self.draws.positives();
        let own = rows(&self.own, n, width);
        let mut found = Found::nothing(own.len(), width);
        let mine = self.scores(self.own.bank, intra, &own)?;
        if self.params.form == Form::Networks {
            let once = self.compare(WITHIN, &mine, &[], &|_, _| 0.0, &|_| 1.0, positives);
            found.add(WITHIN, self.own.bank, intra, once, self.params.tau)?;
        }
        let mut pairs = 0;
        for other in &self.others {
            let theirs = rows_of_teachers(other, n, width);
            let weight = |k: usize, z: usize| {
                let pair = pairs + k * theirs.len() + z;
                self.params.form.multiplicity((k, own.len()), (z, theirs.len())) * self.lambda(pair, n)
            };
            let half = |k: usize, z: usize| 0.5 * weight(k, z);
            let of_stage = |k: usize| (0..theirs.len()).map(|z| weight(k, z)).sum::<f64>();
            let vanilla = |k: usize| if self.params.form == Form::Networks { 0.0 } else { of_stage(k) };
            let at_mine = self.scores(self.own.bank, keys, &theirs)?;
            let across = self.scores(other.bank, keys, &own)?;
            let at_theirs = self.scores(other.bank, intra, &theirs)?;
            if self.params.form.confuses_banks() {
                // Each pair of networks is visited from both sides, and all anchors of a visit use the bank of the first.
                let half_vanilla = |k: usize| 0.5 * vanilla(k);
                let (ours, others) = (without_own(&across), without_own(&at_mine));
                let first = self.compare(WITHIN, &mine, &others, &half, &half_vanilla, positives);
                found.add(WITHIN, self.own.bank, intra, first, self.params.tau)?;
                let second = self.compare(WITHIN, &ours, &at_theirs, &half, &half_vanilla, positives);
                found.add(WITHIN, other.bank, intra, second, self.params.tau)?;
            } else {
                let within = self.compare(WITHIN, &mine, &at_theirs, &weight, &vanilla, positives);
                found.add(WITHIN, self.own.bank, intra, within, self.params.tau)?;
            }
            let between = self.compare(ACROSS, &across, &at_mine, &weight, &of_stage, positives + 1);
            found.add(ACROSS, other.bank, keys, between, self.params.tau)?;
            pairs += own.len() * theirs.len();
        }
        Ok(found)
    }

    /// λ of a pair for anchor `n`.
    pub(super) fn lambda(&self, pair: usize, n: usize) -> f64 {
        let of_pair = |lambda: &Vec<f64>| lambda.get(pair * self.draws.batch() + n).copied();
        self.lambda.as_ref().map_or(1.0, |lambda| of_pair(lambda).unwrap_or_default())
    }

    /// `⟨m[keys], v⟩ / τ` for each of some embeddings.
    pub(super) fn scores(&self, bank: &Bank, keys: &[u32], embeddings: &[&[f64]]) -> Result<Vec<Vec<f64>>> {
        let mut scores: Vec<Vec<f64>> = embeddings.iter().map(|_| Vec::with_capacity(keys.len())).collect();
        for key in keys {
            let row = bank.row(*key)?;
            for (scores, v) in scores.iter_mut().zip(embeddings) {
                scores.push(dot(v, row) / self.params.tau);
            }
        }
        Ok(scores)
    }

    /// The two terms beginning with `first` of the scores of own stages against those of another network's, whose pairs
    /// and whose contrastive rows have weights.
    fn compare(
        &self,
        first: usize,
        students: &[Vec<f64>],
        teachers: &[Vec<f64>],
        pair: &dyn Fn(usize, usize) -> f64,
        of_stage: &dyn Fn(usize) -> f64,
        positives: usize,
    ) -> Compared {
        let weights = self.params.weights();
        let (contrasts, diverges) = (weights[first] != 0.0, weights[first + 1] != 0.0);
        let kd_t = self.params.kd_t;
        let batch = self.draws.batch() as f64;
        let teachers: Vec<Soft> =
            if diverges { teachers.iter().map(|z| soften(z, kd_t)).collect() } else { Vec::new() };
        let mut compared = Compared { values: [0.0; 2], slopes: Vec::new() };
        for (k, scores) in students.iter().enumerate() {
            let mut slopes = [Vec::new(), Vec::new()];
            let weight = of_stage(k) / batch;
            if contrasts && weight != 0.0 {
                compared.values[0] += contrast(scores, positives, weight, &mut slopes[0]);
            }
            if !teachers.is_empty() {
                let student = soften(scores, kd_t);
                for (z, teacher) in teachers.iter().enumerate() {
                    let weight = pair(k, z) / batch;
                    if weight != 0.0 {
                        compared.values[1] += diverge(&student, teacher, kd_t, weight, &mut slopes[1]);
                    }
                }
            }
            compared.slopes.push(slopes);
        }
        compared
    }
}

impl Found {
    fn nothing(stages: usize, width: usize) -> Self {
        let none = || vec![vec![0.0; width]; stages];
        Self { values: [0.0; TERMS], gradients: [none(), none(), none(), none()] }
    }

    /// Adds two terms whose scores were taken with `keys` of a bank.
    fn add(&mut self, first: usize, bank: &Bank, keys: &[u32], compared: Compared, tau: f64) -> Result<()> {
        for (t, value) in compared.values.iter().enumerate() {
            self.values[first + t] += value;
        }
        if compared.slopes.iter().flatten().all(Vec::is_empty) {
            return Ok(());
        }
        for (at, key) in keys.iter().enumerate() {
            let row = bank.row(*key)?;
            for (stage, slopes) in compared.slopes.iter().enumerate() {
                for (t, slopes) in slopes.iter().enumerate() {
                    let Some(slope) = slopes.get(at) else { continue };
                    let into = &mut self.gradients[first + t][stage];
                    into.iter_mut().zip(row).for_each(|(g, m)| *g += slope / tau * f64::from(*m));
                }
            }
        }
        Ok(())
    }
}

/// The embeddings of anchor `n`, by stage.
pub(super) fn rows<'a>(network: &'a Remembering<'_>, n: usize, width: usize) -> Vec<&'a [f64]> {
    of_anchor(&network.stages, n, width)
}

/// Those that are learned from.
pub(super) fn rows_of_teachers<'a>(network: &'a Remembering<'_>, n: usize, width: usize) -> Vec<&'a [f64]> {
    of_anchor(network.frozen.as_ref().unwrap_or(&network.stages), n, width)
}

fn of_anchor(stages: &[Vec<f64>], n: usize, width: usize) -> Vec<&[f64]> {
    stages.iter().map(|v| v.get(n * width..(n + 1) * width).unwrap_or_default()).collect()
}

/// Scores without those of the anchor's own sample.
fn without_own(scores: &[Vec<f64>]) -> Vec<Vec<f64>> {
    scores.iter().map(|scores| scores.get(1..).unwrap_or_default().to_vec()).collect()
}

/// In eight sums, whatever the processor, so that the compiler may use its vectors and the bits stay.
fn dot(v: &[f64], m: &[f32]) -> f64 {
    let ((v, v_rest), (m, m_rest)) = (v.as_chunks::<8>(), m.as_chunks::<8>());
    let mut sums = [0f64; 8];
    for (v, m) in v.iter().zip(m) {
        for (sum, (v, m)) in sums.iter_mut().zip(v.iter().zip(m)) {
            *sum += v * f64::from(*m);
        }
    }
    let rest: f64 = v_rest.iter().zip(m_rest).map(|(v, m)| v * f64::from(*m)).sum();
    sums.iter().sum::<f64>() + rest
}

/// The softmax of scores at a temperature.
pub(super) fn soften(scores: &[f64], temperature: f64) -> Soft {
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut logs: Vec<f64> = scores.iter().map(|score| (score - top) / temperature).collect();
    let mut shares: Vec<f64> = logs.iter().map(|log| log.exp()).collect();
    let sum: f64 = shares.iter().sum();
    let log_sum = sum.ln();
    logs.iter_mut().for_each(|log| *log -= log_sum);
    shares.iter_mut().for_each(|share| *share /= sum);
    Soft { logs, shares }
}

/// `-weight` times the mean of the first `positives` logarithms of the softmax; its derivative is put into `slopes`.
fn contrast(scores: &[f64], positives: usize, weight: f64, slopes: &mut Vec<f64>) -> f64 {
    let Soft { logs, shares } = soften(scores, 1.0);
    let each = weight / positives as f64;
    *slopes = shares;
    slopes.iter_mut().for_each(|slope| *slope *= weight);
    slopes.iter_mut().take(positives).for_each(|slope| *slope -= each);
    -each * logs.iter().take(positives).sum::<f64>()
}

/// `weight · T² KL(teacher ‖ student)`; its derivative by the student's scores is added to `slopes`.
fn diverge(student: &Soft, teacher: &Soft, temperature: f64, weight: f64, slopes: &mut Vec<f64>) -> f64 {
    slopes.resize(student.logs.len(), 0.0);
    let pairs = student.shares.iter().zip(&teacher.shares);
    slopes.iter_mut().zip(pairs).for_each(|(slope, (q, p))| *slope += weight * temperature * (q - p));
    weight * temperature * temperature * divergence(student, teacher)
}

/// `KL(teacher ‖ student)`.
pub(super) fn divergence(student: &Soft, teacher: &Soft) -> f64 {
    let logs = teacher.logs.iter().zip(&student.logs);
    teacher.shares.iter().zip(logs).map(|(p, (t, s))| p * (t - s)).sum()
}
