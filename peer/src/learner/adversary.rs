//! The adversarial part of feature-map distillation (Chung et al., ICML 2020) at one peer: a discriminator that tells the
//! maps of its teacher from the network's own, and two optimisers of their own, one by which it learns to and one by which
//! the network learns that it cannot.
//!
//! All gradients of a step are those at the parameters before it. They are applied in this order: the network's by its
//! loss (that is the step of everybody), the network's by the discriminator, the discriminator's.

use candle_core::{Result, Tensor};
use cohort_proto::spec::{EdgeSpec, RunSpec, TermSpec};

use super::{METHOD_PREFIXES, Model, Outputs, TRANSFER_PREFIX};
use crate::methods::Heard;
use crate::methods::terms::{afd, mean};
use crate::models::{Discriminator, Params, Pass, StateDict, StateError, Strictness};
use crate::optim::{Adam, AdamConfig, Gradients};

/// Where the names of the adversarial part begin in a checkpoint.
pub(super) const ADVERSARY_PREFIX: &str = "adversary.";

/// Where those of its optimisers begin behind that; the discriminator's own tensors are `discriminator.*`.
const OF_NETWORK: &str = "of_network.";
const OF_DISCRIMINATOR: &str = "of_discriminator.";

/// A discriminator, and what trains it and the network against each other.
#[derive(Debug)]
pub struct Adversary {
    /// The index of the peer whose maps count as real.
    source: usize,
    discriminator: Discriminator,
    params: Params,
    of_network: Adam,
    of_discriminator: Adam,
}

/// What a batch says of both sides; scalars with their graphs.
#[derive(Debug)]
pub struct Contest {
    /// What the network minimises: that its own maps pass as the other's.
    pub generator: Tensor,
    /// What the discriminator minimises: that they do not, and the other's do.
    pub discriminator: Tensor,
    /// The running statistics of the discriminator that are still to be written.
    pub pass: Pass,
}

/// The gradients of a contest, each by the parameters of the side that it is for.
#[derive(Debug)]
pub struct Moves {
    network: Gradients,
    discriminator: Gradients,
    pass: Pass,
}

impl Adversary {
    /// The adversarial part of a peer in a run, with a discriminator drawn from the run's seed and the name of the peer;
    /// none if no edge of the term reaches it.
    ///
    /// # Errors
    /// If the device fails.
    pub(super) fn of(spec: &RunSpec, index: usize, model: &Model, name: &str) -> Result<Option<Self>> {
        let edge = |edge: &&EdgeSpec| matches!(edge.term, TermSpec::Afd { .. });
        let Some(edge) = spec.edges_to(index).find(edge) else { return Ok(None) };
        let (TermSpec::Afd { lr_g, lr_d, .. }, Some([channels, ..])) = (&edge.term, spec.map_of(index))
        else {
            return Ok(None);
        };
        let mut params = Params::new(spec.run.seed, name, model.params.dtype(), model.params.device())?;
        let discriminator = Discriminator::new(params.scope("discriminator"), channels)?;
        let classifier = [model.network.classifier().weight().id(), model.network.classifier().bias().id()];
        let makes_maps = |name: &str| {
            let of_method = METHOD_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            let var = model.params.trainable().get(name);
            name.starts_with(TRANSFER_PREFIX)
                || (!of_method && var.is_some_and(|var| !classifier.contains(&var.id())))
        };
        let of_network = Adam::over(&model.params, AdamConfig::of(*lr_g), makes_maps)?;
        let of_discriminator = Adam::over(&params, AdamConfig::of(*lr_d), |_| true)?;
        Ok(Some(Self { source: edge.from, discriminator, params, of_network, of_discriminator }))
    }

    /// What the discriminator makes of a batch; nothing if the teacher was not heard, as when it has left the cohort.
    ///
    /// # Errors
    /// Maps that are missing or differ in shape, or the device fails.
    pub fn contest(&self, own: &Outputs, heard: &[Heard]) -> Result<Option<Contest>> {
        let Some(teacher) = heard.iter().find(|heard| heard.index == self.source) else { return Ok(None) };
        let (Some(own), Some(theirs)) = (&own.map, &teacher.map) else {
            candle_core::bail!("afd: the maps of this network or of network {} are missing", self.source);
        };
        if own.dims() != theirs.dims() {
            let (a, b) = (own.dims(), theirs.dims());
            candle_core::bail!("afd: the own maps are {a:?}, those of network {} are {b:?}", self.source);
        }
        let mut pass = Pass::train();
        let of_other = self.discriminator.forward(&theirs.detach(), &mut pass)?;
        let of_own = self.discriminator.forward(&own.detach(), &mut pass)?;
        // The same numbers once more, with the graph of the maps: what it learns of them counts once.
        let passed = self.discriminator.forward(own, &mut Pass::train())?;
        Ok(Some(Contest {
            generator: mean(&afd::generator_rows(&passed)?)?,
            discriminator: mean(&afd::discriminator_rows(&of_other, &of_own)?)?,
            pass,
        }))
    }

