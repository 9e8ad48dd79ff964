//! The meta-update: learning how strongly each stage of one network should match each stage of another.
//!
//! **The problem.** The weight of a pair of stages, `λ_{ik,jz} = σ(⟨u_ik, u_jz⟩)`, comes from small projections φ of the
//! pooled features ("Online Knowledge Distillation via Mutual Contrastive Learning", Yang et al. 2023, after "Learning
//! What and Where to Transfer", Jang et al. 2019). φ is good if a network that has descended along the mutual loss does
//! well on the labels afterwards: with θ of all networks taken together,
//!
//! ```text
//! θ_{t+1} = SGD(θ_t, ∇_θ L_in(θ_t, φ)),  t = 0..T-1        L_in: the contrastive terms of all pairs of stages
//! θ_{T+1} = SGD(θ_T, ∇_θ L_out(θ_T))                       L_out: cross-entropy of all stages of all networks
//! minimise over φ:  J(φ) = L_out(θ_{T+1})
//! ```
//!
//! SGD has momentum (velocities start at 0) and weight decay, no Nesterov. The batch is that of the step just taken,
//! networks are in training mode, and θ goes back to θ_0 afterwards; only φ has moved, by its own optimiser.
//!
//! **The hypergradient.** Reverse accumulation carries `a0 = ∂J/∂θ` and `a1 = ∂J/∂v` from the last step to the first:
//!
//! ```text
//! b = a1 - lr a0                                    φ̄ += ∂/∂φ ⟨∇_θ L_in(θ_t, φ), b⟩
//! a0 <- (1 - lr wd) a0 + wd a1 + H b                H b = ∂/∂θ ⟨∇_θ L(θ_t, φ), b⟩
//! a1 <- μ b
//! ```
//!
//! The authors' release adds `a1` instead of `wd a1`, which is off by some percent; `compat_a1` reproduces it.
//!
//! **Across peers.** `⟨∇_θ L, b⟩` is the derivative of a scalar along `b = (b_0, .., b_{M-1})`, so both second
//! derivatives are `d/dε ∇L(θ + ε b, φ)` at 0: each peer moves its own θ_i by ±ε b_i, says its embeddings and
//! matching features there, and differentiates its own share of `L_in` with what the others say held constant. No
//! weight and no gradient is ever sent, and no second-order graph is built. The difference quotient is that of a smooth
//! function only if two things are fixed at θ_t: the *gates* of all rectifiers, and the *targets* of the KL terms, which
//! are constants of `L_in`. Without them the result is wrong by up to 300 %. Batch statistics and λ are not fixed:
//! the gradient goes through them.
//!
//! **Precision.** `ε = r ‖θ_t‖ / ‖b‖`, norms over all peers. The error is that of the difference, about `K r²` (K up to
//! some hundreds with batch norm, to some 1e4 for fresh networks), and that of rounding, at most about `5 u / r`:
//! [`update::R_F64`] leaves some 1e-9, [`update::R_F32`] some 1e-4 to 1e-3. Gradients are subtracted and accumulated in f64 in
//! both. In f32 there is a third, which no `r` changes: rounding may carry the path past the kink of a rectifier that the
//! exact path does not pass, and the answer is then that of a neighbouring problem: up to a tenth after the first steps
//! of fresh networks, whose contrastive terms are steep. Only f64 does without.
//!
//! **Cost.** One meta-update is `T + 2 + 2 (T + 1)` passes with their gradients (10 for T = 2), `3 T` exchanges of
//! embeddings and matching features (6), and `T + 1` exchanges of four numbers (3). A peer of S stages says
//! `8 B S (E + D)` bytes in each of the former (f32: half), 786 432 for batches of 128, three stages and widths of 128, and 32
//! bytes in each of the latter: 4.7 MB in all, every `meta_freq` steps.
//!
//! **Reading order.** [`update`] is the algorithm, top to bottom; [`problem`] what it asks of a network and of the
//! company; [`adjoint`] and [`direction`] the two pieces of arithmetic. Then [`of_learner`], the real network, and
//! [`of_teacher`], one that only speaks; the two kinds of company, [`among_peers`] and [`in_process`]; and [`schedule`], when a run makes meta-updates.

pub mod update;
pub mod problem;
pub mod adjoint;
pub mod direction;
pub mod of_learner;
pub mod of_teacher;
pub mod among_peers;
pub mod in_process;
pub mod schedule;

#[cfg(test)]
mod tests;

pub use of_learner::OfLearner;
pub use of_teacher::OfTeacher;
pub use problem::{Bilevel, Gather, Gradient, Scalars, Words};
pub use schedule::Schedule;
pub use update::{Outcome, Settings, update};
