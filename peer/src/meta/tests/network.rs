//! Small networks of linear, batch-norm and ReLU stages, with heads, in f64 or f32: the same as those of
//! `tests/pytorch/hypergradient.py`, with whose results they are compared.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{D, DType, Device, Result, Tensor, Var};

use super::banks::Held;
use crate::kernels::{Activation, GateTape, Maps};
use crate::meta::{Bilevel, Gradient, Words};
use crate::methods::cross_entropy::cross_entropy;
use crate::methods::primitives::{log_softmax, unit, widen};

const TAU: f64 = 0.1;
const KD_T: f64 = 3.0;
const WEIGHTS: [f64; 4] = [0.1, 0.1, 1.0, 1.0];

/// One network and its batch.
pub(super) struct Small {
    pub(super) me: usize,
    x: Tensor,
    y: Tensor,
    theta: BTreeMap<String, Var>,
    phi: BTreeMap<String, Var>,
    pub(super) gates_frozen: bool,
    pub(super) targets_frozen: bool,
    /// What the optimiser of φ was given.
    pub(super) hypergradient: Vec<f64>,
    /// How often running statistics were updated, and the mean of the first stage that was written.
    pub(super) statistics: Vec<Vec<f64>>,
    /// Memory banks of all networks, where the objective is at them.
    pub(super) held: Option<Held>,
}

pub(super) struct Pass {
    logits: Vec<Tensor>,
    words: Words,
    mean: Vec<f64>,
}

/// A case of the reference: its networks, learning rate, and hypergradients of each by name's order.
pub(super) struct Case {
    pub(super) networks: Vec<Small>,
    pub(super) lr: f64,
    pub(super) exact: Vec<Vec<f64>>,
    pub(super) compat: Vec<Vec<f64>>,
    /// What the banks hold after the first inner step.
    pub(super) after: Vec<Tensor>,
}

pub(super) fn flat(tensors: impl Iterator<Item = Result<Tensor>>) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    for tensor in tensors {
        all.extend(tensor?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?);
    }
    Ok(all)
}

pub(super) fn case(name: &str, dtype: DType) -> Case {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/meta/testdata");
    let file =
        candle_core::safetensors::load(folder.join(format!("{name}.safetensors")), &Device::Cpu).unwrap();
    let file: BTreeMap<String, Tensor> = file.into_iter().collect();
    let under = |prefix: String| -> BTreeMap<String, Tensor> {
        let found =
            file.iter().filter_map(|(name, t)| Some((name.strip_prefix(&prefix)?.to_owned(), t.clone())));
        found.collect()
    };
    let mut networks = Vec::new();
    while file.contains_key(&format!("{}.layer.0.weight", networks.len())) {
        let me = networks.len();
        let var =
            |(name, t): (String, Tensor)| (name, Var::from_tensor(&t.to_dtype(dtype).unwrap()).unwrap());
        let all: BTreeMap<String, Var> = under(format!("{me}.")).into_iter().map(var).collect();
        let (phi, theta) = all.into_iter().partition(|(name, _)| name.starts_with("match."));
        let (x, y) = (file["x"].to_dtype(dtype).unwrap(), file["y"].clone());
        let (hypergradient, statistics) = (vec![], vec![]);
        let (gates_frozen, targets_frozen) = (true, true);
        networks.push(Small {
            me,
            x,
            y,
            theta,
            phi,
            gates_frozen,
            targets_frozen,
            hypergradient,
            statistics,
            held: Held::of(&file),
        });
    }
    let results = |kind: &str| -> Vec<Vec<f64>> {
        let of = |i| flat(under(format!("{kind}.{i}.")).into_values().map(Ok)).unwrap();
        (0..networks.len()).map(of).collect()
    };
    let lr = file["lr"].to_vec1::<f64>().unwrap()[0];
    let after = (0..).map_while(|i| file.get(&format!("after.{i}")).cloned()).collect();
    Case { exact: results("exact"), compat: results("compat"), after, networks, lr }
}

impl Small {
    fn linear(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let at = |part| self.theta.get(part).or_else(|| self.phi.get(part)).unwrap().as_tensor();
        let (weight, bias) = (at(&format!("{name}.weight")), at(&format!("{name}.bias")));
        x.matmul(&weight.t()?)?.broadcast_add(bias)
    }

