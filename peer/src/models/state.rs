//! State dicts: tensors by name, in memory and in safetensors files that PyTorch reads, and whether they fit.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

/// Tensors by name.
pub type StateDict = BTreeMap<String, Tensor>;

/// Largest weights file that is read, in bytes.
pub const FILE_BYTES_MAX: u64 = 4 << 30;

/// Names listed in an error before "and N more".
const LISTED_MAX: usize = 6;

/// Which differences between a file and a network are allowed.
#[derive(Debug, Clone, Copy)]
pub enum Strictness<'a> {
    /// None: the names must be the same on both sides.
    Strict,
    /// Names that begin with one of `prefixes` may be missing from the file or unknown to the network: the heads that
    /// a method adds, such as `embed.`. Their shapes must still fit.
    Lenient {
        /// Beginnings of names, with the closing dot.
        prefixes: &'a [&'a str],
    },
    /// The file may hold more than the network: names that begin with one of `prefixes`. Whatever the network has must be
    /// there, since it will not be learnt.
    Complete {
        /// Beginnings of names, with the closing dot.
        prefixes: &'a [&'a str],
    },
}

impl Strictness<'_> {
    fn allows_missing(&self, name: &str) -> bool {
        matches!(self, Self::Lenient { .. }) && self.allows_surplus(name)
    }

    fn allows_surplus(&self, name: &str) -> bool {
        match self {
            Self::Strict => false,
            Self::Lenient { prefixes } | Self::Complete { prefixes } => {
                prefixes.iter().any(|prefix| name.starts_with(prefix))
            }
        }
    }
}

/// What a load did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// How many tensors were replaced.
    pub loaded: usize,
    /// Names that the source lacked and that kept their value.
    pub kept: Vec<String>,
    /// Names of the source that nothing here is called.
    pub ignored: Vec<String>,
}

/// Every reason why a source does not fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// Expected names that the source lacks.
    pub missing: Vec<String>,
    /// Names of the source that were not expected.
    pub unexpected: Vec<String>,
    /// Name, expected shape, shape found.
    pub wrong_shape: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Names whose elements are whole numbers where reals are expected.
    pub wrong_type: Vec<String>,
    /// Names that hold NaN, an infinity, or a variance below 0.
    pub not_finite: Vec<String>,
}

impl Mismatch {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shapes =
            self.wrong_shape.iter().map(|(name, want, got)| format!("{name} is {got:?} instead of {want:?}"));
        let parts = [
            ("missing", self.missing.clone()),
            ("unexpected", self.unexpected.clone()),
            ("wrong shape", shapes.collect()),
            ("not real numbers", self.wrong_type.clone()),
            ("NaN, infinite or a negative variance", self.not_finite.clone()),
        ];
        let words = parts.iter().filter(|(_, names)| !names.is_empty()).map(|(what, names)| {
            let listed = names.iter().take(LISTED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
            match names.len().saturating_sub(LISTED_MAX) {
                0 => format!("{what}: {listed}"),
                more => format!("{what}: {listed} and {more} more"),
            }
        });
        f.write_str(&words.collect::<Vec<_>>().join("; "))
    }
}

/// Why tensors could not be read, written or taken over.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The tensors are those of something else.
    #[error("the tensors do not fit ({0})")]
    Mismatch(Mismatch),
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is there but is not a whole, valid safetensors file.
    #[error("{} is damaged or not a safetensors file: {defect}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        defect: String,
    },
    /// The device failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Reads a safetensors file onto the CPU, with the element types of the file.
///
/// # Errors
/// [`StateError::File`] or [`StateError::Damaged`], naming the file; never a panic, whatever the bytes.
pub fn load_safetensors(path: &Path) -> Result<StateDict, StateError> {
    let unreadable = |source| StateError::File { action: "read", path: path.to_owned(), source };
    let damaged = |defect| StateError::Damaged { path: path.to_owned(), defect };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > FILE_BYTES_MAX {
        return Err(damaged(format!("{size} bytes are more than the limit of {FILE_BYTES_MAX}")));
    }
    decode(&std::fs::read(path).map_err(unreadable)?).map_err(damaged)
}

/// Writes a safetensors file with the metadata that PyTorch's readers look for. The bytes depend on the tensors alone.
/// Whoever needs the file to appear whole or not at all writes it under another name and renames it.
///
/// # Errors
/// [`StateError::File`] naming the file; [`StateError::Tensor`] if an element type has no place in such a file.
pub fn save_safetensors(path: &Path, tensors: &StateDict) -> Result<(), StateError> {
    let bytes = encode(tensors)?;
    std::fs::write(path, bytes).map_err(|source| StateError::File {
        action: "write",
        path: path.to_owned(),
        source,
    })
}

/// The bytes of a safetensors file.
///
/// # Errors
/// If an element type is not f32, f64 or i64, or the device fails.
pub fn encode(tensors: &StateDict) -> candle_core::Result<Vec<u8>> {
    let raw: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| Ok((name, raw_bytes(tensor)?)))
        .collect::<candle_core::Result<_>>()?;
    let views = raw.iter().map(|(name, (dtype, shape, bytes))| {
        Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).map_err(candle_core::Error::wrap)?))
    });
    let views = views.collect::<candle_core::Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata)).map_err(candle_core::Error::wrap)
}

type RawTensor = (Dtype, Vec<usize>, Vec<u8>);

