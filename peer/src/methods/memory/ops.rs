//! The terms as operations in candle's graph: values and derivatives are both known when an operation is made.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::anchor::{Found, Problem, Remembering, TERMS};
use super::{Draws, MemoryParams, Remembered};
use crate::methods::Weighted;
use crate::methods::primitives::zero;

/// The share of a network: `vcl`, `soft_vcl`, `icl`, `soft_icl` as far as they have a weight, unweighted scalars.
///
/// `others` holds the other networks in ascending index; `lambda` `[P, B]` the weight of every pair of stages for each
/// anchor, by ascending other network, own stage, stage of the other, or nothing where it is 1. Only the own stages receive a
/// gradient. Computed on the processor, wherever the embeddings are.
///
/// # Errors
/// Shapes that differ; draws of samples that the banks do not hold.
pub fn share(
    own: Remembered<'_>,
    others: &[Remembered<'_>],
    draws: &Draws,
    params: &MemoryParams,
    lambda: Option<&Tensor>,
) -> Result<Vec<Weighted>> {
    let zero = zero(first(&own)?)?;
    let others = others.iter().map(|other| remembering(*other, None, draws)).collect::<Result<_>>()?;
    let problem = problem((remembering(own, None, draws)?, others), draws, params, lambda)?;
    let terms = stacked(&own)?.apply_op1(computed(&problem)?)?;
    let named = ["vcl", "soft_vcl", "icl", "soft_icl"].into_iter().zip(params.weights()).enumerate();
    let named = named.filter(|(_, (_, weight))| *weight != 0.0);
    let scalar = |t: usize| terms.get(t)?.to_dtype(zero.dtype())?.to_device(zero.device());
    named.map(|(t, (name, weight))| Ok((name, weight, scalar(t)?))).collect()
}

/// The part of the inner objective of the meta-update that the tensors of a network enter: all eight terms of every pair of
/// its stages with those of the others, weighted; a scalar.
///
/// `lambda` `[P, B]` as in [`share`]; it and the own stages receive a gradient. Distributions to learn from are made of
/// `targets`: the embeddings of the own stages, then those of each other network. Computed on the processor.
///
/// # Errors
/// As [`share`]; targets of another cohort.
pub fn inner(
    own: Remembered<'_>,
    others: &[Remembered<'_>],
    (own_targets, targets): (&[Tensor], &[Vec<Tensor>]),
    draws: &Draws,
    params: &MemoryParams,
    lambda: &Tensor,
) -> Result<Tensor> {
    let zero = zero(first(&own)?)?;
    if others.len() != targets.len() {
        candle_core::bail!("the targets are those of another cohort");
    }
    let others = others.iter().zip(targets);
    let others = others.map(|(other, targets)| remembering(*other, Some(targets), draws));
    let networks = (remembering(own, Some(own_targets), draws)?, others.collect::<Result<_>>()?);
    let problem = problem(networks, draws, params, Some(lambda))?;
    let here = lambda.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    let total = stacked(&own)?.apply_op2(&here, objective(&problem)?)?;
    total.to_dtype(zero.dtype())?.to_device(zero.device())
}

fn first<'a>(own: &Remembered<'a>) -> Result<&'a Tensor> {
    match own.stages.first() {
        Some(first) => Ok(first),
        None => candle_core::bail!("a network without embeddings has nothing to contrast with memory"),
    }
}

/// The own stages `[S, B, E]` with their graph, in f64 on the processor.
fn stacked(own: &Remembered<'_>) -> Result<Tensor> {
    let here = |v: &Tensor| v.to_device(&Device::Cpu)?.to_dtype(DType::F64);
    Tensor::stack(&own.stages.iter().map(here).collect::<Result<Vec<_>>>()?, 0)
}

fn problem<'a>(
    (own, others): (Remembering<'a>, Vec<Remembering<'a>>),
    draws: &'a Draws,
    params: &'a MemoryParams,
    lambda: Option<&Tensor>,
) -> Result<Problem<'a>> {
    let pairs = others.iter().map(|other| own.stages.len() * other.stages.len()).sum::<usize>();
    let flat = |lambda: &Tensor| {
        if lambda.dims() != [pairs, draws.batch()] {
            candle_core::bail!("weights {:?} of {pairs} pairs of stages", lambda.dims());
        }
        numbers(lambda)
    };
    Ok(Problem { own, others, draws, params, lambda: lambda.map(flat).transpose()? })
}

