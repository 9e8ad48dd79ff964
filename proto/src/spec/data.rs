//! `[data]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::SpecError;
use super::section::{Section, TextOrTable, unknown_word};
use crate::dataset::DatasetKind;

/// `[data]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataSpec {
    /// Which data set.
    #[serde(with = "by_name")]
    pub dataset: DatasetKind,
    /// Its folder, unless a process is told another.
    pub path: Option<PathBuf>,
    /// The first so many training images; all if absent.
    pub train_limit: Option<usize>,
    /// The last so many of these are held out for validation.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub validation: usize,
    /// Samples in a batch.
    pub batch: usize,
    /// How batches are drawn.
    pub sampler: SamplerSpec,
    /// What is done to training images.
    pub augment: Augment,
    /// How pixels, scaled to 0..1, are normalised.
    pub normalize: Normalize,
    /// The group of each class, for metrics that look at classes of a kind; empty if classes have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<u32>,
}

/// How batches are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SamplerSpec {
    /// A permutation of the samples per epoch.
    Shuffle,
    /// So many samples of each of some classes, so that contrastive terms find positives.
    PerClass(usize),
}

/// What is done to training images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Augment {
    /// Pad by 4, crop at random, flip where the data set allows.
    Standard,
    /// Nothing.
    None,
}

/// How pixels, scaled to 0..1, are normalised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Normalize {
    /// With the data set's own mean and deviation.
    Dataset,
    /// With these, one number a channel.
    By {
        /// Subtracted.
        mean: Vec<f64>,
        /// Divided by.
        std: Vec<f64>,
    },
}

impl DataSpec {
    /// `contrasts`: whether the method needs positives in a batch, which decides what `sampler = "auto"` means.
    pub(super) fn read(mut section: Section, contrasts: bool) -> Result<Self, SpecError> {
        let dataset: DatasetKind = match section.text("dataset")? {
            None => return Err(section.missing("dataset", "write dataset = \"fashion-mnist\"")),
            Some(name) => name.parse().map_err(|_| {
                section.error("dataset", unknown_word(&name, &DatasetKind::ALL.map(DatasetKind::name)))
            })?,
        };
        let path = section.text("path")?.map(PathBuf::from);
        let train_limit = section.whole("train_limit", 1..=u64::from(u32::MAX))?.map(|limit| limit as usize);
        let validation = section.whole("validation", 0..=u64::from(u32::MAX))?.unwrap_or(0) as usize;
        if train_limit.is_some_and(|limit| limit <= validation) {
            let problem = format!("is {validation}, so that none of the training images is left to train on");
            return Err(section.error("validation", problem));
        }
        let batch = section.whole("batch", 1..=65_536)?.unwrap_or(128) as usize;
        let per_class = section.whole("per_class", 1..=65_536)?;
        let m = per_class.unwrap_or(2) as usize;
        // Per class where contrasts need it and it is possible. With few classes and a large batch it is not, and need
        // not be: a shuffled batch of 128 from 10 classes holds about 13 samples of each.
        let possible = per_class.is_some() || (batch.is_multiple_of(m) && m * dataset.classes() >= batch);
        let auto = if contrasts && possible { SamplerSpec::PerClass(m) } else { SamplerSpec::Shuffle };
        let choices =
            [("auto", auto), ("shuffle", SamplerSpec::Shuffle), ("per-class", SamplerSpec::PerClass(m))];
        let sampler = section.choice("sampler", &choices)?.unwrap_or(auto);
        let choices = [("standard", Augment::Standard), ("none", Augment::None)];
        let augment = section.choice("augment", &choices)?.unwrap_or(Augment::Standard);
        let normalize = read_normalize(&mut section)?;
        let groups = read_groups(&mut section, dataset)?;
        section.finish()?;
        Ok(Self { dataset, path, train_limit, validation, batch, sampler, augment, normalize, groups })
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

fn read_groups(section: &mut Section, dataset: DatasetKind) -> Result<Vec<u32>, SpecError> {
    let groups = section.wholes("groups")?.unwrap_or_default();
    let (given, classes) = (groups.len(), dataset.classes());
    if given != 0 && given != classes {
        let problem =
            format!("has a group for {given} classes, but {dataset} has {classes}; write one number a class");
        return Err(section.error("groups", problem));
    }
    Ok(groups)
}

fn read_normalize(section: &mut Section) -> Result<Normalize, SpecError> {
    let mut table = match section.text_or_table("normalize")? {
        None => return Ok(Normalize::Dataset),
        Some(TextOrTable::Text(text)) if text == "dataset" => return Ok(Normalize::Dataset),
        Some(TextOrTable::Text(text)) => {
            let problem =
                format!("{text:?} is not known; write \"dataset\" or {{ mean = [..], std = [..] }}");
            return Err(section.error("normalize", problem));
        }
        Some(TextOrTable::Table(table)) => table,
    };
    let hint = "write one number a channel";
    let mean = table.numbers("mean")?.ok_or_else(|| table.missing("mean", hint))?;
    let std = table.numbers("std")?.ok_or_else(|| table.missing("std", hint))?;
    if mean.is_empty() || mean.len() != std.len() || std.iter().any(|&s| s <= 0.0) {
        return Err(table.error("std", "must be as many positive numbers as mean has"));
    }
    table.finish()?;
    Ok(Normalize::By { mean, std })
}

/// The data set in the JSON form, under the name that run.toml uses.
mod by_name {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::DatasetKind;

    pub(super) fn serialize<S: Serializer>(kind: &DatasetKind, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(kind.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DatasetKind, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
