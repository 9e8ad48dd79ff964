//! The further exchanges of a step: which round of it is what, and what is said in it. Those of a meta-update, and one in the
//! first step of an epoch in runs in which networks are weighed by their errors on held-out samples.
//!
//! After the exchange of the step itself (round 0) come T rounds in which the networks say what they have become in the
//! inner steps 0 to T-1. Then, for each inner step from the last back to the first, come a round of norms, from which
//! all take the same step size, and two in which the networks say what they are when perturbed by it forwards and
//! backwards. Last comes a round of norms in which all learn whether every one of them met finite numbers only, before
//! anything is changed anywhere.

use crate::id::Round;
use crate::schema::{DType, Schema, SchemaError, TensorSpec};
use crate::spec::RunSpec;

/// The name of the logits `[samples, classes]` of held-out samples.
pub const HELD_OUT: &str = "held_out";

/// The round of an epoch's first step in which they are said. Such a run makes no meta-updates.
pub const HELD_OUT_ROUND: Round = 1;

/// The name of the numbers of a round of norms.
pub const NORMS: &str = "norms";

/// How many they are: squared norms of direction and weights, 1 if all values are finite (else 0), and a spare 0.
pub const NORMS_LEN: usize = 4;

/// What a round is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RoundKind {
    /// The training step.
    Step,
    /// The forward pass of an inner step.
    MetaForward(u32),
    /// The norms that fix the size of the perturbation at an inner step.
    MetaNorms(u32),
    /// The forward pass at an inner step, perturbed forwards.
    MetaPlus(u32),
    /// The same, backwards.
    MetaMinus(u32),
    /// Norms once more, for their flag alone: whether all peers may apply what they found.
    MetaVerdict,
}

/// The rounds of a step that is followed by a meta-update of T inner steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundPlan {
    times: u32,
}

/// Rounds after the last inner step.
const VERDICT: u32 = 1;

/// Rounds of each inner step on the way back.
const BACK: u32 = 3;

impl RoundPlan {
    /// For `times` = T inner steps.
    pub fn new(times: u32) -> Self {
        Self { times }
    }

    /// T.
    pub fn times(self) -> u32 {
        self.times
    }

    /// Rounds of the step and the meta-update together, `2 + 4T`; 1 if T is 0, since there is no meta-update then.
    pub fn rounds(self) -> Round {
        if self.times == 0 { 1 } else { 1 + self.times * (1 + BACK) + VERDICT }
    }

    /// What a round is for; `None` from [`RoundPlan::rounds`] on.
    pub fn kind(self, round: Round) -> Option<RoundKind> {
        let Some(after) = round.checked_sub(1) else { return Some(RoundKind::Step) };
        if self.round(RoundKind::MetaVerdict) == Some(round) {
            return Some(RoundKind::MetaVerdict);
        }
        let Some(back) = after.checked_sub(self.times) else { return Some(RoundKind::MetaForward(after)) };
        let inner = self.times.checked_sub(1 + back / BACK)?;
        Some(match back % BACK {
            0 => RoundKind::MetaNorms(inner),
            1 => RoundKind::MetaPlus(inner),
            _ => RoundKind::MetaMinus(inner),
        })
    }

    /// The round that is for something; `None` for an inner step that there is not.
    pub fn round(self, kind: RoundKind) -> Option<Round> {
        let back = |inner: u32, offset: u32| {
            let steps = self.times.checked_sub(inner)?.checked_sub(1)?;
            Some(1 + self.times + steps * BACK + offset)
        };
        match kind {
            RoundKind::Step => Some(0),
            RoundKind::MetaForward(inner) => (inner < self.times).then_some(1 + inner),
            RoundKind::MetaNorms(inner) => back(inner, 0),
            RoundKind::MetaPlus(inner) => back(inner, 1),
            RoundKind::MetaMinus(inner) => back(inner, 2),
            RoundKind::MetaVerdict => (self.times > 0).then(|| self.rounds() - VERDICT),
        }
    }

    /// Bytes of tensor data that a peer with this schema says in the rounds after the step's.
    ///
    /// # Errors
    /// If a round would exceed what a contribution may have.
    pub fn meta_bytes(self, step: &Schema, precision: DType) -> Result<u64, SchemaError> {
        let mut bytes = 0;
        for kind in (1..self.rounds()).filter_map(|round| self.kind(round)) {
            bytes += step.for_round(kind, precision)?.byte_len() as u64;
        }
        Ok(bytes)
    }
}

