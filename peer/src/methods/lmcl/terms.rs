//! The four contrastive terms as weighted sums of rows over the pairs of stages.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::super::primitives::{Positives, widen};
use super::matching::{self, Pair};
use super::rows::{Embeddings, Scores, Setting, Wanted, rows};
use super::{Heard, LMclParams, Matching, Stages, Targets, Weighted, embedding_name, matching_name};

/// Which terms of a pair count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sides {
    /// Not those within the other network: they are constants.
    Own,
    /// All of them.
    Both,
}

/// The stages of all networks in one list, and the pairs of them that are compared.
pub(super) struct Cohort<'a> {
    embeddings: Embeddings,
    /// At the same places; empty unless matching is learned.
    matching: Vec<Tensor>,
    pairs: Vec<Pair>,
    params: &'a LMclParams,
}

impl<'a> Cohort<'a> {
    /// One network with its graph, and the constants of the others.
    pub(super) fn around(
        position: usize,
        embeddings: &[Tensor],
        matching: &[Tensor],
        heard: &[Heard],
        params: &'a LMclParams,
    ) -> Result<Self> {
        if position > heard.len() {
            candle_core::bail!("network {position} of {} is none of them", heard.len() + 1);
        }
        let mut places = Places::new(params);
        let own = places.add("the own network", embeddings, matching)?;
        let learning = own.len();
        let mut pairs = Vec::new();
        for other in heard {
            let device = |t: &Tensor| t.to_device(places.device()).map(|t| t.detach());
            let theirs = other.embeddings.iter().map(device).collect::<Result<Vec<_>>>()?;
            let features = other.matching.iter().map(device).collect::<Result<Vec<_>>>()?;
            let other = places.add(&format!("network {}", other.index), &theirs, &features)?;
            pairs.extend(matching::pairs(own.clone(), other, params.matching));
        }
        Ok(places.cohort(learning, pairs))
    }

    /// All networks with their graphs: embeddings and matching features of each.
    pub(super) fn of_all(cohort: &[Stages<'_>], params: &'a LMclParams) -> Result<Self> {
        let mut places = Places::new(params);
        let mut networks: Vec<Range<usize>> = Vec::new();
        let mut pairs = Vec::new();
        for (index, (embeddings, matching)) in cohort.iter().enumerate() {
            let own = places.add(&format!("network {index}"), embeddings, matching)?;
            for other in &networks {
                pairs.extend(matching::pairs(other.clone(), own.clone(), params.matching));
            }
            networks.push(own);
        }
        let learning = places.embeddings.len();
        Ok(places.cohort(learning, pairs))
    }

    /// λ `[P, B]` of the pairs, differentiable where it is learned.
    pub(super) fn weights(&self) -> Result<Tensor> {
        let Some(first) = self.embeddings.all.first() else {
            candle_core::bail!("a cohort needs at least one network");
        };
        match self.params.matching {
            Matching::Learned => matching::learned(&self.matching, &self.pairs),
            Matching::Uniform | Matching::OneToOne => {
                Tensor::ones((self.pairs.len(), first.dim(0)?), first.dtype(), first.device())
            }
        }
    }

    /// The frozen embeddings at the places of the present ones.
    pub(super) fn frozen(&self, targets: &Targets) -> Result<Vec<Tensor>> {
        let frozen: Vec<&Tensor> = targets.own.iter().chain(targets.heard.iter().flatten()).collect();
        let same = frozen.len() == self.embeddings.all.len();
        if !same || frozen.iter().zip(&self.embeddings.all).any(|(f, v)| f.dims() != v.dims()) {
            candle_core::bail!("the targets are those of another cohort");
        }
        let device = self.embeddings.all[0].device();
        frozen.into_iter().map(|v| widen(&v.to_device(device)?.detach())).collect()
    }

    /// The terms that have a weight, in the order VCL, soft VCL, ICL, soft ICL, for λ `[P, B]` and labels `[B]`.
    ///
    /// `frozen` holds the embeddings that teachers are made of, where these are not the present ones.
    pub(super) fn terms(
        &self,
        lambda: &Tensor,
        sides: Sides,
        frozen: Option<&[Tensor]>,
        labels: &Tensor,
    ) -> Result<Vec<Weighted>> {
        let params = self.params;
        let mut embeddings = self.embeddings.clone();
        let offset = frozen.map_or(0, |_| embeddings.all.len());
        embeddings.all.extend(frozen.unwrap_or_default().iter().cloned());
        let (wanted, [vcl, soft_vcl, icl, soft_icl]) = self.wanted(sides, offset);
        let positives = Positives::new(labels, &self.embeddings.all[0])?;
        let setting = Setting { positives, tau: params.tau, kd_t: params.kd_t };
        let rows = rows(&embeddings, &wanted, &setting)?;
        let sum = |incidence: &Incidence, rows: &Option<Tensor>| -> Result<Option<Tensor>> {
            match rows {
                Some(rows) if !incidence.0.is_empty() => {
                    let sum = (incidence.weights(lambda, rows)? * rows)?.sum_all()?;
                    Ok(Some((sum * params.multiplicity())?))
                }
                _ => Ok(None),
            }
        };
        let all = [
            ("vcl", params.alpha, sum(&vcl, &rows.contrast)?),
            ("soft_vcl", params.gamma, sum(&soft_vcl, &rows.divergence)?),
            ("icl", params.beta, sum(&icl, &rows.contrast)?),
            ("soft_icl", params.lam, sum(&soft_icl, &rows.divergence)?),
        ];
        Ok(all.into_iter().filter_map(|(name, weight, value)| Some((name, weight, value?))).collect())
    }

    /// The rows of all pairs, and which of them VCL, soft VCL, ICL and soft ICL take; teachers lie `offset` places behind
    /// the embeddings that they stand for.
    fn wanted(&self, sides: Sides, offset: usize) -> (Wanted, [Incidence; 4]) {
        let params = self.params;
        let teacher = |s: Scores| Scores { anchors: s.anchors + offset, contrasts: s.contrasts + offset };
        let mut wanted = Wanted::default();
        let [mut vcl, mut soft_vcl, mut icl, mut soft_icl] = [(); 4].map(|()| Incidence::default());
        for (p, pair) in self.pairs.iter().enumerate() {
            let (a, b) = (pair.own, pair.other);
            let (aa, bb) = (Scores { anchors: a, contrasts: a }, Scores { anchors: b, contrasts: b });
            let (ab, ba) = (Scores { anchors: a, contrasts: b }, Scores { anchors: b, contrasts: a });
            let both = sides == Sides::Both;
            if params.alpha != 0.0 {
                vcl.contrast(&mut wanted, aa, p);
                if both {
                    vcl.contrast(&mut wanted, bb, p);
                }
            }
            if params.gamma != 0.0 {
                soft_vcl.divergence(&mut wanted, (aa, teacher(bb)), p);
                if both {
                    soft_vcl.divergence(&mut wanted, (bb, teacher(aa)), p);
                }
            }
            if params.beta != 0.0 {
                icl.contrast(&mut wanted, ab, p);
                icl.contrast(&mut wanted, ba, p);
            }
            if params.lam != 0.0 {
                soft_icl.divergence(&mut wanted, (ab, teacher(ba)), p);
                soft_icl.divergence(&mut wanted, (ba, teacher(ab)), p);
            }
        }
        (wanted, [vcl, soft_vcl, icl, soft_icl])
    }
}

/// Which pairs a term takes which rows for: entries of (row, pair).
#[derive(Default)]
struct Incidence(Vec<(usize, usize)>);

impl Incidence {
    /// Notes that the contrastive rows of a matrix, computed once, count for a pair.
    fn contrast(&mut self, wanted: &mut Wanted, at: Scores, pair: usize) {
        let row = wanted.contrast.iter().position(|known| *known == at).unwrap_or_else(|| {
            wanted.contrast.push(at);
            wanted.contrast.len() - 1
        });
        self.0.push((row, pair));
    }