    /// The gradients of both sides. The losses may be sums over several networks and discriminators: each has its own part.
    ///
    /// # Errors
    /// If the device fails.
    pub fn moves(&self, model: &Model, contest: Contest) -> Result<Moves> {
        let Contest { generator, discriminator, pass } = contest;
        let mut network = model.params.gradients(&generator.backward()?);
        network.retain(|name, _| self.of_network.steps(name));
        let discriminator = self.params.gradients(&discriminator.backward()?);
        Ok(Moves { network, discriminator, pass })
    }

    /// Moves the network, then the discriminator.
    ///
    /// # Errors
    /// If the device fails.
    pub fn step(&mut self, model: &Model, moves: Moves) -> Result<()> {
        self.of_network.step(&model.params, &moves.network)?;
        self.of_discriminator.step(&self.params, &moves.discriminator)?;
        moves.pass.commit()
    }

    /// The discriminator and both optimisers by their names in a checkpoint.
    ///
    /// # Errors
    /// If the device fails.
    pub(super) fn state_dict(&self) -> Result<StateDict> {
        let (network, discriminator) = (self.of_network.state_dict()?, self.of_discriminator.state_dict()?);
        let parts =
            [("", self.params.state_dict()?), (OF_NETWORK, network), (OF_DISCRIMINATOR, discriminator)];
        let named = parts.into_iter().flat_map(|(part, state)| {
            state.into_iter().map(move |(name, tensor)| (format!("{ADVERSARY_PREFIX}{part}{name}"), tensor))
        });
        Ok(named.collect())
    }