fn remembering<'a>(
    network: Remembered<'a>,
    targets: Option<&[Tensor]>,
    draws: &Draws,
) -> Result<Remembering<'a>> {
    let rows = |v: &Tensor| {
        if v.dims() != [draws.batch(), network.bank.width()] {
            let (batch, width) = (draws.batch(), network.bank.width());
            candle_core::bail!("embeddings {:?} of {batch} anchors at a bank of width {width}", v.dims());
        }
        numbers(v)
    };
    if targets.is_some_and(|targets| targets.len() != network.stages.len()) {
        candle_core::bail!("the targets are those of another cohort");
    }
    let frozen = targets.map(|targets| targets.iter().map(rows).collect::<Result<_>>()).transpose()?;
    let stages = network.stages.iter().map(rows).collect::<Result<_>>()?;
    Ok(Remembering { bank: network.bank, stages, frozen })
}

/// Row by row.
fn numbers(x: &Tensor) -> Result<Vec<f64>> {
    x.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// The terms `[4]` as an operation on the own embeddings `[S, B, E]`.
struct Computed {
    values: [f64; TERMS],
    gradients: Vec<Tensor>,
}

fn computed(problem: &Problem<'_>) -> Result<Computed> {
    let found = anchors(problem, |n| problem.anchor(n))?;
    let values = std::array::from_fn(|t| found.iter().map(|anchor| anchor.values[t]).sum());
    let gradients = (0..TERMS).map(|t| by_stages(problem, &found, t)).collect::<Result<_>>()?;
    Ok(Computed { values, gradients })
}

fn anchors<T: Send>(problem: &Problem<'_>, of: impl Fn(usize) -> Result<T> + Sync + Send) -> Result<Vec<T>> {
    (0..problem.draws.batch()).into_par_iter().map(of).collect()
}

/// The gradient of a term by the own embeddings `[S, B, E]`.
fn by_stages(problem: &Problem<'_>, found: &[Found], term: usize) -> Result<Tensor> {
    let (stages, width) = (problem.own.stages.len(), problem.own.bank.width());
    let rows = (0..stages).flat_map(|stage| found.iter().map(move |anchor| &anchor.gradients[term][stage]));
    Tensor::from_vec(rows.flatten().copied().collect(), (stages, found.len(), width), &Device::Cpu)
}

impl CustomOp1 for Computed {
    fn name(&self) -> &'static str {
        "cohort-memory-terms"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F64(self.values.to_vec()), Shape::from(TERMS)))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.to_vec1::<f64>()?;
        let mut sum: Option<Tensor> = None;
        for (dy, gradient) in dy.iter().zip(&self.gradients) {
            let part = (gradient * *dy)?;
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        Ok(sum)
    }
}

/// The inner objective, a scalar, as an operation on the own embeddings `[S, B, E]` and λ `[P, B]`.
struct Objective {
    value: f64,
    by_stages: Tensor,
    by_lambda: Tensor,
}

fn objective(problem: &Problem<'_>) -> Result<Objective> {
    let found = anchors(problem, |n| Ok((problem.anchor(n)?, problem.slopes(n)?)))?;
    let (found, slopes): (Vec<Found>, Vec<Vec<f64>>) = found.into_iter().unzip();
    let pairs = slopes.first().map_or(0, Vec::len);
    let along = |pair: usize| slopes.iter().map(move |of_anchor| of_anchor[pair]);
    let slopes: Vec<f64> = (0..pairs).flat_map(along).collect();
    let lambda = problem.lambda.as_deref().unwrap_or_default();
    let value = slopes.iter().zip(lambda).map(|(slope, lambda)| slope * lambda).sum();
    let mut by_own = by_stages(problem, &found, 0)?.zeros_like()?;
    for (term, weight) in problem.params.weights().into_iter().enumerate() {
        by_own = (by_own + (by_stages(problem, &found, term)? * weight)?)?;
    }
    let by_lambda = Tensor::from_vec(slopes, (pairs, found.len()), &Device::Cpu)?;
    Ok(Objective { value, by_stages: by_own, by_lambda })
}

impl CustomOp2 for Objective {
    fn name(&self) -> &'static str {
        "cohort-memory-objective"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F64(vec![self.value]), Shape::from(())))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.to_scalar::<f64>()?;
        Ok((Some((&self.by_stages * dy)?), Some((&self.by_lambda * dy)?)))
    }
}
