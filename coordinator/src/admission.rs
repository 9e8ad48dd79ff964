//! Whether a peer fits the run: one check a function, each refusal with what came, what was expected and what to do.
//! Sans-IO; knows nothing of who else attends.

use std::net::IpAddr;

use cohort_proto::control::{JoinRequest, Refusal, RefusalReason};
use cohort_proto::id::{Digest, RunId, Step};
use cohort_proto::limits::{LEASE_STEPS_MAX, LOG_BYTES_MAX, PROTOCOL_VERSION};
use cohort_proto::schema::Schema;
use cohort_proto::spec::{ARCHITECTURES, PeerSpec, RunSpec};

use crate::event::DataFacts;

pub(crate) fn refusal(reason: RefusalReason, sentence: String) -> Refusal {
    Refusal { reason, sentence }
}

/// Whether a log holds what accumulates between two checkpoints.
///
/// # Errors
/// What it would hold, and how to make it less.
pub fn check_log_bytes(spec: &RunSpec, schema: &Schema) -> Result<(), String> {
    let every = spec.run.checkpoint_every;
    let between = spec.steps_asked().map_or(every, |steps| every.min(steps));
    let steps = between.saturating_add(LEASE_STEPS_MAX);
    let bytes = spec.contributed_bytes(schema, steps).map_err(|error| error.to_string())?;
    if bytes <= LOG_BYTES_MAX {
        return Ok(());
    }
    let of_step = (bytes / steps.max(1)).max(1);
    let fits = (LOG_BYTES_MAX / of_step).saturating_sub(LEASE_STEPS_MAX);
    let advice = if fits > 0 {
        format!("set checkpoint_every to {fits} or less")
    } else {
        "make the batch or the tensors smaller".to_owned()
    };
    let each = schema.byte_len();
    let meta = match (spec.meta().is_some(), spec.weighs_by_held_out()) {
        (true, _) => " and those of meta-updates",
        (_, true) => " and those of held-out samples",
        (false, false) => "",
    };
    Err(format!(
        "a contribution of {each} bytes a step{meta}, kept for checkpoint_every = {every} and {LEASE_STEPS_MAX} more steps, \
         needs a log of {bytes} bytes, but at most {LOG_BYTES_MAX} are allowed; {advice}"
    ))
}

/// The first check of all, before a message of another version is even decoded.
///
/// # Errors
/// It speaks another version than this coordinator.
pub fn check_version(got: u32) -> Result<(), Refusal> {
    if got == PROTOCOL_VERSION {
        return Ok(());
    }
    let older = if got < PROTOCOL_VERSION { "the peer" } else { "the coordinator" };
    let sentence = format!(
        "the peer speaks protocol version {got}, this coordinator version {PROTOCOL_VERSION}; update {older}"
    );
    Err(refusal(RefusalReason::ProtocolVersion, sentence))
}

/// A peer must be built from the run spec that runs here.
pub(crate) fn check_spec_hash(got: Digest, expected: Digest) -> Result<(), Refusal> {
    if got == expected {
        return Ok(());
    }
    let sentence = format!(
        "the peer was built from run spec {}, this run's is {}; take the spec from this coordinator",
        got.short(),
        expected.short()
    );
    Err(refusal(RefusalReason::SpecHash, sentence))
}

/// A peer must have built the architecture that the spec gives it.
pub(crate) fn check_arch(got: &str, peer: &PeerSpec) -> Result<(), Refusal> {
    let sentence = if !ARCHITECTURES.contains(&got) {
        format!("the architecture {got:?} is not known; known are {}", ARCHITECTURES.join(", "))
    } else if got != peer.arch {
        format!(
            "peer {} built {got}, but run.toml gives it {}; build that, or change run.toml and start a new run",
            peer.name, peer.arch
        )
    } else {
        return Ok(());
    };
    Err(refusal(RefusalReason::Arch, sentence))
}

