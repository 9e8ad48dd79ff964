//! A network with what its method adds to it, and all their numbers.

use candle_core::{DType, Result, Tensor, Var};

use crate::error::PeerError;
use crate::kernels::Maps;
use crate::methods::primitives::unit;
use crate::methods::terms::hypersphere::{self, HypersphereParams};
use crate::methods::terms::kd_fn::{self, KdFnParams};
use crate::methods::{Method, Own, embedding_name, lmcl, matching_name};
use crate::models::layers::{Conv2d, Linear};
use crate::models::{
    Aggregator, AuxiliaryClassifier, EnsembleGate, ImageShape, Network, Output, Params, Pass, Projection,
    build,
};

/// Where the parameters φ of the learned matching begin: `match.K.weight` and `match.K.bias` of each stage K.
pub const MATCHING_PREFIX: &str = "match.";
/// Where the aggregator's parameters begin.
pub const AGGREGATOR_PREFIX: &str = "aggregator.";
/// Where the parameters of the gate in an ensemble begin.
pub const GATE_PREFIX: &str = "gate.";
/// Where the parameters of the layer begin that gives maps the common number of channels.
pub const TRANSFER_PREFIX: &str = "transfer.";
/// Where the parameters of the stages' own classifiers begin.
pub const AUXILIARY_PREFIX: &str = "auxiliary_classifier.";

/// What a method adds to a network.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Additions {
    /// A classifier for every stage, and the aggregator over them.
    pub stages: bool,
    /// The width of the embedding of the last feature, or of every stage's with `stages`.
    pub embedding: Option<usize>,
    /// The width of the matching feature of every stage; only with `stages`.
    pub matching: Option<usize>,
    /// The norm of the features behind [`Outputs::fn_logits`].
    pub fn_norm: Option<KdFnParams>,
    /// The norm of the features behind [`Outputs::sphere_logits`].
    pub radius: Option<f64>,
    /// A gate that scores the network in an ensemble.
    pub gate: bool,
    /// The number of channels that the last map is given.
    pub map: Option<usize>,
}

impl From<&Method> for Additions {
    fn from(method: &Method) -> Self {
        let (embedding, matching) = (method.needs_embedding(), method.needs_matching());
        Self { stages: method.stages(), embedding, matching, ..Self::default() }
    }
}

/// A network, its auxiliary classifiers and heads: everything of a peer that makes something of images.
pub struct Model {
    /// The architecture's name.
    pub arch: String,
    /// The backbone.
    pub network: Box<dyn Network>,
    /// The classifiers of all stages but the last, `auxiliary_classifier.*`.
    pub auxiliary: Option<AuxiliaryClassifier>,
    /// The projection heads, `embed.K.*`: one per stage, or one on the last feature.
    pub embed: Vec<Projection>,
    /// The weights of the stages, `aggregator.*`.
    pub aggregator: Option<Aggregator>,
    /// The projections of the learned matching, `match.K.*`: one per stage, or none.
    pub matching: Vec<Linear>,
    /// What scores the network in a gated ensemble, `gate.*`.
    pub gate: Option<EnsembleGate>,
    /// What gives the last map another number of channels, `transfer.*`; none where it has that.
    pub transfer: Option<Conv2d>,
    /// Parameters and buffers of all of them.
    pub params: Params,
    additions: Additions,
}

/// What a model makes of a batch of B images, with its graph.
#[derive(Debug, Clone)]
pub struct Outputs {
    /// The network's own logits `[B, C]`.
    pub logits: Tensor,
    /// The feature `[B, d]` that they are made of.
    pub feature: Tensor,
    /// Logits `[B, C]` of every stage, the last being `logits`; empty for a model without stages.
    pub stage_logits: Vec<Tensor>,
    /// Unit rows `[B, E]`: of every stage, of the last feature, or none.
    pub embeddings: Vec<Tensor>,
    /// Unit rows `[B, 128]` of every stage, or none.
    pub matching: Vec<Tensor>,
    /// The stages' logits as the aggregator weighs them `[B, C]`; none for a model without stages.
    pub aggregated: Option<Tensor>,
    /// What the classifier makes of the last feature at the norm of feature-normalised KD `[B, C]`, if that is asked for.
    pub fn_logits: Option<Tensor>,
    /// The same at the radius of a hypersphere embedding `[B, C]`.
    pub sphere_logits: Option<Tensor>,
    /// The scores of the gate `[B, 1]`; none for a model without one.
    pub score: Option<Tensor>,
    /// The last feature map `[B, channels, rows, columns]` at the number of channels that is asked for.
    pub map: Option<Tensor>,
}

