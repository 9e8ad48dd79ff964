//! How fast a network learns: whole training steps (forward, loss, backward, update) on random images, as the recipe
//! in [`crate::step`] takes them, without anybody else or in the company of an echo.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device};
use cohort_proto::contribution::{Contribution, Header, Position, Tensor};
use cohort_proto::id::{BadName, Digest, RunId, ViewId};
use cohort_proto::rng::SplitMix64;
use cohort_proto::schema::Schema;
use serde::Serialize;

use crate::clock::seconds_of;
use crate::data::loader::Batch;
use crate::error::PeerError;
use crate::learner::{Additions, Learner, Model};
use crate::methods::Method;
use crate::models::{ImageShape, Params};
use crate::optim::SgdConfig;
use crate::step::{self, Company, Interruption};

/// Steps that are taken before the measured ones, to warm caches and allocator.
const WARM_UP: usize = 3;

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    /// Shape of an image.
    pub image: ImageShape,
    /// Classes.
    pub classes: usize,
    /// Images in a batch.
    pub batch: usize,
    /// Measured steps.
    pub steps: usize,
}

/// What came out.
#[derive(Debug, Serialize)]
pub struct Throughput {
    /// Images per second at the median step.
    pub images_per_s: f64,
    /// Milliseconds of the median step.
    pub ms_per_step: f64,
    /// Greatest resident memory of the process so far; 0 where the system does not tell.
    pub peak_rss_mb: f64,
    /// CPU threads.
    pub threads: usize,
    /// Milliseconds of the median step by act.
    pub acts_ms: BTreeMap<String, f64>,
}

/// Measures training steps of an architecture that learns by `method`, from one other network where it learns from
/// others.
///
/// # Errors
/// If the network cannot be built or a step fails.
pub fn measure(
    arch: &str,
    method: Method,
    workload: Workload,
    threads: usize,
) -> Result<Throughput, PeerError> {
    let Workload { image, classes, batch, steps } = workload;
    let params = Params::new(0, "bench", DType::F32, &Device::Cpu)?;
    let mut company = Echo { alone: method == Method::Alone, said: None };
    let model = Model::build(arch, (image, classes), Additions::from(&method), params)?;
    let config = SgdConfig { momentum: 0.9, nesterov: true, weight_decay: 5e-4, clip_norm: 0.0 };
    let mut learner = Learner::new(0, model, method, (config, config))?;
    let mut measured = Vec::with_capacity(steps);
    for step in 0..WARM_UP + steps {
        let batch = random_batch(step as u64, image, classes, batch);
        let (taken, elapsed) = seconds_of(|| step::run(&mut learner, &mut company, &batch));
        match taken {
            Ok(report) if step >= WARM_UP => measured.push((elapsed, report.timings)),
            Ok(_) => {}
            Err(Interruption::Failed(error)) => return Err(*error),
            Err(Interruption::Stopped(stop)) => return Err(PeerError::Internal(stop.sentence)),
            Err(Interruption::Restarted) => return Err(PeerError::Internal("a bench starts once".into())),
        }
    }
    measured.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let middle = measured.len() / 2;
    let (median, timings) = measured.into_iter().nth(middle).unwrap_or((f64::NAN, Vec::new()));
    Ok(Throughput {
        images_per_s: workload.batch as f64 / median,
        ms_per_step: median * 1e3,
        peak_rss_mb: peak_rss_mb(),
        threads,
        acts_ms: timings.into_iter().map(|timing| (timing.act, timing.ms)).collect(),
    })
}

/// One other network, which says of each image what this one says of the next.
#[derive(Debug)]
struct Echo {
    alone: bool,
    said: Option<Arc<Contribution>>,
}

impl Company for Echo {
    fn view(&self) -> ViewId {
        ViewId(0)
    }

    fn say(
        &mut self,
        at: Position,
        batch_hash: u64,
        tensors: Vec<Tensor>,
    ) -> Result<Option<Digest>, Interruption> {
        if self.alone {
            return Ok(None);
        }
        let internal = |error: String| PeerError::Internal(error);
        let source = "echo".parse().map_err(|error: BadName| internal(error.to_string()))?;
        let schema = Schema::new(tensors.iter().map(|tensor| tensor.spec.clone()).collect());
        let schema = schema.map_err(|error| internal(error.to_string()))?;
        let header = Header { run: RunId(0), view: ViewId(0), position: at, source, batch_hash };
        let tensors = tensors.into_iter().map(next_rows).collect();
        let said =
            Contribution::seal(header, tensors, &schema).map_err(|error| internal(error.to_string()))?;
        let digest = said.digest();
        self.said = Some(Arc::new(said));
        Ok(Some(digest))
    }

    fn listen(&mut self, _: Position, _: u64) -> Result<Vec<(usize, Arc<Contribution>)>, Interruption> {
        Ok(self.said.take().map(|said| (1, said)).into_iter().collect())
    }

    fn log_bytes(&self) -> u64 {
        0
    }
}

/// A tensor with its first row last.
fn next_rows(tensor: Tensor) -> Tensor {
    let rows = tensor.spec.shape.first().copied().unwrap_or(1).max(1);
    let mut data = tensor.data.to_vec();
    data.rotate_left(tensor.data.len() / rows);
    Tensor { data: data.into(), ..tensor }
}

fn random_batch(step: u64, image: ImageShape, classes: usize, batch: usize) -> Batch {
    let mut rng = SplitMix64::keyed(&[step]);
    let ImageShape { channels, height, width } = image;
    let pixels = batch * channels * height * width;
    Batch {
        step,
        epoch: 0,
        position_in_epoch: step,
        lr: 0.01,
        indices: (0..batch as u32).collect(),
        hash: 0,
        images: (0..pixels).map(|_| (rng.unit_f64() * 2.0 - 1.0) as f32).collect(),
        labels: (0..batch).map(|_| rng.below(classes as u64) as u32).collect(),
        shape: [batch, channels, height, width],
        held_out: None,
    }
}

/// `VmHWM` of /proc/self/status, in MB of 10^6 bytes.
fn peak_rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse::<f64>().ok());
    kib.map_or(0.0, |kib| kib * 1024.0 / 1e6)
}
