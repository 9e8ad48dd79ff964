//! Labelled images on disk, as every side of a run must see them: which files, how many samples, and a fingerprint
//! by which two processes tell that they hold the same ones.

pub mod idx;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use thiserror::Error;

use idx::{IdxError, IdxImages};

/// Where Debian's packages of datasets put their folders.
const SYSTEM_FOLDER: &str = "/usr/share/datasets";

/// A dataset that Cohort knows by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DatasetKind {
    /// Ten kinds of clothing (Xiao, Rasul and Vollgraf, 2017).
    FashionMnist,
    /// Ten handwritten digits (LeCun, Cortes and Burges, 1998).
    Mnist,
}

impl DatasetKind {
    /// All of them, in the order in which words for people list them.
    pub const ALL: [Self; 2] = [Self::FashionMnist, Self::Mnist];

    /// The name in `run.toml`, on the command line and of the folder among the system's datasets.
    pub fn name(self) -> &'static str {
        match self {
            Self::FashionMnist => "fashion-mnist",
            Self::Mnist => "mnist",
        }
    }

    /// Number of classes; every label is below it.
    pub fn classes(self) -> usize {
        match self {
            Self::FashionMnist | Self::Mnist => 10,
        }
    }

    /// Pixels of a row, and of a column.
    pub fn side(self) -> usize {
        match self {
            Self::FashionMnist | Self::Mnist => 28,
        }
    }

    /// Mean of the training pixels scaled to 0..1, one per channel.
    pub fn mean(self) -> &'static [f32] {
        match self {
            Self::FashionMnist => &[0.2860],
            Self::Mnist => &[0.1307],
        }
    }

    /// Standard deviation of the training pixels scaled to 0..1, one per channel.
    pub fn std(self) -> &'static [f32] {
        match self {
            Self::FashionMnist => &[0.3530],
            Self::Mnist => &[0.3081],
        }
    }

    /// Whether the mirror image of a sample is as good a sample: it is for clothing, not for digits.
    pub fn flips(self) -> bool {
        match self {
            Self::FashionMnist => true,
            Self::Mnist => false,
        }
    }
}

impl fmt::Display for DatasetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A dataset name that is not known.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown dataset {0:?}; known are {known}", known = DatasetKind::ALL.map(DatasetKind::name).join(", "))]
pub struct UnknownDataset(pub String);

impl FromStr for DatasetKind {
    type Err = UnknownDataset;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| UnknownDataset(name.to_owned()))
    }
}

/// Which part of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// What networks learn from.
    Train,
    /// What they are measured on.
    Test,
}

impl Split {
    fn stem(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "t10k",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "training",
            Self::Test => "test",
        })
    }
}

/// Images in memory; a clone shares the pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// Number of images.
    pub count: usize,
    /// Values per pixel: 1 for grey.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// `count x channels x height x width` values of 0..=255, the last dimension fastest.
    pub pixels: Arc<[u8]>,
}

impl Images {
    /// Values per image.
    pub fn image_len(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// The pixels of one image, `channels x height x width`; None past the last image.
    pub fn image(&self, index: usize) -> Option<&[u8]> {
        let start = index.checked_mul(self.image_len())?;
        self.pixels.get(start..start.checked_add(self.image_len())?)
    }
}

/// Images with their labels; a clone shares both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Samples {
    /// The dataset they are from.
    pub kind: DatasetKind,
    /// The images.
    pub images: Images,
    /// One class per image.
    pub labels: Arc<[u8]>,
}

impl Samples {
    /// These without the last so many, and those; all are kept if there are no more than that.
    pub fn hold_out(self, count: usize) -> (Self, Option<Self>) {
        let kept = self.labels.len().saturating_sub(count);
        if count == 0 || kept == 0 {
            return (self, None);
        }
        let part = |range: std::ops::Range<usize>| {
            let pixels = range.start * self.images.image_len()..range.end * self.images.image_len();
            let images = Images {
                count: range.len(),
                pixels: self.images.pixels.get(pixels).unwrap_or_default().into(),
                ..self.images.clone()
            };
            Self { kind: self.kind, images, labels: self.labels.get(range).unwrap_or_default().into() }
        };
        (part(0..kept), Some(part(kept..kept + count)))
    }
}