    fn forward(&self, gates: &mut GateTape) -> Result<Pass> {
        let (mut logits, mut words, mut mean) = (Vec::new(), Words::default(), None);
        let mut x = self.x.clone();
        for k in 0.. {
            if !self.theta.contains_key(&format!("layer.{k}.weight")) {
                break;
            }
            x = self.linear(&format!("layer.{k}"), &x)?;
            mean.get_or_insert(flat(std::iter::once(x.mean(0)))?);
            x = match (self.theta.get(&format!("bn.{k}.weight")), self.theta.get(&format!("bn.{k}.bias"))) {
                (Some(weight), Some(bias)) => {
                    let (b, c) = x.dims2()?;
                    let maps = Maps::from_tensor(&x.reshape((b, c, 1, 1))?)?;
                    let relu = Activation::Relu;
                    let y = gates.batch_norm_train(&maps, weight, bias, 1e-5, None, relu)?.0;
                    y.to_tensor()?.reshape((b, c))?
                }
                _ => gates.relu(&x)?,
            };
            logits.push(self.linear(&format!("fc.{k}"), &x)?);
            let hidden = gates.relu(&self.linear(&format!("embed.{k}.0"), &x)?)?;
            words.embeddings.push(unit(&self.linear(&format!("embed.{k}.2"), &hidden)?)?);
            words.matching.push(unit(&self.linear(&format!("match.{k}"), &x)?)?);
        }
        Ok(Pass { logits, words, mean: mean.unwrap() })
    }

    fn gradient(&self, loss: &Tensor) -> Result<Gradient> {
        let store = loss.backward()?;
        let of = |var: &Var| store.get(var.as_tensor()).map_or_else(|| var.zeros_like(), |g| Ok(g.clone()));
        Ok(Gradient { theta: flat(self.theta.values().map(of))?, phi: flat(self.phi.values().map(of))? })
    }

    pub(super) fn phi(&self) -> Vec<f64> {
        flat(self.phi.values().map(|var| Ok(var.as_tensor().clone()))).unwrap()
    }

    /// Makes a parameter of φ not a number.
    pub(super) fn spoil(&mut self) {
        let var = self.phi.get("match.0.bias").unwrap();
        var.set(&(var.as_tensor() * f64::NAN).unwrap()).unwrap();
    }

    /// Mean of the first stage's input of batch norm over the batch, at the present θ.
    pub(super) fn mean(&self) -> Vec<f64> {
        self.record().unwrap().0.mean
    }
}

impl Bilevel for Small {
    type Forward = Pass;
    type Targets = Vec<(usize, Vec<Tensor>)>;
    type Statistics = Vec<f64>;

    fn theta(&self) -> Result<Vec<f64>> {
        flat(self.theta.values().map(|var| Ok(var.as_tensor().clone())))
    }

    fn phi_count(&self) -> usize {
        self.phi.values().map(|var| var.elem_count()).sum()
    }

    fn set_theta(&mut self, theta: &[f64]) -> Result<()> {
        let mut at = 0;
        for var in self.theta.values() {
            let values = &theta[at..at + var.elem_count()];
            var.set(&Tensor::from_slice(values, var.shape(), &Device::Cpu)?.to_dtype(var.dtype())?)?;
            at += values.len();
        }
        Ok(())
    }

    fn record(&self) -> Result<(Pass, GateTape)> {
        let mut gates = GateTape::recording();
        Ok((self.forward(&mut gates)?, gates))
    }

    fn replay(&self, gates: &GateTape) -> Result<Pass> {
        let mut gates = if self.gates_frozen { gates.replaying() } else { GateTape::recording() };
        let pass = self.forward(&mut gates)?;
        gates.check_complete()?;
        Ok(pass)
    }

    fn words(&self, forward: &Pass) -> Words {
        forward.words.clone()
    }

    fn targets(&self, forward: &Pass, heard: &[(usize, Words)]) -> Result<Self::Targets> {
        let own = (self.me, forward.words.embeddings.iter().map(Tensor::detach).collect());
        let others = heard.iter().map(|(j, words)| (*j, words.embeddings.clone()));
        Ok(others.chain([own]).collect())
    }

    fn inner_gradient(
        &self,
        forward: &Pass,
        heard: &[(usize, Words)],
        targets: &Self::Targets,
    ) -> Result<Gradient> {
        if let Some(held) = &self.held {
            let loss = held.inner(self.me, &forward.words, heard, targets)?;
            return self.gradient(&loss);
        }
        let now = self.targets(forward, heard)?;
        let targets = if self.targets_frozen { targets } else { &now };
        let target = |i: usize| &targets.iter().find(|(j, _)| *j == i).unwrap().1;
        let own = &forward.words;
        let labels = Labels::new(&self.y)?;
        let mut total = Tensor::zeros((), DType::F64, &Device::Cpu)?;
        for (j, words) in heard {
            for (k, (a, u)) in own.embeddings.iter().zip(&own.matching).enumerate() {
                for (z, (b, v)) in words.embeddings.iter().zip(&words.matching).enumerate() {
                    let frozen = [&target(self.me)[k], &target(*j)[z]];
                    total = (total + pair(&labels, [a, b], [u, v], frozen)?)?;
                }
            }
        }
        self.gradient(&(total * 2.0)?)
    }

