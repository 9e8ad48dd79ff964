//! What every family must do, against PyTorch where there is a number to compare.

mod auxiliary;
mod golden;
mod networks;
mod parameters;
mod weights;

use candle_core::{DType, Device, Tensor};

use super::{ImageShape, Network, Params, build};

/// The smallest grey image.
const TINY: ImageShape = ImageShape { channels: 1, height: 8, width: 8 };

fn params(dtype: DType) -> Params {
    Params::new(7, "a", dtype, &Device::Cpu).unwrap()
}

fn network(arch: &str, image: ImageShape, classes: usize, dtype: DType) -> (Params, Box<dyn Network>) {
    let mut params = params(dtype);
    let network = build(arch, image, classes, &mut params).unwrap();
    (params, network)
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// A batch of fixed numbers between -1 and 1.
fn images(image: ImageShape, batch: usize, dtype: DType) -> Tensor {
    let shape = (batch, image.channels, image.height, image.width);
    let count = batch * image.channels * image.height * image.width;
    let numbers: Vec<f64> = (0..count).map(|i| (i as f64 * 0.7).sin()).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}
