//! From samples on disk to the batch that every peer of the cohort sees.

pub mod augment;
pub mod loader;

use std::path::{Path, PathBuf};

use cohort_proto::dataset::{self, DatasetError, Samples};
use cohort_proto::spec::{self, DataSpec, Normalize, RunSpec};

use crate::error::PeerError;
use augment::{Augment, Normalisation, NormalisationError};
use loader::LoaderInputs;

/// Where a checkout of Cohort keeps the data that come with it, seen from its root, in a folder a data set.
const BUNDLED: &str = "examples/data";

/// The folder of a run's data: what the command line says, else what the run spec says, else the data that come with
/// Cohort if we stand in its root, else the system's.
///
/// # Errors
/// If there is none, with the folders that were looked at.
pub fn folder(data: &DataSpec, told: Option<&Path>) -> Result<PathBuf, DatasetError> {
    let explicit = told.or(data.path.as_deref());
    dataset::find(
        data.dataset,
        &dataset::candidates(explicit, &[Path::new(BUNDLED).join(data.dataset.name())], data.dataset),
    )
}

/// What the loader of a run works from: the samples, the plan over them, and what is done to images.
///
/// # Errors
/// A batch plan or a normalisation that these samples do not allow.
pub fn loader_inputs(spec: &RunSpec, samples: Samples) -> Result<LoaderInputs, PeerError> {
    spec.trained_on(&samples.labels)?;
    let (samples, held_out) = samples.hold_out(spec.data.validation);
    let plan = spec.batch_plan(&samples.labels)?;
    let augment = augmentation(&spec.data);
    let normalisation = normalisation(&spec.data, samples.images.channels)?;
    let held_out = held_out.map(Into::into);
    Ok(LoaderInputs { samples: samples.into(), held_out, plan, augment, normalisation })
}

/// What is done to training images.
fn augmentation(data: &DataSpec) -> Augment {
    match data.augment {
        spec::Augment::None => Augment::None,
        spec::Augment::Standard => Augment::Standard { flip: data.dataset.flips() },
    }
}

/// How pixels become network input.
///
/// # Errors
/// If the run spec does not give one number a channel.
pub fn normalisation(data: &DataSpec, channels: usize) -> Result<Normalisation, NormalisationError> {
    match &data.normalize {
        Normalize::Dataset => Normalisation::new(data.dataset.mean(), data.dataset.std(), channels),
        Normalize::By { mean, std } => {
            let single =
                |numbers: &[f64]| -> Vec<f32> { numbers.iter().map(|&number| number as f32).collect() };
            Normalisation::new(&single(mean), &single(std), channels)
        }
    }
}
