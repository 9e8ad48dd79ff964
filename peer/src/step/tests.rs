//! A step of layer-wise mutual contrastive learning against a company that says what the peer itself said.

use std::sync::Arc;

use candle_core::{DType, Device};
use cohort_proto::contribution::{Contribution, Header, Position, Tensor};
use cohort_proto::control::{StopKind, Term};
use cohort_proto::id::{Digest, PeerName, RunId, ViewId};
use cohort_proto::meta::RoundPlan;
use cohort_proto::schema::Schema;
use cohort_proto::spec::RunSpec;

use super::*;
use crate::learner::{Additions, MATCHING_PREFIX, Memory, Model};
use crate::meta::Schedule;
use crate::methods::memory::BankParams;
use crate::methods::{LMclParams, Method};
use crate::models::{ImageShape, Params, StateDict, state};
use crate::optim::SgdConfig;

/// Says everything back, under other names where `renamed` has one.
#[derive(Default)]
struct Mirror {
    renamed: Option<(&'static str, &'static str)>,
    /// The round in which something goes wrong, and what.
    fails: Option<(u32, Failure)>,
    said: Vec<Tensor>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Failure {
    /// Nothing can be said.
    Mute,
    /// The source is lost.
    Lost,
    /// The run ends.
    Stopped,
}

impl Mirror {
    fn goes_wrong(&self, round: u32, failure: Failure) -> Result<(), Interruption> {
        if self.fails != Some((round, failure)) {
            return Ok(());
        }
        let sentence = format!("{failure:?}");
        Err(match failure {
            Failure::Stopped => Interruption::Stopped(Stop { kind: StopKind::AtOnce, sentence }),
            Failure::Mute | Failure::Lost => Interruption::from(PeerError::LogReleased(sentence)),
        })
    }
}

impl Company for Mirror {
    fn view(&self) -> ViewId {
        ViewId(0)
    }

    fn say(&mut self, at: Position, _: u64, tensors: Vec<Tensor>) -> Result<Option<Digest>, Interruption> {
        self.goes_wrong(at.round, Failure::Mute)?;
        self.said = tensors;
        Ok(None)
    }

    fn listen(
        &mut self,
        at: Position,
        batch_hash: u64,
    ) -> Result<Vec<(usize, Arc<Contribution>)>, Interruption> {
        self.goes_wrong(at.round, Failure::Lost)?;
        self.goes_wrong(at.round, Failure::Stopped)?;
        let mut tensors = self.said.clone();
        for tensor in &mut tensors {
            if let Some((_, to)) = self.renamed.filter(|(from, _)| *from == tensor.spec.name) {
                tensor.spec.name = to.to_owned();
            }
        }
        let schema = Schema::new(tensors.iter().map(|tensor| tensor.spec.clone()).collect()).unwrap();
        let source = "b".parse().unwrap();
        let header = Header { run: RunId(0), view: ViewId(0), position: at, source, batch_hash };
        Ok(vec![(1, Arc::new(Contribution::seal(header, tensors, &schema).unwrap()))])
    }