impl Outputs {
    /// As the losses take it.
    pub fn own(&self) -> Own<'_> {
        Own {
            logits: &self.logits,
            embeddings: &self.embeddings,
            stage_logits: &self.stage_logits,
            matching: &self.matching,
            aggregated: self.aggregated.as_ref(),
        }
    }
}

impl Model {
    /// Builds a network and what is added to it, with fresh weights in `params`.
    ///
    /// # Errors
    /// If the network cannot be built, or a name is taken in `params`.
    pub fn build(
        arch: &str,
        (image, classes): (ImageShape, usize),
        additions: Additions,
        mut params: Params,
    ) -> std::result::Result<Self, PeerError> {
        let network = build(arch, image, classes, &mut params)?;
        let (d, stages) = (network.feature_width(), network.stage_widths().len());
        let heads = if additions.stages { stages } else { 1 };
        let (mut auxiliary, mut aggregator, mut embed, mut matching) = (None, None, Vec::new(), Vec::new());
        if additions.stages {
            let scope = params.scope(AUXILIARY_PREFIX.trim_end_matches('.'));
            auxiliary = Some(network.auxiliary_classifier(scope)?);
            let scope = params.scope(AGGREGATOR_PREFIX.trim_end_matches('.'));
            aggregator = Some(Aggregator::new(scope, stages, d)?);
        }
        for k in 0..heads {
            if let Some(width) = additions.embedding {
                embed.push(Projection::new(params.scope(&embedding_name(k)), d, width)?);
            }
            if let Some(width) = additions.matching.filter(|_| additions.stages) {
                matching.push(Linear::new(params.scope(&matching_name(k)), d, width)?);
            }
        }
        let scope = params.scope(GATE_PREFIX.trim_end_matches('.'));
        let gate = additions.gate.then(|| EnsembleGate::new(scope, d)).transpose()?;
        let width = network.stage_widths().last().copied().unwrap_or_default();
        let scope = params.scope(TRANSFER_PREFIX.trim_end_matches('.'));
        let other = additions.map.filter(|channels| *channels != width);
        let transfer = other.map(|channels| Conv2d::new(scope, width, channels, 1, 1)).transpose()?;
        let arch = arch.to_owned();
        Ok(Self { arch, network, auxiliary, embed, aggregator, matching, gate, transfer, params, additions })
    }

    /// The same model with the same values in another element type. The twin trains by itself; after this model has
    /// changed, `twin.params.copy_from(&model.params)` makes them equal again.
    ///
    /// # Errors
    /// If `dtype` is neither `F32` nor `F64`, or the device fails.
    pub fn twin(&self, dtype: DType) -> std::result::Result<Self, PeerError> {
        let shape = (self.network.image(), self.network.classes());
        let twin = Self::build(&self.arch, shape, self.additions, self.params.empty_twin(dtype)?)?;
        twin.params.copy_from(&self.params)?;
        Ok(twin)
    }

