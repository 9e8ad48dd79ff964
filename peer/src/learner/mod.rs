//! Everything of a peer that holds tensors: the network, what its method adds, the optimisers. One thread owns it.

mod model;
mod draws;
mod memory;
mod cache;
mod state;
mod node;
mod generations;
mod adversary;
mod scores;

#[cfg(test)]
mod tests;

pub use adversary::{Adversary, Contest, Moves};
pub use cache::{CACHE_PREFIX, Cache};
pub use draws::Classes;
pub use generations::Fresh;
pub use memory::{BANK_PREFIX, Memory, Remembrance};
pub use model::{
    AGGREGATOR_PREFIX, AUXILIARY_PREFIX, Additions, GATE_PREFIX, MATCHING_PREFIX, Model, Outputs,
    TRANSFER_PREFIX,
};
pub use node::{Extent, Named, Node, Scene};
pub use scores::{Scores, widened};
pub use state::{Before, PAST, WEIGHTS};

use std::path::Path;

use candle_core::{DType, Device};
use cohort_proto::spec::{
    BankSpec, DmlReduce, DmlTarget, LMclSpec, LogitKd, MATCH_DIM, MatchingSpec, MethodSpec, PeerSpec, Role,
    RunSpec,
};

use crate::error::PeerError;
use crate::meta::Schedule;
use crate::methods::memory::BankParams;
use crate::methods::terms::past::Past;
use crate::methods::{DmlParams, LMclParams, Matching, MclParams, Method, Reduce, Students, Target};
use crate::models::{ImageShape, Params, Strictness, state as weights};
use crate::optim::{Sgd, SgdConfig};

/// Beginnings of the names that a method adds to a network's own: initial weights may lack them or bring others.
pub const METHOD_PREFIXES: [&str; 6] =
    ["embed.", AUXILIARY_PREFIX, AGGREGATOR_PREFIX, MATCHING_PREFIX, GATE_PREFIX, TRANSFER_PREFIX];

/// One peer's network with all that trains it.
pub struct Learner {
    /// Position of the peer in the run spec.
    pub index: usize,
    /// Whether it learns, or is learnt from only: then nothing of it ever changes.
    pub role: Role,
    /// The network and what the method adds to it.
    pub model: Model,
    /// The optimiser of every step, over all parameters but φ and the layer that only the adversary trains.
    pub optimizer: Sgd,
    /// The optimiser of the meta-updates, over the parameters φ of the learned matching; over nothing without them.
    pub matching_optimizer: Sgd,
    /// The method.
    pub method: Method,
    /// The meta-updates of the run, if it makes any.
    pub meta: Option<Schedule>,
    /// What it minimises besides its share of the method.
    pub node: Node,
    /// How long a generation is, as far as that is known.
    pub extent: Extent,
    /// The generation that its weights are of, from 0.
    pub generation: u64,
    /// The network as it was at the end of the generation before, if it learns from that.
    pub predecessor: Option<Model>,
    /// What it said of every training sample the last time, if it learns from that.
    pub past: Option<Past>,
    /// How it weighs the networks that it learns from in this epoch, itself among them by ascending index, if it does.
    pub weights: Option<Vec<f64>>,
    /// The memory banks of all networks, if the method contrasts with them.
    pub memory: Option<Memory>,
    /// The discriminator that its maps are to deceive, if it has one.
    pub adversary: Option<Adversary>,
    /// What it has said of every training sample, if it is a teacher that keeps that.
    pub cache: Option<Cache>,
    /// Where it computes.
    pub device: Device,
    /// The network in another precision; its values are those of some earlier time.
    pub(crate) twin: Option<Model>,
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
        Self::of_generation(0, spec, index, peer, image, device)
    }

    /// The same at the beginning of a generation: later ones draw their weights from its number as well, and leave those
    /// that the spec names to the first.
    ///
    /// # Errors
    /// As [`Learner::build`].
    pub fn of_generation(
        generation: u64,
        spec: &RunSpec,
        index: usize,
        peer: &PeerSpec,
        image: ImageShape,
        device: Device,
    ) -> Result<Self, PeerError> {
        let name = match generation {
            0 => peer.name.to_string(),
            later => format!("{}@{later}", peer.name),
        };
        let params = Params::new(spec.run.seed, &name, DType::F32, &device)?;
        let method = match spec.is_coupled(index) {
            true => method_of(&spec.method, spec.is_relabelled(index)),
            false => Method::Alone,
        };
        let shape = (image, spec.data.dataset.classes());
        let additions = node::additions(spec, index, Additions::from(&method));
        let model = Model::build(&peer.arch, shape, additions, params)?;
        if let Some(path) = peer.init.as_ref().filter(|_| generation == 0) {
            load_initial(&model.params, path, peer.role)?;
        }
        let config = SgdConfig {
            momentum: spec.optim.momentum,
            nesterov: spec.optim.nesterov,
            weight_decay: spec.optim.weight_decay,
            clip_norm: spec.optim.clip_norm,
        };
        let configs = (config, matching_config(&spec.method, config));
        let (role, meta, node) = (peer.role, Schedule::of(spec), Node::of(spec, index));
        let adversary = Adversary::of(spec, index, &model, &name)?;
        Ok(Self { role, meta, node, adversary, ..Self::new(index, model, method, configs)? })
    }

    /// A student: puts optimisers at rest beside a model, the one of every step and the one of the matching.
    ///
    /// # Errors
    /// If the configuration is impossible or the device fails.
    pub fn new(
        index: usize,
        model: Model,
        method: Method,
        (config, matching): (SgdConfig, SgdConfig),
    ) -> candle_core::Result<Self> {
        let optimizer = Sgd::over(&model.params, config, |name| {
            !name.starts_with(MATCHING_PREFIX) && !name.starts_with(TRANSFER_PREFIX)
        })?;
        let matching_optimizer =
            Sgd::over(&model.params, matching, |name| name.starts_with(MATCHING_PREFIX))?;
        let device = model.params.device().clone();
        let node = Node::whole(!method.stages());
        Ok(Self {
            index,
            role: Role::Student,
            model,
            optimizer,
            matching_optimizer,
            method,
            meta: None,
            node,
            extent: Extent { steps: u64::MAX, epochs: u64::MAX },
            generation: 0,
            predecessor: None,
            past: None,
            weights: None,
            memory: None,
            adversary: None,
            cache: None,
            device,
            twin: None,
        })
    }

    /// Gives the learner all that it remembers of the training samples of a run, by their labels: as [`Learner::in_run`],
    /// and the memory banks of all networks, if its method has any.
    ///
    /// # Errors
    /// As [`Memory::new`] and [`Learner::in_run`].
    pub fn with_memory(self, spec: &RunSpec, labels: &[u8]) -> Result<Self, PeerError> {
        let memory = Memory::new(spec, labels, self.method.bank())?;
        Ok(Self { memory, ..self.in_run(spec, labels)? })
    }

    /// Tells the learner how long its run is, by the labels of the training samples, and gives it its own past over these, if
    /// it learns from that, or room to keep what it says of them, if it is a teacher that does.
    ///
    /// # Errors
    /// As [`Past::new`] and [`Cache::new`]; samples that make no batch.
    pub fn in_run(self, spec: &RunSpec, labels: &[u8]) -> Result<Self, PeerError> {
        let plan = spec.batch_plan(labels)?;
        let extent = Extent { steps: plan.steps_per_generation(), epochs: plan.epochs() };
        let classes: Vec<usize> = labels.iter().copied().map(usize::from).collect();
        let remembers = self.node.remembers();
        let past = remembers.then(|| Past::new(&classes, spec.data.dataset.classes())).transpose()?;
        let cache = Cache::new(spec, self.index, labels.len())?;
        Ok(Self { extent, past, cache, ..self })
    }

    /// Gives the network a twin in another precision with the values that it has now. It is kept, since a meta-update
    /// needs it every time.
    ///
    /// # Errors
    /// If `dtype` is neither `F32` nor `F64`, or the device fails.
    pub fn refresh_twin(&mut self, dtype: DType) -> Result<(), PeerError> {
        match &self.twin {
            Some(twin) if twin.params.dtype() == dtype => twin.params.copy_from(&self.model.params)?,
            _ => self.twin = Some(self.model.twin(dtype)?),
        }
        Ok(())
    }

    /// The twin if it computes in `dtype`, else the network itself.
    pub fn in_precision(&self, dtype: DType) -> &Model {
        self.twin.as_ref().filter(|twin| twin.params.dtype() == dtype).unwrap_or(&self.model)
    }
}

