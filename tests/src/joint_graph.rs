//! The joint loss of a graph: every term of every network in one graph over all of them, for couplings that link some
//! networks only and for edges. What a term holds constant is the term's own business.

use candle_core::{Result, Tensor};
use cohort_peer::learner::{Learner, Scene};
use cohort_peer::methods::cross_entropy::cross_entropy;
use cohort_peer::methods::mcl::Scores;
use cohort_peer::methods::{Heard, MclParams, Method, Own, dml, logit_kd};
use cohort_peer::step::forward::Forward;
use cohort_peer::step::load::Input;
use cohort_proto::spec::{MethodSpec, RunSpec};

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
        };
        for (_, weight, value) in learner.node.terms(&scene)? {
            total = (total + (value * weight)?)?;
        }
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
    Tensor::zeros((), candle_core::DType::F64, like.device())
}
