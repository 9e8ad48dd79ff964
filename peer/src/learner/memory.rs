//! The memory banks of a run at one peer: a replica of the bank of every network, its own and the others', which follow
//! from the run's seed and from what was said in every step, and so are the same bits at every peer.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};
use cohort_proto::limits::BANKS_BYTES_MAX;
use cohort_proto::rng::{SplitMix64, key_of};
use cohort_proto::spec::RunSpec;

use super::draws::Classes;
use crate::error::PeerError;
use crate::methods::Heard;
use crate::methods::memory::{BANK_BYTES_MAX, Bank, BankParams, Blended, Recall};
use crate::models::{StateDict, StateError};

/// Where the names of banks begin in a checkpoint: `bank.I` of the network of index I.
pub const BANK_PREFIX: &str = "bank.";

// What a run spec allows to all banks together is refused there, in words about its keys, and never by one bank.
const _: () = assert!(BANKS_BYTES_MAX <= BANK_BYTES_MAX);

/// The banks of all networks of a run.
#[derive(Debug, Clone)]
pub struct Memory {
    banks: BTreeMap<usize, Bank>,
    classes: Classes,
    params: BankParams,
    seed: u64,
}

/// What a batch will leave in the banks, or what they hold of it, by index.
#[derive(Debug, Clone)]
pub struct Remembrance(Vec<(usize, Blended)>);

impl Memory {
    /// Banks of a run over the labels of its training samples, each as the seed and the name of its peer make it; none
    /// if the method has none.
    ///
    /// # Errors
    /// Labels that cannot be drawn from as the run asks, or banks larger than a peer holds.
    pub fn new(
        spec: &RunSpec,
        labels: &[u8],
        params: Option<BankParams>,
    ) -> std::result::Result<Option<Self>, PeerError> {
        let (Some(params), Some((_, width))) = (params, spec.banks()) else { return Ok(None) };
        spec.check_banks(labels)?;
        let mut banks = BTreeMap::new();
        for (index, peer) in spec.peers.iter().enumerate() {
            let mut rng = SplitMix64::keyed(&[spec.run.seed, key_of("bank"), key_of(peer.name.as_str())]);
            banks.insert(index, Bank::new(labels.len(), width, || rng.unit_f64())?);
        }
        tracing::info!(
            "memory banks of {} networks: {} samples of width {width}, {:.1} MB in all",
            banks.len(),
            labels.len(),
            spec.bank_bytes(labels.len()) as f64 / f64::from(1 << 20)
        );
        Ok(Some(Self { banks, classes: Classes::new(labels), params, seed: spec.run.seed }))
    }

    /// The bank of each network by its index.
    pub fn banks(&self) -> &BTreeMap<usize, Bank> {
        &self.banks
    }

    /// What is remembered when network `me` and those that were heard look at the samples `indices` of a step.
    ///
    /// # Errors
    /// A network without a bank, or a sample without a label.
    pub fn recall(&self, me: usize, heard: &[Heard], step: u64, indices: &[u32]) -> Result<Recall<'_>> {
        let BankParams { positives, negatives, .. } = self.params;
        Ok(Recall {
            own: self.bank(me)?,
            others: heard.iter().map(|other| self.bank(other.index)).collect::<Result<_>>()?,
            draws: self.classes.draw(indices, (self.seed, step), positives, negatives)?,
        })
    }

    /// What the banks will hold of the samples `indices`, from the last of the embeddings that network `me` made of them
    /// and from the last that each other one said; in ascending index. Nothing changes yet.
    ///
    /// # Errors
    /// A network without a bank or an embedding; shapes that do not fit.
    pub fn blend(
        &self,
        (me, own): (usize, &[Tensor]),
        heard: &[Heard],
        indices: &[u32],
    ) -> Result<Remembrance> {
        let others = heard.iter().map(|other| (other.index, other.embeddings.as_slice()));
        let mut all: Vec<(usize, &[Tensor])> = others.chain([(me, own)]).collect();
        all.sort_by_key(|(index, _)| *index);
        let mut blended = Vec::with_capacity(all.len());
        for (index, embeddings) in all {
            let Some(last) = embeddings.last() else {
                candle_core::bail!("network {index} has no embedding to remember");
            };
            blended.push((index, self.bank(index)?.blended(indices, last, self.params.momentum)?));
        }
        Ok(Remembrance(blended))
    }

    /// Remembers a batch. It cannot fail, so that either all of a step is done or nothing.
    pub fn remember(&mut self, remembrance: &Remembrance) {
        for (index, blended) in &remembrance.0 {
            if let Some(bank) = self.banks.get_mut(index) {
                bank.remember(blended);
            }
        }
    }

    /// What all banks hold of the samples `indices`: to remember that again takes back, bit for bit, what they are told of
    /// these samples meanwhile.
    pub fn held(&self, indices: &[u32]) -> Remembrance {
        Remembrance(self.banks.iter().map(|(index, bank)| (*index, bank.rows_of(indices))).collect())
    }

    /// The rows `[N, E]` of each bank under its name in a checkpoint.
    ///
    /// # Errors
    /// If the device fails.
    pub fn state_dict(&self) -> Result<StateDict> {
        self.banks.iter().map(|(index, bank)| Ok((name_of(*index), bank.to_tensor()?))).collect()
    }

    /// Goes back to the banks of a checkpoint.
    ///
    /// # Errors
    /// If they are not those of this run; nothing has changed then.
    pub fn load(&mut self, state: &StateDict) -> std::result::Result<(), StateError> {
        let mut banks = BTreeMap::new();
        for (index, held) in &self.banks {
            let name = name_of(*index);
            let Some(rows) = state.get(&name) else {
                return Err(unfit(format!("the checkpoint has no {name}")));
            };
            if rows.dims() != [held.samples(), held.width()] {
                let expected = [held.samples(), held.width()];
                return Err(unfit(format!("{name} is {:?}, expected {expected:?}", rows.dims())));
            }
            banks.insert(*index, Bank::from_tensor(rows)?);
        }
        if state.len() != banks.len() {
            return Err(unfit(format!("the checkpoint has {} banks, expected {}", state.len(), banks.len())));
        }
        self.banks = banks;
        Ok(())
    }

    fn bank(&self, index: usize) -> Result<&Bank> {
        match self.banks.get(&index) {
            Some(bank) => Ok(bank),
            None => candle_core::bail!("there is no memory bank of network {index}"),
        }
    }
}