fn load_initial(params: &Params, path: &Path, role: Role) -> Result<(), PeerError> {
    let unusable = |cause| {
        let (path, cause) = (path.to_owned(), Box::new(cause));
        match role {
            Role::Student => PeerError::Init { path, cause },
            Role::Teacher => PeerError::Teacher { path, cause },
        }
    };
    let prefixes = &METHOD_PREFIXES;
    let strictness = match role {
        Role::Student => Strictness::Lenient { prefixes },
        Role::Teacher => Strictness::Complete { prefixes },
    };
    let source = weights::load_safetensors(path).map_err(unusable)?;
    let report = params.load(&source, strictness).map_err(unusable)?;
    tracing::info!("initial weights from {}: {report:?}", path.display());
    Ok(())
}

/// The matching's optimiser looks ahead, as in winycg/L-MCL (`main_layer_mcl_cifar_meta.py`), and clips nothing.
fn matching_config(method: &MethodSpec, every_step: SgdConfig) -> SgdConfig {
    match method {
        MethodSpec::LMcl(LMclSpec { meta, .. }) => SgdConfig {
            momentum: meta.momentum,
            nesterov: meta.momentum > 0.0,
            weight_decay: meta.weight_decay,
            clip_norm: 0.0,
        },
        _ => every_step,
    }
}

fn bank_of(spec: BankSpec) -> BankParams {
    let BankSpec { positives, negatives, momentum, bug } = spec;
    BankParams { positives, negatives, momentum, bug }
}

/// The run spec's method as the losses take it, for a peer with or without a term in the place of its cross-entropy.
fn method_of(spec: &MethodSpec, relabelled: bool) -> Method {
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
            bank: mcl.bank.map(bank_of),
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
            final_ce: !relabelled,
            kd: l_mcl.kd,
            double: l_mcl.double,
            matching: match l_mcl.matching {
                MatchingSpec::Learned => Matching::Learned,
                MatchingSpec::Uniform => Matching::Uniform,
                MatchingSpec::OneToOne => Matching::OneToOne,
            },
            bank: l_mcl.bank.map(bank_of),
        }),
    }
}
