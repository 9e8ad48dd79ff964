//! Speed of the convolution kernels on the shapes of a ResNet-20 for 32x32 images: `cargo bench -p
//! cohort-peer --bench kernels [threads]`.

use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor, Var};
use cohort_peer::kernels::{ConvGeometry, conv2d, threads};

/// Channels in, channels out, side of the image, side of the window, stride.
const SHAPES: [[usize; 5]; 7] = [
    [3, 16, 32, 3, 1],
    [16, 16, 32, 3, 1],
    [16, 32, 32, 3, 2],
    [16, 32, 32, 1, 2],
    [32, 32, 16, 3, 1],
    [32, 64, 16, 3, 2],
    [64, 64, 8, 3, 1],
];
const BATCH: usize = 128;
const REPETITIONS: usize = 15;

fn main() -> Result<()> {
    // Cargo passes `--bench` along.
    let asked = std::env::args().skip(1).find(|a| !a.starts_with("--"));
    let threads = threads::init(asked.map_or(Ok(0), |a| a.parse()).context("threads are a number")?)?;
    println!("GFLOP/s on {threads} threads, batch {BATCH}, median of {REPETITIONS}");
    println!("{:<24}{:>10}{:>12}{:>12}", "shape", "forward", "by input", "by weights");
    for [ci, co, side, k, stride] in SHAPES {
        let geometry = ConvGeometry { stride, padding: k / 2, groups: 1 };
        let x = Var::randn(0f32, 1.0, (BATCH, ci, side, side), &Device::Cpu)?;
        let w = Var::randn(0f32, 1.0, (co, ci, k, k), &Device::Cpu)?;
        let (fixed_x, fixed_w) = (x.as_detached_tensor(), w.as_detached_tensor());
        let of_input = conv2d(x.as_tensor(), &fixed_w, geometry)?;
        let of_weights = conv2d(&fixed_x, w.as_tensor(), geometry)?;
        let gflop = 2.0 * (of_input.elem_count() * ci * k * k) as f64 * 1e-9;
        let forward = median(|| conv2d(&fixed_x, &fixed_w, geometry).map(drop))?;
        // These two include candle's own share: it creates zeros and adds each gradient to them.
        let by_input = median(|| Tensor::backward(&of_input).map(drop))?;
        let by_weights = median(|| Tensor::backward(&of_weights).map(drop))?;
        let shape = format!("{ci}->{co} {k}x{k}/{stride} @{side}");
        println!(
            "{shape:<24}{:>10.0}{:>12.0}{:>12.0}",
            gflop / forward,
            gflop / by_input,
            gflop / by_weights
        );
    }
    Ok(())
}

/// Seconds of one call.
fn median(call: impl Fn() -> candle_core::Result<()>) -> Result<f64> {
    let mut seconds = Vec::with_capacity(REPETITIONS);
    for _ in 0..REPETITIONS {
        let start = Instant::now();
        call()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[REPETITIONS / 2])
}
