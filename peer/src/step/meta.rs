//! Act 8, after some steps: the meta-update, in further rounds of the same step. It changes how stages are matched, and
//! leaves the network as the update made it.

use candle_core::DType;
use cohort_proto::control::{TensorDigest, Term};
use cohort_proto::id::{Digest, PeerName};
use cohort_proto::meta::RoundPlan;
use cohort_proto::spec::Role;

use super::load::Input;
use super::{Company, Interruption};
use crate::data::loader::Batch;
use crate::learner::Learner;
use crate::meta::among_peers::{AmongPeers, of_rounds};
use crate::meta::{OfLearner, OfTeacher, Outcome, Schedule, update};

/// What this peer said and heard in a step, all rounds together.
#[derive(Debug, Default)]
pub struct Exchanged {
    /// The digest of what it said.
    pub own: Option<Digest>,
    /// Those of the tensors that it said in round 0.
    pub tensors: Vec<TensorDigest>,
    /// The digest of what each source said.
    pub consumed: Vec<(PeerName, Digest)>,
}

/// The meta-updates of the run, if one follows the step of this batch. None follows where nobody else is heard, as when a
/// cohort has shrunk to one: there is nothing to match with, and weight decay alone would change the matching.
pub fn due(learner: &Learner, batch: &Batch, heard: usize) -> Option<Schedule> {
    learner.meta.clone().filter(|meta| heard > 0 && meta.follows(batch.position_in_epoch))
}

/// Makes a meta-update with the batch of the step, adds its rounds to `exchanged`, and returns the norm of the
/// hypergradient as a term of the report; or that the update was abandoned, since some peer met a number that is not finite,
/// so that no peer changed.
///
/// # Errors
/// If the run stops meanwhile, a source is lost, or the device fails: then nothing has changed.
pub fn meta(
    learner: &mut Learner,
    company: &mut dyn Company,
    schedule: &Schedule,
    (batch, input): (&Batch, &Input),
    exchanged: &mut Exchanged,
) -> Result<Term, Interruption> {
    let device = learner.device.clone();
    let settings = schedule.settings(batch.lr);
    let plan = RoundPlan::new(schedule.times());
    let mut among = AmongPeers::new(company, learner.index, (batch.step, batch.hash), plan, &device);
    let precision = schedule.precision();
    let outcome = match learner.role {
        Role::Student => {
            let mut network = OfLearner::new(learner, input, precision)?;
            update(&mut network, &mut among, &settings)?
        }
        Role::Teacher => {
            let mut network = OfTeacher::new(learner, &input.images, precision)?;
            update(&mut network, &mut among, &settings)?
        }
    };
    exchanged.add(among.said, among.consumed);
    match outcome {
        Outcome::Learnt { norm } => Ok(Term { name: "meta_gradient".into(), value: norm }),
        Outcome::Abandoned => {
            let precision = if schedule.precision() == DType::F64 { "f64" } else { "f32" };
            tracing::warn!(
                "step {}: the meta-update left the numbers of {precision} on some peer and changes nothing; lower \
                 [method] meta_lr or meta_weight_decay",
                batch.step
            );
            Ok(Term { name: "meta_abandoned".into(), value: 1.0 })
        }
    }
}

impl Exchanged {
    /// Appends rounds; what there is becomes the digest of all digests in order.
    pub(super) fn add(&mut self, said: Vec<Digest>, heard: Vec<Vec<(PeerName, Digest)>>) {
        self.own = of_rounds(self.own.into_iter().chain(said));
        for (source, digest) in &mut self.consumed {
            let later = heard.iter().flatten().filter(|(name, _)| name == source).map(|(_, digest)| *digest);
            if let Some(all) = of_rounds(std::iter::once(*digest).chain(later)) {
                *digest = all;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_says_in_all_rounds_is_what_the_other_heard() {
        let digest = |text: &str| Digest::of(text);
        let source = PeerName::new("a").unwrap();
        let rounds = ["round 0", "round 1", "round 2"].map(digest);
        let mut speaker = Exchanged { own: Some(rounds[0]), ..Exchanged::default() };
        speaker.add(rounds[1..].to_vec(), vec![]);
        let mut hearer = Exchanged { consumed: vec![(source.clone(), rounds[0])], ..Exchanged::default() };
        hearer.add(vec![], rounds[1..].iter().map(|round| vec![(source.clone(), *round)]).collect());
        assert_eq!(speaker.own, Some(hearer.consumed[0].1));
        let mut other = Exchanged { own: Some(rounds[0]), ..Exchanged::default() };
        other.add(vec![rounds[2], rounds[1]], vec![]);
        assert_ne!(other.own, speaker.own, "order counts");
        let mut alone = Exchanged { own: Some(rounds[0]), ..Exchanged::default() };
        alone.add(vec![], vec![]);
        assert_eq!(alone.own, Some(rounds[0]), "a step of one round keeps its digest");
    }
}
