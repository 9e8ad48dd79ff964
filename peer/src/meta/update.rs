//! The meta-update, top to bottom: along the path, back again, and home.

use candle_core::{Result, Tensor};
use cohort_proto::meta::RoundKind;

use super::adjoint::{Adjoint, Descent};
use super::direction::{Norms, difference, displaced, step_size};
use super::problem::{Bilevel, Gather, Gradient, Words};
use crate::kernels::GateTape;

/// The relative displacement for a network that computes in f64: least error where the difference's own error, of
/// order r², meets that of rounding.
pub const R_F64: f64 = 1e-6;
/// The same in f32: fresh networks have third derivatives so large that five times as much costs a percent, and rounding
/// has room.
pub const R_F32: f64 = 2e-4;

/// How a meta-update is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// `T`, steps of the inner descent.
    pub inner_steps: u32,
    /// The descent of θ, inner steps and outer step alike.
    pub descent: Descent,
    /// `r = ‖ε b‖ / ‖θ‖` of the displaced passes.
    pub r: f64,
    /// Whether the adjoint drops a factor as the authors' release does (see [`super::adjoint`]).
    pub compat_a1: bool,
    /// Whether the running statistics of batch norm, and memory banks, end with one more update by this batch, as in the
    /// release; else they stay as they were.
    pub statistics: bool,
}

/// How a meta-update ended; the same on all peers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// φ was changed.
    Learnt {
        /// Euclidean norm of this peer's hypergradient.
        norm: f64,
    },
    /// Some peer met a number that is not finite: nothing was changed, on any peer.
    Abandoned,
}

/// Makes one meta-update among peers. Afterwards θ is what it was, bit for bit, and φ has taken one step.
///
/// # Errors
/// If an exchange or the device fails: then nothing has changed, neither θ nor φ nor running statistics.
pub fn update<P: Bilevel, G: Gather>(
    peer: &mut P,
    company: &mut G,
    settings: &Settings,
) -> std::result::Result<Outcome, G::Error> {
    let home = peer.theta()?;
    let learnt = hypergradient(peer, company, settings);
    (0..settings.inner_steps).for_each(|_| peer.forget());
    let restored = peer.set_theta(&home);
    let learnt = learnt?;
    restored?;
    let Some((phi, statistics)) = learnt else { return Ok(Outcome::Abandoned) };
    peer.step_phi(&phi, settings.descent.lr)?;
    if let Some(statistics) = statistics {
        peer.write_statistics(statistics)?;
    }
    Ok(Outcome::Learnt { norm: phi.iter().map(|x| x * x).sum::<f64>().sqrt() })
}

/// A point of the inner path, and what stays fixed around it.
struct Point<T> {
    theta: Vec<f64>,
    gates: GateTape,
    targets: T,
}

/// The inner descent: where it went, and with what speed it arrived.
struct Path<P: Bilevel> {
    /// By the number of the inner step that was taken from there.
    points: Vec<(u32, Point<P::Targets>)>,
    theta: Vec<f64>,
    velocity: Vec<f64>,
    /// What the first pass leaves in running statistics and banks, if they are to be updated.
    statistics: Option<P::Statistics>,
}

/// `dJ/dφ_i` of a peer, and the statistics to be written with it.
type Found<P> = (Vec<f64>, Option<<P as Bilevel>::Statistics>);

/// The own hypergradient, or nothing if some peer met a number that is not finite. Leaves θ somewhere on the path.
fn hypergradient<P: Bilevel, G: Gather>(
    peer: &mut P,
    company: &mut G,
    settings: &Settings,
) -> std::result::Result<Option<Found<P>>, G::Error> {
    let mut company = Watched { company, finite: true };
    let path = descend(peer, &mut company, settings)?;
    let mut adjoint = outer_step(peer, path.theta, path.velocity, settings)?;
    let mut phi = vec![0.0; peer.phi_count()];
    for (inner, point) in path.points.iter().rev() {
        // Its objective is at the banks as they were there.
        peer.forget();
        let b = adjoint.direction(&settings.descent);
        let norms = Norms::of(&b, &point.theta);
        let Some(norms) = company.norms(RoundKind::MetaNorms(*inner), norms)? else { return Ok(None) };
        let curvature = match step_size(settings.r, &norms) {
            Some(epsilon) => curvature(peer, &mut company, (*inner, point), &b, epsilon)?,
            None => Gradient { theta: vec![0.0; b.len()], phi: vec![0.0; phi.len()] },
        };
        adjoint.back(&settings.descent, &curvature.theta);
        phi.iter_mut().zip(&curvature.phi).for_each(|(sum, term)| *sum += term);
    }
    // What φ is stepped by must be finite in f32 as well.
    company.finite &= phi.iter().all(|x| x.abs() <= f64::from(f32::MAX));
    let unanimous = company.norms(RoundKind::MetaVerdict, Norms::default())?.is_some();
    Ok(unanimous.then_some((phi, path.statistics)))
}

