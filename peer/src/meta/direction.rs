//! A derivative along a direction as a difference of two gradients, and how far apart the two are taken.
//!
//! For a scalar `L` with continuous second derivatives the mixed partials commute, so that
//! `∂/∂θ ⟨∇L, b⟩ = d/dε ∇L(θ + ε b)` at 0, jointly for all networks with one common ε. The central difference is off by
//! a term of order ε² and by the rounding of `L`'s gradient divided by ε.

/// Squared Euclidean norms of one peer's direction and parameters.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Norms {
    /// `‖b_i‖²`.
    pub direction: f64,
    /// `‖θ_i‖²`.
    pub theta: f64,
}

impl Norms {
    /// Of one peer's vectors.
    pub fn of(direction: &[f64], theta: &[f64]) -> Self {
        let square = |vector: &[f64]| vector.iter().map(|x| x * x).sum();
        Self { direction: square(direction), theta: square(theta) }
    }
}

/// `ε = r ‖θ‖ / ‖b‖` over all peers, whose squares are added in the order given: ascending index, so that all peers
/// form the same bits. `None` if `b` or `θ` is 0 everywhere: there is then nothing to differentiate along.
pub fn step_size(r: f64, peers: &[Norms]) -> Option<f64> {
    let theta: f64 = peers.iter().map(|norms| norms.theta).sum();
    let direction: f64 = peers.iter().map(|norms| norms.direction).sum();
    let epsilon = r * theta.sqrt() / direction.sqrt();
    (direction > 0.0 && epsilon > 0.0 && epsilon.is_finite()).then_some(epsilon)
}

/// `theta + epsilon direction`.
pub fn displaced(theta: &[f64], direction: &[f64], epsilon: f64) -> Vec<f64> {
    theta.iter().zip(direction).map(|(theta, b)| theta + epsilon * b).collect()
}

/// `(plus - minus) / 2 epsilon`.
pub fn difference(plus: &[f64], minus: &[f64], epsilon: f64) -> Vec<f64> {
    plus.iter().zip(minus).map(|(plus, minus)| (plus - minus) / (2.0 * epsilon)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_step_size_for_all_by_the_norms_of_all() {
        let peers = [Norms::of(&[3.0], &[1.0, 2.0]), Norms::of(&[4.0], &[2.0, 4.0])];
        assert_eq!(step_size(1e-2, &peers), Some(1e-2 * 25f64.sqrt() / 5.0));
        assert_eq!(step_size(1e-2, &[Norms::of(&[0.0], &[1.0])]), None, "nothing to go along");
        assert_eq!(step_size(1e-2, &[Norms::default()]), None);
    }

    #[test]
    fn a_difference_is_exact_where_the_gradient_is_linear() {
        let gradient = |theta: &[f64]| vec![4.0 * theta[0] + theta[1], theta[0] - 2.0 * theta[1]];
        let (theta, b) = ([1.0, 2.0], [0.5, -1.0]);
        let side = |epsilon| gradient(&displaced(&theta, &b, epsilon));
        assert_eq!(difference(&side(0.25), &side(-0.25), 0.25), [1.0, 2.5]);
    }
}
