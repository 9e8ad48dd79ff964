//! The joint loss of a graph: every term of every network in one graph over all of them, for couplings that link some
//! networks only and for edges. What a term holds constant is the term's own business.

use std::collections::BTreeSet;

use candle_core::{Context, DType, Result, Tensor};
use cohort_peer::learner::{Learner, Scene};
use cohort_peer::methods::cross_entropy::cross_entropy;
use cohort_peer::methods::mcl::Scores;
use cohort_peer::methods::primitives::soft_kl;
use cohort_peer::methods::{Heard, MclParams, Method, Own, dml, logit_kd};
use cohort_peer::step::forward::Forward;
use cohort_peer::step::load::Input;
use cohort_proto::spec::{Gate, MethodSpec, Role, RunSpec, TermSpec, WeightSchedule};

use crate::joint_lmcl;

/// What each network remembers of the samples of the batch `[B, C]`, if it does.
pub type Pasts = Vec<Option<Tensor>>;

/// Whether a run is more than one coupling of all its networks.
pub fn is_graph(spec: &RunSpec) -> bool {
    spec.links.is_some() || !spec.edges.is_empty()
}

/// The sum of all terms of all networks, by ascending index; scalar.
///
/// # Errors
/// Something that a term needs is missing, or shapes do not fit.
pub fn graph_loss(
    spec: &RunSpec,
    learners: &[Learner],
    outputs: &[Forward],
    input: &Input,
    pasts: &Pasts,
) -> Result<Tensor> {
    let labels = &input.labels;
    let mut total = zero(&outputs[0].outputs.logits)?;
    for (index, output) in outputs.iter().enumerate() {
        if spec.has_plain_ce(index) {
            total = (total + cross_entropy(&output.outputs.logits, labels)?)?;
        }
    }
    total = (total + coupling(spec, learners, outputs, labels)?)?;
    for (index, learner) in learners.iter().enumerate() {
        let others = outputs.iter().enumerate().filter(|(other, _)| *other != index);
        // With their graphs: nothing is made a constant on the way.
        let heard: Vec<Heard> = others
            .map(|(other, output)| Heard {
                logits: Some(output.outputs.logits.clone()),
                fn_logits: output.outputs.fn_logits.clone(),
                score: output.outputs.score.clone(),
                ..Heard::nothing(other)
            })
            .collect();
        let scene = Scene {
            generation: learner.generation,
            step: input.step % learner.extent.steps,
            epoch: input.epoch % learner.extent.epochs,
            extent: learner.extent,
            before: outputs[index].before.as_ref(),
            own: &outputs[index].outputs,
            heard: &heard,
            labels,
            past: pasts[index].as_ref(),
            weights: learner.weights.as_deref(),
        };
        // A gated ensemble is one term of all its members, below; their shares of it would count it once for each.
        let terms = learner.node.terms(&scene)?.into_iter().filter(|(name, ..)| !name.starts_with("one"));
        for (_, weight, value) in terms {
            total = (total + (value * weight)?)?;
        }
    }
    total + ensembles(spec, outputs, labels, input.epoch)?
}

