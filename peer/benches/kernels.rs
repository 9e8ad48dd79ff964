//! Speed of the kernels on the shapes of networks for 32x32 images: `cargo bench -p cohort-peer --bench kernels`.
//!
//! `COHORT_THREADS` sets the threads (all cores if unset). After criterion's own figures stands a table of GFLOP/s
//! and, for convolutions, of the share of what the matrix product that candle uses reaches on the same threads; a
//! Winograd convolution may exceed it, since it is counted by its definition. Backward passes begin at the mean over
//! each channel's pixels, whose own backward pass they include.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Result, Tensor, Var};
use cohort_peer::kernels::{
    Activation, ConvGeometry, Maps, PoolGeometry, Sgd, adaptive_avg_pool2d, add, batch_norm_train, conv2d,
    global_avg_pool, max_pool2d, sgd_step, softmax_cross_entropy,
    threads::{self, Threads},
};
use criterion::Criterion;
use rayon::prelude::*;

const BATCH: usize = 128;

/// Channels in, channels out, side of the image, side of the window, stride, groups.
const CONVOLUTIONS: [[usize; 6]; 11] = [
    [3, 16, 32, 3, 1, 1],
    [16, 16, 32, 3, 1, 1],
    [16, 32, 32, 3, 2, 1],
    [16, 32, 32, 1, 2, 1],
    [32, 32, 16, 3, 1, 1],
    [32, 64, 16, 3, 2, 1],
    [64, 64, 8, 3, 1, 1],
    [96, 96, 16, 1, 1, 3],
    [16, 16, 32, 3, 1, 16],
    [64, 64, 16, 3, 2, 64],
    [128, 128, 8, 5, 1, 128],
];

/// Seconds of one call of everything that was measured, for the table.
struct Table(Vec<(String, f64, f64)>);