/// `T` inner steps from where θ stands, with velocities that start at 0. Leaves θ at their end.
fn descend<P: Bilevel, G: Gather>(
    peer: &mut P,
    company: &mut Watched<'_, G>,
    settings: &Settings,
) -> std::result::Result<Path<P>, G::Error> {
    let mut theta = peer.theta()?;
    let mut velocity = vec![0.0; theta.len()];
    let (mut points, mut statistics) = (Vec::new(), None);
    for inner in 0..settings.inner_steps {
        let (forward, gates) = peer.record()?;
        let heard = company.words(RoundKind::MetaForward(inner), peer.words(&forward))?;
        let targets = peer.targets(&forward, &heard)?;
        let gradient = peer.inner_gradient(&forward, &heard, &targets)?;
        peer.remember(&forward, &heard)?;
        if inner == 0 && settings.statistics {
            statistics = Some(peer.statistics(forward));
        }
        peer.set_theta(&settings.descent.step(&theta, &mut velocity, &gradient.theta))?;
        // The next point is where the network stands: in f32 not quite where it was sent.
        let next = peer.theta()?;
        points.push((inner, Point { theta: std::mem::replace(&mut theta, next), gates, targets }));
    }
    Ok(Path { points, theta, velocity, statistics })
}

/// The last step, along the outer objective, and the adjoint in front of it. Networks share no term of this objective,
/// so nothing is exchanged, and each peer has its own ε.
fn outer_step<P: Bilevel>(
    peer: &mut P,
    theta: Vec<f64>,
    mut velocity: Vec<f64>,
    settings: &Settings,
) -> Result<Adjoint> {
    let descent = &settings.descent;
    let (forward, gates) = peer.record()?;
    let gradient = peer.outer_gradient(&forward)?;
    drop(forward);
    peer.set_theta(&descent.step(&theta, &mut velocity, &gradient))?;
    let (forward, _) = peer.record()?;
    let mut adjoint = Adjoint::at_the_end(peer.outer_gradient(&forward)?, settings.compat_a1);
    drop(forward);

    let b = adjoint.direction(descent);
    let hessian_b = match step_size(settings.r, &[Norms::of(&b, &theta)]) {
        Some(epsilon) => {
            let mut side = |epsilon| {
                peer.set_theta(&displaced(&theta, &b, epsilon))?;
                let forward = peer.replay(&gates)?;
                peer.outer_gradient(&forward)
            };
            difference(&side(epsilon)?, &side(-epsilon)?, epsilon)
        }
        None => vec![0.0; b.len()],
    };
    adjoint.back(descent, &hessian_b);
    Ok(adjoint)
}

/// Derivative of the inner objective's gradient at a point of the path along `b`, by θ (the Hessian times `b`) and by
/// φ: all peers go to `θ + ε b`, then to `θ - ε b`, with gates and KL targets of the point itself.
fn curvature<P: Bilevel, G: Gather>(
    peer: &mut P,
    company: &mut Watched<'_, G>,
    (inner, point): (u32, &Point<P::Targets>),
    b: &[f64],
    epsilon: f64,
) -> std::result::Result<Gradient, G::Error> {
    let mut side = |at, epsilon| -> std::result::Result<Gradient, G::Error> {
        peer.set_theta(&displaced(&point.theta, b, epsilon))?;
        let forward = peer.replay(&point.gates)?;
        let heard = company.words(at, peer.words(&forward))?;
        Ok(peer.inner_gradient(&forward, &heard, &point.targets)?)
    };
    let plus = side(RoundKind::MetaPlus(inner), epsilon)?;
    let minus = side(RoundKind::MetaMinus(inner), -epsilon)?;
    Ok(Gradient {
        theta: difference(&plus.theta, &minus.theta, epsilon),
        phi: difference(&plus.phi, &minus.phi, epsilon),
    })
}

/// The company, and whether this peer has met finite numbers only. One that has not says zeros until the next exchange
/// of norms, where all learn of it and stop at the same place.
struct Watched<'a, G> {
    company: &'a mut G,
    finite: bool,
}

impl<G: Gather> Watched<'_, G> {
    fn words(&mut self, at: RoundKind, own: Words) -> std::result::Result<Vec<(usize, Words)>, G::Error> {
        let finite = own.embeddings.iter().chain(&own.matching).map(is_finite).collect::<Result<Vec<_>>>()?;
        if finite.iter().all(|finite| *finite) {
            return self.company.words(at, own);
        }
        self.finite = false;
        let nothing = |said: &[Tensor]| said.iter().map(Tensor::zeros_like).collect::<Result<Vec<_>>>();
        let silence = Words { embeddings: nothing(&own.embeddings)?, matching: nothing(&own.matching)? };
        self.company.words(at, silence)
    }

    /// The norms of all peers by ascending index, unless one of them met something that is not finite.
    fn norms(&mut self, at: RoundKind, own: Norms) -> std::result::Result<Option<Vec<Norms>>, G::Error> {
        self.finite &= own.direction.is_finite() && own.theta.is_finite();
        let said = if self.finite { [own.direction, own.theta, 1.0, 0.0] } else { [0.0; 4] };
        let all = self.company.scalars(at, said)?;
        let fine = all.iter().all(|peer| peer[2] == 1.0);
        Ok(fine.then(|| all.iter().map(|peer| Norms { direction: peer[0], theta: peer[1] }).collect()))
    }
}

/// Whether all entries are; their sum would not be otherwise, and unit rows do not overflow.
fn is_finite(x: &Tensor) -> Result<bool> {
    Ok(x.to_dtype(candle_core::DType::F64)?.sum_all()?.to_scalar::<f64>()?.is_finite())
}