/// A classifier must have as many classes as the dataset.
pub(crate) fn check_classes(got: u32, spec: &RunSpec) -> Result<(), Refusal> {
    let dataset = spec.data.dataset;
    if got as usize == dataset.classes() {
        return Ok(());
    }
    let sentence = format!(
        "the peer's classifier has {got} classes, but {dataset} has {}; build it for that dataset",
        dataset.classes()
    );
    Err(refusal(RefusalReason::Classes, sentence))
}

/// A run of an exact number of steps has that many, and every run has some.
pub(crate) fn check_total(got: Step, spec: &RunSpec) -> Result<(), Refusal> {
    let sentence = match spec.steps_asked() {
        Some(asked) if got != asked => {
            format!("the peer plans {got} steps, but run.toml asks for {asked}; use the same version")
        }
        _ if got == 0 => "the peer plans no steps at all; use the same version".to_owned(),
        _ => return Ok(()),
    };
    Err(refusal(RefusalReason::Dataset, sentence))
}

/// All peers must train on the same samples for the same number of steps. `first`: where the expectation is from.
pub(crate) fn check_data(request: &JoinRequest, expected: DataFacts, first: &str) -> Result<(), Refusal> {
    let DataFacts { fingerprint, total_steps } = expected;
    let sentence = if request.dataset_fingerprint != fingerprint {
        format!(
            "the peer's training data have fingerprint {}, but {first} has {}; give it the same files and train_limit",
            request.dataset_fingerprint.short(),
            fingerprint.short()
        )
    } else if request.total_steps != total_steps {
        format!(
            "the peer plans {} steps, but {first} has {total_steps}; their batch plans differ: use the same version",
            request.total_steps
        )
    } else {
        return Ok(());
    };
    Err(refusal(RefusalReason::Dataset, sentence))
}

/// A peer's address must be one that the others can reach.
pub(crate) fn check_reachable(address: &str, remote: Option<IpAddr>) -> Result<(), Refusal> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let ip: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
    let ip = ip.map(|ip| ip.to_canonical());
    let loopback = ip.map_or(host.eq_ignore_ascii_case("localhost"), |ip| ip.is_loopback());
    let elsewhere = remote.map(|ip| ip.to_canonical()).filter(|ip| !ip.is_loopback());
    let sentence = match elsewhere {
        _ if ip.is_some_and(|ip| ip.is_unspecified()) => {
            format!(
                "{address} means every interface and cannot be called; give the peer's own with --advertise"
            )
        }
        Some(remote) if loopback => format!(
            "{address} is a loopback address, but the peer calls from {remote}: others cannot reach it there; give an \
             address of its host with --advertise"
        ),
        _ => return Ok(()),
    };
    Err(refusal(RefusalReason::Address, sentence))
}

/// What a peer will say must be what the method listens to, and its log must hold it.
pub(crate) fn check_schema(request: &JoinRequest, spec: &RunSpec, index: usize) -> Result<(), Refusal> {
    let refuse = |sentence: String| refusal(RefusalReason::Schema, sentence);
    let expected = spec.contribution_schema(index).map_err(|error| refuse(error.to_string()))?;
    if request.schema != expected {
        let sentence = format!(
            "the peer will say {}, but with method {} a peer with {} says {expected}; use the same version",
            request.schema,
            spec.method_name(),
            request.arch
        );
        return Err(refuse(sentence));
    }
    check_log_bytes(spec, &expected).map_err(refuse)
}

/// Checkpoints of another run are not ones to start from.
pub(crate) fn check_checkpoints(request: &JoinRequest, run: RunId) -> Result<(), Refusal> {
    match &request.checkpoints {
        Some(held) if held.run != run => {
            let sentence = format!(
                "the peer holds checkpoints of run {}, but this is run {run}; give it another --state folder, or the \
                 coordinator the --state folder of that run",
                held.run
            );
            Err(refusal(RefusalReason::Checkpoints, sentence))
        }
        _ => Ok(()),
    }
}
