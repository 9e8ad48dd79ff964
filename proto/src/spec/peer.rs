//! `[[peer]]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::SpecError;
use super::section::{Section, unknown_word};
use crate::id::PeerName;
use crate::limits::PEERS_MAX;

/// In an `[[edge]]`: every other peer as a source, and every student as a target.
pub(super) const ALL: &str = "all";

/// The architectures that a peer can build. A test of the peer keeps this list and its registry equal.
pub const ARCHITECTURES: [&str; 18] = [
    "resnet8",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet8x4",
    "resnet32x4",
    "resnet6",
    "resnet10",
    "resnet18",
    "wrn_10_1",
    "wrn_16_1",
    "wrn_16_2",
    "wrn_28_4",
    "wrn_40_1",
    "wrn_40_2",
];

/// The stages of an architecture: the feature maps that layer-wise methods look at, the last in front of the classifier.
/// A test of the peer keeps this and its networks equal.
pub fn stages_of(arch: &str) -> usize {
    match arch {
        "resnet6" => 2,
        "resnet10" | "resnet18" => 4,
        _ => 3,
    }
}

/// Channels and side of the last feature map of an architecture, for square images of a side.
/// A test of the peer keeps this and its networks equal.
pub fn last_map_of(arch: &str, side: usize) -> (usize, usize) {
    let channels = match (arch, arch.rsplit_once('_')) {
        ("resnet6", _) => 32,
        ("resnet8x4" | "resnet32x4", _) => 256,
        ("resnet10" | "resnet18", _) => 512,
        (_, Some((_, widen))) => 64 * widen.parse().unwrap_or(1),
        _ => 64,
    };
    (channels, (1..stages_of(arch)).fold(side, |side, _| side.div_ceil(2)))
}

/// `[[peer]]`: one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSpec {
    /// Its name, unique in the run.
    pub name: PeerName,
    /// Its architecture, one of [`ARCHITECTURES`].
    pub arch: String,
    /// Weights to start from; drawn from the seed and the name if absent. A teacher's, which it keeps.
    pub init: Option<PathBuf>,
    /// Where it computes, unless the process is told another device.
    pub device: DeviceSpec,
    /// What it does in the cohort.
    pub role: Role,
    /// Whether it keeps what it said of each sample; only a teacher can.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cache: bool,
}

/// Where a network computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceSpec {
    /// The processor.
    Cpu,
    /// The NVIDIA device of this number.
    Cuda(usize),
    /// Apple's.
    Metal,
}

impl std::str::FromStr for DeviceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("cuda:").map(str::parse)) {
            ("cpu", _) => Ok(Self::Cpu),
            ("metal", _) => Ok(Self::Metal),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(Ok(number))) => Ok(Self::Cuda(number)),
            _ => Err(format!("{text:?} is not a device; write \"cpu\", \"cuda:0\" or \"metal\"")),
        }
    }
}

/// What a peer does in the cohort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It trains.
    Student,
    /// It says what the network of its initial weights makes of each batch, and never changes.
    Teacher,
}

impl PeerSpec {
    pub(super) fn read(mut section: Section) -> Result<Self, SpecError> {
        let name = section.text("name")?.ok_or_else(|| section.missing("name", "every peer has a name"))?;
        let name = PeerName::new(name).map_err(|error| section.error("name", error.to_string()))?;
        if name.as_str() == ALL {
            return Err(section.error("name", format!("is {ALL:?}, which means every peer; choose another")));
        }
        let arch =
            section.text("arch")?.ok_or_else(|| section.missing("arch", "write arch = \"resnet20\""))?;
        if !ARCHITECTURES.contains(&arch.as_str()) {
            return Err(section.error("arch", unknown_word(&arch, &ARCHITECTURES)));
        }
        let init = section.text("init")?.map(PathBuf::from);
        let device = match section.text("device")? {
            None => DeviceSpec::Cpu,
            Some(text) => text.parse().map_err(|problem: String| section.error("device", problem))?,
        };
        let role = match section.text("role")?.as_deref() {
            None | Some("student") => Role::Student,
            Some("teacher") => Role::Teacher,
            Some(other) => return Err(section.error("role", unknown_word(other, &["student", "teacher"]))),
        };
        if role == Role::Teacher && init.is_none() {
            let hint = "a teacher never learns, so it needs weights: write init = \"teacher.safetensors\"";
            return Err(section.missing("init", hint));
        }
        let cache = section.flag("cache")?.unwrap_or(false);
        section.finish()?;
        Ok(Self { name, arch, init, device, role, cache })
    }
}

pub(super) fn check_all(peers: &[PeerSpec]) -> Result<(), SpecError> {
    let in_run = |problem: String| SpecError::value("run.toml", "[[peer]]", problem);
    if peers.is_empty() {
        return Err(in_run("is missing; write one [[peer]] with name and arch for every network".into()));
    }
    if peers.len() > PEERS_MAX {
        return Err(in_run(format!("stands {} times; a run has at most {PEERS_MAX} peers", peers.len())));
    }
    if peers.iter().all(|peer| peer.role == Role::Teacher) {
        return Err(in_run("has teachers only; somebody must learn: leave role out for one of them".into()));
    }
    for (i, peer) in peers.iter().enumerate() {
        if peers[..i].iter().any(|other| other.name == peer.name) {
            return Err(in_run(format!("has two peers named {:?}; names are unique", peer.name.as_str())));
        }
    }
    Ok(())
}
