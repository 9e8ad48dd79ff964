//! What one peer says about one (step, round): tensors that were checked once, when the value was made.

use std::collections::BTreeSet;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::id::{Digest, PeerName, Round, RunId, Step, ViewId};
use crate::schema::{DType, Schema, TensorSpec};

/// A place in a contribution log. Ordered as the log is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The step.
    pub step: Step,
    /// The exchange inside the step.
    pub round: Round,
}

impl Position {
    /// The ordinary exchange of a step.
    pub fn of(step: Step) -> Self {
        Self { step, round: 0 }
    }

    /// The least position after this one.
    pub fn following(self) -> Self {
        Self { step: self.step, round: self.round.saturating_add(1) }
    }
}

/// What a contribution belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The run.
    pub run: RunId,
    /// The view that held.
    pub view: ViewId,
    /// Where in the log.
    pub position: Position,
    /// Who says it.
    pub source: PeerName,
    /// The batch it is about ([`crate::plan::PlannedBatch::hash`]).
    pub batch_hash: u64,
}

/// A tensor on its way: row-major little-endian bytes of the length that its spec asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Name, type and shape.
    pub spec: TensorSpec,
    /// The elements.
    pub data: Bytes,
}

/// A tensor of a contribution as it reaches a follower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// One to learn from.
    Whole(Tensor),
    /// One that others learn from: what it looks like, and the SHA-256 of its bytes.
    Digest {
        /// Name, type and shape.
        spec: TensorSpec,
        /// Of its bytes.
        digest: Digest,
    },
}

impl Part {
    /// Name, type and shape.
    pub fn spec(&self) -> &TensorSpec {
        match self {
            Self::Whole(tensor) => &tensor.spec,
            Self::Digest { spec, .. } => spec,
        }
    }

    /// The SHA-256 of its bytes.
    fn digest(&self) -> Digest {
        match self {
            Self::Whole(tensor) => Digest::of(&tensor.data),
            Self::Digest { digest, .. } => *digest,
        }
    }
}

/// Tensors that do not make a contribution.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ContributionError {
    /// Not the tensors that were agreed.
    #[error("it carries {got}, but {expected} was agreed")]
    Schema {
        /// What came.
        got: String,
        /// What was agreed at join.
        expected: String,
    },
    /// The data do not have the length that the shape asks for.
    #[error("tensor {name} has {got} bytes where its shape asks for {expected}")]
    Length {
        /// The tensor.
        name: String,
        /// Bytes that came.
        got: usize,
        /// Bytes that its shape asks for.
        expected: usize,
    },
    /// A NaN or an infinity.
    #[error("tensor {name} has a value that is not finite (element {element})")]
    NotFinite {
        /// The tensor.
        name: String,
        /// Flat index of the first such element.
        element: usize,
    },
    /// Unit rows that are longer than that.
    #[error("row {row} of tensor {name} has length {length:?}, where unit rows were agreed")]
    NotUnit {
        /// The tensor.
        name: String,
        /// The first such row.
        row: usize,
        /// Its Euclidean length.
        length: f64,
    },
    /// A tensor that was asked for did not come.
    #[error("tensor {name} was asked for, but only its digest came")]
    Omitted {
        /// The tensor.
        name: String,
    },
    /// The bytes are not those that were sent.
    #[error("its digest is {claimed}, but its bytes have {actual}: it was damaged on the way")]
    Digest {
        /// What the sender computed.
        claimed: String,
        /// What arrived.
        actual: String,
    },
}

/// Greatest length that is taken for that of a unit row: what rounding in f32 leaves, with room. A row may be shorter, since
/// one of zeros has no direction. What is longer would give scores and weights without bounds, and gradients with them.
const UNIT_LENGTH_MAX: f64 = 1.001;

/// A checked entry of a contribution log: fits its schema, finite, no longer than unit rows where these were agreed, and
/// with the digest of all it says. That is the same for all followers, also where a tensor reaches some of them as its
/// digest only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contribution {
    header: Header,
    /// In the order of the schema, each with the SHA-256 of its bytes.
    parts: Vec<(Part, Digest)>,
    digest: Digest,
}

impl Contribution {
    /// Checks tensors against the agreed schema and seals them with their digest.
    pub fn seal(header: Header, tensors: Vec<Tensor>, schema: &Schema) -> Result<Self, ContributionError> {
        Self::check(header, tensors.into_iter().map(Part::Whole).collect(), schema)
    }

