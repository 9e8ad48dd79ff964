//! Whether all members consumed the same contributions, bit for bit: the digest of what each says is compared with the
//! digests of what the others heard. Sans-IO; knows members by index only.

use std::collections::BTreeMap;

use cohort_proto::id::{Digest, Step};

/// The digests of the steps that some members have completed and others have not. Steps leave it when every member
/// has reported them, and the lease bounds how far members can be apart, so its size is bounded.
#[derive(Debug, Clone, PartialEq)]
pub struct Agreement {
    members: usize,
    open: BTreeMap<Step, Digests>,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct Digests {
    /// By member: what it said.
    said: BTreeMap<usize, Digest>,
    /// By source: what was heard of it first, and by whom. Later hearers are compared with the first, so that one
    /// entry a source suffices.
    heard: BTreeMap<usize, (usize, Digest)>,
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

impl Agreement {
    /// Among so many members.
    pub fn new(members: usize) -> Self {
        Self { members, open: BTreeMap::new() }
    }

    /// Steps that some members have reported and others have not.
    pub fn open_steps(&self) -> usize {
        self.open.len()
    }

    /// Takes what a member said and heard in a step. O(members), whatever was heard: one digest a source.
    ///
    /// # Errors
    /// The first digest that differs from an earlier one.
    pub fn report(
        &mut self,
        member: usize,
        step: Step,
        said: Digest,
        heard: &BTreeMap<usize, Digest>,
    ) -> Result<(), Disagreement> {
        let digests = self.open.entry(step).or_default();
        digests.said.insert(member, said);
        if let Some(&(hearer, digest)) = digests.heard.get(&member)
            && digest != said
        {
            return Err(Disagreement { source: member, hearer, heard: digest, other: member, others: said });
        }
        for (&source, &digest) in heard {
            let own = digests.said.get(&source).map(|&said| (source, said));
            let first = digests.heard.entry(source).or_insert((member, digest));
            for (other, others) in own.into_iter().chain([*first]) {
                if others != digest {
                    return Err(Disagreement { source, hearer: member, heard: digest, other, others });
                }
            }
        }
        if digests.said.len() >= self.members {
            self.open.remove(&step);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(pairs: &[(usize, &str)]) -> BTreeMap<usize, Digest> {
        pairs.iter().map(|&(source, text)| (source, Digest::of(text))).collect()
    }

    #[test]
    fn those_who_agree_leave_nothing_behind() {
        let mut agreement = Agreement::new(2);
        assert_eq!(agreement.report(0, 4, Digest::of("x"), &heard(&[(1, "y")])), Ok(()));
        assert_eq!(agreement.open_steps(), 1);
        assert_eq!(agreement.report(1, 4, Digest::of("y"), &heard(&[(0, "x")])), Ok(()));
        assert_eq!(agreement.open_steps(), 0);
    }

    #[test]
    fn a_difference_is_found_whichever_report_comes_first() {
        let mut agreement = Agreement::new(2);
        agreement.report(0, 4, Digest::of("x"), &heard(&[(1, "y")])).unwrap();
        let found = agreement.report(1, 4, Digest::of("z"), &heard(&[(0, "x")])).unwrap_err();
        assert_eq!((found.source, found.hearer, found.other), (1, 0, 1));
        let mut agreement = Agreement::new(2);
        agreement.report(1, 4, Digest::of("y"), &heard(&[])).unwrap();
        let found = agreement.report(0, 4, Digest::of("x"), &heard(&[(1, "z")])).unwrap_err();
        assert_eq!((found.source, found.hearer, found.other), (1, 0, 1));
        assert_eq!((found.heard, found.others), (Digest::of("z"), Digest::of("y")));
    }

    #[test]
    fn two_hearers_are_compared_before_the_source_reports() {
        let mut agreement = Agreement::new(3);
        agreement.report(0, 4, Digest::of("x"), &heard(&[(2, "y")])).unwrap();
        let found = agreement.report(1, 4, Digest::of("x"), &heard(&[(2, "z")])).unwrap_err();
        assert_eq!((found.source, found.hearer, found.other), (2, 1, 0));
    }
}
