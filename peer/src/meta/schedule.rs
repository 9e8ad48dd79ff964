//! When a run makes meta-updates, and how: what its spec says, with the learning rate of the step.

use cohort_proto::meta::follows;
use cohort_proto::schema::DType;
use cohort_proto::spec::{MetaBatchNorm, MetaSpec, RunSpec};

use super::Settings;
use super::adjoint::Descent;
use super::update::{R_F32, R_F64};

/// The meta-updates of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    spec: MetaSpec,
    /// Learning rate of a meta-update for that of a step, which is under the same schedule.
    lr_share: f64,
}

impl Schedule {
    /// Those that a spec asks for, if any.
    pub fn of(spec: &RunSpec) -> Option<Self> {
        let meta = spec.meta()?.clone();
        Some(Self { lr_share: meta.lr / spec.optim.lr, spec: meta })
    }

    /// Whether one follows the step at a place in its epoch, counted from 0.
    pub fn follows(&self, position_in_epoch: u64) -> bool {
        follows(position_in_epoch, self.spec.freq)
    }

    /// What networks compute in during a meta-update.
    pub fn precision(&self) -> candle_core::DType {
        match self.spec.precision.dtype() {
            DType::F32 => candle_core::DType::F32,
            DType::F64 => candle_core::DType::F64,
        }
    }

    /// Inner steps of each.
    pub fn times(&self) -> u32 {
        self.spec.times
    }

    /// One of them, after a step with the learning rate `lr`.
    pub fn settings(&self, lr: f64) -> Settings {
        let MetaSpec { times, precision, compat_a1, bn, momentum, weight_decay, .. } = self.spec;
        let lr = lr * self.lr_share;
        Settings {
            inner_steps: times,
            descent: Descent { lr, momentum, weight_decay },
            r: if precision.dtype() == DType::F64 { R_F64 } else { R_F32 },
            compat_a1,
            statistics: bn == MetaBatchNorm::Official,
        }
    }
}
