//! The control plane's messages.

use super::tensor::{schema, schema_to_wire};
use super::{WireError, at_most, digest, peer_name, required, sentence};
use crate::control::{
    Accepted, Checkpoints, FromPeer, JoinRequest, Refusal, RefusalReason, Standing, Start, StepReport, Stop,
    StopKind, TensorDigest, Term, Timing, ToPeer, Waiting,
};
use crate::id::{RunId, ViewId};
use crate::limits::{
    ADDRESS_CHARS_MAX, CHECKPOINTS_MAX, NAME_CHARS_MAX, PEERS_MAX, REPORT_ENTRIES_MAX, STEPS_MAX,
    TENSORS_MAX, TERM_CHARS_MAX,
};
use crate::view::{Member, View};
use crate::wire;

fn address(field: &'static str, address: String) -> Result<String, WireError> {
    let port = address.rsplit_once(':').map(|(host, port)| (host.is_empty(), port.parse::<u16>()));
    match port {
        Some((false, Ok(1..))) if address.len() <= ADDRESS_CHARS_MAX => Ok(address),
        _ => Err(WireError::new(field, format!("{:?} is not host:port", sentence(address)))),
    }
}

impl TryFrom<wire::JoinRequest> for JoinRequest {
    type Error = WireError;

    fn try_from(wire: wire::JoinRequest) -> Result<Self, WireError> {
        at_most("arch", wire.arch.len(), NAME_CHARS_MAX)?;
        at_most("checkpoints", wire.checkpoints.len(), CHECKPOINTS_MAX)?;
        if wire.total_steps > STEPS_MAX {
            return Err(WireError::new(
                "total_steps",
                format!("{} is more than {STEPS_MAX}", wire.total_steps),
            ));
        }
        let checkpoints = (!wire.checkpoints.is_empty())
            .then_some(Checkpoints { run: RunId(wire.checkpoint_run), steps: wire.checkpoints });
        Ok(Self {
            protocol_version: wire.protocol_version,
            name: peer_name("name", wire.name)?,
            spec_hash: digest("spec_hash", &wire.spec_hash)?,
            arch: wire.arch,
            classes: wire.classes,
            address: address("address", wire.address)?,
            schema: schema(wire.schema)?,
            dataset_fingerprint: digest("dataset_fingerprint", &wire.dataset_fingerprint)?,
            total_steps: wire.total_steps,
            checkpoints,
            standing: wire.standing.map(Into::into),
        })
    }
}

impl From<JoinRequest> for wire::JoinRequest {
    fn from(join: JoinRequest) -> Self {
        let checkpoint_run = join.checkpoints.as_ref().map_or(0, |held| held.run.0);
        Self {
            protocol_version: join.protocol_version,
            name: join.name.into(),
            spec_hash: join.spec_hash.0.to_vec(),
            arch: join.arch,
            classes: join.classes,
            address: join.address,
            schema: schema_to_wire(&join.schema),
            dataset_fingerprint: join.dataset_fingerprint.0.to_vec(),
            total_steps: join.total_steps,
            checkpoints: join.checkpoints.map_or_else(Vec::new, |held| held.steps),
            checkpoint_run,
            standing: join.standing.map(Into::into),
        }
    }
}

impl From<wire::Standing> for Standing {
    fn from(wire: wire::Standing) -> Self {
        let wire::Standing { session, steps_done, log_from, lease_until, view } = wire;
        Self { session, steps_done, log_from, lease_until, view: ViewId(view) }
    }
}

impl From<Standing> for wire::Standing {
    fn from(standing: Standing) -> Self {
        let Standing { session, steps_done, log_from, lease_until, view: ViewId(view) } = standing;
        Self { session, steps_done, log_from, lease_until, view }
    }
}