fn raw_bytes(tensor: &Tensor) -> candle_core::Result<RawTensor> {
    let flat = tensor.to_device(&Device::Cpu)?.flatten_all()?;
    let (dtype, bytes) = match tensor.dtype() {
        DType::F32 => (Dtype::F32, flat.to_vec1::<f32>()?.into_iter().flat_map(f32::to_le_bytes).collect()),
        DType::F64 => (Dtype::F64, flat.to_vec1::<f64>()?.into_iter().flat_map(f64::to_le_bytes).collect()),
        DType::I64 => (Dtype::I64, flat.to_vec1::<i64>()?.into_iter().flat_map(i64::to_le_bytes).collect()),
        other => candle_core::bail!("state dicts hold f32, f64 and i64, not {other:?}"),
    };
    Ok((dtype, tensor.dims().to_vec(), bytes))
}

/// Reads the bytes of a safetensors file onto the CPU.
///
/// # Errors
/// What is wrong with the bytes, in words.
pub fn decode(bytes: &[u8]) -> Result<StateDict, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let tensors = file.iter().map(|(name, view)| {
        // A tensor without elements is no weight, and its other sides could be absurd.
        if view.shape().contains(&0) {
            return Err(format!("`{name}` has the shape {:?}", view.shape()));
        }
        let dtype = match view.dtype() {
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::F32 => DType::F32,
            Dtype::F64 => DType::F64,
            Dtype::I64 => DType::I64,
            other => return Err(format!("`{name}` has elements of type {other:?}, which no weights have")),
        };
        let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu);
        Ok((name.to_owned(), tensor.map_err(|error| format!("`{name}`: {error}"))?))
    });
    tensors.collect()
}

/// What a tensor must be like to be taken over.
#[derive(Debug)]
pub(crate) struct Expected {
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: DType,
    pub(crate) optional: bool,
}

/// Checks `source` against what is expected and converts the tensors that are, still on their own device.
pub(crate) fn fit(
    expected: BTreeMap<&str, Expected>,
    source: &StateDict,
    strictness: Strictness<'_>,
) -> Result<(StateDict, LoadReport), StateError> {
    let (mut fitted, mut report, mut mismatch) =
        (StateDict::new(), LoadReport::default(), Mismatch::default());
    for (name, want) in &expected {
        match source.get(*name) {
            Some(tensor) => {
                if let Some(tensor) = fit_one(name, want, tensor, &mut mismatch)? {
                    fitted.insert((*name).to_owned(), tensor);
                }
            }
            None if want.optional || (strictness.allows_missing(name) && !begun(name, source)) => {
                report.kept.push((*name).to_owned())
            }
            None => mismatch.missing.push((*name).to_owned()),
        }
    }
    for name in source.keys().filter(|name| !expected.contains_key(name.as_str())) {
        let list =
            if strictness.allows_surplus(name) { &mut report.ignored } else { &mut mismatch.unexpected };
        list.push(name.clone());
    }
    if !mismatch.is_empty() {
        return Err(StateError::Mismatch(mismatch));
    }
    report.loaded = fitted.len();
    Ok((fitted, report))
}

/// Whether a source has another tensor of the same head (`embed.0.` and the like): half a head is a damaged one.
fn begun(name: &str, source: &StateDict) -> bool {
    let end = name.match_indices('.').nth(1).map_or(name.len(), |(at, _)| at + 1);
    name.get(..end).is_some_and(|head| source.keys().any(|other| other.starts_with(head)))
}

fn fit_one(
    name: &str,
    want: &Expected,
    tensor: &Tensor,
    mismatch: &mut Mismatch,
) -> candle_core::Result<Option<Tensor>> {
    if tensor.dims() != want.shape {
        mismatch.wrong_shape.push((name.to_owned(), want.shape.clone(), tensor.dims().to_vec()));
        return Ok(None);
    }
    if want.dtype.is_float() {
        if !tensor.dtype().is_float() {
            mismatch.wrong_type.push(name.to_owned());
            return Ok(None);
        }
        let values = tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        let is_variance = name.ends_with("running_var");
        if values.iter().any(|value| !value.is_finite() || (is_variance && *value < 0.0)) {
            mismatch.not_finite.push(name.to_owned());
            return Ok(None);
        }
    }
    Ok(Some(tensor.to_dtype(want.dtype)?))
}

/// What other writers put in front of the names of a whole file: DataParallel, and L-MCL's list of a single network.
const WRAPPERS: [&str; 2] = ["module.", "module_list.0."];

/// Spells the names of other writers as the networks here do: without [`WRAPPERS`], without the `backbone.` of a network
/// that was saved beside its `auxiliary_classifier.`, and with the classifier of a network that has an `fc` called `fc`.
pub(crate) fn normalise_names(source: &StateDict, expected: &BTreeSet<&str>) -> StateDict {
    let mut renamed = source.clone();
    for wrapper in WRAPPERS {
        if renamed.keys().all(|name| name.starts_with(wrapper)) {
            renamed = without(wrapper, renamed);
        }
    }
    if renamed.keys().all(|name| name.starts_with("backbone.") || name.starts_with("auxiliary_classifier.")) {
        renamed = without("backbone.", renamed);
    }
    let has_fc = renamed.keys().any(|name| name.starts_with("fc."));
    if has_fc || !expected.contains("fc.weight") || expected.contains("classifier.weight") {
        return renamed;
    }
    let as_fc = |name: String| match name.strip_prefix("classifier.") {
        Some(rest) => format!("fc.{rest}"),
        None => name,
    };
    renamed.into_iter().map(|(name, tensor)| (as_fc(name), tensor)).collect()
}

/// The same tensors with a beginning of their names removed where they have it.
fn without(prefix: &str, tensors: StateDict) -> StateDict {
    let bare = |name: String| name.strip_prefix(prefix).map(str::to_owned).unwrap_or(name);
    tensors.into_iter().map(|(name, tensor)| (bare(name), tensor)).collect()
}