    /// Everything that the model makes of images `[B, channels, height, width]`. All rectifiers but the aggregator's go
    /// through the gates of `pass`, in this order: network, gate in an ensemble, auxiliary
    /// classifiers, projection heads.
    ///
    /// # Errors
    /// If `images` do not have the shape the network was built for, or the device fails.
    pub fn forward(&self, images: &Tensor, pass: &mut Pass) -> Result<Outputs> {
        let Output { logits, feature, stages } = self.network.forward(images, pass)?;
        let (fn_logits, sphere_logits) = self.classify_at_norms(&feature, pass)?;
        let map = self.transferred(&stages, pass)?;
        let score = self.gate.as_ref().map(|gate| gate.forward(&feature, pass)).transpose()?;
        let (features, stage_logits) = self.classify_stages(&logits, feature.clone(), &stages, pass)?;
        let heads = self.embed.iter().zip(&features);
        let embeddings = heads.map(|(head, f)| unit(&head.forward(f, pass)?)).collect::<Result<Vec<_>>>()?;
        let heads = self.matching.iter().zip(&features);
        let matching = heads.map(|(head, f)| unit(&head.forward(f, pass)?)).collect::<Result<Vec<_>>>()?;
        let aggregate = |aggregator: &Aggregator| {
            lmcl::aggregate(&lmcl::mixture(&aggregator.forward(&features, pass)?)?, &stage_logits)
        };
        let aggregated = self.aggregator.as_ref().map(aggregate).transpose()?;
        pass.check_gates()?;
        Ok(Outputs {
            logits,
            feature,
            stage_logits,
            embeddings,
            matching,
            aggregated,
            fn_logits,
            sphere_logits,
            score,
            map,
        })
    }

    /// The last map at the common number of channels, if that is asked for.
    fn transferred(&self, maps: &[Maps], pass: &Pass) -> Result<Option<Tensor>> {
        let Some(last) = maps.last().filter(|_| self.additions.map.is_some()) else { return Ok(None) };
        let transferred = self.transfer.as_ref().map(|layer| layer.forward(last, pass)).transpose()?;
        transferred.as_ref().unwrap_or(last).to_tensor().map(Some)
    }

    /// What the classifier makes of the last feature at the norms that are asked for, in the dtype of the network.
    fn classify_at_norms(&self, feature: &Tensor, pass: &Pass) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Additions { fn_norm, radius, .. } = self.additions;
        let classifier = self.network.classifier();
        let (weight, bias) = (pass.read(classifier.weight()), pass.read(classifier.bias()));
        let narrow = |logits: Tensor| logits.to_dtype(feature.dtype());
        let fn_logits = fn_norm.map(|norm| narrow(kd_fn::logits(feature, &weight, Some(&bias), &norm)?));
        let on_sphere = |rho| hypersphere::logits(feature, &weight, Some(&bias), &HypersphereParams { rho });
        let sphere_logits = radius.map(|radius| narrow(on_sphere(radius)?));
        Ok((fn_logits.transpose()?, sphere_logits.transpose()?))
    }

    /// Features `[B, d]` and logits `[B, C]` of every stage; without stages the network's own feature alone.
    fn classify_stages(
        &self,
        logits: &Tensor,
        feature: Tensor,
        maps: &[Maps],
        pass: &mut Pass,
    ) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        let Some(auxiliary) = &self.auxiliary else { return Ok((vec![feature], Vec::new())) };
        let branches = auxiliary.forward(maps, pass)?;
        let (mut features, mut stage_logits): (Vec<_>, Vec<_>) =
            branches.into_iter().map(|branch| (branch.feature, branch.logits)).unzip();
        features.push(feature);
        stage_logits.push(logits.clone());
        Ok((features, stage_logits))
    }

    /// The parameters that the inner steps of a meta-update change, in the order of their names: θ, everything
    /// trainable but the matching and the aggregator.
    pub fn theta(&self) -> impl Iterator<Item = (&String, &Var)> {
        let other = |name: &str| name.starts_with(MATCHING_PREFIX) || name.starts_with(AGGREGATOR_PREFIX);
        self.params.trainable().iter().filter(move |(name, _)| !other(name))
    }

    /// The parameters of the matching, in the order of their names: φ.
    pub fn phi(&self) -> impl Iterator<Item = (&String, &Var)> {
        self.params.trainable().iter().filter(|(name, _)| name.starts_with(MATCHING_PREFIX))
    }
}
