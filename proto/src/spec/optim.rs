//! `[optim]`.

use serde::{Deserialize, Serialize};

use super::SpecError;
use super::section::Section;

/// `[optim]`: stochastic gradient descent as PyTorch defines it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OptimSpec {
    /// Initial learning rate.
    pub lr: f64,
    /// Momentum.
    pub momentum: f64,
    /// Whether Nesterov's form is used.
    pub nesterov: bool,
    /// Decay, on every trainable tensor.
    pub weight_decay: f64,
    /// How the learning rate changes over epochs.
    pub schedule: ScheduleSpec,
    /// Epochs over which the learning rate rises linearly.
    pub warmup_epochs: u64,
    /// Greatest norm of a peer's whole gradient; 0 = no limit.
    pub clip_norm: f64,
}

/// How the learning rate changes over epochs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleSpec {
    /// Half a cosine from the initial rate down.
    Cosine,
    /// A tenth from each of these epochs on.
    Multistep(Vec<u64>),
    /// The initial rate throughout.
    Constant,
}

impl OptimSpec {
    pub(super) fn read(mut section: Section) -> Result<Self, SpecError> {
        let lr = section.number("lr", "greater than 0", |lr| lr > 0.0)?.unwrap_or(0.1);
        let momentum =
            section.number("momentum", "0 or greater, and less than 1", |m| (0.0..1.0).contains(&m))?;
        let nesterov = section.flag("nesterov")?;
        let momentum = momentum.unwrap_or(0.9);
        if nesterov == Some(true) && momentum == 0.0 {
            return Err(section.error("nesterov", "needs a momentum greater than 0"));
        }
        let weight_decay = section.number("weight_decay", "0 or greater", |wd| wd >= 0.0)?.unwrap_or(5e-4);
        let schedule = read_schedule(&mut section)?;
        let warmup_epochs = section.whole("warmup_epochs", 0..=1_000_000)?.unwrap_or(0);
        let clip_norm = section.number("clip_norm", "0 or greater", |norm| norm >= 0.0)?.unwrap_or(0.0);
        section.finish()?;
        let nesterov = nesterov.unwrap_or(momentum > 0.0);
        Ok(Self { lr, momentum, nesterov, weight_decay, schedule, warmup_epochs, clip_norm })
    }
}

fn read_schedule(section: &mut Section) -> Result<ScheduleSpec, SpecError> {
    #[derive(Clone, Copy)]
    enum Kind {
        Cosine,
        Multistep,
        Constant,
    }
    let choices = [("cosine", Kind::Cosine), ("multistep", Kind::Multistep), ("constant", Kind::Constant)];
    let kind = section.choice("schedule", &choices)?.unwrap_or(Kind::Cosine);
    let milestones = section.numbers("milestones")?;
    match (kind, milestones) {
        (Kind::Multistep, Some(milestones)) => {
            let whole = milestones.iter().all(|&m| m >= 0.0 && m.fract() == 0.0 && m < 1e9);
            if !whole || milestones.is_empty() || !milestones.is_sorted() {
                return Err(section.error("milestones", "must be a list of epochs in ascending order"));
            }
            Ok(ScheduleSpec::Multistep(milestones.into_iter().map(|m| m as u64).collect()))
        }
        (Kind::Multistep, None) => Err(section.missing("milestones", "write milestones = [150, 225]")),
        (_, Some(_)) => Err(section.error("milestones", "goes with schedule = \"multistep\" only")),
        (Kind::Cosine, None) => Ok(ScheduleSpec::Cosine),
        (Kind::Constant, None) => Ok(ScheduleSpec::Constant),
    }
}