    /// Notes that the rows of a divergence count for a pair.
    fn divergence(&mut self, wanted: &mut Wanted, edge: (Scores, Scores), pair: usize) {
        wanted.divergence.push(edge);
        self.0.push((wanted.divergence.len() - 1, pair));
    }

    /// The weight `[R, B]` of each row: λ `[P, B]` summed over the pairs that it counts for.
    fn weights(&self, lambda: &Tensor, rows: &Tensor) -> Result<Tensor> {
        let (height, pairs) = (rows.dim(0)?, lambda.dim(0)?);
        let mut counts = vec![0f64; height * pairs];
        for (row, pair) in &self.0 {
            counts[row * pairs + pair] += 1.0;
        }
        let counts = Tensor::from_vec(counts, (height, pairs), lambda.device())?;
        counts.to_dtype(lambda.dtype())?.matmul(lambda)
    }
}

/// The list of a cohort's stages while it is put together.
struct Places<'a> {
    embeddings: Vec<Tensor>,
    matching: Vec<Tensor>,
    params: &'a LMclParams,
}

impl<'a> Places<'a> {
    fn new(params: &'a LMclParams) -> Self {
        Self { embeddings: Vec::new(), matching: Vec::new(), params }
    }

    fn device(&self) -> &candle_core::Device {
        self.embeddings.first().map_or(&candle_core::Device::Cpu, |first| first.device())
    }

    /// Adds a network; returns the places of its stages.
    fn add(&mut self, who: &str, embeddings: &[Tensor], matching: &[Tensor]) -> Result<Range<usize>> {
        let from = self.embeddings.len();
        if embeddings.is_empty() {
            candle_core::bail!("{who} said no {}", embedding_name(0));
        }
        for (k, v) in embeddings.iter().enumerate() {
            let first = self.embeddings.first().unwrap_or(v).dims();
            if v.dims() != first || v.rank() != 2 {
                candle_core::bail!("{} of {who} is {:?}, expected {first:?}", embedding_name(k), v.dims());
            }
            self.embeddings.push(widen(v)?);
        }
        if self.params.matching == Matching::Learned {
            if matching.len() != embeddings.len() {
                let (got, stages) = (matching.len(), embeddings.len());
                candle_core::bail!("{who} said {} of {got} stages, it has {stages}", matching_name(0));
            }
            for (k, u) in matching.iter().enumerate() {
                let first = self.matching.first().unwrap_or(u).dims();
                let batch = embeddings[k].dim(0)?;
                if u.dims() != first || u.rank() != 2 || u.dim(0)? != batch {
                    candle_core::bail!("{} of {who} is {:?}, expected {first:?}", matching_name(k), u.dims());
                }
                self.matching.push(widen(u)?);
            }
        }
        Ok(from..self.embeddings.len())
    }

    fn cohort(self, learning: usize, pairs: Vec<Pair>) -> Cohort<'a> {
        let embeddings = Embeddings { all: self.embeddings, learning };
        Cohort { embeddings, matching: self.matching, pairs, params: self.params }
    }
}
