//! What `eval` and `probe` share: the samples of a data set, and networks with the weights of a file.

use std::path::PathBuf;

use candle_core::{DType, Device};
use cohort_proto::dataset::{self, DatasetKind, Samples, Split};
use cohort_proto::spec::{Augment, DataSpec, Normalize, SamplerSpec};

use super::DataArgs;
use crate::data;
use crate::data::augment::Normalisation;
use crate::error::PeerError;
use crate::learner::{AGGREGATOR_PREFIX, AUXILIARY_PREFIX, Additions, METHOD_PREFIXES, Model};
use crate::models::{ImageShape, Params, StateDict, StateError, Strictness, registry, state};

/// An architecture, and the file with its weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Weights {
    /// The architecture's name.
    pub(super) arch: String,
    /// A model.safetensors.
    pub(super) file: PathBuf,
}

impl std::str::FromStr for Weights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some((arch, file)) if !arch.is_empty() && !file.is_empty() => {
                Ok(Self { arch: arch.to_owned(), file: file.into() })
            }
            _ => Err("write ARCH:FILE, such as resnet20:model.safetensors".to_owned()),
        }
    }
}

impl Weights {
    /// Refuses an architecture that does not exist.
    pub(super) fn check(&self) -> Result<(), PeerError> {
        registry::check_name(&self.arch).map_err(|error| PeerError::Usage(error.to_string()))
    }

    /// An error about the file.
    pub(super) fn unusable(&self, error: impl std::fmt::Display) -> PeerError {
        PeerError::Weights(format!("{}: {error}", self.file.display()))
    }

    /// The network of these weights, with the classifiers of its stages and the aggregator if it has learnt them. Without
    /// `classes` it has as many as the file says.
    pub(super) fn load(&self, image: ImageShape, classes: Option<usize>) -> Result<Model, PeerError> {
        let weights = state::load_safetensors(&self.file).map_err(|error| self.unusable(error))?;
        let classes = match classes.or_else(|| classes_of(&weights)) {
            Some(classes) => classes,
            None => return Err(self.unusable("they hold no classifier (fc.weight) of a few classes")),
        };
        let has = |prefix: &str| weights.keys().any(|name| name.contains(prefix));
        let (stages, aggregator) = (has(AUXILIARY_PREFIX), has(AGGREGATOR_PREFIX));
        let additions = Additions { stages, ..Additions::default() };
        let params = Params::new(0, "eval", DType::F32, &Device::Cpu)?;
        let mut model = Model::build(&self.arch, (image, classes), additions, params)?;
        let loaded = model.params.load(&weights, Strictness::Lenient { prefixes: &METHOD_PREFIXES });
        loaded.map_err(|error: StateError| self.unusable(error))?;
        // An aggregator that nobody trained weighs at random.
        model.aggregator = model.aggregator.filter(|_| aggregator);
        Ok(model)
    }
}

/// Most classes of a network whose file says how many it has.
const CLASSES_MAX: usize = 65_536;

fn classes_of(weights: &StateDict) -> Option<usize> {
    let [classes, _] = weights.get("fc.weight")?.dims() else { return None };
    Some(*classes).filter(|classes| *classes <= CLASSES_MAX)
}

/// A data set on disk, and how its pixels become network input.
#[derive(Debug)]
pub(super) struct Source {
    /// Which one.
    pub(super) kind: DatasetKind,
    folder: PathBuf,
    spec: DataSpec,
}

impl Source {
    /// Finds the folder of the data set.
    pub(super) fn new(args: DataArgs) -> Result<Self, PeerError> {
        let unknown = |error: dataset::UnknownDataset| PeerError::Usage(error.to_string());
        let kind: DatasetKind = args.dataset.parse().map_err(unknown)?;
        let normalize = match args.mean.is_empty() {
            true => Normalize::Dataset,
            false => Normalize::By { mean: args.mean, std: args.std },
        };
        let spec = DataSpec {
            dataset: kind,
            path: args.data,
            train_limit: None,
            validation: 0,
            // Nothing is trained.
            batch: 1,
            sampler: SamplerSpec::Shuffle,
            augment: Augment::None,
            normalize,
            groups: Vec::new(),
        };
        Ok(Self { kind, folder: data::folder(&spec, None)?, spec })
    }

    /// The first `limit` samples of a part of it; all without.
    pub(super) fn samples(&self, split: Split, limit: Option<usize>) -> Result<Samples, PeerError> {
        Ok(dataset::load(&self.folder, self.kind, split, limit)?)
    }

    /// How pixels become network input.
    pub(super) fn normalisation(&self, samples: &Samples) -> Result<Normalisation, PeerError> {
        Ok(data::normalisation(&self.spec, samples.images.channels)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_an_architecture_and_a_file() {
        let weights: Weights = "resnet8:runs/a:b.safetensors".parse().unwrap();
        assert_eq!(weights, Weights { arch: "resnet8".into(), file: "runs/a:b.safetensors".into() });
        assert!(weights.check().is_ok());
        for wrong in ["resnet8", ":file", "resnet8:"] {
            assert!(wrong.parse::<Weights>().unwrap_err().contains("ARCH:FILE"), "{wrong}");
        }
        assert!("resnet7:file".parse::<Weights>().unwrap().check().is_err());
    }
}
