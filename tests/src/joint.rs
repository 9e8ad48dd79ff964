//! The reference for exactness: one process that holds all networks of a run, builds one graph over all of them,
//! backpropagates the joint loss once, and updates every network. Nothing is sent and nothing is held constant beyond
//! what the loss itself says.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use candle_core::Device;
use cohort_peer::data::{self, loader::Batch, loader::HeldOut, loader::Loader};
use cohort_peer::learner::{BANK_PREFIX, Before, Learner, Scores, widened};
use cohort_peer::methods::Own;
use cohort_peer::models::{ImageShape, Pass, StateDict};
use cohort_peer::step::{backward, forward, load, update};
use cohort_proto::dataset::{self, Split};
use cohort_proto::spec::{Role, RunSpec};

use crate::cluster::State;
use crate::joint_adversary;
use crate::joint_graph::{graph_loss, is_graph};
use crate::joint_loss::joint_loss;
use crate::joint_memory::{JointMemory, bank_name};
use crate::joint_meta::meta_update;

/// All networks of a run.
pub struct Joint {
    spec: RunSpec,
    image: ImageShape,
    labels: Arc<[u8]>,
    learners: Vec<Learner>,
    memory: Option<JointMemory>,
    loader: Loader,
}

impl Joint {
    /// Builds every peer of a run spec as its process would, on the data of a folder.
    ///
    /// # Errors
    /// If data or networks cannot be had.
    pub fn new(spec: &RunSpec, folder: &Path) -> Result<Self> {
        let samples = dataset::load(folder, spec.data.dataset, Split::Train, spec.data.train_limit)?;
        let image = ImageShape::from(&samples.images);
        let labels = samples.labels.clone();
        // The banks of all networks are one memory here.
        let build = |(index, peer)| {
            Learner::build(spec, index, peer, image, Device::Cpu)?.in_run(spec, &samples.labels)
        };
        let learners: Result<Vec<Learner>, _> = spec.peers.iter().enumerate().map(build).collect();
        let (learners, memory) = (learners?, JointMemory::new(spec, &samples.labels)?);
        let loader = Loader::start(data::loader_inputs(spec, samples)?, 0)?;
        Ok(Self { spec: spec.clone(), image, labels, learners, memory, loader })
    }

    /// Takes the next step of all networks together. Returns the joint loss.
    ///
    /// # Errors
    /// At the end of the plan, or if something cannot be computed.
    pub fn step(&mut self) -> Result<f64> {
        let batch = self.loader.next_batch()?.context("the plan has ended")?;
        for (learner, peer) in self.learners.iter_mut().zip(&self.spec.peers) {
            let (index, spec, image) = (learner.index, &self.spec, self.image);
            let fresh = |generation| {
                let fresh = Learner::of_generation(generation, spec, index, peer, image, Device::Cpu)?;
                fresh.in_run(spec, &self.labels)
            };
            learner.enter(batch.step, &fresh)?;
        }
        if let Some(held_out) = batch.held_out.as_ref().filter(|_| self.spec.weighs_by_held_out()) {
            weigh(&mut self.learners, held_out)?;
        }
        let input = load::load(&batch, &Device::Cpu)?;
        let forward = |learner: &Learner| match learner.role {
            Role::Student => forward::forward(learner, &input),
            Role::Teacher => frozen(learner, &input),
        };
        let outputs = self.learners.iter().map(forward).collect::<candle_core::Result<Vec<_>>>()?;
        let own = outputs.iter().map(|output| output.outputs.own());
        let cohort: Vec<Own<'_>> = own.collect();
        let method = &self.learners.first().context("a run has peers")?.method;
        let loss = match &self.memory {
            None if is_graph(&self.spec) => {
                let past = |learner: &Learner| match &learner.past {
                    Some(past) => past.rows(&input.indices).map(Some),
                    None => Ok(None),
                };
                let pasts = self.learners.iter().map(past).collect::<candle_core::Result<_>>()?;
                graph_loss(&self.spec, &self.learners, &outputs, &input, &pasts)?
            }
            None => joint_loss(method, &cohort, &input.labels)?,
            Some(memory) => memory.joint_loss(method, &cohort, &input)?,
        };
        let value = loss.to_scalar::<f64>()?;
        let gradients = loss.backward()?;
        if let Some(memory) = &mut self.memory {
            let said: Vec<&[candle_core::Tensor]> = cohort.iter().map(|own| own.embeddings).collect();
            memory.remember(&said, &input.indices)?;
        }
        let contests = joint_adversary::contests(&self.learners, &outputs)?;
        for ((learner, output), contest) in self.learners.iter_mut().zip(outputs).zip(contests) {
            if learner.role == Role::Teacher {
                continue;
            }
            if let Some(past) = &mut learner.past {
                let said = past.said(&input.indices, &output.outputs.logits)?;
                past.remember(&said);
            }
            let own = learner.model.params.gradients(&gradients);
            let moves = backward::moves(learner, contest)?;
            update::update(learner, output.pass, own, batch.lr)?;
            if let (Some(adversary), Some(moves)) = (&mut learner.adversary, moves) {
                adversary.step(&learner.model, moves)?;
            }
        }
        self.meta_update(&batch, &input)?;
        Ok(value)
    }

    /// The meta-update of all networks together, if one follows this step.
    fn meta_update(&mut self, batch: &Batch, input: &load::Input) -> Result<()> {
        let schedule = self.learners.first().and_then(|learner| learner.meta.clone());
        let Some(schedule) = schedule.filter(|meta| meta.follows(batch.position_in_epoch)) else {
            return Ok(());
        };
        meta_update(&mut self.learners, &mut self.memory, input, &schedule, batch.lr)
    }

