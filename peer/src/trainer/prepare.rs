//! Before joining: the peer loads its data, builds its network and looks at the checkpoints it holds, so that whatever
//! is wrong with them is said before anybody waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use cohort_proto::control::Checkpoints;
use cohort_proto::dataset::{self, Split};
use cohort_proto::id::{Digest, PeerName, RunId, Step};
use cohort_proto::limits::CHECKPOINTS_MAX;
use cohort_proto::schema::{Schema, SchemaError};
use cohort_proto::spec::{DeviceSpec, PeerSpec, RunSpec};

use crate::checkpoint::Store;
use crate::data;
use crate::data::loader::LoaderInputs;
use crate::device;
use crate::error::PeerError;
use crate::learner::Learner;
use crate::models::ImageShape;

/// What a peer is built from.
#[derive(Debug)]
pub struct Inputs {
    /// The coordinator's run spec.
    pub spec: RunSpec,
    /// Its hash.
    pub spec_hash: Digest,
    /// Position of this peer in it.
    pub index: usize,
    /// Where the training data are, if the command line said so.
    pub data: Option<PathBuf>,
    /// Where to compute.
    pub device: DeviceSpec,
    /// The folder of checkpoints.
    pub state: PathBuf,
}

/// What the coordinator is told of a peer that wants to join.
#[derive(Debug)]
pub struct Facts {
    /// SHA-256 of the run spec that the peer was built from.
    pub spec_hash: Digest,
    /// Architecture.
    pub arch: String,
    /// Classes of the classifier.
    pub classes: usize,
    /// What it will say in every step.
    pub schema: Schema,
    /// The peers that it learns from, and the names of the tensors that it does so by.
    pub sources: BTreeMap<PeerName, BTreeSet<String>>,
    /// SHA-256 of the training data as used.
    pub dataset_fingerprint: Digest,
    /// Steps of the whole run.
    pub total_steps: Step,
    /// Checkpoints that it could start from.
    pub checkpoints: Option<Checkpoints>,
}

/// Builds the learner as it is before the first step of a generation.
pub(super) type Fresh = Box<dyn Fn(u64) -> Result<Learner, PeerError>>;

/// A peer that is ready to join.
pub struct Prepared {
    pub(super) learner: Learner,
    pub(super) fresh: Fresh,
    pub(super) loader: LoaderInputs,
    pub(super) store: Store,
    pub(super) facts: Facts,
    pub(super) spec: RunSpec,
    pub(super) peer: PeerSpec,
}

pub(super) fn prepare(inputs: Inputs) -> Result<Prepared, PeerError> {
    let Inputs { spec, spec_hash, index, data, device, state } = inputs;
    let peer =
        spec.peers.get(index).cloned().ok_or_else(|| PeerError::Internal(format!("no peer {index}")))?;
    let folder = data::folder(&spec.data, data.as_deref())?;
    let samples = dataset::load(&folder, spec.data.dataset, Split::Train, spec.data.train_limit)?;
    tracing::info!("{} training images from {}", samples.images.count, folder.display());
    let dataset_fingerprint = Digest(dataset::fingerprint(&samples));
    let image = ImageShape::from(&samples.images);
    let loader = data::loader_inputs(&spec, samples)?;
    // Before the network is built: it may be as much too large as the banks, or the cache of a teacher.
    spec.check_banks(&loader.samples.labels)?;
    spec.check_cache(index, loader.samples.labels.len())?;
    let device = device::open(device)?;
    let fresh: Fresh = {
        let (spec, peer, samples) = (spec.clone(), peer.clone(), loader.samples.clone());
        Box::new(move |generation| {
            let learner = Learner::of_generation(generation, &spec, index, &peer, image, device.clone())?;
            learner.with_memory(&spec, &samples.labels)
        })
    };
    let learner = fresh(0)?;
    let store = Store::open(&state, spec.run.keep)?.keeping(loader.plan.steps_per_generation());
    // It is taken when the coordinator has said that this process is the peer, and not a second one by mistake.
    store.check_is_of(&peer.name)?;
    let checkpoints = held(&store, spec_hash, &peer)?;
    let mismatch = |error: SchemaError| PeerError::Mismatch(error.to_string());
    let facts = Facts {
        spec_hash,
        arch: peer.arch.clone(),
        classes: learner.model.network.classes(),
        schema: spec.contribution_schema(index).map_err(mismatch)?,
        sources: spec.wanted_by(index).map_err(mismatch)?,
        dataset_fingerprint,
        total_steps: loader.plan.total_steps(),
        checkpoints,
    };
    Ok(Prepared { learner, fresh, loader, store, facts, spec, peer })
}

/// The checkpoints to offer: those of the newest one's run.
pub(super) fn held(
    store: &Store,
    spec_hash: Digest,
    peer: &PeerSpec,
) -> Result<Option<Checkpoints>, PeerError> {
    let held = store.held()?;
    let Some(newest) = held.last() else { return Ok(None) };
    if newest.spec_hash != spec_hash || newest.peer != peer.name.as_str() || newest.arch != peer.arch {
        return Err(PeerError::Mismatch(format!(
            "{} holds a checkpoint of another peer or another run (peer {}, {}, run spec {}); choose another --state",
            store.path(newest.steps_done).display(),
            newest.peer,
            newest.arch,
            newest.spec_hash.short()
        )));
    }
    let run: RunId = newest.run;
    let same_run = held.iter().filter(|progress| progress.run == run && progress.spec_hash == spec_hash);
    let mut steps: Vec<Step> = same_run.map(|progress| progress.steps_done).collect();
    steps.drain(..steps.len().saturating_sub(CHECKPOINTS_MAX));
    Ok(Some(Checkpoints { run, steps }))
}
