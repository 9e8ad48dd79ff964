//! A step of layer-wise mutual contrastive learning against a company that says what the peer itself said.

use std::sync::Arc;

use candle_core::{DType, Device};
use cohort_proto::contribution::{Contribution, Header, Position, Tensor};
use cohort_proto::id::{Digest, RunId, ViewId};
use cohort_proto::schema::Schema;

use super::*;
use crate::learner::{Additions, MATCHING_PREFIX, Model};
use crate::methods::{LMclParams, Method};
use crate::models::{ImageShape, Params, StateDict, state};
use crate::optim::SgdConfig;

/// Says everything back, under other names where `renamed` has one.
#[derive(Default)]
struct Mirror {
    renamed: Option<(&'static str, &'static str)>,
    said: Vec<Tensor>,
}

impl Company for Mirror {
    fn view(&self) -> ViewId {
        ViewId(0)
    }

    fn say(&mut self, _: Position, _: u64, tensors: Vec<Tensor>) -> Result<Option<Digest>, Interruption> {
        self.said = tensors;
        Ok(None)
    }

    fn listen(
        &mut self,
        at: Position,
        batch_hash: u64,
    ) -> Result<Vec<(usize, Arc<Contribution>)>, Interruption> {
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
