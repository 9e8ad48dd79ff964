//! Reverse accumulation through steps of SGD with momentum and weight decay, without a graph: two vectors that are
//! carried from the last step back to the first.

/// The constants of the descent that is differentiated: `d = ∇L(θ) + wd θ`, `v' = μ v + d`, `θ' = θ - lr v'`, with
/// `v = 0` before the first step and no Nesterov look-ahead.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Descent {
    /// `lr`.
    pub lr: f64,
    /// `μ`.
    pub momentum: f64,
    /// `wd`.
    pub weight_decay: f64,
}

impl Descent {
    /// One step from `theta` with `velocity`, which it updates: the new `theta`.
    pub fn step(&self, theta: &[f64], velocity: &mut [f64], gradient: &[f64]) -> Vec<f64> {
        let along = theta.iter().zip(velocity).zip(gradient);
        let along = along.map(|((theta, velocity), gradient)| {
            *velocity = self.momentum * *velocity + (gradient + self.weight_decay * theta);
            theta - self.lr * *velocity
        });
        along.collect()
    }
}

/// What the final objective `J` makes of a place on the path: `∂J/∂θ'` and `∂J/∂v'` after a step, then before it.
#[derive(Debug, Clone, PartialEq)]
pub struct Adjoint {
    /// `∂J/∂θ`.
    theta: Vec<f64>,
    /// `∂J/∂v`.
    velocity: Vec<f64>,
    /// Whether the velocity's adjoint enters that of θ without the factor `wd`, as in the authors' release.
    compat: bool,
}

impl Adjoint {
    /// At the end of the path: `gradient` is `∇J` there, and nothing depends on the last velocity any more.
    pub fn at_the_end(gradient: Vec<f64>, compat: bool) -> Self {
        let velocity = vec![0.0; gradient.len()];
        Self { theta: gradient, velocity, compat }
    }

    /// `b = ∂J/∂d` of the step in front: the direction along which its objective's gradient is differentiated.
    pub fn direction(&self, descent: &Descent) -> Vec<f64> {
        let both = self.theta.iter().zip(&self.velocity);
        both.map(|(theta, velocity)| velocity - descent.lr * theta).collect()
    }

    /// Goes back over one step with the Hessian of its objective times [`Adjoint::direction`]:
    /// `∂J/∂θ = ∂J/∂θ' + wd b + H b` and `∂J/∂v = μ b`.
    pub fn back(&mut self, descent: &Descent, hessian_b: &[f64]) {
        let Descent { lr, momentum, weight_decay } = *descent;
        let share = if self.compat { 1.0 } else { weight_decay };
        let all = self.theta.iter_mut().zip(&mut self.velocity).zip(hessian_b);
        for ((theta, velocity), hessian_b) in all {
            let b = *velocity - lr * *theta;
            *theta = (1.0 - lr * weight_decay) * *theta + share * *velocity + hessian_b;
            *velocity = momentum * b;
        }
    }
}
