//! Tensors and their specs.

use super::{WireError, required};
use crate::contribution::{Part, Tensor};
use crate::limits::{RANK_MAX, TENSORS_MAX};
use crate::schema::{DType, Schema, TensorSpec};
use crate::wire;

impl TryFrom<wire::TensorSpec> for TensorSpec {
    type Error = WireError;

    fn try_from(spec: wire::TensorSpec) -> Result<Self, WireError> {
        let dtype = match spec.dtype() {
            wire::DType::DtypeF32 => DType::F32,
            wire::DType::DtypeF64 => DType::F64,
            wire::DType::DtypeUnspecified => {
                return Err(WireError::new("dtype", format!("{} is not an element type", spec.dtype)));
            }
        };
        super::at_most("shape", spec.shape.len(), RANK_MAX)?;
        Ok(Self { name: spec.name, dtype, shape: spec.shape.into_iter().map(|dim| dim as usize).collect() })
    }
}

impl From<&TensorSpec> for wire::TensorSpec {
    fn from(spec: &TensorSpec) -> Self {
        let dtype = match spec.dtype {
            DType::F32 => wire::DType::DtypeF32,
            DType::F64 => wire::DType::DtypeF64,
        };
        // A checked schema has at most CONTRIBUTION_BYTES_MAX bytes, so no dimension exceeds a u32 unless another is 0.
        let shape = spec.shape.iter().map(|&dim| u32::try_from(dim).unwrap_or(u32::MAX)).collect();
        Self { name: spec.name.clone(), dtype: dtype.into(), shape }
    }
}

pub(super) fn schema(specs: Vec<wire::TensorSpec>) -> Result<Schema, WireError> {
    super::at_most("schema", specs.len(), TENSORS_MAX)?;
    let specs: Result<Vec<TensorSpec>, WireError> = specs.into_iter().map(TryInto::try_into).collect();
    Schema::new(specs?).map_err(|error| WireError::new("schema", error))
}

pub(super) fn schema_to_wire(schema: &Schema) -> Vec<wire::TensorSpec> {
    schema.tensors().iter().map(Into::into).collect()
}

impl TryFrom<wire::Tensor> for Part {
    type Error = WireError;

    fn try_from(tensor: wire::Tensor) -> Result<Self, WireError> {
        let wire::Tensor { spec, data, digest } = tensor;
        let spec = required("spec", spec)?.try_into()?;
        match (data.is_empty(), digest.is_empty()) {
            (_, true) => Ok(Self::Whole(Tensor { spec, data })),
            (true, false) => Ok(Self::Digest { spec, digest: super::digest("tensor digest", &digest)? }),
            (false, false) => Err(WireError::new("tensor", "has both data and their digest")),
        }
    }
}

impl From<Part> for wire::Tensor {
    fn from(part: Part) -> Self {
        let spec = Some(part.spec().into());
        match part {
            Part::Whole(tensor) => Self { spec, data: tensor.data, digest: Vec::new() },
            Part::Digest { digest, .. } => {
                Self { spec, data: bytes::Bytes::new(), digest: digest.0.to_vec() }
            }
        }
    }
}
