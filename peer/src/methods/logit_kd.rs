//! Distillation from the ensemble of logits that accompanies Mutual Contrastive Learning (Yang et al., AAAI 2022,
//! as in the authors' code for CIFAR).

use candle_core::{Result, Tensor};

use super::primitives::{soft_kl, widen, zero};

/// Which networks learn from the ensemble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Students {
    /// None; logits are not exchanged.
    Off,
    /// The rule of the authors' code: both of two networks, otherwise only the one of the highest index.
    #[default]
    Last,
    /// Every network.
    All,
}

impl Students {
    /// Whether network `me` of `cohort` networks learns from the ensemble. A lone network has no ensemble.
    pub fn include(self, me: usize, cohort: usize) -> bool {
        match self {
            _ if cohort < 2 => false,
            Students::Off => false,
            Students::Last => cohort == 2 || me + 1 == cohort,
            Students::All => true,
        }
    }
}

/// `KL_T(z_me ‖ mean_j z_j)` with the network's own logits in the mean; scalar.
///
/// `logits` holds the `[B, C]` of all networks in ascending order, in which they are added up. The mean is a constant:
/// only `logits[me]` receives a gradient, and only as the student. Who calls it decides [`Students::include`].
pub fn ensemble_kl(me: usize, logits: &[Tensor], temperature: f64) -> Result<Tensor> {
    let Some(own) = logits.get(me) else {
        candle_core::bail!("network {me} of {} has no logits", logits.len());
    };
    soft_kl(own, &mean(logits)?, temperature)
}

/// The ensemble terms of all networks that learn from it, summed in ascending order; scalar.
pub fn joint(logits: &[Tensor], students: Students, temperature: f64) -> Result<Tensor> {
    let Some(first) = logits.first() else {
        candle_core::bail!("a cohort needs at least one network");
    };
    let mut total = zero(first)?;
    for me in (0..logits.len()).filter(|me| students.include(*me, logits.len())) {
        total = (total + ensemble_kl(me, logits, temperature)?)?;
    }
    Ok(total)
}

/// Mean of the logits without their graph, added in ascending order.
fn mean(logits: &[Tensor]) -> Result<Tensor> {
    let mut sum = widen(&logits[0])?.detach();
    for z in &logits[1..] {
        sum = (sum + widen(z)?.detach())?;
    }
    sum / logits.len() as f64
}
