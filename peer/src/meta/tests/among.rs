//! The exchanges of a meta-update over a company that notes what is said, and answers from a script.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use cohort_proto::contribution::{self, Contribution, Header, Position};
use cohort_proto::id::{Digest, PeerName, RunId, ViewId};
use cohort_proto::meta::{RoundKind, RoundPlan};
use cohort_proto::schema::Schema;

use crate::meta::among_peers::{AmongPeers, of_rounds};
use crate::meta::{Gather, Words};
use crate::step::say::to_wire;
use crate::step::{Company, Interruption};

/// Answers every round with the same tensors of the peers 0 and 2.
struct Script {
    answers: Vec<contribution::Tensor>,
    said: Vec<(Position, u64, Vec<String>)>,
}

fn name(index: usize) -> PeerName {
    PeerName::new(["c", "me", "a"][index]).unwrap()
}

fn sealed(index: usize, at: Position, tensors: Vec<contribution::Tensor>) -> Contribution {
    let schema = Schema::new(tensors.iter().map(|tensor| tensor.spec.clone()).collect()).unwrap();
    let header = Header { run: RunId(0), view: ViewId(0), position: at, source: name(index), batch_hash: 0 };
    Contribution::seal(header, tensors, &schema).unwrap()
}

impl Company for Script {
    fn view(&self) -> ViewId {
        ViewId(0)
    }

    fn say(
        &mut self,
        at: Position,
        batch_hash: u64,
        tensors: Vec<contribution::Tensor>,
    ) -> Result<Option<Digest>, Interruption> {
        let specs = tensors.iter().map(|tensor| format!("{} {:?}", tensor.spec.name, tensor.spec.dtype));
        self.said.push((at, batch_hash, specs.collect()));
        Ok(Some(sealed(1, at, tensors).digest()))
    }

    fn listen(&mut self, at: Position, _: u64) -> Result<Vec<(usize, Arc<Contribution>)>, Interruption> {
        let answer = |index| (index, Arc::new(sealed(index, at, self.answers.clone())));
        Ok(vec![answer(0), answer(2)])
    }

    fn log_bytes(&self) -> u64 {
        0
    }
}

fn row(numbers: &[f64]) -> Tensor {
    Tensor::from_vec(numbers.to_vec(), (1, numbers.len()), &Device::Cpu).unwrap()
}

fn script(answers: &[(&str, Tensor)]) -> Script {
    let answers = answers.iter().map(|(name, tensor)| to_wire(name, tensor).unwrap()).collect();
    Script { answers, said: Vec::new() }
}

fn among(script: &mut Script) -> AmongPeers<'_> {
    AmongPeers::new(script, 1, (5, 77), RoundPlan::new(2), &Device::Cpu)
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn words_of(interruption: Interruption) -> String {
    match interruption {
        Interruption::Failed(error) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn words_are_said_in_their_round_and_heard_bit_for_bit() {
    let third = 1.0 / 3.0;
    let mut script = script(&[("embed.0", row(&[third, -0.0])), ("match.0", row(&[5e-324]))]);
    let mut among = among(&mut script);
    let (one, two) = (row(&[1.0]), row(&[0.5]));
    let own = Words { embeddings: vec![one.clone(), two.clone()], matching: vec![two, one] };
    let heard = among.words(RoundKind::MetaPlus(0), own).unwrap();
    assert_eq!(heard.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 2]);
    for (_, words) in &heard {
        let bits = |tensors: &[Tensor]| values(&tensors[0]).into_iter().map(f64::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(&words.embeddings), [third.to_bits(), (-0.0f64).to_bits()]);
        assert_eq!(bits(&words.matching), [1]);
        assert_eq!((words.embeddings.len(), words.matching.len()), (1, 1));
    }
    let (said, consumed) = (among.said.clone(), among.consumed.clone());
    assert_eq!(said.len(), 1);
    assert_eq!(consumed[0].iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["c", "a"]);
    let round = RoundPlan::new(2).round(RoundKind::MetaPlus(0)).unwrap();
    let tensors = ["embed.0 F64", "embed.1 F64", "match.0 F64", "match.1 F64"].map(str::to_owned);
    assert_eq!(script.said, [(Position { step: 5, round }, 77, tensors.to_vec())]);
    let answer = sealed(0, Position { step: 5, round }, script.answers.clone());
    assert_eq!(consumed[0][0].1, answer.digest());
}

#[test]
fn numbers_of_all_come_by_index_with_the_own_among_them() {
    let others = Tensor::new(&[1e-300, 2.0, 1.0, 0.0], &Device::Cpu).unwrap();
    let mut script = script(&[("norms", others)]);
    let all = among(&mut script).scalars(RoundKind::MetaVerdict, [0.1, 0.2, 0.3, 0.4]).unwrap();
    let theirs = [1e-300, 2.0, 1.0, 0.0];
    assert_eq!(all, [theirs, [0.1, 0.2, 0.3, 0.4], theirs]);
    assert_eq!(script.said, [(Position { step: 5, round: 9 }, 77, vec!["norms F64".to_owned()])]);
}

#[test]
fn what_is_no_four_numbers_is_an_error_with_its_source() {
    let three = Tensor::new(&[1.0, 2.0, 3.0], &Device::Cpu).unwrap();
    for answers in [vec![], vec![("norms", three.clone())], vec![("norms", three.clone()), ("x", three)]] {
        let mut script = script(&answers);
        let refused = among(&mut script).scalars(RoundKind::MetaNorms(1), [0.0; 4]).unwrap_err();
        assert!(words_of(refused).contains("peer c sent no four numbers"));
    }
    let mut script = script(&[("gossip", row(&[1.0]))]);
    let refused = among(&mut script).words(RoundKind::MetaForward(0), Words::default()).unwrap_err();
    assert!(words_of(refused).contains("`gossip`"));
}

#[test]
fn a_round_that_the_run_does_not_have_is_never_said() {
    let mut script = script(&[]);
    let refused = among(&mut script).words(RoundKind::MetaForward(2), Words::default()).unwrap_err();
    assert!(words_of(refused).contains("no round of this run"));
    assert!(script.said.is_empty());
}

#[test]
fn one_digest_stands_for_all_rounds() {
    let [a, b] = ["a", "b"].map(Digest::of);
    assert_eq!(of_rounds([]), None);
    assert_eq!(of_rounds([a]), Some(a));
    assert_eq!(of_rounds([a, b]), Some(Digest::of([a.0, b.0].concat())));
}