/// What peers say in the rounds of a run's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agenda {
    plan: RoundPlan,
    precision: DType,
    /// Held-out samples and their classes, if networks are weighed by them.
    held_out: Option<(usize, usize)>,
}

impl Agenda {
    /// That of a run: with the rounds of a meta-update if it ever makes one, or that of held-out samples, else of the step
    /// alone.
    pub fn of(spec: &RunSpec) -> Self {
        let (times, precision) =
            spec.meta().map_or((0, DType::F32), |meta| (meta.times, meta.precision.dtype()));
        let held_out = spec.weighs_by_held_out().then(|| (spec.data.validation, spec.data.dataset.classes()));
        Self { plan: RoundPlan::new(times), precision, held_out }
    }

    /// The last round that any step may have.
    pub fn last_round(&self) -> Round {
        if self.held_out.is_some() { HELD_OUT_ROUND } else { self.plan.rounds().saturating_sub(1) }
    }

    /// What a peer says in a round, by what it says in a step; `None` if the run has no such round.
    pub fn schema(self, step: &Schema, round: Round) -> Option<Schema> {
        match (self.held_out, round) {
            (None, _) => step.for_round(self.plan.kind(round)?, self.precision).ok(),
            (Some(_), 0) => Some(step.clone()),
            (Some(size), HELD_OUT_ROUND) => step.for_held_out(size).ok(),
            (Some(_), _) => None,
        }
    }

    /// Bytes of the largest contribution of a peer to any round.
    pub fn byte_len_max(self, step: &Schema) -> usize {
        let rounds = (0..=self.last_round()).filter_map(|round| self.schema(step, round));
        rounds.map(|schema| schema.byte_len()).max().unwrap_or(0)
    }
}

/// Whether a meta-update follows the step at a place in its epoch, counted from 0: every `freq` steps from the first of
/// each epoch on, as in the authors' code; never if `freq` is 0.
pub fn follows(place_in_epoch: u64, freq: u64) -> bool {
    place_in_epoch.checked_rem(freq) == Some(0)
}

impl Schema {
    /// What a peer that says this in a step says of held-out samples: its logits, or nothing if it says nothing.
    ///
    /// # Errors
    /// If that exceeds what a contribution may have.
    pub fn for_held_out(&self, (samples, classes): (usize, usize)) -> Result<Self, SchemaError> {
        let tensor =
            || TensorSpec { name: HELD_OUT.into(), dtype: DType::F32, shape: vec![samples, classes] };
        Self::new((!self.tensors().is_empty()).then(tensor).into_iter().collect())
    }

