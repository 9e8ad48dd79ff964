//! `run.toml`: one file describes one run. The text is read into a [`RunSpec`] in which every default is filled in and
//! every value is checked, so nobody after this module asks whether a number makes sense.

mod section;
mod run;
mod data;
mod method;
mod layerwise;
mod bank;
mod cache;
mod optim;
mod peer;
mod graph;
mod derived;

pub use bank::BankSpec;
pub use data::{Augment, DataSpec, Normalize, SamplerSpec};
pub use graph::{
    EdgeSpec, EdgeView, FN_LOGITS, FnForm, Gate, GraphView, KdclTarget, LOGITS, MAP, Preset, SCORE, TermSpec,
    Topology, WeightSchedule, When,
};
pub use layerwise::{LMclSpec, MATCH_DIM, MatchingSpec, MetaBatchNorm, MetaPrecision, MetaSpec};
pub use method::{DmlReduce, DmlSpec, DmlTarget, LogitKd, MclSpec, MethodSpec};
pub use optim::{OptimSpec, ScheduleSpec};
pub use peer::{ARCHITECTURES, DeviceSpec, PeerSpec, Role, last_map_of, stages_of};
pub use run::{DivergencePolicy, FailurePolicy, Length, PolicySpec, RunSection};

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::id::{Digest, PeerName};
use crate::limits::{RUN_SPEC_BYTES_MAX, SPEC_BYTES_MAX};
use graph::Couplings;
use section::Section;

/// A run.toml that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The file cannot be read.
    #[error("cannot read {path}: {cause}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// It is not TOML.
    #[error("not valid TOML: {0}")]
    Syntax(String),
    /// A key that nobody knows.
    #[error("{section}: unknown key {key:?}; {}", nearest.as_ref().map_or_else(|| format!("known are {known}"), |near| format!("did you mean {near:?}?")))]
    UnknownKey {
        /// Where, such as `[optim]`.
        section: String,
        /// The key.
        key: String,
        /// The known key that is most like it, if any is.
        nearest: Option<String>,
        /// All known keys.
        known: String,
    },
    /// A key that must be given.
    #[error("{section}: {key} is missing; {hint}")]
    Missing {
        /// Where.
        section: String,
        /// The key.
        key: String,
        /// What to write.
        hint: String,
    },
    /// A value of the wrong type or out of its range.
    #[error("{section}: {key} {problem}")]
    Value {
        /// Where.
        section: String,
        /// The key.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

impl SpecError {
    fn value(section: &str, key: &str, problem: impl Into<String>) -> Self {
        Self::Value { section: section.into(), key: key.into(), problem: problem.into() }
    }
}

/// One training job, checked, with every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSpec {
    /// `[run]`: name, seed, length, checkpoints.
    pub run: RunSection,
    /// `[data]`: which samples, in which batches.
    pub data: DataSpec,
    /// `[method]`: what the peers learn from each other.
    pub method: MethodSpec,
    /// `[optim]`: how weights are updated.
    pub optim: OptimSpec,
    /// `[policy]`: what happens when a peer fails.
    pub policy: PolicySpec,
    /// `[[peer]]`: the networks. A peer's index is its position here.
    pub peers: Vec<PeerSpec>,
    /// What `[method]` is called, if that is more than the coupling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// Whom `[method]` couples, as pairs of source and target; everybody with everybody if that is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub links: Option<BTreeSet<(usize, usize)>>,
    /// `[[edge]]`, and what presets expand into: all terms but those of the coupling.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edges: Vec<EdgeSpec>,
}

impl RunSpec {
    /// Reads a file. Relative paths inside it are taken from its folder if they exist there.
    pub fn load(path: &Path) -> Result<Self, SpecError> {
        let failed = |cause: String| SpecError::Read { path: path.into(), cause };
        let file = File::open(path).map_err(|error| failed(error.to_string()))?;
        let mut text = String::new();
        let read = file.take(SPEC_BYTES_MAX as u64 + 1).read_to_string(&mut text);
        read.map_err(|error| failed(error.to_string()))?;
        if text.len() > SPEC_BYTES_MAX {
            return Err(failed(format!("it is larger than {SPEC_BYTES_MAX} bytes")));
        }
        let mut spec = Self::parse(&text)?;
        if let Some(folder) = path.parent() {
            spec.resolve_paths(folder);
        }
        Ok(spec)
    }