    /// Goes on from what [`Adversary::state_dict`] gave.
    ///
    /// # Errors
    /// If names, shapes or numbers do not fit.
    pub(super) fn load(&mut self, state: &StateDict) -> std::result::Result<(), StateError> {
        let (mut network, mut discriminator) = (StateDict::new(), StateDict::new());
        let mut own = StateDict::new();
        for (name, tensor) in state {
            let name = name.strip_prefix(ADVERSARY_PREFIX).unwrap_or(name);
            let (part, name) = match (name.strip_prefix(OF_NETWORK), name.strip_prefix(OF_DISCRIMINATOR)) {
                (Some(rest), _) => (&mut network, rest),
                (_, Some(rest)) => (&mut discriminator, rest),
                _ => (&mut own, name),
            };
            part.insert(name.to_owned(), tensor.clone());
        }
        self.params.load(&own, Strictness::Strict)?;
        self.of_network.load(&network)?;
        self.of_discriminator.load(&discriminator)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::checkpoint::Progress;
    use crate::learner::Learner;
    use crate::models::{ImageShape, state};

    const IMAGE: ImageShape = ImageShape { channels: 1, height: 28, width: 28 };

    /// The first of two peers, whose maps of 64 channels are given so many.
    fn learner(channels: usize) -> Learner {
        let peers = [("a", "resnet8"), ("b", "wrn_10_1")];
        let peers = peers.map(|(name, arch)| format!("[[peer]]\nname = \"{name}\"\narch = \"{arch}\"\n"));
        let text = format!(
            "[run]\nsteps = 9\n[data]\ndataset = \"mnist\"\nbatch = 4\n[method]\nname = \"afd\"\n\
             channels = {channels}\nlr_g = 0.01\nlr_d = 0.01\n{}",
            peers.concat()
        );
        let spec = RunSpec::parse(&text).unwrap();
        Learner::build(&spec, 0, &spec.peers[0], IMAGE, Device::Cpu).unwrap()
    }

    fn tensor(shape: &[usize], from: f64) -> Tensor {
        let values = (0..shape.iter().product()).map(|i: usize| (0.7 * i as f64 + from).sin() as f32);
        Tensor::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
    }

    fn outputs(learner: &Learner) -> Outputs {
        learner.model.forward(&tensor(&[4, 1, 28, 28], 0.1), &mut Pass::train()).unwrap()
    }

    fn heard(channels: usize) -> [Heard; 1] {
        [Heard { map: Some(tensor(&[4, channels, 7, 7], 3.0)), ..Heard::nothing(1) }]
    }

    fn step(learner: &mut Learner, channels: usize) {
        let own = outputs(learner);
        let adversary = learner.adversary.as_mut().unwrap();
        let contest = adversary.contest(&own, &heard(channels)).unwrap().unwrap();
        let moves = adversary.moves(&learner.model, contest).unwrap();
        adversary.step(&learner.model, moves).unwrap();
    }

    fn bytes(state: &StateDict, keep: impl Fn(&str) -> bool) -> Vec<u8> {
        let kept = state.iter().filter(|(name, _)| keep(name));
        state::encode(&kept.map(|(name, tensor)| (name.clone(), tensor.clone())).collect()).unwrap()
    }

    #[test]
    fn each_side_learns_what_is_its_own() {
        for channels in [64, 16] {
            let mut learner = learner(channels);
            let has_layer = learner.model.params.trainable().contains_key("transfer.weight");
            assert_eq!(has_layer, channels != 64, "maps that have the channels are taken as they are");
            let own = outputs(&learner);
            assert_eq!(own.map.as_ref().unwrap().dims(), [4, channels, 7, 7]);
            let adversary = learner.adversary.as_ref().unwrap();
            let contest = adversary.contest(&own, &heard(channels)).unwrap().unwrap();
            let moves = adversary.moves(&learner.model, contest).unwrap();
            assert!(moves.discriminator.keys().eq(adversary.params.trainable().keys()));
            let makes_maps = |name: &&String| !name.starts_with("fc.");
            assert!(moves.network.keys().eq(learner.model.params.trainable().keys().filter(makes_maps)));
            let (before, of_adversary) = learner.state().unwrap();
            step(&mut learner, channels);
            let (after, of_adversary_after) = learner.state().unwrap();
            let fixed = |name: &str| name.starts_with("fc.") || name.contains("running_");
            assert!(bytes(&before, fixed) == bytes(&after, fixed));
            for (name, tensor) in before.iter().filter(|(name, _)| !fixed(name) && !name.ends_with("tracked"))
            {
                assert!(
                    bytes(&before, |other| other == name) != bytes(&after, |other| other == name),
                    "{name} {tensor}"
                );
            }
            let own = |name: &str| name.starts_with("adversary.discriminator.");
            assert!(bytes(&of_adversary, own) != bytes(&of_adversary_after, own));
        }
    }

    /// The network's loss falls by what it does against its discriminator, and the discriminator's by what it does itself.
    #[test]
    fn either_side_alone_gets_better() {
        let mut learner = learner(64);
        let losses = |learner: &Learner| {
            let adversary = learner.adversary.as_ref().unwrap();
            let contest = adversary.contest(&outputs(learner), &heard(64)).unwrap().unwrap();
            [contest.generator, contest.discriminator].map(|loss| loss.to_scalar::<f64>().unwrap())
        };
        let before = losses(&learner);
        for network in [true, false] {
            let own = outputs(&learner);
            let adversary = learner.adversary.as_mut().unwrap();
            let contest = adversary.contest(&own, &heard(64)).unwrap().unwrap();
            let mut moves = adversary.moves(&learner.model, contest).unwrap();
            let other = if network { &mut moves.discriminator } else { &mut moves.network };
            other.clear();
            let at = losses(&learner);
            learner.adversary.as_mut().unwrap().step(&learner.model, moves).unwrap();
            let side = usize::from(!network);
            assert!(losses(&learner)[side] < at[side], "from {before:?}, {at:?} to {:?}", losses(&learner));
        }
    }

    #[test]
    fn goes_on_from_a_checkpoint_in_the_same_bits() {
        let (mut whole, mut resumed) = (learner(16), learner(16));
        step(&mut whole, 16);
        let (model, optimizer) = whole.state().unwrap();
        let progress = Progress {
            steps_done: 1,
            run: cohort_proto::id::RunId(1),
            spec_hash: cohort_proto::id::Digest::of(""),
            peer: "a".into(),
            arch: "resnet8".into(),
        };
        resumed.restore(&Checkpoint { progress, model, optimizer: optimizer.clone() }).unwrap();
        step(&mut whole, 16);
        step(&mut resumed, 16);
        let ((a, rest_of_a), (b, rest_of_b)) = (whole.state().unwrap(), resumed.state().unwrap());
        assert!(
            bytes(&a, |_| true) == bytes(&b, |_| true)
                && bytes(&rest_of_a, |_| true) == bytes(&rest_of_b, |_| true)
        );
        for missing in ["adversary.of_network.step", "adversary.discriminator.fc.bias"] {
            let mut short = optimizer.clone();
            short.remove(missing);
            let adversary = resumed.adversary.as_mut().unwrap();
            short.retain(|name, _| name.starts_with(ADVERSARY_PREFIX));
            assert!(adversary.load(&short).is_err(), "{missing}");
        }
    }

    #[test]
    fn who_is_not_heard_is_not_contested_and_other_maps_are_refused() {
        let learner = learner(64);
        let (adversary, own) = (learner.adversary.as_ref().unwrap(), outputs(&learner));
        assert!(adversary.contest(&own, &[]).unwrap().is_none());
        let mute = adversary.contest(&own, &[Heard::nothing(1)]).unwrap_err().to_string();
        assert!(mute.contains("network 1 are missing"), "{mute}");
        let wide = adversary.contest(&own, &heard(32)).unwrap_err().to_string();
        assert!(wide.contains("[4, 64, 7, 7], those of network 1 are [4, 32, 7, 7]"), "{wide}");
        assert_eq!(own.map.unwrap().dtype(), DType::F32);
    }
}
