//! The stand-in for training: a state that is mixed with everything consumed, so that one entry too many, too few or
//! out of order anywhere gives another state for ever; and the run that nobody disturbs, which all others must equal.

use cohort_peer::meta::among_peers::of_rounds;
use cohort_proto::contribution::{Contribution, Position, Tensor};
use cohort_proto::control::TensorDigest;
use cohort_proto::id::{Digest, PeerName, Step};
use cohort_proto::rng::SplitMix64;
use cohort_proto::schema::{Schema, TensorSpec};
use cohort_proto::spec::RunSpec;

/// The size of a world.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) peers: usize,
    pub(crate) steps: Step,
    pub(crate) checkpoint_every: Step,
    pub(crate) keep: usize,
    /// Rounds of every second step, as those of a meta-update; 1 for none.
    pub(crate) rounds: u32,
    /// With how many peers at least the others go on without one that is lost; `None` if they wait for it.
    pub(crate) min_peers: Option<usize>,
    /// How long everybody waits for those who are missing; for ever if not given.
    pub(crate) wait_timeout_ms: Option<u64>,
}

/// Longer than any world lasts.
const FOR_EVER_MS: u64 = 3_000_000;

/// What is trained, and what it must come to.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) spec: RunSpec,
    pub(crate) schema: Schema,
    pub(crate) size: Size,
    /// By peer and completed steps.
    states: Vec<Vec<u64>>,
    /// By peer and step.
    said: Vec<Vec<TensorDigest>>,
}

impl Setting {
    pub(crate) fn new(size: Size) -> Self {
        let Size { peers, steps, checkpoint_every, keep, min_peers, wait_timeout_ms, .. } = size;
        let patience = wait_timeout_ms.unwrap_or(FOR_EVER_MS);
        let policy = min_peers.map_or("on_failure = \"wait\"".to_owned(), |least| {
            format!("on_failure = \"continue\"\nmin_peers = {least}")
        });
        let names: String =
            (0..peers).map(|i| format!("[[peer]]\nname = \"p{i}\"\narch = \"resnet8\"\n")).collect();
        let text = format!(
            "[run]\nname = \"simulation\"\nsteps = {steps}\ncheckpoint_every = {checkpoint_every}\nkeep = {keep}\n\
             [data]\ndataset = \"fashion-mnist\"\nbatch = 2\n[method]\nname = \"dml\"\n\
             [policy]\n{policy}\nfailure_timeout_ms = 2000\nwait_timeout_ms = {patience}\n{names}"
        );
        let spec = RunSpec::parse(&text).unwrap();
        let schema = spec.contribution_schema(0).unwrap();
        let mut setting = Self { spec, schema, size, states: vec![], said: vec![] };
        setting.train_undisturbed();
        setting
    }

    fn train_undisturbed(&mut self) {
        let peers = self.size.peers;
        let mut states: Vec<Vec<u64>> = (0..peers).map(|peer| vec![fresh(peer)]).collect();
        let mut said = vec![Vec::new(); peers];
        for step in 0..self.size.steps {
            let mut heard = vec![0; peers];
            for round in 0..self.rounds(step) {
                let at = Position { step, round };
                let last = |peer: usize| states[peer][step as usize];
                let words: Vec<u64> =
                    (0..peers).map(|peer| word(peer, last(peer), at, heard[peer])).collect();
                for peer in 0..peers {
                    let others = words.iter().enumerate().filter(|(source, _)| *source != peer);
                    heard[peer] =
                        others.fold(heard[peer], |heard, (source, word)| hear(heard, source, *word));
                    if round == 0 {
                        said[peer].push(digest(&self.tensor(words[peer])));
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
        if step % 2 == 1 { self.size.rounds } else { 1 }
    }

    /// Whether the others go on without a peer that is lost.
    pub(crate) fn goes_on(&self) -> bool {
        self.size.min_peers.is_some()
    }

    /// Whether everybody stops when those who are missing stay away for too long.
    pub(crate) fn gives_up(&self) -> bool {
        self.size.wait_timeout_ms.is_some()
    }

    /// The last round of a step that has the most.
    pub(crate) fn last_round(&self) -> u32 {
        self.size.rounds - 1
    }

    /// The state that a peer must have after so many steps, if nobody is ever left behind.
    pub(crate) fn state(&self, peer: usize, steps: Step) -> u64 {
        self.states[peer][steps as usize]
    }

    /// What a peer must say in a step, apart from the view in which it says it.
    pub(crate) fn said(&self, peer: usize, step: Step) -> &TensorDigest {
        &self.said[peer][step as usize]
    }

    pub(crate) fn name(&self, peer: usize) -> &PeerName {
        &self.spec.peers[peer].name
    }

    pub(crate) fn index(&self, name: &PeerName) -> usize {
        self.spec.peer(name).unwrap().0
    }

    /// A word as a tensor: finite numbers, 16 bits in each of the first four.
    pub(crate) fn tensor(&self, word: u64) -> Tensor {
        let spec: TensorSpec = self.schema.tensors()[0].clone();
        let count = spec.byte_len().unwrap() / 4;
        let number = |i: usize| f32::from((word >> (16 * (i % 4))) as u16);
        let data: Vec<u8> = (0..count).flat_map(|i| number(i).to_le_bytes()).collect();
        Tensor { spec, data: data.into() }
    }
}

/// The word in a contribution.
pub(crate) fn word_of(contribution: &Contribution) -> u64 {
    let numbers = contribution.tensors().next().unwrap().data.as_chunks::<4>().0;
    let part = |i: usize| (f32::from_le_bytes(numbers[i]) as u64) << (16 * i);
    (0..4).map(part).sum()
}

pub(crate) fn digest(tensor: &Tensor) -> TensorDigest {
    TensorDigest::of(&tensor.spec.name, &tensor.data)
}

/// One digest of all rounds of a step.
pub(crate) fn of_all(digests: &[Digest]) -> Digest {
    of_rounds(digests.iter().copied()).unwrap()
}

/// The weights of step 0.
pub(crate) fn fresh(peer: usize) -> u64 {
    SplitMix64::keyed(&[1, peer as u64]).next_u64()
}

/// What a peer says in a round, after what it heard in the earlier ones.
pub(crate) fn word(peer: usize, state: u64, at: Position, heard: u64) -> u64 {
    SplitMix64::keyed(&[2, peer as u64, state, at.step, u64::from(at.round), heard]).next_u64()
}

/// What was heard so far, and one word more.
pub(crate) fn hear(heard: u64, source: usize, word: u64) -> u64 {
    SplitMix64::keyed(&[3, heard, source as u64, word]).next_u64()
}

/// The state after a step in which this was heard.
pub(crate) fn after(state: u64, step: Step, heard: u64) -> u64 {
    SplitMix64::keyed(&[4, state, step, heard]).next_u64()
}
