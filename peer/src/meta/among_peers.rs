//! The exchanges of a meta-update among processes: rounds of the step in the contribution log.

use std::sync::Arc;

use candle_core::Device;
use cohort_proto::contribution::{Contribution, Position, Tensor};
use cohort_proto::id::{Digest, PeerName, Step};
use cohort_proto::meta::{NORMS, RoundKind, RoundPlan};
use cohort_proto::schema::{DType, TensorSpec};

use super::problem::{Gather, Scalars, Words};
use crate::error::PeerError;
use crate::step::listen::{Listened, from_wire, heard};
use crate::step::say::of_stages;
use crate::step::{Company, Interruption};

/// The other peers, and all that was said and heard in the rounds of this step.
pub struct AmongPeers<'a> {
    company: &'a mut dyn Company,
    /// This peer's index.
    me: usize,
    step: Step,
    batch_hash: u64,
    plan: RoundPlan,
    device: Device,
    /// Digests of what this peer said, in the order of rounds.
    pub said: Vec<Digest>,
    /// Digests of what it heard, round by round.
    pub consumed: Vec<Vec<(PeerName, Digest)>>,
}

impl<'a> AmongPeers<'a> {
    /// For the meta-update that follows a step.
    pub fn new(
        company: &'a mut dyn Company,
        me: usize,
        (step, batch_hash): (Step, u64),
        plan: RoundPlan,
        device: &Device,
    ) -> Self {
        let (said, consumed) = (Vec::new(), Vec::new());
        Self { company, me, step, batch_hash, plan, device: device.clone(), said, consumed }
    }

    /// Says something in a round and waits for what all others say in it.
    fn exchange(
        &mut self,
        kind: RoundKind,
        own: Vec<Tensor>,
    ) -> Result<Vec<(usize, Arc<Contribution>)>, Interruption> {
        let Some(round) = self.plan.round(kind) else {
            return Err(PeerError::Internal(format!("{kind:?} is no round of this run")).into());
        };
        let at = Position { step: self.step, round };
        self.said.extend(self.company.say(at, self.batch_hash, own)?);
        let said = self.company.listen(at, self.batch_hash)?;
        self.consumed.push(Listened::digests(&said));
        Ok(said)
    }
}

impl Gather for AmongPeers<'_> {
    type Error = Interruption;

    fn words(&mut self, at: RoundKind, own: Words) -> Result<Vec<(usize, Words)>, Interruption> {
        let said = self.exchange(at, of_stages(&own.embeddings, &own.matching)?)?;
        let words = said.iter().map(|(index, contribution)| {
            let heard = heard(*index, contribution, &self.device)?;
            Ok((*index, Words { embeddings: heard.embeddings, matching: heard.matching }))
        });
        Ok(words.collect::<candle_core::Result<_>>()?)
    }

    fn scalars(&mut self, at: RoundKind, own: Scalars) -> Result<Vec<Scalars>, Interruption> {
        let spec = TensorSpec { name: NORMS.to_owned(), dtype: DType::F64, shape: vec![own.len()] };
        let data: Vec<u8> = own.into_iter().flat_map(f64::to_le_bytes).collect();
        let said = self.exchange(at, vec![Tensor { spec, data: data.into() }])?;
        let mut all = vec![(self.me, own)];
        for (index, contribution) in &said {
            all.push((*index, scalars_of(contribution)?));
        }
        all.sort_by_key(|(index, _)| *index);
        Ok(all.into_iter().map(|(_, scalars)| scalars).collect())
    }
}

fn scalars_of(contribution: &Contribution) -> Result<Scalars, Interruption> {
    let numbers = match contribution.tensor(NORMS) {
        Some(norms) => from_wire(norms, &Device::Cpu)?.to_vec1::<f64>()?,
        None => Vec::new(),
    };
    numbers.try_into().map_err(|_| {
        let source = &contribution.header().source;
        PeerError::Contribution(format!("peer {source} sent no four numbers in a round of norms")).into()
    })
}

/// One digest of all rounds of a step: the only one, or that of all in order.
pub fn of_rounds(digests: impl IntoIterator<Item = Digest>) -> Option<Digest> {
    let digests: Vec<Digest> = digests.into_iter().collect();
    match digests.as_slice() {
        [] => None,
        [only] => Some(*only),
        several => Some(Digest::of(several.iter().flat_map(|digest| digest.0).collect::<Vec<u8>>())),
    }
}