/// Every gated ensemble once: its cross-entropy by the logits and the scores of all members, and the divergence of each
/// student from it.
fn ensembles(spec: &RunSpec, outputs: &[Forward], labels: &Tensor, epoch: u64) -> Result<Tensor> {
    let mut total = zero(&outputs[0].outputs.logits)?;
    let mut seen = BTreeSet::new();
    for edge in &spec.edges {
        let TermSpec::One { t, ramp } = edge.term else { continue };
        if (edge.schedule, edge.gate) != (WeightSchedule::Constant, Gate::Through) {
            candle_core::bail!("the joint trainer has gated ensembles of constant weight only");
        }
        let gated = spec.edges.iter().filter(|other| other.term == edge.term && other.to == edge.to);
        let members: BTreeSet<usize> = gated.map(|other| other.from).chain([edge.to]).collect();
        if !seen.insert(members.clone()) {
            continue;
        }
        let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64);
        let score = |i: &usize| outputs[*i].outputs.score.as_ref().context("a member has a gate");
        let scores = members.iter().map(|i| wide(score(i)?)).collect::<Result<Vec<_>>>()?;
        let weights = Tensor::cat(&scores, 1)?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(1)?)?;
        let mut ensemble = zero(labels)?.broadcast_as(outputs[edge.to].outputs.logits.shape())?;
        for (place, i) in members.iter().enumerate() {
            let weighed = wide(&outputs[*i].outputs.logits)?.broadcast_mul(&weights.narrow(1, place, 1)?)?;
            ensemble = (ensemble + weighed)?;
        }
        let mut sum = cross_entropy(&ensemble, labels)?;
        let left = 1.0 - epoch.min(ramp) as f64 / ramp as f64;
        for i in members.iter().filter(|i| spec.peers[**i].role == Role::Student) {
            let divergence = soft_kl(&outputs[*i].outputs.logits, &ensemble.detach(), t)?;
            sum = (sum + (divergence * (-5.0 * left * left).exp())?)?;
        }
        total = (total + (sum * edge.weight)?)?;
    }
    Ok(total)
}

/// The coupling's terms without cross-entropies, each pair of linked networks once.
fn coupling(spec: &RunSpec, learners: &[Learner], outputs: &[Forward], labels: &Tensor) -> Result<Tensor> {
    let own: Vec<Own<'_>> = outputs.iter().map(|output| output.outputs.own()).collect();
    let mut total = zero(own[0].logits)?;
    let coupled: Vec<usize> = (0..learners.len()).filter(|index| spec.is_coupled(*index)).collect();
    let method = coupled.first().map(|index| &learners[*index].method);
    let around = |index: usize| {
        let mut all = spec.coupling_sources(index);
        let place = all.partition_point(|source| *source < index);
        all.insert(place, index);
        (place, all)
    };
    match (&spec.method, method) {
        (MethodSpec::Dml(_), Some(Method::Dml(params))) => {
            for index in coupled {
                let (place, all) = around(index);
                let logits: Vec<Tensor> = all.iter().map(|i| own[*i].logits.clone()).collect();
                if logits.len() > 1 {
                    total = (total + dml::mimicry(place, &logits, params)?)?;
                }
            }
        }
        (MethodSpec::Mcl(_), Some(Method::Mcl(params))) => {
            let embedding = |i: usize| own[i].embeddings[0].clone();
            let pairwise = MclParams { alpha: 0.0, ..*params };
            let alone = MclParams { beta: 0.0, gamma: 0.0, lam: 0.0, ..*params };
            let mut contrast = |among: &[usize], params: &MclParams| -> Result<()> {
                let embeddings: Vec<Tensor> = among.iter().map(|i| embedding(*i)).collect();
                for (_, weight, value) in Scores::joint(&embeddings, labels, params)?.terms(params)? {
                    total = (&total + (value * weight)?)?;
                }
                Ok(())
            };
            for index in &coupled {
                contrast(&[*index], &alone)?;
                for source in spec.coupling_sources(*index).into_iter().filter(|source| source < index) {
                    contrast(&[source, *index], &pairwise)?;
                }
            }
            for index in coupled {
                let (place, all) = around(index);
                if params.logit_kd.include(place, all.len()) {
                    let logits: Vec<Tensor> = all.iter().map(|i| own[*i].logits.clone()).collect();
                    total = (total + logit_kd::ensemble_kl(place, &logits, params.kd_t)?)?;
                }
            }
        }
        (MethodSpec::LMcl(_), Some(Method::LMcl(params))) => {
            let relabelled: Vec<usize> = (0..own.len()).filter(|index| spec.is_relabelled(*index)).collect();
            total = (total + joint_lmcl::step(&own, labels, params, &relabelled)?)?;
        }
        (MethodSpec::Alone, _) => {}
        (other, _) => candle_core::bail!("no joint graph of {}", other.name()),
    }
    Ok(total)
}

fn zero(like: &Tensor) -> Result<Tensor> {
    Tensor::zeros((), DType::F64, like.device())
}
