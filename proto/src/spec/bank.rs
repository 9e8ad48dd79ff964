//! `[method] bank = true`: the memory-bank form of MCL and L-MCL, in which samples are contrasted with what networks
//! remember of others instead of with the rest of the batch.

use serde::{Deserialize, Serialize};

use super::section::Section;
use super::{MethodSpec, RunSpec, SpecError};
use crate::limits::BANKS_BYTES_MAX;

/// Most keys that an anchor draws. The keys of 1024 anchors are then 268 MB.
const DRAWS_MAX: u64 = 65_536;

/// The memory-bank form.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BankSpec {
    /// Remembered samples of an anchor's class that it is drawn to, besides itself.
    pub positives: usize,
    /// Remembered samples of other classes.
    pub negatives: usize,
    /// How much of what is remembered of a sample stays when it is seen again.
    pub momentum: f64,
    /// Whether L-MCL uses the bank of one network of a pair for both within themselves, as the official code does.
    pub bug: bool,
}

/// Reads the keys `bank*`; none without `bank = true`. `contrasts`: whether any contrastive term has a weight.
pub(super) fn read_bank(
    section: &mut Section,
    contrasts: bool,
    layerwise: bool,
) -> Result<Option<BankSpec>, SpecError> {
    let on = section.flag("bank")?.unwrap_or(false);
    let positives = section.whole("bank_positives", 1..=DRAWS_MAX)?;
    let negatives = section.whole("bank_negatives", 1..=DRAWS_MAX)?;
    let momentum = section.number("bank_momentum", "0 or greater, and less than 1", |momentum| {
        (0.0..1.0).contains(&momentum)
    })?;
    let bug = if layerwise { section.flag("bank_bug")? } else { None };
    if !on {
        let given = [
            ("bank_positives", positives.is_some()),
            ("bank_negatives", negatives.is_some()),
            ("bank_momentum", momentum.is_some()),
            ("bank_bug", bug.is_some()),
        ];
        return match given.iter().find(|(_, given)| *given) {
            Some((key, _)) => Err(section.error(key, "needs bank = true: without it nothing is remembered")),
            None => Ok(None),
        };
    }
    if !contrasts {
        let problem =
            "is true, but alpha, beta, gamma and lam are 0: there is nothing to contrast with memory";
        return Err(section.error("bank", problem));
    }
    Ok(Some(BankSpec {
        positives: positives.unwrap_or(1) as usize,
        negatives: negatives.unwrap_or(8192) as usize,
        momentum: momentum.unwrap_or(0.5),
        bug: bug.unwrap_or(false),
    }))
}

impl RunSpec {
    /// The memory banks of this run, if it has any, and their width.
    pub fn banks(&self) -> Option<(BankSpec, usize)> {
        match &self.method {
            MethodSpec::Alone | MethodSpec::Dml(_) => None,
            MethodSpec::Mcl(mcl) => mcl.bank.map(|bank| (bank, mcl.feat_dim)),
            MethodSpec::LMcl(l_mcl) => l_mcl.bank.map(|bank| (bank, l_mcl.feat_dim)),
        }
    }

    /// Bytes that the banks of all networks of this run take for so many training samples.
    pub fn bank_bytes(&self, samples: usize) -> u64 {
        let width = self.banks().map_or(0, |(_, width)| width as u64);
        (self.peers.len() as u64).saturating_mul(samples as u64).saturating_mul(width).saturating_mul(4)
    }

    /// Whether training samples with these labels can be drawn from as the banks of this run ask.
    ///
    /// # Errors
    /// Only one class; a class with fewer samples than an anchor draws of it; banks larger than a peer holds.
    pub fn check_banks(&self, labels: &[u8]) -> Result<(), SpecError> {
        let Some((bank, width)) = self.banks() else { return Ok(()) };
        let mut counts = [0usize; 256];
        for label in labels {
            counts[usize::from(*label)] += 1;
        }
        let present: Vec<(usize, usize)> =
            counts.into_iter().enumerate().filter(|(_, count)| *count > 0).collect();
        if present.len() < 2 {
            let problem = "is true, but all training samples have one class: there are no negatives to draw";
            return Err(SpecError::value("[method]", "bank", problem));
        }
        if let Some((class, count)) = present.iter().find(|(_, count)| *count < bank.positives) {
            let problem = format!(
                "is {}, drawn without replacement from the class of each sample, but class {class} has only {count} \
                 training samples",
                bank.positives
            );
            return Err(SpecError::value("[method]", "bank_positives", problem));
        }
        let bytes = self.bank_bytes(labels.len());
        if bytes > BANKS_BYTES_MAX {
            let problem = format!(
                "is true: {} networks with {} samples of width {width} take {} MB at every peer, more than {} MB; lower \
                 feat_dim",
                self.peers.len(),
                labels.len(),
                bytes >> 20,
                BANKS_BYTES_MAX >> 20
            );
            return Err(SpecError::value("[method]", "bank", problem));
        }
        Ok(())
    }
}
