//! Presets: names for graphs that people know.

use serde::{Deserialize, Serialize};

use super::super::SpecError;
use super::super::method::{NOT_NEGATIVE, POSITIVE};
use super::super::peer::{PeerSpec, Role};
use super::super::section::{Section, unknown_word};
use super::read::{COUPLINGS, read_gate};
use super::{EdgeSpec, Gate, TermSpec, Topology, When};

/// A method that is nothing but edges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// No edges but those of the run.toml.
    Graph,
    /// Knowledge distillation from every teacher (Hinton et al. 2015).
    Kd,
    /// Decoupled KD from every teacher (Zhao et al., CVPR 2022).
    Dkd,
    /// KD with normalised features from every teacher (Xu et al., ECCV 2020).
    KdFn,
    /// Progressive self-distillation (Kim et al., ICCV 2021).
    PsKd,
    /// Knowledge Transfer Graph (Minami et al., ACCV 2020): KL terms between all, each through a gate.
    Ktg,
    /// Self-distillation: every network once more, with itself as a teacher (born-again networks, Furlanello et al.,
    /// ICML 2018).
    SelfKd,
    /// The same over more generations.
    Generations,
    /// Training in generations with a tolerant first teacher (Yang et al., AAAI 2019).
    Tsd,
    /// Collaborative learning with one soft target for all (Guo et al., CVPR 2020).
    Kdcl,
    /// A gated ensemble that all learn from (Zhu et al., NeurIPS 2018).
    One,
    /// Adversarial distillation of feature maps in a circle (Chung et al., ICML 2020).
    Afd,
}

const UNIT: &str = "0 to 1";

impl Preset {
    const ALL: [(&str, Self); 12] = [
        ("graph", Self::Graph),
        ("kd", Self::Kd),
        ("dkd", Self::Dkd),
        ("kd-fn", Self::KdFn),
        ("ps-kd", Self::PsKd),
        ("ktg", Self::Ktg),
        ("self-kd", Self::SelfKd),
        ("generations", Self::Generations),
        ("tsd", Self::Tsd),
        ("kdcl", Self::Kdcl),
        ("one", Self::One),
        ("afd", Self::Afd),
    ];

    /// What a run.toml calls it.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, preset)| *preset == self).map_or("graph", |(name, _)| name)
    }

    /// How many generations a run of it has unless it says so.
    pub fn generations(self) -> u64 {
        match self {
            Self::SelfKd => 2,
            Self::Generations | Self::Tsd => 3,
            _ => 1,
        }
    }

    /// The preset of a name.
    pub(in crate::spec) fn of(section: &Section, name: &str) -> Result<Self, SpecError> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, preset)| *preset);
        found.ok_or_else(|| {
            let presets = Self::ALL.iter().map(|(name, _)| *name);
            let names: Vec<&str> = ["alone"].into_iter().chain(COUPLINGS).chain(presets).collect();
            section.error("name", unknown_word(name, &names))
        })
    }

    /// The edges of the preset among these peers, by its keys in `[method]`.
    pub(in crate::spec) fn expand(
        self,
        section: &mut Section,
        peers: &[PeerSpec],
    ) -> Result<Vec<EdgeSpec>, SpecError> {
        let weight = |section: &mut Section, key, default| -> Result<f64, SpecError> {
            Ok(section.number(key, NOT_NEGATIVE, |x| x >= 0.0)?.unwrap_or(default))
        };
        let everybody: Vec<usize> = (0..peers.len()).collect();
        let students: Vec<usize> =
            everybody.iter().copied().filter(|index| peers[*index].role == Role::Student).collect();
        Ok(match self {
            Self::Graph => Vec::new(),
            Self::Kd => {
                let (own, theirs) = (weight(section, "w_ce", 0.1)?, weight(section, "w_kd", 0.9)?);
                let taught = from_teachers(section, peers, &students, "kd")?;
                labels(&students, own).chain(taught.into_iter().map(|edge| edge.weighing(theirs))).collect()
            }
            Self::Dkd => {
                let own = weight(section, "w_ce", 1.0)?;
                let taught = from_teachers(section, peers, &students, "dkd")?;
                labels(&students, own).chain(taught).collect()
            }
            Self::KdFn => {
                let (own, theirs) = (weight(section, "w_ce", 1.0)?, weight(section, "w_kd", 9.0)?);
                let taught = from_teachers(section, peers, &students, "kd-fn")?;
                labels(&students, own).chain(taught.into_iter().map(|edge| edge.weighing(theirs))).collect()
            }
            Self::PsKd => {
                let alpha = section.number("alpha", UNIT, |x| (0.0..=1.0).contains(&x))?.unwrap_or(0.8);
                let term = TermSpec::PsKd { alpha };
                students.iter().map(|index| EdgeSpec::plain(*index, *index, term.clone())).collect()
            }
            Self::Ktg => {
                let t = section.number("t", POSITIVE, |t| t > 0.0)?.unwrap_or(1.0);
                let gate = read_gate(section)?.unwrap_or(Gate::Through);
                let pairs = pairs(section, &everybody, &students)?;
                let kl = |(from, to)| EdgeSpec { gate, ..EdgeSpec::plain(from, to, TermSpec::Kl { t }) };
                labels(&students, 1.0).chain(pairs.into_iter().map(kl)).collect()
            }
            Self::SelfKd | Self::Generations => {
                let term = section.choice("term", &[("kd", "kd"), ("kd-fn", "kd-fn")])?;
                if term == Some("kd-fn") && section.has("alpha") {
                    let problem =
                        "is of term = \"kd\"; that of kd-fn is added to the whole cross-entropy with w_kd";
                    return Err(section.error("alpha", problem));
                }
                let alpha = section.number("alpha", UNIT, |x| (0.0..=1.0).contains(&x))?.unwrap_or(0.5);
                let term = match term {
                    Some("kd-fn") => TermSpec::read("kd-fn", section)?,
                    _ => TermSpec::Kd { t: section.number("t", POSITIVE, |t| t > 0.0)?.unwrap_or(1.0) },
                };
                // Feature-normalised self-distillation adds its term to the whole cross-entropy.
                let (own, past) = match &term {
                    TermSpec::KdFn { .. } => (1.0, weight(section, "w_kd", 9.0)?),
                    _ => (1.0 - alpha, alpha),
                };
                in_generations(&students, (1.0, TermSpec::Ce, 0.0), (own, term, past))
            }
            Self::Tsd => {
                let unit = |section: &mut Section, key| -> Result<f64, SpecError> {
                    Ok(section.number(key, UNIT, |x| (0.0..=1.0).contains(&x))?.unwrap_or(0.6))
                };
                let (eta, lambda) = (unit(section, "eta")?, unit(section, "lambda")?);
                let gap = TermSpec::read("tolerant", section)?;
                in_generations(
                    &students,
                    (eta, gap, 1.0 - eta),
                    (lambda, TermSpec::Kd { t: 1.0 }, 1.0 - lambda),
                )
            }
            Self::Kdcl => {
                let lam = weight(section, "lam", 1.0)?;
                let pairs = pairs(section, &everybody, &students)?;
                let term = TermSpec::read("kdcl", section)?;
                let taught = |(from, to)| EdgeSpec::plain(from, to, term.clone()).weighing(lam);
                labels(&students, 1.0).chain(pairs.into_iter().map(taught)).collect()
            }
            Self::One => {
                let pairs = pairs(section, &everybody, &students)?;
                let term = TermSpec::read("one", section)?;
                let gated = |(from, to)| EdgeSpec::plain(from, to, term.clone());
                labels(&students, 1.0).chain(pairs.into_iter().map(gated)).collect()
            }
            Self::Afd => {
                let t = section.number("t", POSITIVE, |t| t > 0.0)?.unwrap_or(3.0);
                let term = TermSpec::read("afd", section)?;
                let before = |index: usize| (index + peers.len() - 1) % peers.len();
                let taught = students.iter().filter(|index| before(**index) != **index).flat_map(|index| {
                    let edge = |term| EdgeSpec::plain(before(*index), *index, term);
                    [edge(TermSpec::Kl { t }), edge(term.clone())]
                });
                labels(&students, 1.0).chain(taught).collect()
            }
        })
    }
}