/// Pairs of a reason in the domain and on the wire.
const REASONS: [(RefusalReason, wire::RefusalReason); 14] = [
    (RefusalReason::ProtocolVersion, wire::RefusalReason::ProtocolVersion),
    (RefusalReason::UnknownName, wire::RefusalReason::UnknownName),
    (RefusalReason::TakenName, wire::RefusalReason::TakenName),
    (RefusalReason::SpecHash, wire::RefusalReason::SpecHash),
    (RefusalReason::Arch, wire::RefusalReason::Arch),
    (RefusalReason::Classes, wire::RefusalReason::Classes),
    (RefusalReason::Address, wire::RefusalReason::Address),
    (RefusalReason::Schema, wire::RefusalReason::Schema),
    (RefusalReason::Dataset, wire::RefusalReason::Dataset),
    (RefusalReason::Checkpoints, wire::RefusalReason::Checkpoints),
    (RefusalReason::Closed, wire::RefusalReason::Closed),
    (RefusalReason::Malformed, wire::RefusalReason::Malformed),
    (RefusalReason::Finished, wire::RefusalReason::Finished),
    (RefusalReason::LeftBehind, wire::RefusalReason::LeftBehind),
];

impl TryFrom<wire::JoinReply> for Result<Accepted, Refusal> {
    type Error = WireError;

    fn try_from(wire: wire::JoinReply) -> Result<Self, WireError> {
        Ok(match required("outcome", wire.outcome)? {
            wire::join_reply::Outcome::Accepted(accepted) => {
                let wire::Accepted { run, session, heartbeat_ms, reported } = accepted;
                Ok(Accepted { run: RunId(run), session, heartbeat_ms, reported })
            }
            wire::join_reply::Outcome::Refused(refused) => {
                // A reason of a newer coordinator is unknown here, but its sentence still tells people.
                let known = REASONS.iter().find(|(_, wire)| *wire == refused.reason());
                let reason = known.map_or(RefusalReason::Malformed, |(reason, _)| *reason);
                Err(Refusal { reason, sentence: sentence(refused.sentence) })
            }
        })
    }
}

impl From<Result<Accepted, Refusal>> for wire::JoinReply {
    fn from(outcome: Result<Accepted, Refusal>) -> Self {
        let outcome = match outcome {
            Ok(Accepted { run, session, heartbeat_ms, reported }) => {
                let accepted = wire::Accepted { run: run.0, session, heartbeat_ms, reported };
                wire::join_reply::Outcome::Accepted(accepted)
            }
            Err(refusal) => {
                let known = REASONS.iter().find(|(reason, _)| *reason == refusal.reason);
                let reason = known.map_or(wire::RefusalReason::Unspecified, |(_, wire)| *wire);
                wire::join_reply::Outcome::Refused(wire::Refused {
                    reason: reason.into(),
                    sentence: refusal.sentence,
                })
            }
        };
        Self { outcome: Some(outcome) }
    }
}

impl TryFrom<wire::StepReport> for StepReport {
    type Error = WireError;

    fn try_from(wire: wire::StepReport) -> Result<Self, WireError> {
        at_most("consumed", wire.consumed.len(), PEERS_MAX)?;
        at_most("terms", wire.terms.len(), REPORT_ENTRIES_MAX)?;
        at_most("timings", wire.timings.len(), REPORT_ENTRIES_MAX)?;
        at_most("said", wire.said.len(), TENSORS_MAX)?;
        let consumed: Result<Vec<_>, WireError> = wire
            .consumed
            .into_iter()
            .map(|c| Ok((peer_name("consumed.source", c.source)?, digest("consumed.digest", &c.digest)?)))
            .collect();
        let short = |text: String| text.chars().take(TERM_CHARS_MAX).collect();
        Ok(Self {
            step: wire.step,
            view: ViewId(wire.view),
            epoch: wire.epoch,
            lr: wire.lr,
            own_digest: digest("own_digest", &wire.own_digest)?,
            consumed: consumed?,
            terms: wire.terms.into_iter().map(|t| Term { name: short(t.name), value: t.value }).collect(),
            timings: wire.timings.into_iter().map(|t| Timing { act: short(t.act), ms: t.ms }).collect(),
            images: wire.images,
            log_bytes: wire.log_bytes,
            said: wire
                .said
                .into_iter()
                .map(|said| TensorDigest { name: short(said.name), digest: said.digest })
                .collect(),
        })
    }
}

