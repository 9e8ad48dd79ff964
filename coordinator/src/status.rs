//! What runs and how far it is, for whoever asks: made from the deciding machine, sent over the wire, and shown as
//! text or JSON on the other side.

use std::fmt::Write as _;

use cohort_proto::control::Term;
use cohort_proto::id::Digest;
use cohort_proto::limits::PROTOCOL_VERSION;
use cohort_proto::wire;
use serde::Serialize;

use crate::cluster::Cluster;
use crate::event::{Phase, Tick};
use crate::membership::Presence;

/// The status as it goes over the wire.
pub fn status(cluster: &Cluster, now: Tick, journal_bytes: u64) -> wire::StatusReply {
    let spec = cluster.spec();
    let members = cluster.members().peers().iter().enumerate().map(|(index, peer)| wire::MemberStatus {
        name: peer.name.to_string(),
        arch: peer.arch.clone(),
        address: peer.joined.as_ref().map(|joined| joined.address.clone()).unwrap_or_default(),
        state: state(&peer.presence).into(),
        steps_done: cluster.steps_done(index),
        silent_ms: if peer.joined.is_some() { now.since(peer.last_heard) } else { 0 },
        report: peer.report.as_ref().map(|report| (**report).clone().into()),
    });
    wire::StatusReply {
        protocol_version: PROTOCOL_VERSION,
        run: cluster.run().0,
        run_name: spec.run.name.clone(),
        spec_json: spec.to_json(),
        spec_hash: spec.hash().0.to_vec(),
        phase: phase(cluster.phase()).into(),
        total_steps: cluster.members().data().map_or(0, |data| data.total_steps),
        lease_until: cluster.lease_until(),
        view: cluster.view().map(Into::into),
        members: members.collect(),
        message: cluster.message(),
        journal_bytes,
    }
}

fn state(presence: &Presence) -> wire::MemberState {
    match presence {
        Presence::Expected | Presence::Accepted => wire::MemberState::Expected,
        Presence::Attending(_) => wire::MemberState::Attending,
        Presence::Suspected { .. } => wire::MemberState::Suspected,
        Presence::Dead => wire::MemberState::Dead,
        Presence::Left { .. } => wire::MemberState::Left,
    }
}

fn phase(phase: Phase) -> wire::Phase {
    match phase {
        Phase::Gathering => wire::Phase::Gathering,
        Phase::Running => wire::Phase::Running,
        Phase::Stopping => wire::Phase::Stopping,
        Phase::Stopped => wire::Phase::Stopped,
        Phase::Finished => wire::Phase::Finished,
    }
}

/// A status for people and scripts; digests in hexadecimal.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StatusView {
    /// The wire protocol that the coordinator speaks.
    pub protocol_version: u32,
    /// The run's id, 16 hexadecimal digits.
    pub run: String,
    /// Its name.
    pub run_name: String,
    /// The run spec.
    pub spec: serde_json::Value,
    /// SHA-256 of its JSON form.
    pub spec_hash: String,
    /// `gathering`, `running`, `stopping`, `stopped` or `finished`.
    pub phase: String,
    /// Steps of the whole run; 0 until it is known.
    pub total_steps: u64,
    /// Steps below this may be taken.
    pub lease_until: u64,
    /// The view that holds.
    pub view: Option<ViewView>,
    /// All peers of the spec.
    pub members: Vec<MemberView>,
    /// Why the run stopped or what it waits for.
    pub message: String,
    /// Bytes of journal on disk.
    pub journal_bytes: u64,
}

/// A view.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ViewView {
    /// Its number.
    pub id: u64,
    /// The first step for which it holds.
    pub begins_at: u64,
    /// The names of its members.
    pub members: Vec<String>,
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemberView {
    /// Its name.
    pub name: String,
    /// Its architecture.
    pub arch: String,
    /// Where its contribution log is served.
    pub address: String,
    /// `expected`, `attending`, `suspected`, `dead` or `left`.
    pub state: String,
    /// Steps it has completed.
    pub steps_done: u64,
    /// How long nothing was heard of it.
    pub silent_ms: u64,
    /// Samples a second in its last step, from the times of its acts.
    pub images_per_s: Option<f64>,
    /// Its last report.
    pub report: Option<ReportView>,
}

/// A step report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReportView {
    /// The step.
    pub step: u64,
    /// Its view.
    pub view: u64,
    /// Its epoch.
    pub epoch: u64,
    /// The learning rate.
    pub lr: f64,
    /// Digest of what the peer said.
    pub own_digest: String,
    /// Digests of what it consumed, by source.
    pub consumed: serde_json::Map<String, serde_json::Value>,
    /// Loss terms before their weights, in order.
    pub terms: Vec<(String, f64)>,
    /// Milliseconds of each act, in order.
    pub timings_ms: Vec<(String, f64)>,
    /// Samples in the batch.
    pub images: u64,
    /// Bytes of contribution log in memory.
    pub log_bytes: u64,
}

