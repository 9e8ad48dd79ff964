//! What a peer says: names, types and shapes, agreed when it joins and checked before anything is allocated.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::{CONTRIBUTION_BYTES_MAX, RANK_MAX, TENSORS_MAX};

/// Element types that travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DType {
    /// 32-bit IEEE 754.
    F32,
    /// 64-bit IEEE 754.
    F64,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

/// One tensor's name, type and shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// Such as `logits` or `embed.0`.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Bytes of the data; `None` if that is more than a contribution may have.
    pub fn byte_len(&self) -> Option<usize> {
        self.shape
            .iter()
            .try_fold(self.dtype.bytes(), |bytes, &dim| bytes.checked_mul(dim))
            .filter(|&bytes| bytes <= CONTRIBUTION_BYTES_MAX)
    }

    /// Whether it holds unit rows, `embed.k` or `match.k` of a stage k.
    pub fn is_of_stage(&self) -> bool {
        self.name.starts_with("embed.") || self.name.starts_with("match.")
    }
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}{:?}", self.name, self.dtype, self.shape)
    }
}

/// A schema that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// More tensors than any method says.
    #[error("the schema has {0} tensors; at most {TENSORS_MAX} are allowed")]
    TooManyTensors(usize),
    /// A name is empty, too long or appears twice.
    #[error("the schema's tensor name {0:?} is empty, too long or appears twice")]
    BadTensorName(String),
    /// More dimensions than any tensor of ours.
    #[error("tensor {name} has {rank} dimensions; at most {RANK_MAX} are allowed")]
    Rank {
        /// The tensor.
        name: String,
        /// Its number of dimensions.
        rank: usize,
    },
    /// Together the tensors are larger than one message may be.
    #[error("the schema's tensors exceed {CONTRIBUTION_BYTES_MAX} bytes in all")]
    TooLarge,
    /// A schema was asked for a peer that the run does not have.
    #[error("the run has no peer {0}")]
    NoPeer(usize),
}

/// The tensors of a contribution, in the order in which they are sent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Schema(Vec<TensorSpec>);

impl Schema {
    /// Checks and takes the tensors.
    pub fn new(tensors: Vec<TensorSpec>) -> Result<Self, SchemaError> {
        if tensors.len() > TENSORS_MAX {
            return Err(SchemaError::TooManyTensors(tensors.len()));
        }
        let mut total = 0usize;
        for (i, tensor) in tensors.iter().enumerate() {
            let twice = tensors[..i].iter().any(|other| other.name == tensor.name);
            if tensor.name.is_empty() || tensor.name.len() > 100 || twice {
                return Err(SchemaError::BadTensorName(tensor.name.chars().take(100).collect()));
            }
            if tensor.shape.len() > RANK_MAX {
                return Err(SchemaError::Rank { name: tensor.name.clone(), rank: tensor.shape.len() });
            }
            total =
                tensor.byte_len().and_then(|bytes| total.checked_add(bytes)).ok_or(SchemaError::TooLarge)?;
        }
        if total > CONTRIBUTION_BYTES_MAX { Err(SchemaError::TooLarge) } else { Ok(Self(tensors)) }
    }

    /// The tensors in order.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.0
    }

    /// Bytes of tensor data in one contribution.
    pub fn byte_len(&self) -> usize {
        self.0.iter().filter_map(TensorSpec::byte_len).sum()
    }
}

impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        write!(f, "[{}]", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, shape: &[usize]) -> TensorSpec {
        TensorSpec { name: name.into(), dtype: DType::F32, shape: shape.to_vec() }
    }

    #[test]
    fn sizes_add_up() {
        let schema = Schema::new(vec![tensor("logits", &[128, 10]), tensor("embed.0", &[128, 128])]).unwrap();
        assert_eq!(schema.byte_len(), 128 * 10 * 4 + 128 * 128 * 4);
    }

    #[test]
    fn hostile_schemas_are_refused() {
        let huge = tensor("x", &[usize::MAX, usize::MAX]);
        assert_eq!(Schema::new(vec![huge]), Err(SchemaError::TooLarge));
        let half = CONTRIBUTION_BYTES_MAX / 8 + 1;
        assert_eq!(Schema::new(vec![tensor("a", &[half]), tensor("b", &[half])]), Err(SchemaError::TooLarge));
        assert!(matches!(
            Schema::new(vec![tensor("a", &[1]), tensor("a", &[1])]),
            Err(SchemaError::BadTensorName(_))
        ));
        assert!(matches!(Schema::new(vec![tensor("a", &[1; 9])]), Err(SchemaError::Rank { .. })));
        assert!(matches!(Schema::new(vec![tensor("a", &[1]); 65]), Err(SchemaError::TooManyTensors(65))));
    }
}
