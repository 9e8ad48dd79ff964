//! `progress.bin`: how far training was, and the digests of the files beside it, as one versioned bincode record that
//! ends in its own digest. The only use of bincode: bytes that we wrote ourselves, never any from the network.

use bincode::config;
use cohort_proto::id::{Digest, RunId, Step};

/// How far training was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Completed steps; the next step has this number.
    pub steps_done: Step,
    /// The run.
    pub run: RunId,
    /// The run spec's hash.
    pub spec_hash: Digest,
    /// The peer's name.
    pub peer: String,
    /// Its architecture.
    pub arch: String,
}

/// Everything in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) progress: Progress,
    pub(super) model: Digest,
    pub(super) optimizer: Digest,
}

/// The layout on disk. A change of layout is a new version.
#[derive(bincode::Encode, bincode::Decode)]
struct Layout {
    version: u32,
    steps_done: u64,
    run: u64,
    spec_hash: [u8; 32],
    peer: String,
    arch: String,
    model: [u8; 32],
    optimizer: [u8; 32],
}

const VERSION: u32 = 1;

/// Names and digests: a kilobyte at the most.
const RECORD_BYTES_MAX: usize = 4096;

impl Record {
    pub(super) fn encode(&self) -> Vec<u8> {
        let Progress { steps_done, run, spec_hash, peer, arch } = self.progress.clone();
        let (run, spec_hash) = (run.0, spec_hash.0);
        let (model, optimizer) = (self.model.0, self.optimizer.0);
        let layout = Layout { version: VERSION, steps_done, run, spec_hash, peer, arch, model, optimizer };
        // Plain numbers and texts always encode; an empty record would be refused when it is read.
        let mut bytes = bincode::encode_to_vec(layout, config::standard()).unwrap_or_default();
        bytes.extend(Digest::of(&bytes).0);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let Some((body, digest)) = bytes.split_last_chunk::<32>() else {
            return Err("it is cut short".into());
        };
        if Digest::of(body).0 != *digest {
            return Err("it does not have the digest at its end".into());
        }
        let config = config::standard().with_limit::<RECORD_BYTES_MAX>();
        let (layout, read): (Layout, usize) = bincode::decode_from_slice(body, config)
            .map_err(|error| format!("it cannot be decoded: {error}"))?;
        if layout.version != VERSION || read != body.len() {
            return Err(format!("its layout has version {}, not {VERSION}", layout.version));
        }
        let progress = Progress {
            steps_done: layout.steps_done,
            run: RunId(layout.run),
            spec_hash: Digest(layout.spec_hash),
            peer: layout.peer,
            arch: layout.arch,
        };
        Ok(Self { progress, model: Digest(layout.model), optimizer: Digest(layout.optimizer) })
    }
}