fn main() -> anyhow::Result<()> {
    let count = std::env::var("COHORT_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let threads = threads::init(Threads { count, cores: Vec::new() })?;
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let mut table = Table(Vec::new());
    convolutions(&mut criterion, &mut table)?;
    planes(&mut criterion, &mut table)?;
    training(&mut criterion, &mut table)?;
    criterion.final_summary();
    Ok(table.print(threads)?)
}

fn random(shape: &[usize]) -> Result<Var> {
    Var::randn(0f32, 1.0, shape, &Device::Cpu)
}

/// Random maps whose gradient is computed.
fn probe(shape: &[usize]) -> Result<Maps> {
    Maps::probe(&random(shape)?.as_detached_tensor())
}

fn convolutions(criterion: &mut Criterion, table: &mut Table) -> Result<()> {
    for [ci, co, side, k, stride, groups] in CONVOLUTIONS {
        let geometry = ConvGeometry { stride, padding: k / 2, groups };
        let (x, w) = (random(&[BATCH, ci, side, side])?, random(&[co, ci / groups, k, k])?);
        let (x, fixed_w) = (Maps::from_tensor(&x.as_detached_tensor())?, w.as_detached_tensor());
        let of_input = conv2d(&probe(&[BATCH, ci, side, side])?, &fixed_w, geometry)?;
        let gflop = 2e-9 * (of_input.shape().elem_count() * ci / groups * k * k) as f64;
        let name = format!("conv {ci}->{co} {k}x{k}/{stride} @{side} groups {groups}");
        let (of_input, of_weights) =
            (global_avg_pool(&of_input)?, global_avg_pool(&conv2d(&x, w.as_tensor(), geometry)?)?);
        table.measure(criterion, &format!("{name} forward"), gflop, || conv2d(&x, &fixed_w, geometry))?;
        table.measure(criterion, &format!("{name} by input"), gflop, || of_input.backward())?;
        table.measure(criterion, &format!("{name} by weights"), gflop, || of_weights.backward())?;
    }
    Ok(())
}

/// What works on planes: its operations are counted as a handful for each value, so that its GFLOP/s only compare
/// with themselves.
fn planes(criterion: &mut Criterion, table: &mut Table) -> Result<()> {
    let (x, c) = (probe(&[BATCH, 16, 32, 32])?, random(&[16])?);
    let c = c.as_tensor();
    let gflop = 1e-9 * x.shape().elem_count() as f64;
    let pool = PoolGeometry { kernel: 3, stride: 2, padding: 1 };
    type Op<'a> = (&'a str, f64, &'a dyn Fn() -> Result<Maps>);
    let normalise = |r| batch_norm_train(&x, c, c, 1e-5, r, Activation::Relu).map(|(y, _)| y);
    let operations: [Op<'_>; 5] = [
        ("batch norm + relu", 8.0, &|| normalise(None)),
        ("batch norm + residual + relu", 9.0, &|| normalise(Some(&x))),
        ("sum of two branches", 1.0, &|| add(&x, &x)),
        ("max pool 3x3/2", 9.0 / 4.0, &|| max_pool2d(&x, pool)),
        ("adaptive average pool to 7x7", 1.0, &|| adaptive_avg_pool2d(&x, (7, 7))),
    ];
    for (name, per_value, op) in operations {
        let y = global_avg_pool(&op()?)?;
        table.measure(criterion, &format!("{name} forward"), per_value * gflop, op)?;
        table.measure(criterion, &format!("{name} backward"), per_value * gflop, || y.backward())?;
    }
    let y = global_avg_pool(&x)?;
    table.measure(criterion, "global average pool forward", gflop, || global_avg_pool(&x))?;
    table.measure(criterion, "global average pool backward", gflop, || y.backward())?;
    Ok(())
}

fn training(criterion: &mut Criterion, table: &mut Table) -> Result<()> {
    let logits = random(&[BATCH, 1000])?;
    let labels = Tensor::zeros(BATCH, DType::U32, &Device::Cpu)?;
    let gflop = 3e-9 * logits.elem_count() as f64;
    let loss = softmax_cross_entropy(logits.as_tensor(), &labels)?;
    table.measure(criterion, "cross-entropy of 1000 classes forward", gflop, || {
        softmax_cross_entropy(logits.as_tensor(), &labels)
    })?;
    table.measure(criterion, "cross-entropy of 1000 classes backward", gflop, || loss.backward())?;
    let (param, velocity, grad) = (random(&[1 << 20])?, random(&[1 << 20])?, random(&[1 << 20])?);
    let sgd = Sgd { lr: 1e-9, momentum: 0.9, weight_decay: 5e-4, nesterov: true };
    let gflop = 8e-9 * param.elem_count() as f64;
    table.measure(criterion, "sgd of a million parameters", gflop, || {
        sgd_step(&param, &velocity, Some(grad.as_tensor()), sgd)
    })?;
    Ok(())
}

impl Table {
    /// Hands a call to criterion and keeps the median of its own samples too.
    fn measure<T>(
        &mut self,
        criterion: &mut Criterion,
        name: &str,
        gflop: f64,
        call: impl Fn() -> Result<T>,
    ) -> Result<()> {
        call()?;
        let mut seconds = Vec::new();
        criterion.bench_function(name, |bencher| {
            bencher.iter_custom(|calls| {
                let start = Instant::now();
                for _ in 0..calls {
                    std::hint::black_box(call().is_ok());
                }
                let total = start.elapsed();
                seconds.push(total.as_secs_f64() / calls as f64);
                total
            });
        });
        // A filter on the command line leaves the others out.
        if !seconds.is_empty() {
            self.0.push((name.to_owned(), gflop, median(seconds)));
        }
        Ok(())
    }

    fn print(&self, threads: usize) -> Result<()> {
        let peak = matrix_product(threads)?;
        println!("\n{threads} threads, batch {BATCH}; matrix product of 1024 x 1024: {peak:.0} GFLOP/s");
        println!("{:<52}{:>10}{:>10}{:>10}", "", "ms", "GFLOP/s", "of peak");
        for (name, gflop, seconds) in &self.0 {
            let rate = gflop / seconds;
            println!("{name:<52}{:>10.2}{rate:>10.1}{:>9.0}%", seconds * 1e3, 100.0 * rate / peak);
        }
        Ok(())
    }
}

/// GFLOP/s of candle's matrix product at a size at which it does best, one on each thread.
fn matrix_product(threads: usize) -> Result<f64> {
    const SIDE: usize = 1024;
    let (a, b) = (random(&[SIDE, SIDE])?, random(&[SIDE, SIDE])?);
    let (a, b) = (a.as_detached_tensor(), b.as_detached_tensor());
    let mut seconds = Vec::new();
    for _ in 0..20 {
        let start = Instant::now();
        (0..threads).into_par_iter().try_for_each(|_| a.matmul(&b).map(drop))?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(2e-9 * (threads * SIDE * SIDE * SIDE) as f64 / median(seconds))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
