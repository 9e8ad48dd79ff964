//! The functions under test by the name of their term, one file a family.

mod alone;
mod cross_entropy;
mod dml;
mod ensembles;
mod lmcl;
mod mcl;
mod memory_bank;
mod metrics;
mod sgd;
mod teachers;

use anyhow::Result;
use candle_core::Tensor;

use crate::case::{Tensors, Trial};

/// Computes what the `out.*` of a case are compared with.
pub(crate) type Term = fn(&Trial<'_>) -> Result<Tensors>;

const TERMS: &[(&str, Term)] = &[
    ("ce", cross_entropy::ce),
    ("dml", dml::dml),
    ("mcl", mcl::mcl),
    ("mcl_logit_kd", mcl::mcl_logit_kd),
    ("lmcl_step", lmcl::step),
    ("lmcl_inner", lmcl::inner),
    ("lmcl_logits", lmcl::logits),
    ("aggregator", lmcl::aggregator),
    ("memory_bank", memory_bank::memory_bank),
    ("label_smoothing", alone::label_smoothing),
    ("anisotropic_label_smoothing", alone::anisotropic),
    ("confidence_penalty", alone::confidence_penalty),
    ("hypersphere", alone::hypersphere),
    ("tsd_teacher", alone::tsd_teacher),
    ("ps_kd", alone::ps_kd),
    ("kd", teachers::kd),
    ("tsd_student", teachers::tsd_student),
    ("dkd", teachers::dkd),
    ("kd_fn", teachers::kd_fn),
    ("ktg_edge", teachers::ktg_edge),
    ("afd", teachers::afd),
    ("kdcl", ensembles::kdcl),
    ("one", ensembles::one),
    ("lmcl_memory_bank", memory_bank::layerwise),
    ("metrics", metrics::metrics),
    ("sgd", sgd::sgd),
];

/// The function of a term.
pub(crate) fn find(name: &str) -> Option<Term> {
    TERMS.iter().find(|(known, _)| *known == name).map(|(_, term)| *term)
}

/// The outputs of a term that is nothing but a loss.
fn loss(loss: Tensor) -> Tensors {
    Tensors::from([("loss".to_owned(), loss)])
}