impl From<StepReport> for wire::StepReport {
    fn from(report: StepReport) -> Self {
        let consumed = report.consumed.into_iter();
        Self {
            step: report.step,
            view: report.view.0,
            epoch: report.epoch,
            lr: report.lr,
            own_digest: report.own_digest.0.to_vec(),
            consumed: consumed
                .map(|(source, digest)| wire::Consumed { source: source.into(), digest: digest.0.to_vec() })
                .collect(),
            terms: report.terms.into_iter().map(|t| wire::Term { name: t.name, value: t.value }).collect(),
            timings: report.timings.into_iter().map(|t| wire::Timing { act: t.act, ms: t.ms }).collect(),
            images: report.images,
            log_bytes: report.log_bytes,
            said: report
                .said
                .into_iter()
                .map(|said| wire::TensorDigest { name: said.name, digest: said.digest })
                .collect(),
        }
    }
}

impl TryFrom<wire::FromPeer> for FromPeer {
    type Error = WireError;

    fn try_from(wire: wire::FromPeer) -> Result<Self, WireError> {
        use wire::from_peer::Message;
        Ok(match required("message", wire.message)? {
            Message::Hello(hello) => Self::Hello {
                run: RunId(hello.run),
                name: peer_name("name", hello.name)?,
                session: hello.session,
            },
            Message::Heartbeat(wire::Heartbeat { waits_for, waits_ms }) => {
                at_most("waits_for", waits_for.len(), PEERS_MAX)?;
                let sources: Result<_, WireError> =
                    waits_for.into_iter().map(|name| peer_name("waits_for", name)).collect();
                Self::Heartbeat(Waiting { sources: sources?, ms: waits_ms })
            }
            Message::Report(report) => Self::Report(report.try_into()?),
            Message::Checkpoint(wire::CheckpointSaved { step, held }) => {
                at_most("held", held.len(), CHECKPOINTS_MAX)?;
                Self::CheckpointSaved { step, held }
            }
            Message::StopWish(wish) => Self::StopWish(sentence(wish.reason)),
            Message::CannotFollow(cannot) => Self::CannotFollow(sentence(cannot.sentence)),
            Message::Received(wire::Received { flush, of }) => {
                at_most("of", of.len(), PEERS_MAX)?;
                let of: Result<_, WireError> =
                    of.into_iter().map(|of| Ok((peer_name("of.peer", of.peer)?, of.until))).collect();
                Self::Received { flush, of: of? }
            }
            Message::Leaving(leaving) => Self::Leaving {
                steps_done: leaving.steps_done,
                finished: leaving.finished,
                reason: sentence(leaving.reason),
            },
        })
    }
}

