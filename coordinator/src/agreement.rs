//! Whether all members consumed the same contributions, bit for bit: the digest of what each says is compared with the
//! digests of what the others heard, and what a replay recomputes with what was said the first time. Sans-IO; knows
//! members by index only.

use std::collections::BTreeMap;

use cohort_proto::control::TensorDigest;
use cohort_proto::id::{Digest, Step};
use cohort_proto::limits::DIGEST_STEPS_MAX;

/// The digests of the steps that a member may still take again, of the newest [`DIGEST_STEPS_MAX`] at the most.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Agreement {
    steps: BTreeMap<Step, Digests>,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct Digests {
    /// By member: what it said.
    said: BTreeMap<usize, Said>,
    /// By source: what was heard of it first, and by whom. Later hearers are compared with the first, so that one
    /// entry a source suffices.
    heard: BTreeMap<usize, (usize, Digest)>,
}

/// What a member said in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The digest of all rounds.
    pub digest: Digest,
    /// Those of the tensors of round 0.
    pub tensors: Vec<TensorDigest>,
}

/// Two members that do not agree on what one of them said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disagreement {
    /// Whose contribution it is about.
    pub source: usize,
    /// Who consumed it.
    pub hearer: usize,
    /// What the hearer consumed.
    pub heard: Digest,
    /// Who has another digest: the source itself, or another that consumed it.
    pub other: usize,
    /// That digest.
    pub others: Digest,
}

/// A member that said something else when it took a step again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Divergence {
    /// The first tensor that differs; none if they are the same or not known, and a later round differs.
    pub tensor: Option<String>,
    /// What it said the first time.
    pub before: Digest,
    /// What it says now.
    pub now: Digest,
}

impl Agreement {
    /// What is on record of what members said, from an earlier start of the coordinator.
    pub fn remember(&mut self, member: usize, step: Step, said: Said) {
        self.steps.entry(step).or_default().said.insert(member, said);
        self.bound();
    }

    /// Steps of which digests are held.
    pub fn held_steps(&self) -> usize {
        self.steps.len()
    }

    /// Nobody takes steps below this again.
    pub fn forget_below(&mut self, step: Step) {
        self.steps = self.steps.split_off(&step);
    }

    /// Steps from this on will be taken anew, in another view.
    pub fn forget_from(&mut self, step: Step) {
        _ = self.steps.split_off(&step);
    }

    fn bound(&mut self) {
        while self.steps.len() > DIGEST_STEPS_MAX {
            self.steps.pop_first();
        }
    }

    /// Takes what a member said and heard in a step that it completed for the first time. O(members), whatever was
    /// heard: one digest a source.
    ///
    /// # Errors
    /// The first digest that differs from an earlier one.
    pub fn report(
        &mut self,
        member: usize,
        step: Step,
        said: Said,
        heard: &BTreeMap<usize, Digest>,
    ) -> Result<(), Disagreement> {
        let own = said.digest;
        let digests = self.steps.entry(step).or_default();
        digests.said.insert(member, said);
        if let Some(&(hearer, digest)) = digests.heard.get(&member)
            && digest != own
        {
            return Err(Disagreement { source: member, hearer, heard: digest, other: member, others: own });
        }
        for (&source, &digest) in heard {
            let own = digests.said.get(&source).map(|said| (source, said.digest));
            let first = digests.heard.entry(source).or_insert((member, digest));
            for (other, others) in own.into_iter().chain([*first]) {
                if others != digest {
                    return Err(Disagreement { source, hearer: member, heard: digest, other, others });
                }
            }
        }
        self.bound();
        Ok(())
    }

    /// Compares what a member says in a step that it takes again with what it said the first time.
    ///
    /// # Errors
    /// How it differs.
    pub fn again(&self, member: usize, step: Step, said: &Said) -> Result<(), Divergence> {
        let Some(before) = self.steps.get(&step).and_then(|digests| digests.said.get(&member)) else {
            return Ok(());
        };
        if before.digest == said.digest {
            return Ok(());
        }
        let differs = |now: &&TensorDigest| {
            before.tensors.iter().any(|tensor| tensor.name == now.name && tensor.digest != now.digest)
        };
        let tensor = said.tensors.iter().find(differs).map(|tensor| tensor.name.clone());
        Err(Divergence { tensor, before: before.digest, now: said.digest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(pairs: &[(usize, &str)]) -> BTreeMap<usize, Digest> {
        pairs.iter().map(|&(source, text)| (source, Digest::of(text))).collect()
    }

    fn said(text: &str) -> Said {
        Said { digest: Digest::of(text), tensors: vec![TensorDigest::of("logits", text.as_bytes())] }
    }

    #[test]
    fn those_who_agree_are_forgotten_with_their_checkpoint() {
        let mut agreement = Agreement::default();
        assert_eq!(agreement.report(0, 4, said("x"), &heard(&[(1, "y")])), Ok(()));
        assert_eq!(agreement.report(1, 4, said("y"), &heard(&[(0, "x")])), Ok(()));
        assert_eq!(agreement.held_steps(), 1);
        agreement.forget_below(5);
        assert_eq!(agreement.held_steps(), 0);
    }

    #[test]
    fn a_difference_is_found_whichever_report_comes_first() {
        let mut agreement = Agreement::default();
        agreement.report(0, 4, said("x"), &heard(&[(1, "y")])).unwrap();
        let found = agreement.report(1, 4, said("z"), &heard(&[(0, "x")])).unwrap_err();
        assert_eq!((found.source, found.hearer, found.other), (1, 0, 1));
        let mut agreement = Agreement::default();
        agreement.report(1, 4, said("y"), &heard(&[])).unwrap();
        let found = agreement.report(0, 4, said("x"), &heard(&[(1, "z")])).unwrap_err();
        assert_eq!((found.source, found.hearer, found.other), (1, 0, 1));
        assert_eq!((found.heard, found.others), (Digest::of("z"), Digest::of("y")));
    }

    #[test]
    fn two_hearers_are_compared_before_the_source_reports() {
        let mut agreement = Agreement::default();
        agreement.report(0, 4, said("x"), &heard(&[(2, "y")])).unwrap();
        let found = agreement.report(1, 4, said("x"), &heard(&[(2, "z")])).unwrap_err();
        assert_eq!((found.source, found.hearer, found.other), (2, 1, 0));
    }

    #[test]
    fn what_a_replay_recomputes_is_compared_tensor_by_tensor() {
        let mut agreement = Agreement::default();
        agreement.remember(1, 4, said("x"));
        assert_eq!(agreement.again(1, 4, &said("x")), Ok(()));
        assert_eq!(agreement.again(0, 4, &said("y")), Ok(()), "of that nothing is on record");
        let diverged = agreement.again(1, 4, &said("y")).unwrap_err();
        assert_eq!(diverged.tensor.as_deref(), Some("logits"));
        assert_eq!((diverged.before, diverged.now), (Digest::of("x"), Digest::of("y")));
        let later_round = Said { digest: Digest::of("z"), ..said("x") };
        assert_eq!(agreement.again(1, 4, &later_round).unwrap_err().tensor, None);
        agreement.forget_from(4);
        assert_eq!(agreement.again(1, 4, &said("y")), Ok(()));
    }

    #[test]
    fn what_is_held_is_bounded() {
        let mut agreement = Agreement::default();
        for step in 0..DIGEST_STEPS_MAX as u64 + 10 {
            agreement.remember(0, step, said("x"));
        }
        assert_eq!(agreement.held_steps(), DIGEST_STEPS_MAX);
    }
}
