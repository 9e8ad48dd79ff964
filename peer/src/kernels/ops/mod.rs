//! The kernels as candle operations with gradients; the only place that knows both candle and the kernels.

pub(super) mod link;
pub(super) mod flow;
pub(super) mod conv;
pub(super) mod batch_norm;
pub(super) mod pointwise;
pub(super) mod pool;
pub(super) mod loss;
pub(super) mod update;

use candle_core::{CpuStorage, DType, Layout, Result, Shape, Storage, Tensor, WithDType};

/// Whether the fast path takes these operands: f32 in main memory, with something to compute.
pub(super) fn accepts(operands: &[&Tensor]) -> bool {
    operands.iter().all(|t| t.dtype() == DType::F32 && t.device().is_cpu() && t.elem_count() > 0)
}

/// The values of an operand, which the door has made contiguous.
fn values<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("kernel operand of shape {:?} is not contiguous", layout.dims())
    };
    Ok(&storage.as_slice::<T>()?[start..end])
}

/// The values of an operand that is changed in place.
fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let (Some((start, end)), CpuStorage::F32(all)) = (layout.contiguous_offsets(), storage) else {
        candle_core::bail!("kernel operand of shape {:?} is not contiguous f32", layout.dims())
    };
    Ok(&mut all[start..end])
}

/// Runs `f` on the values of a tensor in main memory.
pub(super) fn with_values<T: WithDType, R>(tensor: &Tensor, f: impl FnOnce(&[T]) -> Result<R>) -> Result<R> {
    // The gradient of a sum or a broadcast arrives with strides.
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(values(storage, layout)?),
        _ => candle_core::bail!("kernel operand of shape {:?} is not in main memory", tensor.dims()),
    }
}

pub(super) fn tensor<T: WithDType>(values: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &candle_core::Device::Cpu)
}