    /// As [`Contribution::seal`], for one that came from elsewhere with the digest that its sender computed, to one who
    /// asked for the tensors with certain names.
    pub fn open(
        header: Header,
        parts: Vec<Part>,
        claimed: Digest,
        schema: &Schema,
        wanted: &BTreeSet<String>,
    ) -> Result<Self, ContributionError> {
        let missing = |part: &&Part| matches!(part, Part::Digest { spec, .. } if wanted.contains(&spec.name));
        if let Some(missing) = parts.iter().find(missing) {
            return Err(ContributionError::Omitted { name: missing.spec().name.clone() });
        }
        let contribution = Self::check(header, parts, schema)?;
        if contribution.digest == claimed {
            Ok(contribution)
        } else {
            let actual = contribution.digest.short();
            Err(ContributionError::Digest { claimed: claimed.short(), actual })
        }
    }

    fn check(header: Header, parts: Vec<Part>, schema: &Schema) -> Result<Self, ContributionError> {
        check_schema(&parts, schema)?;
        for part in &parts {
            if let Part::Whole(tensor) = part {
                check_tensor(tensor)?;
            }
        }
        let with_digest = |part: Part| {
            let digest = part.digest();
            (part, digest)
        };
        let parts: Vec<(Part, Digest)> = parts.into_iter().map(with_digest).collect();
        let digest = digest(&header, &parts);
        Ok(Self { header, parts, digest })
    }

    /// What it belongs to.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The tensors that are here, in the order of the schema.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.parts.iter().filter_map(|(part, _)| match part {
            Part::Whole(tensor) => Some(tensor),
            Part::Digest { .. } => None,
        })
    }

    /// The tensor of a name, if it is here.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors().find(|tensor| tensor.spec.name == name)
    }

    /// What reaches one who asked for the tensors with certain names: of the others only their digests.
    pub fn parts_for(&self, wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = Part> {
        self.parts.iter().map(move |(part, digest)| match part {
            Part::Whole(tensor) if !wanted(&tensor.spec.name) => {
                Part::Digest { spec: tensor.spec.clone(), digest: *digest }
            }
            part => part.clone(),
        })
    }

    /// SHA-256 of header and tensors.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Bytes of tensor data that are here.
    pub fn byte_len(&self) -> usize {
        self.tensors().map(|tensor| tensor.data.len()).sum()
    }
}

fn check_schema(parts: &[Part], schema: &Schema) -> Result<(), ContributionError> {
    if parts.iter().map(Part::spec).eq(schema.tensors()) {
        return Ok(());
    }
    let got: Vec<String> = parts.iter().map(|part| part.spec().to_string()).collect();
    Err(ContributionError::Schema { got: format!("[{}]", got.join(", ")), expected: schema.to_string() })
}

fn check_tensor(tensor: &Tensor) -> Result<(), ContributionError> {
    let name = || tensor.spec.name.clone();
    let expected = tensor.spec.byte_len().unwrap_or(usize::MAX);
    if tensor.data.len() != expected {
        return Err(ContributionError::Length { name: name(), got: tensor.data.len(), expected });
    }
    let bad = match tensor.spec.dtype {
        DType::F32 => tensor.data.as_chunks().0.iter().position(|&b| !f32::from_le_bytes(b).is_finite()),
        DType::F64 => tensor.data.as_chunks().0.iter().position(|&b| !f64::from_le_bytes(b).is_finite()),
    };
    if let Some(element) = bad {
        return Err(ContributionError::NotFinite { name: name(), element });
    }
    let long = match tensor.spec.dtype {
        _ if !tensor.spec.is_of_stage() => None,
        DType::F32 => long_row(tensor, |bytes| f64::from(f32::from_le_bytes(bytes))),
        DType::F64 => long_row(tensor, f64::from_le_bytes),
    };
    long.map_or(Ok(()), |(row, length)| Err(ContributionError::NotUnit { name: name(), row, length }))
}

