//! The hypergradient at memory banks, which the path changes on its way, against double backward in one process and f64
//! (PyTorch; `tests/pytorch/hypergradient.py` writes the reference).

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor};

use super::company::together;
use super::exact::{error, settings};
use super::network::{Small, case};
use crate::meta::update::{R_F32, R_F64};
use crate::meta::{Outcome, Settings, Words};
use crate::methods::Heard;
use crate::methods::lmcl::{self, LMclParams, Targets};
use crate::methods::memory::{Bank, BankParams, Blended, Draws, Recall};

const POSITIVES: usize = 2;
const MOMENTUM: f64 = 0.5;
const CASES: [(&str, bool); 2] = [("two_banks", false), ("three_banks_confused", true)];

/// What one network holds of all of them.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) banks: Vec<Bank>,
    draws: Draws,
    params: LMclParams,
    /// What the banks were told, and what they held in its place.
    told: Vec<Vec<(Blended, Blended)>>,
    first: Option<Vec<Blended>>,
}

impl Held {
    pub(super) fn of(file: &BTreeMap<String, Tensor>) -> Option<Self> {
        let keys = file.get("keys")?.to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
        let banks =
            (0..).map_while(|i| file.get(&format!("bank.{i}"))).map(|rows| Bank::from_tensor(rows).unwrap());
        let bank = BankParams { positives: POSITIVES, negatives: 9, momentum: MOMENTUM, bug: false };
        let params = LMclParams { tau: 0.07, bank: Some(bank), ..LMclParams::default() };
        let draws = Draws::new(keys, POSITIVES).unwrap();
        Some(Self { banks: banks.collect(), draws, params, told: vec![], first: None })
    }

    fn with_the_mistake(&mut self) {
        self.params.bank.as_mut().unwrap().bug = true;
    }

    pub(super) fn inner(
        &self,
        me: usize,
        own: &Words,
        heard: &[(usize, Words)],
        targets: &[(usize, Vec<Tensor>)],
    ) -> Result<Tensor> {
        let others: Vec<usize> = heard.iter().map(|(j, _)| *j).collect();
        let target = |i: usize| targets.iter().find(|(j, _)| *j == i).unwrap().1.clone();
        let frozen = others.iter().map(|j| Heard { embeddings: target(*j), ..Heard::nothing(*j) });
        let targets = Targets::of(&target(me), &frozen.collect::<Vec<_>>());
        let heard = heard.iter().map(|(j, words)| {
            let Words { embeddings, matching } = words.clone();
            Heard { embeddings, matching, ..Heard::nothing(*j) }
        });
        let others = others.iter().map(|j| &self.banks[*j]).collect();
        let recall = Recall { own: &self.banks[me], others, draws: self.draws.clone() };
        let stages = (&own.embeddings[..], &own.matching[..]);
        let heard: Vec<Heard> = heard.collect();
        let position = heard.iter().filter(|other| other.index < me).count();
        lmcl::inner_of_memory(position, stages, &heard, &targets, &self.params, &recall)
    }

    pub(super) fn remember(&mut self, me: usize, own: &Words, heard: &[(usize, Words)]) -> Result<()> {
        let mut told = Vec::new();
        let anchors = self.draws.anchors();
        for (i, bank) in self.banks.iter().enumerate() {
            let words = heard.iter().find(|(j, _)| *j == i).map_or(own, |(_, words)| words);
            assert_eq!(i == me, std::ptr::eq(words, own));
            let last = words.embeddings.last().unwrap();
            told.push((bank.blended(&anchors, last, MOMENTUM)?, bank.rows_of(&anchors)));
        }
        self.banks.iter_mut().zip(&told).for_each(|(bank, (new, _))| bank.remember(new));
        self.first.get_or_insert_with(|| told.iter().map(|(new, _)| new.clone()).collect());
        self.told.push(told);
        Ok(())
    }

    pub(super) fn forget(&mut self) {
        for (bank, (_, old)) in self.banks.iter_mut().zip(self.told.pop().iter().flatten()) {
            bank.remember(old);
        }
    }

    pub(super) fn keep_the_first(&mut self) {
        for (bank, new) in self.banks.iter_mut().zip(self.first.iter().flatten()) {
            bank.remember(new);
        }
    }
}

fn measured(name: &str, confused: bool, dtype: DType, r: f64) -> f64 {
    let mut case = case(name, dtype);
    let settings = settings(&case, r);
    if confused {
        case.networks.iter_mut().for_each(|small| small.held.as_mut().unwrap().with_the_mistake());
    }
    for (outcome, _) in together(&mut case.networks, &settings, None) {
        assert!(matches!(outcome.unwrap(), Outcome::Learnt { .. }));
    }
    error(&case.networks, &case.exact)
}

#[test]
fn at_memory_banks_it_is_as_exact() {
    for (name, confused) in CASES {
        let (f64, f32) =
            (measured(name, confused, DType::F64, R_F64), measured(name, confused, DType::F32, R_F32));
        assert!(f64 <= 5e-9 && f32 <= 2e-3, "{name}: {f64:e}, {f32:e}");
        assert!(
            measured(name, !confused, DType::F64, R_F64) > 1e-3,
            "{name}: the banks of both are the same"
        );
    }
}

/// As the release leaves them: after one more update by the embeddings at the first θ; or as they were.
#[test]
fn banks_end_as_running_statistics_do() {
    for (name, _) in CASES {
        let rows = |bank: &Bank| bank.to_tensor().unwrap().to_vec2::<f32>().unwrap();
        for statistics in [true, false] {
            let mut case = case(name, DType::F64);
            let before = case.networks[0].held.clone().unwrap().banks;
            let settings = Settings { statistics, ..settings(&case, R_F64) };
            together(&mut case.networks, &settings, None);
            let held = |small: &Small| small.held.clone().unwrap().banks;
            let after = held(&case.networks[0]);
            assert!(case.networks.iter().all(|small| held(small) == after), "replicas differ");
            assert_eq!(after == before, !statistics);
            for (i, bank) in after.iter().enumerate().filter(|_| statistics) {
                let expected = case.after[i].to_vec2::<f32>().unwrap();
                let pairs = rows(bank).into_iter().flatten().zip(expected.into_iter().flatten());
                let apart = pairs.fold(0f32, |top, (a, b)| top.max((a - b).abs()));
                assert!(apart < 1e-7, "{name}, bank {i}: {apart:e}");
            }
        }
    }
}

/// One that fails at any exchange leaves the banks as they were.
#[test]
fn a_failed_meta_update_leaves_banks_alone() {
    for at in 0..9 {
        let mut case = case("two_banks", DType::F64);
        let before = case.networks[0].held.clone().unwrap().banks;
        let settings = settings(&case, R_F64);
        let ended = together(&mut case.networks, &settings, Some((0, at)));
        assert!(ended[0].0.is_err());
        assert!(case.networks[0].held.as_ref().unwrap().banks == before, "exchange {at}");
    }
}
