//! The contrastive terms at memory banks of a whole cohort in one graph, in candle's own operations on the rows of all
//! keys: slow and plain. It holds and writes the banks itself, too; what is drawn is all that it takes from peers.

use anyhow::{Context, Result as Outcome};
use candle_core::{D, DType, Device, Result, Tensor};
use cohort_peer::learner::{BANK_PREFIX, Memory};
use cohort_peer::methods::memory::{BankParams, Draws, Form, MemoryParams};
use cohort_peer::methods::primitives::{log_softmax, soft_kl, widen};
use cohort_peer::methods::{Method, Own};
use cohort_peer::step::load::Input;
use cohort_proto::spec::{BankSpec, RunSpec};

use crate::cluster::State;
use crate::joint_loss::joint_loss;

/// The banks of all networks of a run.
pub struct JointMemory {
    /// What draws the keys, and says how banks begin.
    drawn_from: Memory,
    /// `[N, E]` each, by index.
    banks: Vec<Tensor>,
    momentum: f64,
}

/// The name of the bank of a network in a checkpoint.
pub fn bank_name(index: usize) -> String {
    format!("{BANK_PREFIX}{index}")
}

impl JointMemory {
    /// The banks of a run over the labels of its training samples, if it has any.
    ///
    /// # Errors
    /// As [`Memory::new`].
    pub fn new(spec: &RunSpec, labels: &[u8]) -> Outcome<Option<Self>> {
        let Some((BankSpec { positives, negatives, momentum, bug }, _)) = spec.banks() else {
            return Ok(None);
        };
        let params = BankParams { positives, negatives, momentum, bug };
        let drawn_from = Memory::new(spec, labels, Some(params))?.context("a run with banks has them")?;
        let banks = drawn_from.banks().values().map(|bank| bank.to_tensor());
        let banks = banks.collect::<Result<_>>()?;
        Ok(Some(Self { drawn_from, banks, momentum }))
    }

    /// The banks `[N, E]`, by index.
    pub fn banks(&self) -> &[Tensor] {
        &self.banks
    }

    /// Goes on with the bank that each network has of itself.
    ///
    /// # Errors
    /// If one has none.
    pub fn put(&mut self, states: &[State]) -> Outcome<()> {
        let own = |(index, (_, state)): (usize, &State)| state.get(&bank_name(index)).cloned();
        let banks = states.iter().enumerate().map(own).collect::<Option<_>>();
        self.banks = banks.context("a network has no bank")?;
        Ok(())
    }