    fn log_bytes(&self) -> u64 {
        0
    }
}

fn learner() -> Learner {
    let method = Method::LMcl(LMclParams { feat_dim: 6, match_dim: 7, ..LMclParams::default() });
    let params = Params::new(7, "a", DType::F32, &Device::Cpu).unwrap();
    let shape = (ImageShape { channels: 1, height: 8, width: 8 }, 3);
    let model = Model::build("resnet6", shape, Additions::from(&method), params).unwrap();
    let config = SgdConfig { momentum: 0.9, nesterov: true, weight_decay: 5e-4, clip_norm: 0.0 };
    Learner::new(0, model, method, (config, config)).unwrap()
}

fn batch() -> Batch {
    let count = 6;
    Batch {
        step: 0,
        epoch: 0,
        position_in_epoch: 0,
        lr: 0.1,
        indices: (0..count).collect(),
        hash: 0,
        images: (0..count * 64).map(|i| (i as f32 * 0.7).sin()).collect(),
        labels: (0..count).map(|i| i % 3).collect(),
        shape: [count as usize, 1, 8, 8],
        held_out: None,
    }
}

fn bytes(learner: &Learner, keep: impl Fn(&str) -> bool) -> Vec<u8> {
    let state = learner.model.params.state_dict().unwrap().into_iter();
    state::encode(&state.filter(|(name, _)| keep(name)).collect::<StateDict>()).unwrap()
}

#[test]
fn every_stage_speaks_and_only_the_matching_stays() {
    let (mut learner, mut company) = (learner(), Mirror::default());
    let phi = |name: &str| name.starts_with(MATCHING_PREFIX);
    let (phi_before, rest_before) = (bytes(&learner, phi), bytes(&learner, |name| !phi(name)));
    let report = run(&mut learner, &mut company, &batch()).unwrap();
    let said: Vec<_> = company.said.iter().map(|tensor| tensor.spec.name.as_str()).collect();
    assert_eq!(said, ["aggregated", "embed.0", "embed.1", "match.0", "match.1"]);
    for name in ["ce", "ce_aggregated", "kl_aggregated", "icl"] {
        assert!(report.terms.iter().any(|term| term.name == name), "{name}: {:?}", report.terms);
    }
    assert!(bytes(&learner, phi) == phi_before, "a step, weight decay included, changes no matching");
    assert!(bytes(&learner, |name| !phi(name)) != rest_before);
}

#[test]
fn what_no_method_says_is_refused_and_leaves_no_trace() {
    for renamed in [("embed.1", "embed.7"), ("match.0", "gossip")] {
        let (mut learner, mut company) = (learner(), Mirror { renamed: Some(renamed), ..Mirror::default() });
        let before = bytes(&learner, |_| true);
        let Err(Interruption::Failed(error)) = run(&mut learner, &mut company, &batch()) else {
            panic!("{} was understood", renamed.1);
        };
        assert!(error.to_string().contains(&format!("`{}`", renamed.1)), "{error}");
        assert!(bytes(&learner, |_| true) == before);
    }
}

#[test]
fn the_report_tells_how_stages_are_matched() {
    let report = run(&mut learner(), &mut Mirror::default(), &batch()).unwrap();
    let weights: Vec<_> = report.terms.iter().filter(|term| Term::is_matching(&term.name)).collect();
    let names: Vec<_> = weights.iter().map(|term| term.name.as_str()).collect();
    assert_eq!(names, ["lambda.0.b.0", "lambda.0.b.1", "lambda.1.b.0", "lambda.1.b.1"]);
    // The other says what this peer says: a stage meets itself with the logistic function of 1, and pairs are symmetric.
    let itself = 1.0 / (1.0 + (-1.0f64).exp());
    for (term, expected) in weights.iter().zip([itself, weights[2].value, weights[1].value, itself]) {
        assert!((term.value - expected).abs() < 1e-6, "{term:?}, not {expected}");
    }
    assert!((weights[1].value - itself).abs() > 1e-3);
}

#[test]
fn more_weights_than_a_report_holds_are_left_out() {
    let learner = learner();
    let input = load::load(&batch(), &learner.device).unwrap();
    let forward = forward::forward(&learner, &input).unwrap();
    let others = |count: usize| -> Vec<_> {
        let heard = |index| crate::methods::Heard {
            embeddings: forward.outputs.embeddings.clone(),
            matching: forward.outputs.matching.clone(),
            ..crate::methods::Heard::nothing(index)
        };
        (1..=count).map(heard).collect()
    };
    let digests = |count: usize| -> Vec<_> {
        (1..=count).map(|i| (PeerName::new(format!("p{i}")).unwrap(), Digest::of("x"))).collect()
    };
    for (count, expected) in [(60, 240), (61, 0)] {
        let terms = report::matching(&forward, &others(count), &digests(count)).unwrap();
        assert_eq!(terms.len(), expected, "{count} others, two stages each");
    }
}

/// A learner that makes a meta-update after every step, with optimisers that have moved already.
fn meta_learner() -> Learner {
    let peer = |name: &str| format!("[[peer]]\nname = \"{name}\"\narch = \"resnet6\"\n");
    let text = format!(
        "[run]\nsteps = 9\n[data]\ndataset = \"mnist\"\n[method]\nname = \"l-mcl\"\nmeta_freq = 1\n{}{}",
        peer("a"),
        peer("b")
    );
    let mut learner = Learner { meta: Schedule::of(&RunSpec::parse(&text).unwrap()), ..learner() };
    run(&mut learner, &mut Mirror::default(), &batch()).unwrap();
    learner
}

/// [`meta_learner`] at memory banks of nine samples.
fn remembering_learner() -> Learner {
    let peer = |name: &str| format!("[[peer]]\nname = \"{name}\"\narch = \"resnet6\"\n");
    let text = format!(
        "[run]\nsteps = 9\n[data]\ndataset = \"mnist\"\n[method]\nname = \"l-mcl\"\nmeta_freq = 1\nfeat_dim = 6\n\
         bank = true\nbank_negatives = 4\n{}{}",
        peer("a"),
        peer("b")
    );
    let spec = RunSpec::parse(&text).unwrap();
    let bank = BankParams { positives: 1, negatives: 4, momentum: 0.5, bug: false };
    let memory = Memory::new(&spec, &[0, 1, 2, 0, 1, 2, 0, 1, 2], Some(bank)).unwrap();
    let mut learner = meta_learner();
    let Method::LMcl(method) = &mut learner.method else { unreachable!() };
    method.bank = Some(bank);
    learner.memory = memory;
    learner
}

#[test]
fn one_that_hears_nobody_learns_no_matching() {
    let mut learner = meta_learner();
    let phi = |name: &str| name.starts_with(MATCHING_PREFIX);
    let before = [bytes(&learner, phi), bytes(&learner, |name| !phi(name))];
    let report = run_alone(&mut learner, &batch()).unwrap();
    assert!(report.terms.iter().all(|term| term.name != "meta_gradient"), "{:?}", report.terms);
    assert!(bytes(&learner, phi) == before[0], "there is nothing to match with");
    assert!(bytes(&learner, |name| !phi(name)) != before[1], "a step was taken");
}

/// Every bit of the network and of both optimisers.
fn everything(learner: &Learner) -> [Vec<u8>; 2] {
    let (model, optimizer) = learner.state().unwrap();
    [&model, &optimizer].map(|state| state::encode(state).unwrap())
}

#[test]
fn a_meta_update_that_fails_at_any_exchange_leaves_no_trace() {
    leaves_no_trace(&meta_learner);
}

#[test]
fn nor_does_it_in_memory_banks() {
    leaves_no_trace(&remembering_learner);
}

fn leaves_no_trace(meta_learner: &dyn Fn() -> Learner) {
    let mut undisturbed = meta_learner();
    let before = everything(&undisturbed);
    let report = run(&mut undisturbed, &mut Mirror::default(), &batch()).unwrap();
    assert!(report.terms.iter().any(|term| term.name == "meta_gradient"), "{:?}", report.terms);
    let mut learner = meta_learner();
    assert!(everything(&learner) == before);
    for round in 0..RoundPlan::new(2).rounds() {
        for failure in [Failure::Mute, Failure::Lost, Failure::Stopped] {
            let mut company = Mirror { fails: Some((round, failure)), ..Mirror::default() };
            let Err(interruption) = run(&mut learner, &mut company, &batch()) else {
                panic!("round {round}, {failure:?}: nothing failed");
            };
            let stopped = matches!(interruption, Interruption::Stopped(_));
            assert_eq!(stopped, failure == Failure::Stopped, "round {round}");
            assert!(everything(&learner) == before, "round {round}, {failure:?}");
        }
    }
    run(&mut learner, &mut Mirror::default(), &batch()).unwrap();
    assert!(everything(&learner) == everything(&undisturbed), "the step that is taken at last is the same");
}