/// Why samples could not be loaded.
#[derive(Debug, Error)]
pub enum DatasetError {
    /// No folder holds files of the dataset.
    #[error("no {kind} data found; looked in {}; give the folder with --data", list(looked))]
    NotFound {
        /// The dataset.
        kind: DatasetKind,
        /// The folders, in order of preference.
        looked: Vec<PathBuf>,
    },
    /// A folder lacks a file, under all its usual names.
    #[error(
        "the {split} {what} of {kind} are missing: looked for {}; give the folder with --data",
        list(looked)
    )]
    Missing {
        /// The dataset.
        kind: DatasetKind,
        /// The part of it.
        split: Split,
        /// "images" or "labels".
        what: &'static str,
        /// The names a file with them may have.
        looked: Vec<PathBuf>,
    },
    /// A file cannot be opened.
    #[error("{} cannot be opened: {reason}", file.display())]
    Open {
        /// The file.
        file: PathBuf,
        /// The system's words.
        reason: io::Error,
    },
    /// A file's bytes are not what they should be.
    #[error("{} {defect}", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        defect: IdxError,
    },
    /// A label is not a class.
    #[error(
        "{} has label {label} at position {index}, but {kind} has only classes 0 to {}",
        file.display(), kind.classes() - 1
    )]
    LabelOutOfRange {
        /// The file.
        file: PathBuf,
        /// The dataset.
        kind: DatasetKind,
        /// Which label, from 0.
        index: usize,
        /// Its value.
        label: u8,
    },
    /// Two files do not belong together.
    #[error(
        "{} holds {images} images but {} holds {labels} labels; they do not belong together",
        images_file.display(), labels_file.display()
    )]
    CountMismatch {
        /// The file of images.
        images_file: PathBuf,
        /// Images in it.
        images: usize,
        /// The file of labels.
        labels_file: PathBuf,
        /// Labels in it.
        labels: usize,
    },
    /// A limit of zero samples.
    #[error("a limit of 0 samples leaves nothing to use")]
    ZeroLimit,
}

/// The folders to search, best first. A folder given by the user is the only one: falling back to other data in
/// silence would train on something else than was asked for. Otherwise come the `bundled` folders that the caller
/// knows, then the system's.
pub fn candidates(explicit: Option<&Path>, bundled: &[PathBuf], kind: DatasetKind) -> Vec<PathBuf> {
    match explicit {
        Some(folder) => vec![folder.to_owned()],
        None => bundled.iter().cloned().chain([Path::new(SYSTEM_FOLDER).join(kind.name())]).collect(),
    }
}

/// The first of the folders that holds any file of the dataset. One that holds only some is not passed over, so that
/// what it lacks is named by [`load`].
///
/// # Errors
/// [`DatasetError::NotFound`] with all the folders.
pub fn find(kind: DatasetKind, candidates: &[PathBuf]) -> Result<PathBuf, DatasetError> {
    let holds_any = |folder: &&PathBuf| {
        [Split::Train, Split::Test]
            .into_iter()
            .flat_map(|split| [Part::Images, Part::Labels].map(|part| part.names(split)))
            .flatten()
            .any(|name| folder.join(name).is_file())
    };
    let found = candidates.iter().find(holds_any).cloned();
    found.ok_or_else(|| DatasetError::NotFound { kind, looked: candidates.to_vec() })
}

/// Loads the first `limit` samples (None: all) of a part of a dataset from a folder. The limit is an upper bound: of
/// a file with fewer samples all are taken, and peers that hold different numbers differ in [`fingerprint`]. The
/// files are read and checked whole in any case.
///
/// # Errors
/// A missing or damaged file, files that do not belong together, labels that are no classes; each names the file.
pub fn load(
    folder: &Path,
    kind: DatasetKind,
    split: Split,
    limit: Option<usize>,
) -> Result<Samples, DatasetError> {
    let (labels_file, mut labels) = read_labels(folder, kind, split, limit)?;
    let images_file = locate(folder, kind, split, Part::Images)?;
    let images: IdxImages = idx::read_images(open(&images_file)?, limit)
        .map_err(|defect| DatasetError::Damaged { file: images_file.clone(), defect })?;
    if images.in_file != labels.len() {
        return Err(DatasetError::CountMismatch {
            images_file,
            images: images.in_file,
            labels_file,
            labels: labels.len(),
        });
    }
    labels.truncate(images.count);
    let IdxImages { count, height, width, pixels, .. } = images;
    let images = Images { count, channels: 1, height, width, pixels: pixels.into() };
    Ok(Samples { kind, images, labels: labels.into() })
}

