//! Everything of a peer that holds tensors: the network, what its method adds, the optimiser. One thread owns it.

use std::path::Path;

use candle_core::{DType, Device};
use cohort_proto::spec::{
    DmlReduce, DmlTarget, LogitKd, MATCH_DIM, MatchingSpec, MethodSpec, PeerSpec, RunSpec,
};

use crate::checkpoint::Checkpoint;
use crate::error::PeerError;
use crate::methods::{
    DmlParams, LMclParams, Matching, MclParams, Method, Reduce, Students, Target, embedding_name,
};
use crate::models::projection::Projection;
use crate::models::{ImageShape, Network, Params, StateDict, StateError, Strictness, build, state};
use crate::optim::{Sgd, SgdConfig};

/// Beginnings of the names that a method adds to a network's own: initial weights may lack them or bring others.
pub const METHOD_PREFIXES: [&str; 4] = ["embed.", "auxiliary_classifier.", "aggregator.", "match."];

/// One peer's network with all that trains it.
pub struct Learner {
    /// Position of the peer in the run spec.
    pub index: usize,
    /// The network.
    pub network: Box<dyn Network>,
    /// The projection head of the last stage, if the method contrasts embeddings.
    pub head: Option<Projection>,
    /// Parameters and buffers of both.
    pub params: Params,
    /// The optimiser over all of them.
    pub optimizer: Sgd,
    /// The method.
    pub method: Method,
    /// Where it computes.
    pub device: Device,
}

impl Learner {
    /// Builds the peer of a run spec with fresh weights, drawn from the run's seed and the peer's name, or with the
    /// initial weights that the spec names.
    ///
    /// # Errors
    /// A network that cannot be built, or initial weights that cannot be used.
    pub fn build(
        spec: &RunSpec,
        index: usize,
        peer: &PeerSpec,
        image: ImageShape,
        device: Device,
    ) -> Result<Self, PeerError> {
        let mut params = Params::new(spec.run.seed, peer.name.as_str(), DType::F32, &device)?;
        let network = build(&peer.arch, image, spec.data.dataset.classes(), &mut params)?;
        let method = method_of(&spec.method);
        let says_embedding = method.needs_embedding();
        let head = match says_embedding {
            Some(width) => {
                Some(Projection::new(params.scope(&embedding_name(0)), network.feature_width(), width)?)
            }
            None => None,
        };
        if let Some(path) = &peer.init {
            load_initial(&params, path)?;
        }
        let config = SgdConfig {
            momentum: spec.optim.momentum,
            nesterov: spec.optim.nesterov,
            weight_decay: spec.optim.weight_decay,
            clip_norm: spec.optim.clip_norm,
        };
        let optimizer = Sgd::new(&params, config)?;
        Ok(Self { index, network, head, params, optimizer, method, device })
    }

    /// Goes back to a checkpoint.
    ///
    /// # Errors
    /// If its tensors are not those of this network and optimiser.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<(), StateError> {
        self.params.load(&checkpoint.model, Strictness::Strict)?;
        self.optimizer.load(&checkpoint.optimizer)?;
        Ok(())
    }

    /// Copies of all parameters and buffers, and of the optimiser's state.
    ///
    /// # Errors
    /// If the device fails.
    pub fn state(&self) -> candle_core::Result<(StateDict, StateDict)> {
        Ok((self.params.state_dict()?, self.optimizer.state_dict()?))
    }
}

fn load_initial(params: &Params, path: &Path) -> Result<(), PeerError> {
    let unusable = |cause| PeerError::Init { path: path.to_owned(), cause: Box::new(cause) };
    let source = state::load_safetensors(path).map_err(unusable)?;
    let report =
        params.load(&source, Strictness::Lenient { prefixes: &METHOD_PREFIXES }).map_err(unusable)?;
    tracing::info!("initial weights from {}: {report:?}", path.display());
    Ok(())
}

/// The run spec's method as the losses take it.
fn method_of(spec: &MethodSpec) -> Method {
    match spec {
        MethodSpec::Alone => Method::Alone,
        MethodSpec::Dml(dml) => Method::Dml(DmlParams {
            t: dml.t,
            reduce: match dml.reduce {
                DmlReduce::Mean => Reduce::Mean,
                DmlReduce::Sum => Reduce::Sum,
            },
            target: match dml.target {
                DmlTarget::Each => Target::Each,
                DmlTarget::Ensemble => Target::Ensemble,
            },
        }),
        MethodSpec::Mcl(mcl) => Method::Mcl(MclParams {
            alpha: mcl.alpha,
            beta: mcl.beta,
            gamma: mcl.gamma,
            lam: mcl.lam,
            tau: mcl.tau,
            kd_t: mcl.kd_t,
            feat_dim: mcl.feat_dim,
            logit_kd: match mcl.logit_kd {
                LogitKd::Off => Students::Off,
                LogitKd::Last => Students::Last,
                LogitKd::All => Students::All,
            },
        }),
        MethodSpec::LMcl(l_mcl) => Method::LMcl(LMclParams {
            alpha: l_mcl.alpha,
            beta: l_mcl.beta,
            gamma: l_mcl.gamma,
            lam: l_mcl.lam,
            tau: l_mcl.tau,
            kd_t: l_mcl.kd_t,
            feat_dim: l_mcl.feat_dim,
            match_dim: MATCH_DIM,
            kd: l_mcl.kd,
            double: l_mcl.double,
            matching: match l_mcl.matching {
                MatchingSpec::Learned => Matching::Learned,
                MatchingSpec::Uniform => Matching::Uniform,
                MatchingSpec::OneToOne => Matching::OneToOne,
            },
        }),
    }
}