impl From<wire::StatusReply> for StatusView {
    fn from(reply: wire::StatusReply) -> Self {
        let phase = reply.phase().as_str_name().trim_start_matches("PHASE_").to_lowercase();
        Self {
            protocol_version: reply.protocol_version,
            run: format!("{:016x}", reply.run),
            run_name: reply.run_name,
            spec: serde_json::from_str(&reply.spec_json).unwrap_or(serde_json::Value::Null),
            spec_hash: hex(&reply.spec_hash),
            phase,
            total_steps: reply.total_steps,
            lease_until: reply.lease_until,
            view: reply.view.map(|view| ViewView {
                id: view.id,
                begins_at: view.begins_at,
                members: view.members.into_iter().map(|member| member.name).collect(),
            }),
            members: reply.members.into_iter().map(Into::into).collect(),
            message: reply.message,
            journal_bytes: reply.journal_bytes,
        }
    }
}

impl From<wire::MemberStatus> for MemberView {
    fn from(member: wire::MemberStatus) -> Self {
        let state = member.state().as_str_name().trim_start_matches("MEMBER_STATE_").to_lowercase();
        let rate = member.report.as_ref().and_then(|report| {
            let ms: f64 = report.timings.iter().map(|timing| timing.ms).sum();
            (ms > 0.0).then_some(report.images as f64 * 1000.0 / ms)
        });
        Self {
            name: member.name,
            arch: member.arch,
            address: member.address,
            state,
            steps_done: member.steps_done,
            silent_ms: member.silent_ms,
            images_per_s: rate,
            report: member.report.map(Into::into),
        }
    }
}

impl From<wire::StepReport> for ReportView {
    fn from(report: wire::StepReport) -> Self {
        let consumed = report.consumed.into_iter();
        Self {
            step: report.step,
            view: report.view,
            epoch: report.epoch,
            lr: report.lr,
            own_digest: hex(&report.own_digest),
            consumed: consumed.map(|consumed| (consumed.source, hex(&consumed.digest).into())).collect(),
            terms: report.terms.into_iter().map(|term| (term.name, term.value)).collect(),
            timings_ms: report.timings.into_iter().map(|timing| (timing.act, timing.ms)).collect(),
            images: report.images,
            log_bytes: report.log_bytes,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    match bytes.try_into() {
        Ok(bytes) => Digest(bytes).to_string(),
        Err(_) => String::new(),
    }
}

impl StatusView {
    /// A few lines for people, without the weights of pairs of stages.
    pub fn text(&self) -> String {
        let mut text = format!("run {} ({}): {}", self.run_name, self.run, self.phase);
        if !self.message.is_empty() {
            text.push_str(&format!(", {}", self.message));
        }
        let view = self
            .view
            .as_ref()
            .map_or("none yet".to_owned(), |view| format!("{} from step {}", view.id, view.begins_at));
        text.push_str(&format!("\nsteps {}, lease to {}, view {view}", self.total_steps, self.lease_until));
        for member in &self.members {
            // Writing to a String cannot fail.
            _ = write!(text, "\n{:<12} {:<12} {:<10}", member.name, member.arch, member.state);
            _ = write!(text, " step {:>8}", member.steps_done);
            if let Some(rate) = member.images_per_s {
                _ = write!(text, " {rate:>8.1} images/s");
            }
            if let Some(report) = &member.report {
                _ = write!(text, "  epoch {} lr {:.4}", report.epoch, report.lr);
                let terms = report.terms.iter().filter(|(name, _)| !Term::is_matching(name));
                terms.for_each(|(name, value)| _ = write!(text, " {name} {value:.4}"));
            }
            if !member.address.is_empty() {
                _ = write!(text, "  {} (silent {} ms)", member.address, member.silent_ms);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_pairs_are_for_programs_only() {
        let term = |name: &str, value| wire::Term { name: name.into(), value };
        let terms = vec![term("loss", 2.5), term("lambda.0.b.1", 0.6), term("icl", 1.5)];
        let report = wire::StepReport { terms, ..Default::default() };
        let member = wire::MemberStatus { name: "a".into(), report: Some(report), ..Default::default() };
        let view = StatusView::from(wire::StatusReply { members: vec![member], ..Default::default() });
        let text = view.text();
        assert!(text.contains("loss 2.5000 icl 1.5000") && !text.contains("lambda"), "{text}");
        let names = view.members[0].report.as_ref().unwrap().terms.iter().map(|(name, _)| name.as_str());
        assert_eq!(names.collect::<Vec<_>>(), ["loss", "lambda.0.b.1", "icl"]);
    }
}
