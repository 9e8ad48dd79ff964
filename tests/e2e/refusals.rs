//! A client that is written by hand and does not fit the run: each refusal has its reason, for programs and for people.

use anyhow::{Context, Result, bail, ensure};
use cohort_proto::exit::Exit;
use cohort_proto::wire;
use cohort_proto::wire::RefusalReason;
use cohort_proto::wire::join_reply::Outcome;
use tonic::Code;

use crate::call::{block_on, client, honest_join, status};
use crate::setting::{TWO, site};

type Change = fn(&mut wire::JoinRequest);

/// What is wrong with the request of peer `b` while `a` has joined, and what must be said to it.
const WRONG: &[(Change, RefusalReason, &[&str])] = &[
    (
        |join| join.protocol_version = 99,
        RefusalReason::ProtocolVersion,
        &["version 99", "update the coordinator"],
    ),
    (|join| join.protocol_version = 0, RefusalReason::ProtocolVersion, &["version 0", "update the peer"]),
    (|join| join.name = "x".into(), RefusalReason::UnknownName, &["no peer x", "a, b"]),
    (|join| join.name = "../b".into(), RefusalReason::Malformed, &["name"]),
    (|join| join.spec_hash = vec![7; 32], RefusalReason::SpecHash, &["run spec 070707"]),
    (|join| join.spec_hash.truncate(31), RefusalReason::Malformed, &["spec_hash", "31 bytes"]),
    (|join| join.arch = "resnet8".into(), RefusalReason::Arch, &["resnet8", "wrn_10_1"]),
    (|join| join.arch = "vgg".into(), RefusalReason::Arch, &["\"vgg\" is not known", "resnet8"]),
    (|join| join.classes = 100, RefusalReason::Classes, &["100 classes", "has 10"]),
    (|join| join.address = "127.0.0.1:4001".into(), RefusalReason::Address, &["127.0.0.1:4001", "peer a"]),
    (
        |join| join.address = "0.0.0.0:4002".into(),
        RefusalReason::Address,
        &["every interface", "--advertise"],
    ),
    (|join| join.address = "nowhere".into(), RefusalReason::Malformed, &["address"]),
    (|join| drop(join.schema.pop()), RefusalReason::Schema, &["embed.0", "method mcl"]),
    (|join| join.schema[0].shape[0] = 21, RefusalReason::Schema, &["[21, 10]", "[20, 10]"]),
    (|join| join.schema[0].shape = vec![u32::MAX; 3], RefusalReason::Malformed, &["schema"]),
    (|join| join.dataset_fingerprint = vec![7; 32], RefusalReason::Dataset, &["070707", "peer a"]),
    (|join| join.total_steps = 4, RefusalReason::Dataset, &["4 steps", "asks for 3"]),
    (
        |join| (join.checkpoints, join.checkpoint_run) = (vec![2], 12),
        RefusalReason::Checkpoints,
        &["run 000000000000000c", "--state"],
    ),
];

#[test]
fn a_peer_that_does_not_fit_is_told_why() -> Result<()> {
    let site = site("mcl", TWO, "steps = 3")?;
    let coordinator = site.coordinator()?;
    let url = coordinator.url();
    block_on(async {
        let mut client = client(&url).await?;
        let (_, join) = honest_join(&mut client, "a", "127.0.0.1:4001").await?;
        let reply = client.join(join).await?.into_inner();
        ensure!(matches!(reply.outcome, Some(Outcome::Accepted(_))), "{reply:?}");
        let (_, honest) = honest_join(&mut client, "b", "127.0.0.1:4002").await?;
        for (change, reason, words) in WRONG {
            let mut request = honest.clone();
            change(&mut request);
            let reply = client.join(request).await?.into_inner();
            let Some(Outcome::Refused(refused)) = reply.outcome else { bail!("{reason:?}: not refused") };
            ensure!(
                refused.reason() == *reason,
                "{:?} instead of {reason:?}: {}",
                refused.reason(),
                refused.sentence
            );
            for word in *words {
                ensure!(refused.sentence.contains(word), "{reason:?}: no {word:?} in: {}", refused.sentence);
            }
        }
        let reply = client.join(honest).await?.into_inner();
        ensure!(
            matches!(reply.outcome, Some(Outcome::Accepted(_))),
            "none of it counts against peer b: {reply:?}"
        );
        Ok(())
    })?;
    let members = status(&url)?.members;
    let known: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
    ensure!(known == ["a", "b"], "{known:?}");
    Ok(())
}

#[test]
fn a_stream_that_does_not_keep_to_the_protocol_is_closed() -> Result<()> {
    let site = site("mcl", TWO, "steps = 3")?;
    let coordinator = site.coordinator()?;
    let url = coordinator.url();
    let hello = wire::Hello { run: 1, name: "a".into(), session: 1 };
    let opening = [
        (None, Code::InvalidArgument, "hello"),
        (
            Some(wire::from_peer::Message::Heartbeat(wire::Heartbeat::default())),
            Code::InvalidArgument,
            "hello",
        ),
        (Some(wire::from_peer::Message::Hello(hello)), Code::FailedPrecondition, "join again"),
    ];
    for (message, code, word) in opening {
        block_on(async {
            let first = message.map(|message| wire::FromPeer { message: Some(message) });
            let stream = client(&url).await?.attend(tokio_stream::iter(first)).await;
            let error = match stream {
                Ok(stream) => {
                    stream.into_inner().message().await.err().context("the stream is not closed")?
                }
                Err(error) => error,
            };
            ensure!(error.code() == code && error.message().contains(word), "{error:?}");
            Ok(())
        })?;
    }
    // It is still there for others.
    ensure!(status(&url)?.phase() == wire::Phase::Gathering);
    Ok(())
}

#[test]
fn a_message_over_the_limit_does_not_harm_the_coordinator() -> Result<()> {
    let site = site("mcl", TWO, "steps = 3")?;
    let coordinator = site.coordinator()?;
    let url = coordinator.url();
    block_on(async {
        let mut client = client(&url).await?;
        let (_, mut join) = honest_join(&mut client, "a", "127.0.0.1:4001").await?;
        join.arch = "x".repeat(8 << 20);
        let error = client.join(join).await.err().context("8 MB were taken")?;
        ensure!(error.code() == Code::OutOfRange, "{error:?}");
        Ok(())
    })?;
    let peers = ["a", "b"].map(|name| site.peer(&url, name, &[]));
    for process in peers.into_iter().chain([Ok(coordinator.process)]) {
        process?.wait()?.check(Exit::Finished, &[])?;
    }
    Ok(())
}

#[test]
fn every_reason_is_tried_here_or_with_real_peers() {
    let tried = WRONG.iter().map(|(_, reason, _)| *reason);
    // Taken names, and runs that are closed or finished, with the peer or without it, are tried with real peers.
    let finished = [RefusalReason::Finished, RefusalReason::LeftBehind];
    let real = [RefusalReason::TakenName, RefusalReason::Closed].into_iter().chain(finished);
    let tried: Vec<_> = tried.chain(real).collect();
    let all = (1..=14).filter_map(|number| RefusalReason::try_from(number).ok());
    let missing: Vec<_> = all.filter(|reason| !tried.contains(reason)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(RefusalReason::try_from(15).is_err(), "a new reason: try it here");
}