/// Loads only the labels that [`load`] would give, which is all that a batch plan needs. That the images fit them is
/// not checked.
///
/// # Errors
/// As [`load`] for the file of labels.
pub fn load_labels(
    folder: &Path,
    kind: DatasetKind,
    split: Split,
    limit: Option<usize>,
) -> Result<Vec<u8>, DatasetError> {
    let (_, mut labels) = read_labels(folder, kind, split, limit)?;
    labels.truncate(limit.unwrap_or(usize::MAX));
    Ok(labels)
}

/// SHA-256 of the samples as used: dimensions, number of classes, number of samples, labels and pixels. Equal on
/// two machines exactly if both would train on the same data.
pub fn fingerprint(samples: &Samples) -> [u8; 32] {
    let images = &samples.images;
    let numbers = [images.channels, images.height, images.width, samples.kind.classes(), images.count];
    let mut hash = Sha256::new();
    for number in numbers {
        hash.update((number as u64).to_le_bytes());
    }
    hash.update(&samples.labels);
    hash.update(&images.pixels);
    hash.finalize().into()
}

/// All labels of a file, each a class of the dataset, and the file.
fn read_labels(
    folder: &Path,
    kind: DatasetKind,
    split: Split,
    limit: Option<usize>,
) -> Result<(PathBuf, Vec<u8>), DatasetError> {
    if limit == Some(0) {
        return Err(DatasetError::ZeroLimit);
    }
    let file = locate(folder, kind, split, Part::Labels)?;
    let labels = match idx::read_labels(open(&file)?) {
        Ok(labels) => labels,
        Err(defect) => return Err(DatasetError::Damaged { file, defect }),
    };
    match labels.iter().position(|&label| usize::from(label) >= kind.classes()) {
        Some(index) => Err(DatasetError::LabelOutOfRange { file, kind, index, label: labels[index] }),
        None => Ok((file, labels)),
    }
}

/// One of the two files that make a split.
#[derive(Debug, Clone, Copy)]
enum Part {
    Images,
    Labels,
}

impl Part {
    /// The names in use for this file: with a dash or a dot before `idx`, plain or gzipped.
    fn names(self, split: Split) -> [String; 4] {
        let stem = split.stem();
        let (what, idx) = match self {
            Self::Images => ("images", "idx3"),
            Self::Labels => ("labels", "idx1"),
        };
        [("-", ""), ("-", ".gz"), (".", ""), (".", ".gz")]
            .map(|(dash, gz)| format!("{stem}-{what}{dash}{idx}-ubyte{gz}"))
    }
}

fn locate(folder: &Path, kind: DatasetKind, split: Split, part: Part) -> Result<PathBuf, DatasetError> {
    let looked = part.names(split).map(|name| folder.join(name)).to_vec();
    for file in &looked {
        match fs::metadata(file) {
            Ok(found) if found.is_file() => return Ok(file.clone()),
            Ok(_) => {}
            Err(error) if absent(&error) => {}
            Err(reason) => return Err(DatasetError::Open { file: file.clone(), reason }),
        }
    }
    let what = match part {
        Part::Images => "images",
        Part::Labels => "labels",
    };
    Err(DatasetError::Missing { kind, split, what, looked })
}

/// Whether a file is not there, as opposed to not being allowed to look.
fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn open(file: &Path) -> Result<BufReader<File>, DatasetError> {
    let opened = File::open(file).map(BufReader::new);
    opened.map_err(|reason| DatasetError::Open { file: file.to_owned(), reason })
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