    fn remember(&mut self, forward: &Pass, heard: &[(usize, Words)]) -> Result<()> {
        let me = self.me;
        self.held.as_mut().map_or(Ok(()), |held| held.remember(me, &forward.words, heard))
    }

    fn forget(&mut self) {
        if let Some(held) = &mut self.held {
            held.forget();
        }
    }

    fn outer_gradient(&self, forward: &Pass) -> Result<Vec<f64>> {
        let mut total = Tensor::zeros((), DType::F64, &Device::Cpu)?;
        for z in &forward.logits {
            total = (total + cross_entropy(z, &self.y)?)?;
        }
        let store = total.backward()?;
        flat(self.theta.values().map(|var| {
            store.get(var.as_tensor()).map_or_else(|| var.zeros_like(), |gradient| Ok(gradient.clone()))
        }))
    }

    fn statistics(&self, forward: Pass) -> Vec<f64> {
        forward.mean
    }

    fn write_statistics(&mut self, statistics: Vec<f64>) -> Result<()> {
        self.statistics.push(statistics);
        if let Some(held) = &mut self.held {
            held.keep_the_first();
        }
        Ok(())
    }

    fn step_phi(&mut self, gradient: &[f64], lr: f64) -> Result<()> {
        self.hypergradient = gradient.to_vec();
        let mut at = 0;
        for var in self.phi.values() {
            let values = &gradient[at..at + var.elem_count()];
            at += values.len();
            let step = Tensor::from_slice(values, var.shape(), &Device::Cpu)?.to_dtype(var.dtype())?;
            var.set(&(var.as_tensor() - (step * lr)?)?)?;
        }
        Ok(())
    }
}

/// Positives and valid anchors of a batch in which every class has two samples.
struct Labels {
    /// `[B, B]`, 1 / (B · positives of the row) at positives.
    weights: Tensor,
    /// `[B, B]`, -1e30 on the diagonal.
    no_self: Tensor,
}

impl Labels {
    fn new(y: &Tensor) -> Result<Self> {
        let b = y.dim(0)?;
        let eye = Tensor::eye(b, DType::F64, &Device::Cpu)?;
        let same = y.reshape((b, 1))?.broadcast_eq(&y.reshape((1, b))?)?.to_dtype(DType::F64)?;
        let positive = (same - &eye)?;
        let weights = (positive.broadcast_div(&positive.sum_keepdim(1)?)? / b as f64)?;
        Ok(Self { weights, no_self: (eye * -1e30)? })
    }

    fn contrast(&self, scores: &Tensor, w: &Tensor) -> Result<Tensor> {
        let log_share = log_softmax(&(scores + &self.no_self)?)?;
        ((log_share * &self.weights)?.sum(D::Minus1)? * w)?.sum_all()?.neg()
    }
}

fn kl(student: &Tensor, teacher: &Tensor, w: &Tensor) -> Result<Tensor> {
    let soften = |scores: &Tensor| log_softmax(&(scores / KD_T)?);
    let (p, q) = (soften(&teacher.detach())?, soften(student)?);
    ((p.exp()? * (p - q)?)?.sum(D::Minus1)? * w)?.mean(0)? * (KD_T * KD_T)
}

/// The eight terms of a pair of stages: embeddings and matching features of both, and the embeddings that KL targets
/// come from.
fn pair(labels: &Labels, v: [&Tensor; 2], u: [&Tensor; 2], frozen: [&Tensor; 2]) -> Result<Tensor> {
    let cosine = (widen(u[0])? * widen(u[1])?)?.sum(D::Minus1)?;
    let w = (cosine.neg()?.exp()? + 1.0)?.recip()?;
    let [alpha, beta, gamma, lam] = WEIGHTS;
    let scores = |[a, b]: [&Tensor; 2]| -> Result<[Tensor; 4]> {
        let (a, b) = (widen(a)?, widen(b)?);
        let score = |x: &Tensor, y: &Tensor| x.matmul(&y.t()?)? / TAU;
        Ok([score(&a, &a)?, score(&b, &b)?, score(&a, &b)?, score(&b, &a)?])
    };
    let ([aa, bb, ab, ba], [taa, tbb, tab, tba]) = (scores(v)?, scores(frozen)?);
    let con = |s: &Tensor| labels.contrast(s, &w);
    let intra = ((con(&aa)? + con(&bb)?)? * alpha)?;
    let inter = ((con(&ab)? + con(&ba)?)? * beta)?;
    let soft_intra = ((kl(&aa, &tbb, &w)? + kl(&bb, &taa, &w)?)? * gamma)?;
    let soft_inter = ((kl(&ab, &tba, &w)? + kl(&ba, &tab, &w)?)? * lam)?;
    ((intra + inter)? + soft_intra)? + soft_inter
}
