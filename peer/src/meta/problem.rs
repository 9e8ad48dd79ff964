//! What the meta-update asks of a network and of the company: two traits, so that the same algorithm runs on small
//! test networks, in a process that holds a whole cohort, and on a peer among others.

use candle_core::{Result, Tensor};
use cohort_proto::meta::{NORMS_LEN, RoundKind};

use crate::kernels::GateTape;

/// What a network says in one exchange of a meta-update: unit embeddings `v_k` `[B, E]` and unit matching features
/// `u_k` `[B, D]`, one of each a stage.
#[derive(Debug, Clone, Default)]
pub struct Words {
    /// `v_k`.
    pub embeddings: Vec<Tensor>,
    /// `u_k`.
    pub matching: Vec<Tensor>,
}

/// Gradient of a share of an objective, each entry in the fixed order of the network's parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradient {
    /// By θ.
    pub theta: Vec<f64>,
    /// By φ.
    pub phi: Vec<f64>,
}

/// One peer's part of the bilevel problem. θ is what the inner descent moves, φ what the outer objective learns; both
/// as numbers in f64 in a fixed order, whatever the network computes in, since gradients are subtracted from each
/// other and a device may have no f64 at all.
pub trait Bilevel {
    /// A forward pass of the meta batch at some θ, with the graph that made it.
    type Forward;
    /// What stays fixed around a point of the path beside the gates: the embeddings of all networks there, from which
    /// KL targets are made.
    type Targets;
    /// What a point of the path leaves behind where the release keeps it: the running statistics of batch norm, and what
    /// memory banks remember.
    type Statistics;

    /// θ as it is.
    ///
    /// # Errors
    /// If the device fails.
    fn theta(&self) -> Result<Vec<f64>>;

    /// Numbers in φ.
    fn phi_count(&self) -> usize;

    /// Moves θ. What [`Bilevel::theta`] returned restores the very same bits.
    ///
    /// # Errors
    /// If the device fails.
    fn set_theta(&mut self, theta: &[f64]) -> Result<()>;

    /// Passes the batch through the network at the present θ and records the gates of its rectifiers. Running
    /// statistics are not written, and no stream of random numbers advances.
    ///
    /// # Errors
    /// If the device fails.
    fn record(&self) -> Result<(Self::Forward, GateTape)>;

    /// As [`Bilevel::record`], with the gates of another pass.
    ///
    /// # Errors
    /// If the gates are of another network, or the device fails.
    fn replay(&self, gates: &GateTape) -> Result<Self::Forward>;

    /// What the others must know of a pass.
    fn words(&self, forward: &Self::Forward) -> Words;

    /// Holds on to the KL targets of a point of the path. `heard` are the other networks, by ascending index.
    ///
    /// # Errors
    /// If the device fails.
    fn targets(&self, forward: &Self::Forward, heard: &[(usize, Words)]) -> Result<Self::Targets>;

    /// Gradient of this peer's share of the inner objective: of every term in which its own tensors are, with those of
    /// the others as constants.
    ///
    /// # Errors
    /// If what was heard does not fit, or the device fails.
    fn inner_gradient(
        &self,
        forward: &Self::Forward,
        heard: &[(usize, Words)],
        targets: &Self::Targets,
    ) -> Result<Gradient>;

    /// Lets memory banks, if there are any, remember what all networks said at a point of the path.
    ///
    /// # Errors
    /// If what was heard does not fit.
    fn remember(&mut self, forward: &Self::Forward, heard: &[(usize, Words)]) -> Result<()>;

    /// Takes the newest [`Bilevel::remember`] back that was not yet; nothing without.
    fn forget(&mut self);

    /// Gradient by θ of this network's term of the outer objective.
    ///
    /// # Errors
    /// If the device fails.
    fn outer_gradient(&self, forward: &Self::Forward) -> Result<Vec<f64>>;

    /// What a pass that is no longer needed otherwise leaves behind, and what was remembered of it last.
    fn statistics(&self, forward: Self::Forward) -> Self::Statistics;

    /// Updates running statistics and memory banks once, as a training pass would.
    ///
    /// # Errors
    /// If the device fails.
    fn write_statistics(&mut self, statistics: Self::Statistics) -> Result<()>;

    /// One step of φ's own optimiser.
    ///
    /// # Errors
    /// If the device fails; φ is then as it was.
    fn step_phi(&mut self, gradient: &[f64], lr: f64) -> Result<()>;
}

/// Numbers that all peers tell each other: `‖b_i‖²`, `‖θ_i‖²`, 1 if this peer has met finite numbers only (else 0), and a
/// spare 0.
pub type Scalars = [f64; NORMS_LEN];

/// The other peers' side of an exchange. All peers make the same exchanges in the same order.
pub trait Gather {
    /// Why an exchange failed, or the arithmetic between two.
    type Error: From<candle_core::Error>;

    /// Says the own words and returns those of the others with their indices, ascending.
    ///
    /// # Errors
    /// If the run ends, a peer is lost, or it said something else.
    fn words(&mut self, at: RoundKind, own: Words) -> std::result::Result<Vec<(usize, Words)>, Self::Error>;

    /// Says the own numbers and returns those of all peers, the own ones among them, by ascending index.
    ///
    /// # Errors
    /// As [`Gather::words`].
    fn scalars(&mut self, at: RoundKind, own: Scalars) -> std::result::Result<Vec<Scalars>, Self::Error>;
}
