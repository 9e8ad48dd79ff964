//! What is trained: a state that is mixed with everything consumed, so that one entry too many, too few or out of order
//! anywhere gives another state for ever; and what it comes to if nobody is disturbed.

use std::collections::{BTreeMap, BTreeSet};

use cohort_proto::contribution::{Contribution, Position, Tensor};
use cohort_proto::control::TensorDigest;
use cohort_proto::id::{PeerName, Step};
use cohort_proto::meta::Agenda;
use cohort_proto::rng::SplitMix64;
use cohort_proto::schema::{DType, Schema};
use cohort_proto::spec::RunSpec;

/// Steps of a run.
pub(crate) const STEPS: Step = 40;

/// What the others do without one that is lost, and what is said in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    /// Whether they go on without it.
    pub(crate) goes_on: bool,
    /// Whether every second step has the rounds of a meta-update.
    pub(crate) meta: bool,
}

/// A run.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) spec: RunSpec,
    pub(crate) kind: Kind,
    schemas: Vec<Schema>,
    agenda: Agenda,
    /// By peer and completed steps.
    states: Vec<Vec<u64>>,
    /// By peer and step.
    said: Vec<Vec<Vec<TensorDigest>>>,
}

impl Setting {
    pub(crate) fn new(kind: Kind) -> Self {
        let method = if kind.meta { "l-mcl" } else { "dml" };
        let policy = if kind.goes_on { "continue\"\nmin_peers = 1" } else { "wait\"" };
        let peers: String =
            ["a", "b", "c"].map(|name| format!("[[peer]]\nname = \"{name}\"\narch = \"resnet8\"\n")).concat();
        let text = format!(
            "[run]\nname = \"turmoil\"\nsteps = {STEPS}\ncheckpoint_every = 5\nkeep = 2\n\
             [data]\ndataset = \"fashion-mnist\"\nbatch = 2\n[method]\nname = \"{method}\"\n\
             [policy]\non_failure = \"{policy}\nfailure_timeout_ms = 2000\nwait_timeout_ms = 100000\n{peers}"
        );
        let spec = RunSpec::parse(&text).unwrap();
        let schemas = (0..spec.peers.len()).map(|peer| spec.contribution_schema(peer).unwrap()).collect();
        let agenda = Agenda::of(&spec);
        let mut setting = Self { spec, kind, schemas, agenda, states: vec![], said: vec![] };
        setting.train_undisturbed();
        setting
    }

    fn train_undisturbed(&mut self) {
        let peers = self.spec.peers.len();
        let mut states: Vec<Vec<u64>> = (0..peers).map(|peer| vec![fresh(peer)]).collect();
        let mut said = vec![Vec::new(); peers];
        for step in 0..STEPS {
            let mut heard = vec![0; peers];
            for round in 0..self.rounds(step) {
                let at = Position { step, round };
                let state = |peer: usize| states[peer][step as usize];
                let words: Vec<Vec<Tensor>> =
                    (0..peers).map(|peer| self.words(peer, state(peer), at, heard[peer])).collect();
                for peer in 0..peers {
                    let others = words.iter().enumerate().filter(|(source, _)| *source != peer);
                    heard[peer] =
                        others.fold(heard[peer], |heard, (source, words)| hear(heard, source, words));
                    if round == 0 {
                        said[peer].push(digests(&words[peer]));
                    }
                }
            }
            for peer in 0..peers {
                let state = after(states[peer][step as usize], step, heard[peer]);
                states[peer].push(state);
            }
        }
        (self.states, self.said) = (states, said);
    }

    /// Rounds of a step.
    pub(crate) fn rounds(&self, step: Step) -> u32 {
        if step % 2 == 1 { self.agenda.last_round() + 1 } else { 1 }
    }

    pub(crate) fn schema(&self, peer: usize) -> &Schema {
        &self.schemas[peer]
    }

    /// Those that a peer learns from, and the names of the tensors that it does so by.
    pub(crate) fn sources(&self, peer: usize) -> BTreeMap<PeerName, BTreeSet<String>> {
        self.spec.wanted_by(peer).unwrap()
    }

    pub(crate) fn agenda(&self) -> Agenda {
        self.agenda
    }

    /// The state that a peer has after so many steps, if nobody is ever left behind.
    pub(crate) fn state(&self, peer: usize, steps: Step) -> u64 {
        self.states[peer][steps as usize]
    }

    /// What a peer says in round 0 of a step, if nobody is ever left behind.
    pub(crate) fn said(&self, peer: usize, step: Step) -> &[TensorDigest] {
        &self.said[peer][step as usize]
    }

    pub(crate) fn name(&self, peer: usize) -> &str {
        self.spec.peers[peer].name.as_str()
    }

    /// What a peer says in a round, after what it heard in the earlier ones.
    pub(crate) fn words(&self, peer: usize, state: u64, at: Position, heard: u64) -> Vec<Tensor> {
        let schema = self.agenda.schema(&self.schemas[peer], at.round).unwrap();
        let key = [2, peer as u64, state, at.step, u64::from(at.round), heard];
        let mut numbers = SplitMix64::keyed(&key);
        let tensor = |spec: &cohort_proto::schema::TensorSpec| {
            let count = spec.shape.iter().product::<usize>();
            // So small that no row of an embedding is longer than a unit row.
            let number = |numbers: &mut SplitMix64| match spec.dtype {
                DType::F32 => (numbers.unit_f64() as f32 / 64.0).to_le_bytes().to_vec(),
                DType::F64 => (numbers.unit_f64() / 64.0).to_le_bytes().to_vec(),
            };
            let data: Vec<u8> = (0..count).flat_map(|_| number(&mut numbers)).collect();
            Tensor { spec: spec.clone(), data: data.into() }
        };
        schema.tensors().iter().map(tensor).collect()
    }
}

/// A number that stands for a state in the journal, whose numbers have 53 bits.
pub(crate) fn loss(state: u64) -> f64 {
    (state >> 11) as f64
}

pub(crate) fn digests<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<TensorDigest> {
    tensors.into_iter().map(|tensor| TensorDigest::of(&tensor.spec.name, &tensor.data)).collect()
}

/// The weights of step 0.
pub(crate) fn fresh(peer: usize) -> u64 {
    SplitMix64::keyed(&[1, peer as u64]).next_u64()
}

/// What was heard so far, and one contribution more.
pub(crate) fn hear<'a>(heard: u64, source: usize, tensors: impl IntoIterator<Item = &'a Tensor>) -> u64 {
    let parts = digests(tensors).into_iter().map(|tensor| tensor.digest);
    SplitMix64::keyed(&[3, heard, source as u64].into_iter().chain(parts).collect::<Vec<_>>()).next_u64()
}

/// As [`hear`], of what came.
pub(crate) fn heard_of(heard: u64, source: usize, contribution: &Contribution) -> u64 {
    hear(heard, source, contribution.tensors())
}

/// The state after a step in which this was heard.
pub(crate) fn after(state: u64, step: Step, heard: u64) -> u64 {
    SplitMix64::keyed(&[4, state, step, heard]).next_u64()
}
