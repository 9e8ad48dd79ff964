//! Whom a run that has ended, or is to end, still waits for. Peers that live may be on their way back to a coordinator that was
//! started again, or that gave them up while its own cable was cut, and nobody else would tell them. And whoever comes with
//! its last checkpoint to a run that was found finished has nothing to do, but hears so only when all have come, or could
//! have: one that lost its last checkpoint needs the others to take the last steps with it once more.

use std::net::IpAddr;

use cohort_proto::control::{Accepted, JoinRequest, Refusal, RefusalReason, ToPeer};
use cohort_proto::limits::{CONNECT_TIMEOUT, RETRY_PAUSE_MAX};
use cohort_proto::spec::RunSpec;

use super::ending::{absence_ms, patience_ms, seconds_until};
use super::holdings::has;
use super::{Cluster, Stage, note};
use crate::admission;
use crate::event::{Action, Ended, Tick, Ticket};
use crate::membership::{Peer, Presence};

/// What a peer asked, and by which ticket it is answered.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct JoinAsked {
    pub(super) ticket: Ticket,
    pub(super) remote: Option<IpAddr>,
    pub(super) request: Box<JoinRequest>,
}

/// How long it takes those who live to come back to a coordinator that can be reached again: until their next attempt, and
/// never less than it takes to notice a death.
pub(super) fn returning_ms(spec: &RunSpec) -> u64 {
    let attempt = RETRY_PAUSE_MAX + CONNECT_TIMEOUT;
    spec.policy.failure_timeout_ms.max(u64::try_from(attempt.as_millis()).unwrap_or(u64::MAX))
}

/// How long members of a run that began under an earlier start may stay away before they are given up: those who live come
/// back in this time.
pub(super) fn absent_ms(spec: &RunSpec) -> u64 {
    absence_ms(spec).max(returning_ms(spec))
}

impl Cluster {
    /// Whether some may be on their way back: who have not been seen by this start of the coordinator, or were given up and may
    /// live. A run that only stops does not wait for those whose connections broke: they have most likely died, and one that
    /// lives comes back to the coordinator that is started again. After a run that is finished there will be none.
    pub(super) fn some_return(&self, now: Tick) -> bool {
        let finished = matches!(self.stage, Stage::Finished { .. });
        let away = |peer: &Peer| match peer.presence {
            Presence::Expected => true,
            Presence::Dead { silent, .. } => silent || finished,
            _ => false,
        };
        let mut peers = self.members.peers().iter().enumerate();
        self.is_early(now) && peers.any(|(index, peer)| away(peer) && !self.refused.contains(&index))
    }

    /// From now on those who were given up and live have so long to come back.
    pub(super) fn some_may_return(&mut self, now: Tick) {
        self.returning_until = self.returning_until.max(Some(now.plus(returning_ms(&self.spec))));
    }

    /// Whether those who live may still be on their way back.
    pub(super) fn is_early(&self, now: Tick) -> bool {
        self.returning_until.is_some_and(|until| now < until)
    }

    /// Says it, if the end waits for some who may return.
    pub(super) fn say_who_may_return(&self, now: Tick, out: &mut Vec<Action>) {
        if let Some(until) = self.returning_until.filter(|_| self.some_return(now)) {
            let seconds = seconds_until(now, until);
            let sentence = format!(
                "waiting up to {seconds} s for peers that may be on their way back; ask again to end at once"
            );
            note(out, true, sentence);
        }
    }

    /// Whether the run has ended, or is to end, and nothing but those who attend can keep it.
    pub(super) fn may_be_over(&self) -> bool {
        match self.stage {
            Stage::Stopping { .. } => true,
            Stage::Finished { .. } => self.members.any_left(),
            Stage::Gathering | Stage::Running | Stage::Over { .. } => false,
        }
    }

    /// The peer that a request is of, if it may be answered.
    pub(super) fn known(&self, request: &JoinRequest) -> Result<usize, Refusal> {
        admission::check_version(request.protocol_version)?;
        let index = self.members.check_name(request)?;
        admission::check_checkpoints(request, self.run)?;
        Ok(index)
    }

    /// Whether a peer comes with its last checkpoint. If the others took the last step without it, it has none.
    pub(super) fn is_complete(&self, index: usize, request: &JoinRequest) -> bool {
        let Some(total) = self.members.data().map(|data| data.total_steps) else { return false };
        let last = self.training.as_ref().and_then(|training| training.views.at(total.saturating_sub(1)));
        let mut held = request.checkpoints.iter().flat_map(|held| &held.steps);
        held.any(|step| *step == total) && last.is_none_or(|view| has(view, index))
    }