fn name_of(index: usize) -> String {
    format!("{BANK_PREFIX}{index}")
}

fn unfit(sentence: String) -> StateError {
    StateError::Tensor(candle_core::Error::Msg(sentence))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    const LABELS: [u8; 6] = [0, 0, 1, 1, 2, 2];

    fn memory(width: usize) -> Memory {
        let peers =
            ["a", "b"].map(|name| format!("[[peer]]\nname = \"{name}\"\narch = \"resnet6\"\n")).concat();
        let text = format!(
            "[run]\nseed = 3\nsteps = 1\n[data]\ndataset = \"mnist\"\n[method]\nname = \"mcl\"\nbank = true\n\
             feat_dim = {width}\n[optim]\nlr = 0.1\n{peers}"
        );
        let params = BankParams { positives: 1, negatives: 4, momentum: 0.5, bug: false };
        Memory::new(&RunSpec::parse(&text).unwrap(), &LABELS, Some(params)).unwrap().unwrap()
    }

    fn rows(memory: &Memory, index: usize) -> Vec<Vec<f32>> {
        memory.banks()[&index].to_tensor().unwrap().to_vec2().unwrap()
    }

    #[test]
    fn banks_begin_as_seed_and_name_say() {
        let (here, there) = (memory(4), memory(4));
        assert_eq!(here.banks(), there.banks());
        assert_ne!(rows(&here, 0), rows(&here, 1));
    }

    /// Network 1 hears network 0: each row goes to the bank of the network that made it.
    #[test]
    fn each_bank_remembers_its_own_network_and_of_stages_the_last() {
        let mut memory = memory(2);
        let before = [rows(&memory, 0), rows(&memory, 1)];
        let made = |x: f32, y: f32| Tensor::new(&[[x, y]], &Device::Cpu).unwrap();
        let heard = [Heard { embeddings: vec![made(9.0, 9.0), made(40.0, 0.0)], ..Heard::nothing(0) }];
        let own = [made(0.0, 40.0)];
        let remembrance = memory.blend((1, &own), &heard, &[5]).unwrap();
        assert_eq!(rows(&memory, 0), before[0]);
        memory.remember(&remembrance);
        for (index, towards) in [(0, 0), (1, 1)] {
            let after = rows(&memory, index);
            assert_eq!(after[..5], before[index][..5]);
            assert!(after[5][towards] > 0.99 && after[5][1 - towards].abs() < 0.1, "{index}: {:?}", after[5]);
        }
        assert!(memory.blend((1, &own), &[Heard::nothing(0)], &[5]).is_err(), "nothing to remember");
        let stranger = Heard { embeddings: vec![made(1.0, 0.0)], ..Heard::nothing(7) };
        let error = memory.blend((1, &own), &[stranger], &[5]).unwrap_err().to_string();
        assert!(error.contains("no memory bank of network 7"), "{error}");
    }

    #[test]
    fn banks_of_another_run_are_not_taken() {
        let mut held = memory(4);
        let good = held.state_dict().unwrap();
        let mut missing = good.clone();
        missing.remove("bank.1");
        let mut more = good.clone();
        more.insert("bank.2".to_owned(), good["bank.0"].clone());
        let before = held.banks().clone();
        let cases = [
            (missing, "the checkpoint has no bank.1"),
            (memory(8).state_dict().unwrap(), "bank.0 is [6, 8], expected [6, 4]"),
            (more, "the checkpoint has 3 banks, expected 2"),
        ];
        for (state, words) in cases {
            let error = held.load(&state).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
            assert_eq!(*held.banks(), before);
        }
        held.load(&good).unwrap();
        assert_eq!(*held.banks(), before);
    }
}