    /// What a peer that says this in a step says in a round of it: embeddings and matching features in the precision of
    /// the meta-update, or its norms.
    ///
    /// # Errors
    /// If in that precision it exceeds what a contribution may have.
    pub fn for_round(&self, kind: RoundKind, precision: DType) -> Result<Self, SchemaError> {
        match kind {
            RoundKind::Step => Ok(self.clone()),
            RoundKind::MetaNorms(_) | RoundKind::MetaVerdict => {
                Self::new(vec![TensorSpec { name: NORMS.into(), dtype: DType::F64, shape: vec![NORMS_LEN] }])
            }
            RoundKind::MetaForward(_) | RoundKind::MetaPlus(_) | RoundKind::MetaMinus(_) => {
                let tensors = self.tensors().iter().filter(|tensor| tensor.is_of_stage());
                Self::new(tensors.map(|tensor| TensorSpec { dtype: precision, ..tensor.clone() }).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_inner_steps_have_ten_rounds() {
        use RoundKind::{MetaForward, MetaMinus, MetaNorms, MetaPlus, MetaVerdict, Step};
        let plan = RoundPlan::new(2);
        let kinds: Vec<RoundKind> = (0..plan.rounds()).filter_map(|round| plan.kind(round)).collect();
        let there = [Step, MetaForward(0), MetaForward(1)];
        let back = [1, 0].map(|inner| [MetaNorms(inner), MetaPlus(inner), MetaMinus(inner)]);
        assert_eq!(kinds, [&there[..], &back.concat(), &[MetaVerdict]].concat());
        assert_eq!(plan.kind(10), None);
    }

    proptest::proptest! {
        /// Every round has one kind, every kind its round, and nothing lies outside.
        #[test]
        fn rounds_and_kinds_are_the_same(times in 0u32..40, beyond in 0u32..1000) {
            let plan = RoundPlan::new(times);
            for round in 0..plan.rounds() {
                let kind = plan.kind(round).unwrap();
                proptest::prop_assert_eq!(plan.round(kind), Some(round));
            }
            proptest::prop_assert_eq!(plan.kind(plan.rounds() + beyond), None);
            for kind in [RoundKind::MetaForward, RoundKind::MetaNorms, RoundKind::MetaPlus, RoundKind::MetaMinus] {
                proptest::prop_assert_eq!(plan.round(kind(times + beyond)), None);
            }
        }

        /// On the way back, the perturbations of an inner step follow its norms, and later steps come first.
        #[test]
        fn the_way_back_is_in_order(times in 1u32..40) {
            let plan = RoundPlan::new(times);
            let of = |kind| plan.round(kind).unwrap();
            for inner in 0..times {
                let norms = of(RoundKind::MetaNorms(inner));
                proptest::prop_assert_eq!(of(RoundKind::MetaPlus(inner)), norms + 1);
                proptest::prop_assert_eq!(of(RoundKind::MetaMinus(inner)), norms + 2);
                proptest::prop_assert!(of(RoundKind::MetaForward(inner)) <= times);
                if inner > 0 {
                    proptest::prop_assert!(norms < of(RoundKind::MetaNorms(inner - 1)));
                }
            }
        }
    }

    #[test]
    fn held_out_samples_are_a_round_of_those_who_speak() {
        let run = |target: &str| {
            let peers = ["a", "b"].map(|name| format!("[[peer]]\nname = \"{name}\"\narch = \"resnet6\"\n"));
            let text = format!(
                "[run]\nsteps = 4\n[data]\ndataset = \"mnist\"\nvalidation = 30\n\
                 [method]\nname = \"kdcl\"\ntarget = \"{target}\"\n{}",
                peers.concat()
            );
            RunSpec::parse(&text).unwrap()
        };
        let general = run("general");
        let (agenda, step) = (Agenda::of(&general), general.contribution_schema(0).unwrap());
        assert_eq!((agenda.last_round(), Agenda::of(&run("mean")).last_round()), (HELD_OUT_ROUND, 0));
        assert_eq!(agenda.schema(&step, 0), Some(step.clone()));
        assert_eq!(agenda.schema(&step, 1).unwrap().to_string(), "[held_out F32[30, 10]]");
        assert_eq!(agenda.schema(&Schema::default(), 1), Some(Schema::default()));
        assert_eq!(agenda.schema(&step, 2), None);
        assert_eq!(agenda.byte_len_max(&step), 128 * 10 * 4);
    }

    #[test]
    fn updates_follow_the_first_step_of_an_epoch_and_every_freq_th_after_it() {
        let after: Vec<u64> = (0..7).filter(|place| follows(*place, 3)).collect();
        assert_eq!(after, [0, 3, 6]);
        assert!((0..10).all(|place| !follows(place, 0)));
    }

    #[test]
    fn a_meta_round_says_stages_only() {
        let tensor =
            |name: &str, width| TensorSpec { name: name.into(), dtype: DType::F32, shape: vec![128, width] };
        let step = Schema::new(vec![tensor("aggregated", 10), tensor("embed.0", 64), tensor("match.0", 128)])
            .unwrap();
        let round = step.for_round(RoundKind::MetaPlus(0), DType::F64).unwrap();
        assert_eq!(round.to_string(), "[embed.0 F64[128, 64], match.0 F64[128, 128]]");
        let norms = step.for_round(RoundKind::MetaNorms(0), DType::F32).unwrap();
        assert_eq!(norms.to_string(), "[norms F64[4]]");
        assert_eq!(step.for_round(RoundKind::Step, DType::F64).unwrap(), step);
        let floats = 128 * (64 + 128);
        assert_eq!(RoundPlan::new(2).meta_bytes(&step, DType::F32), Ok(6 * floats * 4 + 3 * 32));
    }
}
