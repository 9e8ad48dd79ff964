//! The least bilevel problem, with closed forms: `L_in = ½ φ (θ - 1)²`, `L_out = ½ (θ + ½)²`.

use candle_core::Result;

use super::company::together;
use crate::kernels::GateTape;
use crate::meta::adjoint::Descent;
use crate::meta::update::R_F64;
use crate::meta::{Bilevel, Gradient, Settings, Words};

#[derive(Clone)]
struct Scalar {
    theta: f64,
    phi: f64,
    hypergradient: f64,
}

impl Bilevel for Scalar {
    type Forward = f64;
    type Targets = ();
    type Statistics = ();

    fn theta(&self) -> Result<Vec<f64>> {
        Ok(vec![self.theta])
    }

    fn phi_count(&self) -> usize {
        1
    }

    fn set_theta(&mut self, theta: &[f64]) -> Result<()> {
        self.theta = theta[0];
        Ok(())
    }

    fn record(&self) -> Result<(f64, GateTape)> {
        Ok((self.theta, GateTape::recording()))
    }

    fn replay(&self, _: &GateTape) -> Result<f64> {
        Ok(self.theta)
    }

    fn words(&self, _: &f64) -> Words {
        Words::default()
    }

    fn targets(&self, _: &f64, _: &[(usize, Words)]) -> Result<()> {
        Ok(())
    }

    fn inner_gradient(&self, theta: &f64, _: &[(usize, Words)], (): &()) -> Result<Gradient> {
        let away = theta - 1.0;
        Ok(Gradient { theta: vec![self.phi * away], phi: vec![0.5 * away * away] })
    }

    fn remember(&mut self, _: &Self::Forward, _: &[(usize, Words)]) -> Result<()> {
        Ok(())
    }

    fn forget(&mut self) {}

    fn outer_gradient(&self, theta: &f64) -> Result<Vec<f64>> {
        Ok(vec![theta + 0.5])
    }

    fn statistics(&self, _: f64) {}

    fn write_statistics(&mut self, (): ()) -> Result<()> {
        Ok(())
    }

    fn step_phi(&mut self, gradient: &[f64], _: f64) -> Result<()> {
        self.hypergradient = gradient[0];
        Ok(())
    }
}

fn settings(compat_a1: bool) -> Settings {
    let descent = Descent { lr: 0.1, momentum: 0.9, weight_decay: 5e-4 };
    Settings { inner_steps: 2, descent, r: 1e-4, compat_a1, statistics: true }
}

fn hypergradient(compat_a1: bool) -> f64 {
    let mut peers = [Scalar { theta: 2.0, phi: 0.7, hypergradient: 0.0 }];
    together(&mut peers, &settings(compat_a1), None).remove(0).0.unwrap();
    assert_eq!(peers[0].theta, 2.0);
    peers[0].hypergradient
}

/// Values by symbolic differentiation of the three unrolled steps. Gradients are linear in θ but for φ's, whose
/// difference is exact in the second order too.
#[test]
fn the_closed_form() {
    assert!((hypergradient(false) + 0.795587165680).abs() < 1e-11, "{}", hypergradient(false));
    assert!((hypergradient(true) + 0.777992715854).abs() < 1e-11, "{}", hypergradient(true));
}

/// Peers without a common term have their own hypergradients, whatever the others are.
#[test]
fn peers_that_share_nothing_do_not_disturb_each_other() {
    let far = Scalar { theta: -30.0, phi: 0.1, hypergradient: 0.0 };
    let mut peers = [Scalar { theta: 2.0, phi: 0.7, hypergradient: 0.0 }, far];
    let outcomes = together(&mut peers, &settings(false), None);
    assert!(outcomes.iter().all(|(outcome, _)| outcome.is_ok()));
    assert!((peers[0].hypergradient + 0.795587165680).abs() < 1e-10, "{}", peers[0].hypergradient);
}

/// At the minimum of the outer objective nothing can be learnt, and nothing is divided by 0.
#[test]
fn nothing_to_learn_is_no_error() {
    // No inner pull and no decay: θ stays at the outer minimum, where b = 0.
    let mut peers = [Scalar { theta: -0.5, phi: 0.0, hypergradient: 1.0 }];
    let descent = Descent { lr: 0.1, momentum: 0.9, weight_decay: 0.0 };
    let settings = Settings { descent, r: R_F64, ..settings(false) };
    let (outcome, made) = together(&mut peers, &settings, None).remove(0);
    outcome.unwrap();
    assert_eq!(peers[0].hypergradient, 0.0);
    assert_eq!(made.len(), 2 + 2 + 1, "no displaced passes");
}