impl From<FromPeer> for wire::FromPeer {
    fn from(message: FromPeer) -> Self {
        use wire::from_peer::Message;
        let message = match message {
            FromPeer::Hello { run, name, session } => {
                Message::Hello(wire::Hello { run: run.0, name: name.into(), session })
            }
            FromPeer::Heartbeat(Waiting { sources, ms }) => Message::Heartbeat(wire::Heartbeat {
                waits_for: sources.into_iter().map(Into::into).collect(),
                waits_ms: ms,
            }),
            FromPeer::Report(report) => Message::Report(report.into()),
            FromPeer::CheckpointSaved { step, held } => {
                Message::Checkpoint(wire::CheckpointSaved { step, held })
            }
            FromPeer::StopWish(reason) => Message::StopWish(wire::StopWish { reason }),
            FromPeer::CannotFollow(sentence) => Message::CannotFollow(wire::CannotFollow { sentence }),
            FromPeer::Received { flush, of } => {
                let of = of.into_iter().map(|(peer, until)| wire::ReceivedOf { peer: peer.into(), until });
                Message::Received(wire::Received { flush, of: of.collect() })
            }
            FromPeer::Leaving { steps_done, finished, reason } => {
                Message::Leaving(wire::Leaving { steps_done, finished, reason })
            }
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<wire::View> for View {
    type Error = WireError;

    fn try_from(wire: wire::View) -> Result<Self, WireError> {
        at_most("members", wire.members.len(), PEERS_MAX)?;
        let members: Result<Vec<Member>, WireError> = wire
            .members
            .into_iter()
            .map(|member| {
                Ok(Member {
                    index: member.index as usize,
                    name: peer_name("members.name", member.name)?,
                    address: address("members.address", member.address)?,
                    schema: schema(member.schema)?,
                })
            })
            .collect();
        let members = members?;
        if !members.is_sorted_by(|a, b| a.index < b.index) {
            return Err(WireError::new("members", "are not in ascending order of index"));
        }
        Ok(Self { id: ViewId(wire.id), begins_at: wire.begins_at, members })
    }
}

impl From<&View> for wire::View {
    fn from(view: &View) -> Self {
        let members = view.members.iter().map(|member| wire::Member {
            name: member.name.to_string(),
            address: member.address.clone(),
            index: u32::try_from(member.index).unwrap_or(u32::MAX),
            schema: schema_to_wire(&member.schema),
        });
        Self { id: view.id.0, begins_at: view.begins_at, members: members.collect() }
    }
}

impl TryFrom<wire::ToPeer> for ToPeer {
    type Error = WireError;

    fn try_from(wire: wire::ToPeer) -> Result<Self, WireError> {
        use wire::to_peer::Message;
        Ok(match required("message", wire.message)? {
            Message::View(view) => Self::View(view.try_into()?),
            Message::Lease(lease) => Self::Lease(lease.until),
            Message::RetainFrom(from) => Self::RetainFrom(from.step),
            Message::Stop(stop) => {
                let kind = match stop.kind() {
                    wire::StopKind::Finished => StopKind::Finished,
                    wire::StopKind::Graceful => StopKind::Graceful,
                    wire::StopKind::AtOnce => StopKind::AtOnce,
                    wire::StopKind::Unspecified => {
                        return Err(WireError::new("kind", format!("{} is not a way to stop", stop.kind)));
                    }
                };
                Self::Stop(Stop { kind, sentence: sentence(stop.sentence) })
            }
            Message::Start(wire::Start { step, checkpoint }) => {
                if checkpoint > step {
                    return Err(WireError::new("checkpoint", format!("{checkpoint} is beyond step {step}")));
                }
                Self::Start(Start { step, checkpoint })
            }
            Message::Flush(wire::Flush { id, peers }) => {
                at_most("peers", peers.len(), PEERS_MAX)?;
                let peers: Result<_, WireError> =
                    peers.into_iter().map(|name| peer_name("peers", name)).collect();
                Self::Flush { id, peers: peers? }
            }
        })
    }
}

impl From<ToPeer> for wire::ToPeer {
    fn from(message: ToPeer) -> Self {
        use wire::to_peer::Message;
        let message = match message {
            ToPeer::View(view) => Message::View((&view).into()),
            ToPeer::Lease(until) => Message::Lease(wire::Lease { until }),
            ToPeer::RetainFrom(step) => Message::RetainFrom(wire::RetainFrom { step }),
            ToPeer::Stop(Stop { kind, sentence }) => {
                let kind = match kind {
                    StopKind::Finished => wire::StopKind::Finished,
                    StopKind::Graceful => wire::StopKind::Graceful,
                    StopKind::AtOnce => wire::StopKind::AtOnce,
                };
                Message::Stop(wire::Stop { kind: kind.into(), sentence })
            }
            ToPeer::Start(Start { step, checkpoint }) => Message::Start(wire::Start { step, checkpoint }),
            ToPeer::Flush { id, peers } => {
                Message::Flush(wire::Flush { id, peers: peers.into_iter().map(Into::into).collect() })
            }
        };
        Self { message: Some(message) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Digest, PeerName};

    fn join() -> wire::JoinRequest {
        wire::JoinRequest {
            protocol_version: 1,
            name: "a".into(),
            spec_hash: vec![1; 32],
            arch: "resnet8".into(),
            classes: 10,
            address: "127.0.0.1:4000".into(),
            schema: vec![],
            dataset_fingerprint: vec![2; 32],
            total_steps: 10,
            checkpoints: vec![0, 5],
            checkpoint_run: 3,
            standing: Some(wire::Standing {
                session: 1,
                steps_done: 2,
                log_from: 3,
                lease_until: 4,
                view: 5,
            }),
        }
    }

    #[test]
    fn join_round_trips() {
        let domain: JoinRequest = join().try_into().unwrap();
        assert_eq!(wire::JoinRequest::from(domain), join());
    }

    #[test]
    fn wrong_fields_are_named() {
        type Change = fn(&mut wire::JoinRequest);
        let cases: [(Change, &str); 6] = [
            (|j| j.name = "a/b".into(), "name"),
            (|j| j.spec_hash = vec![0; 31], "spec_hash"),
            (|j| j.address = "nowhere".into(), "address"),
            (|j| j.address = "host:0".into(), "address"),
            (|j| j.total_steps = u64::MAX, "total_steps"),
            (|j| j.checkpoints = vec![0; 2000], "checkpoints"),
        ];
        for (change, field) in cases {
            let mut message = join();
            change(&mut message);
            assert_eq!(JoinRequest::try_from(message).unwrap_err().field, field);
        }
    }

    #[test]
    fn messages_round_trip() {
        let report = StepReport {
            step: 4,
            view: ViewId(1),
            epoch: 0,
            lr: 0.1,
            own_digest: Digest::of("x"),
            consumed: vec![(PeerName::new("b").unwrap(), Digest::of("y"))],
            terms: vec![Term { name: "ce".into(), value: 1.5 }],
            timings: vec![Timing { act: "forward".into(), ms: 2.0 }],
            images: 64,
            log_bytes: 12,
            said: vec![TensorDigest::of("logits", b"bytes")],
        };
        let waiting = Waiting { sources: vec![PeerName::new("b").unwrap()], ms: 7 };
        for message in [
            FromPeer::Heartbeat(waiting),
            FromPeer::Report(report),
            FromPeer::CheckpointSaved { step: 3, held: vec![0, 3] },
            FromPeer::StopWish("asked".into()),
            FromPeer::CannotFollow("gone".into()),
            FromPeer::Received { flush: 2, of: vec![(PeerName::new("c").unwrap(), 9)] },
            FromPeer::Leaving { steps_done: 3, finished: false, reason: "asked".into() },
        ] {
            assert_eq!(FromPeer::try_from(wire::FromPeer::from(message.clone())), Ok(message));
        }
        let member = Member {
            index: 0,
            name: PeerName::new("a").unwrap(),
            address: "h:1".into(),
            schema: Default::default(),
        };
        let view = View { id: ViewId(1), begins_at: 0, members: vec![member] };
        let stop = Stop { kind: StopKind::Graceful, sentence: "asked".into() };
        let stop = ToPeer::Stop(stop);
        let start = ToPeer::Start(Start { step: 4, checkpoint: 3 });
        let flush = ToPeer::Flush { id: 1, peers: vec![PeerName::new("c").unwrap()] };
        let messages = [ToPeer::View(view), ToPeer::Lease(9), ToPeer::RetainFrom(2), stop, start, flush];
        for message in messages {
            assert_eq!(ToPeer::try_from(wire::ToPeer::from(message.clone())), Ok(message));
        }
    }
}
