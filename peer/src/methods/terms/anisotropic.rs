//! Anisotropic label smoothing (Xu et al., "Feature Normalized Knowledge Distillation", ECCV 2020, equation 3): classes
//! that resemble the true one get a part of the label of their own.
//!
//! `q = (1 - ε1 - ε2)·onehot(y) + ε1/C + ε2·ρ`, `ρ(c) = 1/|A(y)|` for the classes c of the group A(y) that holds y, else 0.
//! y itself belongs to A(y). The term is `H(q, z)` and takes the place of cross-entropy. A class alone in its group would
//! get ε2 back on itself: the function does that, [`AnisotropicParams::check`] refuses it.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

use super::checks::{ParamsError, share};
use crate::methods::primitives::{classes_of, constant, cross_entropy_rows};

/// Hyper-parameters of anisotropic label smoothing.
#[derive(Debug, Clone, PartialEq)]
pub struct AnisotropicParams {
    /// What is taken from the label for all classes, 0 to 1.
    pub eps1: f64,
    /// What is taken from the label for the classes of its group, 0 to 1.
    pub eps2: f64,
    /// The group of each class, `[C]`; equal numbers are one group.
    pub groups: Vec<u32>,
}

impl AnisotropicParams {
    /// The paper's shares, for groups of classes.
    pub fn new(groups: Vec<u32>) -> Self {
        Self { eps1: 0.2, eps2: 0.02, groups }
    }

    /// Whether the term can be used with that many classes.
    ///
    /// # Errors
    /// Shares outside 0..=1 or above 1 together, not one group for each class, a class alone in its group.
    pub fn check(&self, classes: usize) -> std::result::Result<(), ParamsError> {
        share("eps1", self.eps1)?;
        share("eps2", self.eps2)?;
        // Two decimal fractions that add up to 1 on paper may exceed it by their rounding.
        let sum = self.eps1 + self.eps2;
        if sum > 1.0 + 1e-12 {
            return Err(ParamsError::Smoothing { sum });
        }
        if self.groups.len() != classes {
            return Err(ParamsError::Groups { groups: self.groups.len(), classes });
        }
        let sizes = self.sizes();
        let alone = self.groups.iter().enumerate().find(|(_, group)| sizes.get(group) == Some(&1));
        match alone {
            Some((class, group)) => Err(ParamsError::AloneInGroup { class, group: *group }),
            None => Ok(()),
        }
    }

    fn sizes(&self) -> BTreeMap<u32, usize> {
        let mut sizes = BTreeMap::new();
        for group in &self.groups {
            *sizes.entry(*group).or_insert(0) += 1;
        }
        sizes
    }
}

/// `H(q, z)` of each sample, `[B]`: logits `[B, C]`, labels `[B]` of any integer dtype.
///
/// # Errors
/// Not one group for each class, a label that is no class, or shapes that do not fit.
pub fn rows(logits: &Tensor, labels: &Tensor, params: &AnisotropicParams) -> Result<Tensor> {
    let (batch, classes) = logits.dims2()?;
    if params.groups.len() != classes {
        let refused = ParamsError::Groups { groups: params.groups.len(), classes };
        candle_core::bail!("{refused}");
    }
    let sizes = params.sizes();
    let everywhere = params.eps1 / classes as f64;
    let mut target = vec![everywhere; batch * classes];
    for (row, label) in target.chunks_exact_mut(classes.max(1)).zip(classes_of(labels, logits)?) {
        let group = params.groups[label];
        let each = params.eps2 / sizes.get(&group).copied().unwrap_or(1) as f64;
        for (q, other) in row.iter_mut().zip(&params.groups) {
            *q += if *other == group { each } else { 0.0 };
        }
        row[label] += 1.0 - params.eps1 - params.eps2;
    }
    cross_entropy_rows(&constant(target, (batch, classes), logits)?, logits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::terms::label_smoothing::{self, LabelSmoothingParams};
    use crate::methods::terms::mean;
    use crate::methods::tests::*;

    fn params() -> AnisotropicParams {
        AnisotropicParams::new(vec![7, 7, 3, 3, 3])
    }

    #[test]
    fn has_the_printed_value_and_the_slope_of_its_value() {
        let (z, y) = (logits_of(0).unwrap(), labels(&LABELS).unwrap());
        let loss = |z: &Tensor| mean(&rows(z, &y, &params())?);
        close(value(&loss(&z).unwrap()), 3.244883742227, 1e-12);
        check_gradient(&z, loss);
    }

    #[test]
    fn one_group_of_all_classes_is_label_smoothing() {
        let (z, y) = (logits_of(1).unwrap(), labels(&LABELS).unwrap());
        let one_group = AnisotropicParams { eps1: 0.05, eps2: 0.1, groups: vec![4; CLASSES] };
        let plain = label_smoothing::rows(&z, &y, &LabelSmoothingParams { eps: 0.15 }).unwrap();
        let got = entries(&rows(&z, &y, &one_group).unwrap());
        assert!(largest_difference(&got, &entries(&plain)) < 1e-14);
    }

    #[test]
    fn a_class_alone_gets_its_share_back() {
        let z = logits_of(1).unwrap();
        let alone = AnisotropicParams { eps1: 0.1, eps2: 0.3, groups: vec![0, 1, 2, 3, 4] };
        let y = labels(&LABELS).unwrap();
        let plain = label_smoothing::rows(&z, &y, &LabelSmoothingParams { eps: 0.1 }).unwrap();
        assert!(largest_difference(&entries(&rows(&z, &y, &alone).unwrap()), &entries(&plain)) < 1e-14);
        assert_eq!(alone.check(CLASSES), Err(ParamsError::AloneInGroup { class: 0, group: 0 }));
    }

    #[test]
    fn stays_finite() {
        check_finite(|z, _, y| {
            rows(z, y, &AnisotropicParams::new((0..z.dim(1)?).map(|c| c as u32 % 2).collect()))
        });
    }

    #[test]
    fn refuses_what_cannot_be_meant() {
        assert!(params().check(CLASSES).is_ok());
        assert_eq!(params().check(4), Err(ParamsError::Groups { groups: 5, classes: 4 }));
        let greedy = AnisotropicParams { eps1: 0.75, eps2: 0.5, ..params() };
        assert_eq!(greedy.check(CLASSES), Err(ParamsError::Smoothing { sum: 1.25 }));
        let all = AnisotropicParams { eps1: 0.9, eps2: 0.1, ..params() };
        assert!(all.check(CLASSES).is_ok());
        for eps in [-0.1, 1.1, f64::NAN] {
            assert!(AnisotropicParams { eps1: eps, ..params() }.check(CLASSES).is_err());
            assert!(AnisotropicParams { eps2: eps, ..params() }.check(CLASSES).is_err());
        }
        let mut odd = params();
        odd.groups[1] = 9;
        assert_eq!(odd.check(CLASSES), Err(ParamsError::AloneInGroup { class: 0, group: 7 }));
        let few = AnisotropicParams::new(vec![0, 0]);
        assert!(rows(&logits_of(0).unwrap(), &labels(&LABELS).unwrap(), &few).is_err());
    }
}