/// The first row that is longer than a unit row, and its length.
fn long_row<const BYTES: usize>(
    tensor: &Tensor,
    number: impl Fn([u8; BYTES]) -> f64,
) -> Option<(usize, f64)> {
    let width = tensor.spec.shape.last().copied().unwrap_or(1).max(1);
    let length = |row: &[[u8; BYTES]]| row.iter().map(|&bytes| number(bytes).powi(2)).sum::<f64>().sqrt();
    let lengths = tensor.data.as_chunks().0.chunks(width).map(length);
    lengths.enumerate().find(|(_, length)| *length > UNIT_LENGTH_MAX)
}

/// SHA-256 of: the text `cohort.contribution.v2`; run, view, step, round and batch hash as u64; the source's name;
/// then per tensor its name, type (0 for f32, 1 for f64), rank and dimensions as u64, and the SHA-256 of its data. All
/// numbers are little-endian; each name is preceded by its length as u64.
fn digest(header: &Header, parts: &[(Part, Digest)]) -> Digest {
    let mut sha = Sha256::new();
    sha.update(b"cohort.contribution.v2");
    let Header { run, view, position, source, batch_hash } = header;
    for number in [run.0, view.0, position.step, u64::from(position.round), *batch_hash] {
        sha.update(number.to_le_bytes());
    }
    let text = |sha: &mut Sha256, text: &str| {
        sha.update((text.len() as u64).to_le_bytes());
        sha.update(text.as_bytes());
    };
    text(&mut sha, source.as_str());
    for (part, data) in parts {
        let spec = part.spec();
        text(&mut sha, &spec.name);
        let dtype = match spec.dtype {
            DType::F32 => 0u64,
            DType::F64 => 1,
        };
        sha.update(dtype.to_le_bytes());
        sha.update((spec.shape.len() as u64).to_le_bytes());
        spec.shape.iter().for_each(|&dim| sha.update((dim as u64).to_le_bytes()));
        sha.update(data.0);
    }
    Digest(sha.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let source = PeerName::new("a").unwrap();
        Header { run: RunId(1), view: ViewId(1), position: Position::of(3), source, batch_hash: 9 }
    }

    fn tensor(values: &[f32]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let spec = TensorSpec { name: "logits".into(), dtype: DType::F32, shape: vec![values.len()] };
        Tensor { spec, data: data.into() }
    }

    fn all(tensor: &Tensor) -> BTreeSet<String> {
        [tensor.spec.name.clone()].into()
    }

    fn schema(tensor: &Tensor) -> Schema {
        Schema::new(vec![tensor.spec.clone()]).unwrap()
    }

    #[test]
    fn sealed_then_opened() {
        let t = tensor(&[1.0, -2.5]);
        let sealed = Contribution::seal(header(), vec![t.clone()], &schema(&t)).unwrap();
        let parts = vec![Part::Whole(t.clone())];
        let opened = Contribution::open(header(), parts, sealed.digest(), &schema(&t), &all(&t)).unwrap();
        assert_eq!(sealed, opened);
    }

    #[test]
    fn whoever_asks_for_less_finds_the_same_digest() {
        let t = tensor(&[1.0, -2.5]);
        let other =
            Tensor { spec: TensorSpec { name: "embed.0".into(), ..t.spec.clone() }, ..tensor(&[0.6, 0.8]) };
        let agreed = Schema::new(vec![t.spec.clone(), other.spec.clone()]).unwrap();
        let sealed = Contribution::seal(header(), vec![t.clone(), other.clone()], &agreed).unwrap();
        let parts = |wanted: &str| sealed.parts_for(|name| name == wanted).collect::<Vec<Part>>();
        let open = |parts, wanted: &Tensor| {
            Contribution::open(header(), parts, sealed.digest(), &agreed, &all(wanted))
        };
        for (wanted, bytes) in [(&t, 8), (&other, 8)] {
            let opened = open(parts(&wanted.spec.name), wanted).unwrap();
            assert_eq!((opened.digest(), opened.byte_len()), (sealed.digest(), bytes));
            assert_eq!(opened.tensors().collect::<Vec<_>>(), [wanted]);
            assert_eq!(opened.tensor("logits").is_some(), wanted == &t);
        }
        let omitted = ContributionError::Omitted { name: "logits".into() };
        assert_eq!(open(parts("embed.0"), &t), Err(omitted));
        let mut forged = parts("logits");
        forged[1] = Part::Digest { spec: other.spec.clone(), digest: Digest::of(b"something else") };
        assert!(matches!(open(forged, &t), Err(ContributionError::Digest { .. })));
        let mut missing = parts("logits");
        missing.truncate(1);
        assert!(matches!(open(missing, &t), Err(ContributionError::Schema { .. })));
    }

    #[test]
    fn every_part_enters_the_digest() {
        let t = tensor(&[1.0, -2.5]);
        let digest = |header: &Header, tensors: &[Tensor]| {
            let specs = tensors.iter().map(|tensor| tensor.spec.clone()).collect();
            let agreed = Schema::new(specs).unwrap();
            Contribution::seal(header.clone(), tensors.to_vec(), &agreed).unwrap().digest()
        };
        let base = digest(&header(), std::slice::from_ref(&t));
        let mut others = vec![digest(&header(), &[tensor(&[1.0, -2.0])]), digest(&header(), &[])];
        let mut renamed = t.clone();
        renamed.spec.name = "logitz".into();
        others.push(digest(&header(), &[renamed]));
        let mut reshaped = t.clone();
        reshaped.spec.shape = vec![2, 1];
        others.push(digest(&header(), &[reshaped]));
        let changes: [fn(&mut Header); 6] = [
            |h| h.run = RunId(2),
            |h| h.view = ViewId(2),
            |h| h.position.step = 4,
            |h| h.position.round = 1,
            |h| h.source = PeerName::new("b").unwrap(),
            |h| h.batch_hash = 8,
        ];
        for change in changes {
            let mut changed = header();
            change(&mut changed);
            others.push(digest(&changed, std::slice::from_ref(&t)));
        }
        others.iter().for_each(|other| assert_ne!(*other, base));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let t = tensor(&[1.0, 2.0]);
        let agreed = schema(&t);
        let wrong_shape = Contribution::seal(header(), vec![tensor(&[1.0])], &agreed);
        assert!(matches!(wrong_shape, Err(ContributionError::Schema { .. })));
        let nan = Contribution::seal(header(), vec![tensor(&[0.0, f32::NAN])], &agreed);
        assert_eq!(nan, Err(ContributionError::NotFinite { name: "logits".into(), element: 1 }));
        let short = Tensor { data: t.data.slice(..7), ..t.clone() };
        let expected = ContributionError::Length { name: "logits".into(), got: 7, expected: 8 };
        assert_eq!(Contribution::seal(header(), vec![short], &agreed), Err(expected));
        let other = Digest::of(b"");
        let damaged = Contribution::open(header(), vec![Part::Whole(t.clone())], other, &agreed, &all(&t));
        assert!(matches!(damaged, Err(ContributionError::Digest { .. })));
    }

    #[test]
    fn rows_that_were_agreed_to_be_unit_rows_are_no_longer() {
        let rows = |name: &str, dtype, values: &[f64]| {
            let bytes = |v: &f64| match dtype {
                DType::F32 => (*v as f32).to_le_bytes().to_vec(),
                DType::F64 => v.to_le_bytes().to_vec(),
            };
            let data: Vec<u8> = values.iter().flat_map(bytes).collect();
            let spec = TensorSpec { name: name.into(), dtype, shape: vec![values.len() / 2, 2] };
            let schema = Schema::new(vec![spec.clone()]).unwrap();
            Contribution::seal(header(), vec![Tensor { spec, data: data.into() }], &schema).map(|_| ())
        };
        for dtype in [DType::F32, DType::F64] {
            let unit = [0.0, 0.0, 0.6, -0.8, 0.0, 1.000001];
            assert_eq!(rows("embed.0", dtype, &unit), Ok(()), "a row of zeros has no direction");
            for (values, length) in [([1.0, 0.0, 3.0, 4.0], 5.0), ([0.0, 0.0, 0.0, 1e30], 1e30)] {
                for name in ["embed.0", "match.3"] {
                    let Err(ContributionError::NotUnit { name: of, row: 1, length: got }) =
                        rows(name, dtype, &values)
                    else {
                        panic!("{name} of length {length}");
                    };
                    assert!(of == name && (got - length).abs() <= 1e-6 * length, "{of}, {got}");
                }
                assert_eq!(rows("logits", dtype, &values), Ok(()));
            }
        }
        let overflows = rows("match.0", DType::F64, &[1e200, 1e200]).unwrap_err().to_string();
        assert!(overflows.contains("row 0 of tensor match.0 has length inf"), "{overflows}");
    }
}