/// For every student the weight of its cross-entropy, and another term with its weight, in the first generation and in
/// the later ones.
fn in_generations(
    students: &[usize],
    first: (f64, TermSpec, f64),
    later: (f64, TermSpec, f64),
) -> Vec<EdgeSpec> {
    let of = |index: usize, (own, term, weight): (f64, TermSpec, f64), when| {
        let edge = |term, weight| EdgeSpec::plain(index, index, term).weighing(weight).only(when);
        [edge(TermSpec::Ce, own)].into_iter().chain((weight > 0.0).then(|| edge(term, weight)))
    };
    let all = students.iter().flat_map(|index| {
        of(*index, first.clone(), When::First).chain(of(*index, later.clone(), When::Later))
    });
    all.collect()
}

/// Cross-entropy of every student.
fn labels(students: &[usize], weight: f64) -> impl Iterator<Item = EdgeSpec> {
    students.iter().map(move |index| EdgeSpec::plain(*index, *index, TermSpec::Ce).weighing(weight))
}

/// The pairs of a topology whose target is a student.
fn pairs(
    section: &mut Section,
    peers: &[usize],
    students: &[usize],
) -> Result<Vec<(usize, usize)>, SpecError> {
    let topology = Topology::read(section, peers.len())?.unwrap_or(Topology::All);
    Ok(topology.pairs(peers).into_iter().filter(|(_, to)| students.contains(to)).collect())
}

/// A term from every teacher to every student, by its keys in `[method]`.
fn from_teachers(
    section: &mut Section,
    peers: &[PeerSpec],
    students: &[usize],
    term: &str,
) -> Result<Vec<EdgeSpec>, SpecError> {
    let is_teacher = |index: &usize| peers.get(*index).is_some_and(|peer| peer.role == Role::Teacher);
    let teachers: Vec<usize> = (0..peers.len()).filter(is_teacher).collect();
    if teachers.is_empty() {
        let problem =
            format!("is {term:?}, which needs a teacher; write role = \"teacher\" and init at a [[peer]]");
        return Err(section.error("name", problem));
    }
    let spec = TermSpec::read(term, section)?;
    let edge = |to: &usize| {
        let (spec, to) = (spec.clone(), *to);
        teachers.clone().into_iter().map(move |from| EdgeSpec::plain(from, to, spec.clone()))
    };
    Ok(students.iter().flat_map(edge).collect())
}