    /// Whether the run was found finished, and some may still come who are not complete.
    fn asks(&self) -> bool {
        matches!(self.stage, Stage::Finished { asks: true, .. })
    }

    /// Whether somebody waits to hear what the others come with.
    pub(super) fn somebody_asks(&self) -> bool {
        !self.complete.is_empty() || (self.asks() && self.members.any_present())
    }

    /// The member that comes complete to a run that was found finished, while others may still come.
    pub(super) fn came_complete(&self, now: Tick, request: &JoinRequest) -> Option<usize> {
        let early = self.asks() && self.is_early(now);
        let index = self.known(request).ok().filter(|_| early && request.standing.is_none())?;
        (self.is_complete(index, request) && self.in_view().contains(&index)).then_some(index)
    }

    /// Its answer waits.
    pub(super) fn keep_waiting(&mut self, index: usize, asked: JoinAsked, out: &mut Vec<Action>) {
        let name = asked.request.name.clone();
        note(out, false, format!("peer {name} is complete; it is told so when the others have come, too"));
        self.complete.insert(index, asked);
    }

    /// A peer that asks anew does not wait for an earlier answer any more: its process was started again.
    pub(super) fn take_the_place_of_older(&mut self, request: &JoinRequest, out: &mut Vec<Action>) {
        let older = self.known(request).ok().and_then(|index| self.complete.remove(&index));
        if let Some(JoinAsked { ticket, request, .. }) = older {
            out.push(Action::Answer { ticket, outcome: self.refuse_late(&request) });
        }
    }

    /// Answers those who came complete once all have, or nobody else can be expected: that the run is finished, unless
    /// somebody came who is not complete.
    pub(super) fn answer_complete(&mut self, now: Tick, out: &mut Vec<Action>) {
        let here = |index: &usize| self.complete.contains_key(index) || self.members.attends(*index);
        let all = self.in_view().iter().all(here);
        let may_wait = matches!(self.stage, Stage::Finished { deadline, .. } if now < deadline);
        if self.asks() && !all && may_wait && self.is_early(now) {
            return;
        }
        if self.somebody_asks() {
            self.tell_finished(now, out);
        }
        for asked in std::mem::take(&mut self.complete).into_values() {
            self.answer_join(now, asked, out);
        }
    }

    /// Those who stand at the end hear that it is one, and have the time to go.
    pub(super) fn tell_finished(&mut self, now: Tick, out: &mut Vec<Action>) {
        let (told, patience) = (self.finished_stop(), patience_ms(&self.spec));
        if let Stage::Finished { asks, deadline } = &mut self.stage
            && std::mem::take(asks)
        {
            *deadline = now.plus(patience).max(*deadline);
            self.tell_all(ToPeer::Stop(told), out);
        }
    }

    /// A run that ends takes nobody in; whoever asks hears so, and is not on its way back any more.
    ///
    /// # Errors
    /// That it ends, always.
    pub(super) fn refuse_late(&mut self, request: &JoinRequest) -> Result<Accepted, Refusal> {
        let index = self.known(request)?;
        self.refused.insert(index);
        let finished =
            matches!(self.stage, Stage::Finished { .. } | Stage::Over { ended: Ended::Finished, .. });
        if finished && self.is_complete(index, request) {
            let sentence = "the run is finished, and so is this peer".to_owned();
            return Err(admission::refusal(RefusalReason::Finished, sentence));
        }
        if finished && !self.in_view().contains(&index) {
            let sentence = "the run is finished; the others went on without this peer".to_owned();
            return Err(admission::refusal(RefusalReason::LeftBehind, sentence));
        }
        let sentence = match finished {
            true => "the run is finished, but not all that this peer had: start everything again".to_owned(),
            false => format!(
                "the run takes no peer in now ({}); start it again when it has stopped",
                self.ending_message()
            ),
        };
        Err(admission::refusal(RefusalReason::Closed, sentence))
    }

    /// A run that was found finished is not, if a member comes without its last checkpoint, or stands before the end: the
    /// last steps were being taken again when the coordinator went.
    pub(super) fn reopen(&mut self, now: Tick, request: &JoinRequest) {
        let finished = matches!(self.stage, Stage::Finished { .. });
        let nobody = !self.members.any_present() && !self.members.any_left();
        let Some(member) = self.known(request).ok().filter(|index| self.in_view().contains(index)) else {
            return;
        };
        let total = self.members.data().map(|data| data.total_steps);
        let lacks = total.is_some_and(|total| match request.standing {
            Some(standing) => standing.steps_done < total,
            None => !self.is_complete(member, request),
        });
        if finished && (self.asks() || nobody) && lacks {
            self.stage = Stage::Running;
            self.absent_until = Some(now.plus(absent_ms(&self.spec)));
        }
    }
}