    /// Reads and checks the text of a run.toml.
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        let table: toml::Table =
            text.parse().map_err(|error: toml::de::Error| SpecError::Syntax(error.to_string()))?;
        let mut top = Section::new("run.toml".into(), table);
        let mut run = RunSection::read(top.table("run")?)?;
        let peers: Result<Vec<PeerSpec>, SpecError> =
            top.tables("peer")?.into_iter().map(PeerSpec::read).collect();
        let optim = OptimSpec::read(top.table("optim")?)?;
        let peers = peers?;
        let (methods, edges) = (top.table("method")?, top.tables("edge")?);
        let Couplings { preset, method, links, edges } = graph::read_graph(methods, edges, &peers, &optim)?;
        if run.generations == 0 {
            run.generations = preset.map_or(1, Preset::generations);
        }
        let data = DataSpec::read(top.table("data")?, method.contrasts_in_batches())?;
        let policy = PolicySpec::read(top.table("policy")?, peers.len())?;
        top.finish()?;
        let spec = Self { run, data, method, optim, policy, peers, preset, links, edges };
        spec.check()?;
        Ok(spec)
    }

    /// What only all sections together can show.
    fn check(&self) -> Result<(), SpecError> {
        peer::check_all(&self.peers)?;
        let bytes = self.to_json().len();
        if bytes > RUN_SPEC_BYTES_MAX {
            let problem = format!(
                "of {} and {} peers takes {bytes} bytes with all its edges, more than the {RUN_SPEC_BYTES_MAX} that peers \
                 are told; take fewer peers, or topology = \"groups\"",
                self.method_name(),
                self.peers.len()
            );
            return Err(SpecError::value("[method]", "the graph", problem));
        }
        if self.optim.warmup_epochs > 0
            && let Length::Epochs(epochs) = self.run.length
            && self.optim.warmup_epochs >= epochs
        {
            let problem = format!("is {}, but the run has only {epochs} epochs", self.optim.warmup_epochs);
            return Err(SpecError::value("[optim]", "warmup_epochs", problem));
        }
        if self.banks().is_some() && self.peers.iter().any(|peer| peer.role == Role::Teacher) {
            let problem = "is true, but a teacher keeps no memory of what it said; write bank = false";
            return Err(SpecError::value("[method]", "bank", problem));
        }
        if self.banks().is_some() && self.policy.on_failure == FailurePolicy::Continue {
            let problem = "is \"continue\", but the peers' memory banks are the same only as long as nobody is left \
                           behind; write \"wait\", or bank = false";
            return Err(SpecError::value("[policy]", "on_failure", problem));
        }
        self.check_caches()?;
        self.check_graph()
    }

    /// Makes relative paths absolute that exist in a folder; the others are left to whoever opens them.
    pub fn resolve_paths(&mut self, folder: &Path) {
        let paths =
            self.peers.iter_mut().filter_map(|peer| peer.init.as_mut()).chain(self.data.path.as_mut());
        for path in paths {
            let beside = folder.join(&*path);
            if path.is_relative() && beside.exists() {
                *path = std::path::absolute(&beside).unwrap_or(beside);
            }
        }
    }

    /// The spec as JSON: what the coordinator hands to peers, and what the hash is of.
    pub fn to_json(&self) -> String {
        // A struct of numbers, strings and lists always serialises; an empty text would be refused by every reader.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads back what [`RunSpec::to_json`] wrote. Only for a spec that came from our coordinator, which checked it.
    pub fn from_json(text: &str) -> Result<Self, SpecError> {
        let spec: Self = serde_json::from_str(text).map_err(|error| SpecError::Syntax(error.to_string()))?;
        spec.check()?;
        Ok(spec)
    }

    /// SHA-256 of the JSON form: two parties with the same hash train the same run.
    pub fn hash(&self) -> Digest {
        Digest::of(self.to_json())
    }

    /// The peer of a name and its index.
    pub fn peer(&self, name: &PeerName) -> Option<(usize, &PeerSpec)> {
        self.peers.iter().enumerate().find(|(_, peer)| &peer.name == name)
    }
}

#[cfg(test)]
mod tests;
