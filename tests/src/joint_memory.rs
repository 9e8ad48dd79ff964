//! The contrastive terms at memory banks of a whole cohort in one graph, in candle's own operations on the rows of all
//! keys: slow and plain. It holds and writes the banks itself, too; what is drawn is all that it takes from peers.

use anyhow::{Context, Result as Outcome};
use candle_core::{D, DType, Device, Result, Tensor};
use cohort_peer::learner::{BANK_PREFIX, Memory};
use cohort_peer::methods::memory::{BankParams, Draws, Form, MemoryParams};
use cohort_peer::methods::primitives::{log_softmax, widen};
use cohort_peer::methods::{LMclParams, Method, Own};
use cohort_peer::step::load::Input;
use cohort_proto::spec::{BankSpec, RunSpec};

use crate::cluster::State;
use crate::joint_lmcl::{Stages, divergence, sigmoid};
use crate::joint_loss::joint_loss;

/// The banks of all networks of a run.
#[derive(Clone)]
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
                let params = MemoryParams::of_l_mcl(rest, &bank);
                (rest.alpha, rest.beta, rest.gamma, rest.lam, rest.bank) = (0.0, 0.0, 0.0, 0.0, None);
                params
            }
            _ => candle_core::bail!("this method has no memory banks"),
        };
        let stages = cohort.iter().map(|own| Stages::of(own.embeddings, own.matching));
        let stages = stages.collect::<Result<Vec<_>>>()?;
        let constants: Vec<Stages> = stages.iter().map(Stages::constant).collect();
        let of_constants = |(own, same): (Stages, &Stages)| Stages { matching: same.matching.clone(), ..own };
        let students: Vec<Stages> = stages.into_iter().zip(&constants).map(of_constants).collect();
        let contrast = memory_terms((&students, &constants), &self.banks, &self.draws(input)?, &params)?;
        joint_loss(&rest, cohort, &input.labels)?.to_dtype(DType::F64)? + contrast
    }

    /// The inner objective of the meta-update at the banks as they are: λ has a gradient, and KL targets are of `teachers`.
    ///
    /// # Errors
    /// A method without banks, or shapes that do not fit.
    pub fn inner(
        &self,
        method: &LMclParams,
        (cohort, teachers): (&[Stages], &[Stages]),
        input: &Input,
    ) -> Result<Tensor> {
        let Some(bank) = &method.bank else { candle_core::bail!("this method has no memory banks") };
        let params = MemoryParams::of_l_mcl(method, bank);
        memory_terms((cohort, teachers), &self.banks, &self.draws(input)?, &params)
    }

    fn draws(&self, input: &Input) -> Result<Draws> {
        Ok(self.drawn_from.recall(0, &[], input.step, &input.indices)?.draws)
    }

    /// Writes `unit(momentum · m + (1 - momentum) · v)` over the rows of the samples `indices`, v being the last embedding
    /// of a network.
    ///
    /// # Errors
    /// A sample that the banks do not hold, or a network without embeddings.
    pub fn remember(&mut self, cohort: &[&[Tensor]], indices: &[u32]) -> Outcome<()> {
        for (bank, embeddings) in self.banks.iter_mut().zip(cohort) {
            let before = widen(bank)?.to_vec2::<f64>()?;
            let mut after = before.clone();
            let embedding = embeddings.last().context("a network made no embedding")?;
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

/// The weighted sum of the four terms over all networks, given by the embeddings of their stages, those that KL targets
/// are made of, and their banks; scalar. Pairs of stages are weighted by λ where there are matching features.
///
/// # Errors
/// Shapes that do not fit.
pub fn memory_terms(
    (networks, teachers): (&[Stages], &[Stages]),
    banks: &[Tensor],
    draws: &Draws,
    params: &MemoryParams,
) -> Result<Tensor> {
    let at = Table::new(networks, banks, draws, params.tau)?;
    let teaching = Table::new(teachers, banks, draws, params.tau)?;
    let positives = draws.positives();
    let one = Tensor::ones(draws.batch(), DType::F64, &Device::Cpu)?;
    let con = |scores: &Tensor, positives: usize, lambda: &Tensor| -> Result<Tensor> {
        let rows = log_softmax(scores)?.narrow(D::Minus1, 0, positives)?.mean(D::Minus1)?;
        (rows * lambda)?.mean_all()?.neg()
    };
    let kl = |student: &Tensor, teacher: &Tensor, lambda: &Tensor| {
        (divergence(student, teacher, params.kd_t)? * lambda)?.mean_all()
    };
    let mut total = Tensor::zeros((), DType::F64, &Device::Cpu)?;
    for (a, of_a) in networks.iter().enumerate() {
        if params.form == Form::Networks {
            let within = at.scores((a, 0), a, WITHOUT_OWN);
            total = (total + (con(within, positives, &one)? * params.alpha)?)?;
        }
        for (b, of_b) in networks.iter().enumerate().filter(|(b, _)| *b != a) {
            let counts = (of_a.embeddings.len(), of_b.embeddings.len());
            for (k, z) in (0..counts.0).flat_map(|k| (0..counts.1).map(move |z| (k, z))) {
                let (bank_of_b, weight) = match params.form {
                    Form::Networks => (b, None),
                    Form::Stages { one_to_one: true, .. } if counts.0 - k != counts.1 - z => continue,
                    Form::Stages { multiplicity, bug, .. } => {
                        (if bug { a } else { b }, Some(multiplicity / 2.0))
                    }
                };
                let lambda = match (of_a.matching.get(k), of_b.matching.get(z)) {
                    (Some(u), Some(v)) => sigmoid(&(u * v)?.sum(1)?)?,
                    _ => one.clone(),
                };
                let of_pair = |table: &Table| {
                    let within = [((a, k), a), ((b, z), bank_of_b)].map(|(v, m)| (v, m, WITHOUT_OWN));
                    let across = [((a, k), b), ((b, z), a)].map(|(v, m)| (v, m, WITH_OWN));
                    let four = [within[0], within[1], across[0], across[1]];
                    four.map(|(v, m, own)| table.scores(v, m, own).clone())
                };
                let [qa, qb, rab, rba] = of_pair(&at);
                let [ta, tb, tab, tba] = of_pair(&teaching);
                let mut pair = (kl(&qa, &tb, &lambda)? * params.gamma)?;
                pair = (pair + (con(&rab, positives + 1, &lambda)? * params.beta)?)?;
                pair = (pair + (kl(&rab, &tba, &lambda)? * params.lam)?)?;
                if let Some(weight) = weight {
                    let vanilla = (con(&qa, positives, &lambda)? + con(&qb, positives, &lambda)?)?;
                    pair = (pair + (vanilla * params.alpha)?)?;
                    pair = (pair + (kl(&qb, &ta, &lambda)? * params.gamma)?)?;
                    pair = (pair + (con(&rba, positives + 1, &lambda)? * params.beta)?)?;
                    pair = ((pair + (kl(&rba, &tab, &lambda)? * params.lam)?)? * weight)?;
                }
                total = (total + pair)?;
            }
        }
    }
    Ok(total)
}

/// Whether an anchor's own sample is one of its keys.
const WITHOUT_OWN: usize = 0;
const WITH_OWN: usize = 1;

/// `⟨m[keys], v⟩ / τ` `[B, K]` of every stage of every network at every bank, without and with the own sample.
struct Table(Vec<Vec<Vec<[Tensor; 2]>>>);

impl Table {
    fn new(networks: &[Stages], banks: &[Tensor], draws: &Draws, tau: f64) -> Result<Self> {
        let rows = |bank: &Tensor, from: usize| -> Result<Tensor> {
            let keys: Vec<u32> = (0..draws.batch()).flat_map(|n| draws.keys(n)[from..].to_vec()).collect();
            let shape = (draws.batch(), keys.len() / draws.batch(), bank.dim(1)?);
            widen(&bank.index_select(&Tensor::new(keys, &Device::Cpu)?, 0)?)?.reshape(shape)
        };
        let rows = |bank: &Tensor| Ok([rows(bank, 1)?, rows(bank, 0)?]);
        let rows: Vec<[Tensor; 2]> = banks.iter().map(rows).collect::<Result<_>>()?;
        let score = |rows: &Tensor, v: &Tensor| rows.matmul(&v.unsqueeze(2)?)?.squeeze(2)? / tau;
        let at_all = |v: &Tensor| -> Result<Vec<[Tensor; 2]>> {
            let v = widen(v)?;
            rows.iter().map(|[without, with]| Ok([score(without, &v)?, score(with, &v)?])).collect()
        };
        let of_network = |network: &Stages| network.embeddings.iter().map(at_all).collect::<Result<_>>();
        Ok(Self(networks.iter().map(of_network).collect::<Result<_>>()?))
    }

    fn scores(&self, (network, stage): (usize, usize), bank: usize, own: usize) -> &Tensor {
        &self.0[network][stage][bank][own]
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

    /// λ of network `me`: by ascending other network, own stage, stage of the other.
    fn lambda_of(matching: &[Vec<Tensor>], me: usize) -> Tensor {
        let mut rows = Vec::new();
        for (_, theirs) in matching.iter().enumerate().filter(|(j, _)| *j != me) {
            for (u, v) in matching[me].iter().flat_map(|u| theirs.iter().map(move |v| (u, v))) {
                rows.push(sigmoid(&(u * v).unwrap().sum(1).unwrap()).unwrap());
            }
        }
        Tensor::stack(&rows, 0).unwrap()
    }

    /// Compares the shares of all networks with the plain sum, in value (where each term belongs to one network) and in
    /// the gradient of every stage.
    fn compare(stages: &[usize], params: &MemoryParams, learned: bool) {
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
        let feature = |i: usize, k: usize| embedding(i + 5, k).as_detached_tensor();
        let matching: Vec<Vec<Tensor>> = match learned {
            true => {
                stages.iter().enumerate().map(|(i, s)| (0..*s).map(|k| feature(i, k)).collect()).collect()
            }
            false => vec![Vec::new(); stages.len()],
        };
        let students = networks.iter().zip(&matching).map(|(v, u)| Stages::of(v, u).unwrap());
        let students: Vec<Stages> = students.collect();
        let constants: Vec<Stages> = students.iter().map(Stages::constant).collect();
        let joint = memory_terms((&students, &constants), &tensors_of_banks, &draws, params).unwrap();
        let joint_gradients = joint.backward().unwrap();
        let remembered = |i: usize| Remembered { bank: banks[i], stages: networks[i] };
        let mut sum = 0.0;
        for (me, own) in vars.iter().enumerate() {
            let others: Vec<_> = (0..stages.len()).filter(|j| *j != me).map(remembered).collect();
            let mut total = Tensor::zeros((), DType::F64, &Device::Cpu).unwrap();
            let lambda = learned.then(|| lambda_of(&matching, me));
            for (_, weight, value) in share(remembered(me), &others, &draws, params, lambda.as_ref()).unwrap()
            {
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
            compare(&vec![1; networks], &MemoryParams { lam: 0.7, ..MemoryParams::default() }, false);
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
            for learned in [false, true] {
                compare(&[2, 2], &params, learned);
                compare(&[3, 2, 4], &params, learned);
                compare(&[3, 2], &MemoryParams { alpha: 0.0, gamma: 0.0, ..params }, learned);
            }
        }
    }
}