    /// The joint loss of a method with memory banks: its terms without contrast, and those at the banks.
    ///
    /// # Errors
    /// As [`joint_loss`](fn@joint_loss); a method without banks.
    pub fn joint_loss(&self, method: &Method, cohort: &[Own<'_>], input: &Input) -> Result<Tensor> {
        let mut rest = method.clone();
        let params = match (&mut rest, method.bank()) {
            (Method::Mcl(rest), Some(_)) => {
                let params = MemoryParams::of_mcl(rest);
                (rest.alpha, rest.beta, rest.gamma, rest.lam, rest.bank) = (0.0, 0.0, 0.0, 0.0, None);
                params
            }
            (Method::LMcl(rest), Some(bank)) => {
                let params = MemoryParams::of_l_mcl(rest, &bank)?;
                (rest.alpha, rest.beta, rest.gamma, rest.lam, rest.bank) = (0.0, 0.0, 0.0, 0.0, None);
                params
            }
            _ => candle_core::bail!("this method has no memory banks"),
        };
        let recall = self.drawn_from.recall(0, &[], input.step, &input.indices)?;
        let networks: Vec<&[Tensor]> = cohort.iter().map(|own| own.embeddings).collect();
        let contrast = memory_terms(&networks, &self.banks, &recall.draws, &params)?;
        joint_loss(&rest, cohort, &input.labels)?.to_dtype(DType::F64)? + contrast
    }

    /// Writes `unit(momentum · m + (1 - momentum) · v)` over the rows of the samples `indices`, v being the last embedding
    /// of a network.
    ///
    /// # Errors
    /// A sample that the banks do not hold, or a network without embeddings.
    pub fn remember(&mut self, cohort: &[Own<'_>], indices: &[u32]) -> Outcome<()> {
        for (bank, own) in self.banks.iter_mut().zip(cohort) {
            let before = widen(bank)?.to_vec2::<f64>()?;
            let mut after = before.clone();
            let embedding = own.embeddings.last().context("a network made no embedding")?;
            for (sample, v) in indices.iter().zip(widen(embedding)?.to_vec2::<f64>()?) {
                let old = before.get(*sample as usize).context("a sample that no bank holds")?;
                let mixed = old.iter().zip(v).map(|(m, v)| self.momentum * m + (1.0 - self.momentum) * v);
                let mixed: Vec<f64> = mixed.collect();
                let length = mixed.iter().map(|x| x * x).sum::<f64>().sqrt();
                after[*sample as usize] = mixed.into_iter().map(|x| x / length).collect();
            }
            *bank = Tensor::new(after, &Device::Cpu)?.to_dtype(DType::F32)?;
        }
        Ok(())
    }
}

/// The weighted sum of the four terms over all networks, given by the embeddings of their stages and their banks; scalar.
///
/// # Errors
/// Shapes that do not fit.
pub fn memory_terms(
    networks: &[&[Tensor]],
    banks: &[Tensor],
    draws: &Draws,
    params: &MemoryParams,
) -> Result<Tensor> {
    let at = Scores { draws, tau: params.tau };
    let positives = draws.positives();
    let con = |scores: &Tensor, positives: usize| -> Result<Tensor> {
        log_softmax(scores)?.narrow(D::Minus1, 0, positives)?.mean_all()?.neg()
    };
    let kl = |student: &Tensor, teacher: &Tensor| soft_kl(student, teacher, params.kd_t);
    let mut total = Tensor::zeros((), DType::F64, &Device::Cpu)?;
    for (a, of_a) in networks.iter().enumerate() {
        if params.form == Form::Networks {
            let within = at.scores(&banks[a], &of_a[0], false)?;
            total = (total + (con(&within, positives)? * params.alpha)?)?;
        }
        for (b, of_b) in networks.iter().enumerate().filter(|(b, _)| *b != a) {
            for (k, va) in of_a.iter().enumerate() {
                for (z, vb) in of_b.iter().enumerate() {
                    let (own_bank, bank_of_b, weight) = match params.form {
                        Form::Networks => (&banks[a], &banks[b], None),
                        Form::Stages { one_to_one: true, .. } if of_a.len() - k != of_b.len() - z => continue,
                        Form::Stages { multiplicity, bug, .. } => {
                            (&banks[a], if bug { &banks[a] } else { &banks[b] }, Some(multiplicity / 2.0))
                        }
                    };
                    let (qa, qb) = (at.scores(own_bank, va, false)?, at.scores(bank_of_b, vb, false)?);
                    let (rab, rba) = (at.scores(&banks[b], va, true)?, at.scores(&banks[a], vb, true)?);
                    let mut pair = (kl(&qa, &qb)? * params.gamma)?;
                    pair = (pair + (con(&rab, positives + 1)? * params.beta)?)?;
                    pair = (pair + (kl(&rab, &rba)? * params.lam)?)?;
                    if let Some(weight) = weight {
                        let vanilla = (con(&qa, positives)? + con(&qb, positives)?)?;
                        pair = (pair + (vanilla * params.alpha)?)?;
                        pair = (pair + (kl(&qb, &qa)? * params.gamma)?)?;
                        pair = (pair + (con(&rba, positives + 1)? * params.beta)?)?;
                        pair = ((pair + (kl(&rba, &rab)? * params.lam)?)? * weight)?;
                    }
                    total = (total + pair)?;
                }
            }
        }
    }
    Ok(total)
}

struct Scores<'a> {
    draws: &'a Draws,
    tau: f64,
}

impl Scores<'_> {
    /// `⟨m[keys], v⟩ / τ` `[B, K]`, the own sample being a key or not.
    fn scores(&self, bank: &Tensor, v: &Tensor, with_own: bool) -> Result<Tensor> {
        let from = usize::from(!with_own);
        let keys: Vec<u32> =
            (0..self.draws.batch()).flat_map(|n| self.draws.keys(n)[from..].to_vec()).collect();
        let shape = (self.draws.batch(), keys.len() / self.draws.batch(), bank.dim(1)?);
        let keys = Tensor::new(keys, &Device::Cpu)?;
        let rows = widen(&bank.index_select(&keys, 0)?)?.reshape(shape)?;
        rows.matmul(&widen(v)?.unsqueeze(2)?)?.squeeze(2)? / self.tau
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;
    use cohort_peer::learner::Classes;
    use cohort_peer::methods::memory::{Bank, Remembered, share};
    use cohort_peer::methods::primitives::unit;

    use super::*;

    const WIDTH: usize = 11;
    const SAMPLES: usize = 40;
    const BATCH: [u32; 5] = [7, 12, 0, 39, 7];

    fn embedding(i: usize, k: usize) -> Var {
        let angle = |at: usize| (0.7 * at as f64 + 0.9 * i as f64 + 1.3 * k as f64).sin();
        let values: Vec<f64> = (0..BATCH.len() * WIDTH).map(angle).collect();
        let rows = Tensor::from_vec(values, (BATCH.len(), WIDTH), &Device::Cpu).unwrap();
        Var::from_tensor(&unit(&rows).unwrap()).unwrap()
    }

    /// Compares the shares of all networks with the plain sum, in value (where each term belongs to one network) and in
    /// the gradient of every stage.
    fn compare(stages: &[usize], params: &MemoryParams) {
        let classes = Classes::new(&(0..SAMPLES).map(|x| (x % 5) as u8).collect::<Vec<_>>());
        let draws = classes.draw(&BATCH, (3, 4), 2, 9).unwrap();
        let bank = |i: usize| {
            let mut at = i as f64;
            let next = || {
                at += 0.37;
                at.sin().abs().fract()
            };
            Bank::new(SAMPLES, WIDTH, next).unwrap()
        };
        let banks: Vec<Bank> = (0..stages.len()).map(bank).collect();
        let tensors_of_banks: Vec<Tensor> = banks.iter().map(|bank| bank.to_tensor().unwrap()).collect();
        let banks: Vec<&Bank> = banks.iter().collect();
        let vars: Vec<Vec<Var>> =
            stages.iter().enumerate().map(|(i, s)| (0..*s).map(|k| embedding(i, k)).collect()).collect();
        let tensors: Vec<Vec<Tensor>> =
            vars.iter().map(|v| v.iter().map(|v| v.as_tensor().clone()).collect()).collect();
        let networks: Vec<&[Tensor]> = tensors.iter().map(Vec::as_slice).collect();
        let joint = memory_terms(&networks, &tensors_of_banks, &draws, params).unwrap();
        let joint_gradients = joint.backward().unwrap();
        let remembered = |i: usize| Remembered { bank: banks[i], stages: networks[i] };
        let mut sum = 0.0;
        for (me, own) in vars.iter().enumerate() {
            let others: Vec<_> = (0..stages.len()).filter(|j| *j != me).map(remembered).collect();
            let mut total = Tensor::zeros((), DType::F64, &Device::Cpu).unwrap();
            for (_, weight, value) in share(remembered(me), &others, &draws, params).unwrap() {
                total = (total + (value * weight).unwrap()).unwrap();
            }
            sum += total.to_scalar::<f64>().unwrap();
            let gradients = total.backward().unwrap();
            for var in own {
                let of = |store: &candle_core::backprop::GradStore| {
                    match store.get(var.as_tensor()) {
                        Some(gradient) => gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap(),
                        // A stage without a partner.
                        None => vec![0.0; var.elem_count()],
                    }
                };
                let (mine, all) = (of(&gradients), of(&joint_gradients));
                let scale = all.iter().fold(0f64, |top, g| top.max(g.abs()));
                let apart = mine.iter().zip(&all).fold(0f64, |top, (a, b)| top.max((a - b).abs()));
                assert!(apart <= 1e-12 * scale, "{params:?}, network {me}: {apart:e} of {scale}");
            }
        }
        let joint = joint.to_scalar::<f64>().unwrap();
        assert!((sum - joint).abs() < 1e-11 * joint, "{params:?}: {sum} and {joint}");
    }

    #[test]
    fn the_shares_of_networks_are_the_plain_sum() {
        for networks in 1..=3 {
            compare(&vec![1; networks], &MemoryParams { lam: 0.7, ..MemoryParams::default() });
        }
    }

    #[test]
    fn the_shares_of_stages_are_the_plain_sum() {
        for (multiplicity, one_to_one, bug) in [
            (2.0, false, false),
            (1.0, false, false),
            (2.0, true, false),
            (2.0, false, true),
            (1.0, true, true),
        ] {
            let form = Form::Stages { multiplicity, one_to_one, bug };
            let params = MemoryParams { lam: 0.7, beta: 0.3, form, ..MemoryParams::default() };
            compare(&[2, 2], &params);
            compare(&[3, 2, 4], &params);
            compare(&[3, 2], &MemoryParams { alpha: 0.0, gamma: 0.0, ..params });
        }
    }
}
