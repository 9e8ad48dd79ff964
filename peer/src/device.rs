//! The one place that knows cpu, cuda and metal.

use candle_core::Device;
use cohort_proto::spec::DeviceSpec;

use crate::error::PeerError;

/// Opens a device.
///
/// # Errors
/// [`PeerError::Usage`] if this build or this machine does not have it.
pub fn open(spec: DeviceSpec) -> Result<Device, PeerError> {
    match spec {
        DeviceSpec::Cpu => Ok(Device::Cpu),
        DeviceSpec::Cuda(number) => Device::new_cuda(number).map_err(|error| {
            let build = if cfg!(feature = "cuda") {
                ""
            } else {
                "; this build has no CUDA: build with --features cuda"
            };
            PeerError::Usage(format!("device cuda:{number} cannot be used: {error}{build}"))
        }),
        DeviceSpec::Metal => Device::new_metal(0).map_err(|error| {
            let build = if cfg!(feature = "metal") {
                ""
            } else {
                "; this build has no Metal: build with --features metal"
            };
            PeerError::Usage(format!("device metal cannot be used: {error}{build}"))
        }),
    }
}