    /// Goes on from where others are: parameters, buffers, optimisers and the bank of each network, by index.
    ///
    /// # Errors
    /// If these are not the states of such networks.
    pub fn put(&mut self, states: &[State]) -> Result<()> {
        if let Some(memory) = &mut self.memory {
            memory.put(states)?;
        }
        for (learner, (model, optimizer)) in self.learners.iter_mut().zip(states) {
            let all = optimizer.iter().filter(|(name, _)| !name.starts_with(BANK_PREFIX));
            let all = all.map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
            learner.put_back(&Before { model: model.clone(), rest: all, held: None })?;
        }
        Ok(())
    }

    /// What each network's checkpoint would hold, by index.
    ///
    /// # Errors
    /// If the device fails.
    pub fn states(&self) -> Result<Vec<State>> {
        let states = self.learners.iter().map(Learner::state);
        Ok(states.collect::<candle_core::Result<Vec<_>>>()?)
    }

    /// The memory banks of all networks as a checkpoint names them; none without.
    pub fn banks(&self) -> StateDict {
        let banks = self.memory.iter().flat_map(|memory| memory.banks().iter().enumerate());
        banks.map(|(index, bank)| (bank_name(index), bank.clone())).collect()
    }

    /// Parameters and buffers of each network, by index.
    ///
    /// # Errors
    /// If the device fails.
    pub fn weights(&self) -> Result<Vec<StateDict>> {
        let weights = self.learners.iter().map(|learner| learner.model.params.state_dict());
        Ok(weights.collect::<candle_core::Result<Vec<_>>>()?)
    }
}

/// Gives every network its weights for the epoch that begins: w of `Σ w_i z_i` with the least squared error of probabilities on
/// the held-out samples, where w adds up to 1, by Cramer's rule (Guo et al., CVPR 2020).
fn weigh(learners: &mut [Learner], held_out: &HeldOut) -> Result<()> {
    let HeldOut { samples, normalisation } = held_out;
    let mut errors = Vec::with_capacity(learners.len());
    for learner in learners.iter() {
        let scores = Scores::of(&learner.model, samples, normalisation, &Device::Cpu)?;
        let logits = widened(&scores.logits);
        let rows = logits.chunks(learner.model.network.classes()).zip(samples.labels.iter());
        let of_row = |(row, label): (&[f64], &u8)| {
            let total: f64 = row.iter().map(|z| z.exp()).sum();
            let hit = |k: usize| f64::from(u8::from(k == usize::from(*label)));
            row.iter().enumerate().map(|(k, z)| z.exp() / total - hit(k)).collect::<Vec<f64>>()
        };
        errors.push(rows.flat_map(of_row).collect::<Vec<f64>>());
    }
    let dot = |i: usize, j: usize| errors[i].iter().zip(&errors[j]).map(|(x, y)| x * y).sum::<f64>();
    for learner in learners {
        let others = learner.node.weighed();
        if others.is_empty() {
            continue;
        }
        let members: BTreeSet<usize> = others.iter().copied().chain([learner.index]).collect();
        let products: Vec<Vec<f64>> =
            members.iter().map(|i| members.iter().map(|j| dot(*i, *j)).collect()).collect();
        let solution = (0..members.len()).map(|column| {
            let mut replaced = products.clone();
            replaced.iter_mut().for_each(|row| row[column] = 1.0);
            determinant(&replaced)
        });
        let solution: Vec<f64> = solution.collect();
        let total: f64 = solution.iter().sum();
        learner.weights = Some(solution.into_iter().map(|x| x / total).collect());
    }
    Ok(())
}

/// By the first row's minors.
fn determinant(rows: &[Vec<f64>]) -> f64 {
    let Some((first, below)) = rows.split_first() else { return 1.0 };
    let minor = |column: usize| {
        let without = |row: &Vec<f64>| [&row[..column], &row[column + 1..]].concat();
        determinant(&below.iter().map(without).collect::<Vec<_>>())
    };
    let sign = |column: usize| if column.is_multiple_of(2) { 1.0 } else { -1.0 };
    first.iter().enumerate().map(|(column, x)| sign(column) * x * minor(column)).sum()
}

/// What a network that never changes makes of a batch: running statistics, no graph.
fn frozen(learner: &Learner, input: &load::Input) -> candle_core::Result<forward::Forward> {
    let mut pass = Pass::eval();
    let outputs = learner.model.forward(&input.images, &mut pass)?;
    Ok(forward::Forward { outputs, before: None, pass })
}

/// The greatest absolute difference between two sets of tensors, and the tensor that has it.
///
/// # Errors
/// If they do not have the same names and shapes.
pub fn max_difference(a: &StateDict, b: &StateDict) -> Result<(f64, String)> {
    anyhow::ensure!(a.keys().eq(b.keys()), "the tensors have other names");
    let mut worst = (0.0, String::new());
    for ((name, a), b) in a.iter().zip(b.values()) {
        let difference = (a.to_dtype(candle_core::DType::F64)? - b.to_dtype(candle_core::DType::F64)?)?;
        let greatest = difference.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?;
        // A NaN is a difference, whatever it compares as.
        if greatest > worst.0 || greatest.is_nan() {
            worst = (greatest, name.clone());
        }
    }
    Ok(worst)
}
