//! `[method]` and the `[[edge]]` tables, which together say the graph.

use std::collections::{BTreeMap, BTreeSet};

use super::super::method::NOT_NEGATIVE;
use super::super::peer::{ALL, PeerSpec, Role};
use super::super::section::Section;
use super::super::{MethodSpec, OptimSpec, SpecError};
use super::{EdgeSpec, Gate, Preset, TermSpec, Topology, WeightSchedule, When};

/// Terms that couple networks as a whole: an edge of one links its target to its source in the run's coupling.
pub(super) const COUPLINGS: [&str; 3] = ["dml", "mcl", "l-mcl"];

/// What the tables together say.
#[derive(Debug)]
pub(in crate::spec) struct Couplings {
    pub(in crate::spec) preset: Option<Preset>,
    pub(in crate::spec) method: MethodSpec,
    pub(in crate::spec) links: Option<BTreeSet<(usize, usize)>>,
    pub(in crate::spec) edges: Vec<EdgeSpec>,
}

/// Reads `[method]` and all `[[edge]]` tables.
pub(in crate::spec) fn read_graph(
    mut section: Section,
    tables: Vec<Section>,
    peers: &[PeerSpec],
    optim: &OptimSpec,
) -> Result<Couplings, SpecError> {
    let name = match section.text("name")? {
        Some(name) => name,
        None if !tables.is_empty() => Preset::Graph.name().to_owned(),
        None => {
            return Err(
                section.missing("name", "write name = \"mcl\", \"l-mcl\", \"dml\", \"kd\" or \"alone\"")
            );
        }
    };
    let coupling = MethodSpec::read(&name, &mut section, optim)?;
    let everybody: Vec<usize> = (0..peers.len()).collect();
    let mut links = None;
    if matches!(coupling, Some(MethodSpec::Dml(_) | MethodSpec::Mcl(_))) {
        let topology = Topology::read(&mut section, peers.len())?.filter(|shape| *shape != Topology::All);
        links = topology.map(|shape| shape.pairs(&everybody).into_iter().collect());
    }
    if let Some(key) = ["topology", "group"].into_iter().find(|key| section.has(key) && coupling.is_some()) {
        let whose =
            if coupling == Some(MethodSpec::Alone) { "which has none" } else { "which all peers share" };
        let problem = format!("is of terms between some peers, not of {name:?}, {whose}; leave it out");
        return Err(section.error(key, problem));
    }
    let (mut preset, mut edges) = (None, Vec::new());
    if coupling.is_none() {
        let graph = Preset::of(&section, &name)?;
        edges = graph.expand(&mut section, peers)?;
        preset = Some(graph);
    }
    section.finish()?;
    let said = read_edges(tables, peers, coupling.as_ref(), optim)?;
    let mut replaced: BTreeMap<(usize, usize), Vec<&EdgeSpec>> = BTreeMap::new();
    for edge in &said.edges {
        replaced.entry((edge.from, edge.to)).or_default().push(edge);
    }
    edges.retain(|edge| {
        let tables = replaced.get(&(edge.from, edge.to)).into_iter().flatten();
        !tables.into_iter().any(|other| other.is_parallel(edge))
    });
    edges.extend(said.edges);
    // By target, so that every term of a peer stands in one order whatever order the tables had.
    edges.sort_by_key(|edge| (edge.to, !edge.is_local(), edge.from));
    if let Some(edge) = edges.iter().find(|edge| coupling == Some(MethodSpec::Alone) && !edge.is_local()) {
        let problem = format!(
            "is \"alone\", but {} is learned by {} from {}; write name = \"graph\", or leave out [method]",
            edge.term.name(),
            peers[edge.to].name,
            peers[edge.from].name
        );
        return Err(SpecError::value("[method]", "name", problem));
    }
    if !said.links.is_empty() {
        let learns = |to: &usize| peers[*to].role == Role::Student;
        let mut pairs = Topology::All.pairs(&everybody).into_iter().filter(|(_, to)| learns(to));
        // Tables that name every pair say what [method] says.
        links = (!pairs.all(|pair| said.links.contains(&pair))).then_some(said.links);
    }
    let method = said.coupling.or(coupling).unwrap_or(MethodSpec::Alone);
    Ok(Couplings { preset, method, links, edges })
}

/// What all `[[edge]]` tables together say.
#[derive(Debug, Default)]
struct Edges {
    edges: Vec<EdgeSpec>,
    /// Source and target of the edges of a coupling.
    links: BTreeSet<(usize, usize)>,
    /// The coupling, if its numbers are on the edges.
    coupling: Option<MethodSpec>,
}

/// `coupling` is that of `[method]`, which then says it all; with none the edges say who is coupled, and have the numbers.
fn read_edges(
    sections: Vec<Section>,
    peers: &[PeerSpec],
    coupling: Option<&MethodSpec>,
    optim: &OptimSpec,
) -> Result<Edges, SpecError> {
    let mut all = Edges::default();
    for mut section in sections {
        let term = section.text("term")?.ok_or_else(|| section.missing("term", "write term = \"kd\""))?;
        let (from, to) = (section.texts("from")?, section.texts("to")?);
        let Some(to) = to else {
            return Err(section.missing("to", "write to = \"NAME\", the peer that learns"));
        };
        let pairs = pairs(&section, peers, from.as_deref(), &to)?;
        let numbers = ["weight", "gate", "schedule", "warmup_epochs", "generations"];
        if COUPLINGS.contains(&term.as_str()) {
            if let Some(key) = numbers.into_iter().find(|key| section.has(key)) {
                let problem = format!(
                    "is no number of {term:?}, which is one coupling of all its peers; give it the weights that it has itself"
                );
                return Err(section.error(key, problem));
            }
            if let Some(teacher) = pairs.iter().find(|(_, to)| peers[*to].role == Role::Teacher) {
                let problem = format!(
                    "names {}, a teacher, which never learns; leave its role out, or the edge",
                    peers[teacher.1].name
                );
                return Err(section.error("to", problem));
            }
            if let Some((own, _)) = pairs.iter().find(|(from, to)| from == to) {
                let name = &peers[*own].name;
                let problem = format!("is {term:?} from {name} to itself; it couples different peers");
                return Err(section.error("term", problem));
            }
            read_link(&mut section, &term, &mut all, coupling, optim)?;
            if let Some((from, to)) = pairs.iter().find(|pair| all.links.contains(pair)) {
                let (from, to) = (&peers[*from].name, &peers[*to].name);
                let problem =
                    format!("is {term:?} from {from} to {to}, as in a table before; name them in one");
                return Err(section.error("term", problem));
            }
            all.links.extend(pairs);
        } else {
            let spec = TermSpec::read(&term, &mut section)?;
            let weight = section
                .number("weight", NOT_NEGATIVE, |weight| weight >= 0.0)?
                .unwrap_or(spec.default_weight());
            let schedule = read_schedule(&mut section)?;
            let gate = read_gate(&mut section)?.unwrap_or(Gate::Through);
            let when = read_when(&mut section)?;
            let edge = |(from, to)| EdgeSpec { from, to, term: spec.clone(), weight, schedule, gate, when };
            all.edges.extend(pairs.into_iter().map(edge));
        }
        section.finish()?;
    }
    Ok(all)
}

/// Reads the numbers of a coupling from an edge of it, if they are there.
fn read_link(
    section: &mut Section,
    term: &str,
    all: &mut Edges,
    coupling: Option<&MethodSpec>,
    optim: &OptimSpec,
) -> Result<(), SpecError> {
    let known = all.coupling.as_ref().or(coupling);
    if known == Some(&MethodSpec::Alone) {
        let problem = format!("is {term:?}, but [method] says that all train alone; leave out [method]");
        return Err(section.error("term", problem));
    }
    if let Some(other) = known.filter(|known| known.name() != term) {
        let problem = format!(
            "is {term:?}, but the run is coupled by {}; a run has one coupling (term = \"kl\" is DML's term for one \
             pair, and may stand beside it)",
            other.name()
        );
        return Err(section.error("term", problem));
    }
    if coupling.is_some() {
        let problem = format!(
            "is {term:?}, by which [method] couples the peers already, with its numbers; leave out this table"
        );
        return Err(section.error("term", problem));
    }
    let method = MethodSpec::read(term, section, optim)?;
    if all.coupling.is_some() && all.coupling != method {
        let problem = format!("is {term:?} with other numbers than on an edge before; they are one sum");
        return Err(section.error("term", problem));
    }
    all.coupling = method;
    Ok(())
}

/// All pairs (source, target) of an edge table, none from a peer to itself unless the table has one name only, or the
/// same name twice.
fn pairs(
    section: &Section,
    peers: &[PeerSpec],
    from: Option<&[String]>,
    to: &[String],
) -> Result<Vec<(usize, usize)>, SpecError> {
    let to = indices(section, peers, "to", to, |peer| peer.role == Role::Student)?;
    let Some(from) = from else { return Ok(to.into_iter().map(|to| (to, to)).collect()) };
    let from = indices(section, peers, "from", from, |_| true)?;
    if let ([from], [to]) = (from.as_slice(), to.as_slice()) {
        return Ok(vec![(*from, *to)]);
    }
    let pairs = to.iter().flat_map(|to| from.iter().map(move |from| (*from, *to)));
    Ok(pairs.filter(|(from, to)| from != to).collect())
}

fn indices(
    section: &Section,
    peers: &[PeerSpec],
    key: &str,
    names: &[String],
    every: impl Fn(&PeerSpec) -> bool,
) -> Result<Vec<usize>, SpecError> {
    let place = |name: &str| peers.iter().position(|peer| peer.name.as_str() == name);
    let mut indices = Vec::new();
    for name in names {
        match place(name) {
            Some(index) => indices.push(index),
            None if name == ALL => indices.extend((0..peers.len()).filter(|index| every(&peers[*index]))),
            None => {
                let known: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
                return Err(section.error(key, format!("names {name:?}; the peers are {}", known.join(", "))));
            }
        }
    }
    indices.sort_unstable();
    indices.dedup();
    Ok(indices)
}

fn read_schedule(section: &mut Section) -> Result<WeightSchedule, SpecError> {
    let epochs = section.whole("warmup_epochs", 1..=1_000_000)?;
    let choices = [
        ("constant", WeightSchedule::Constant),
        ("linear", WeightSchedule::Linear),
        ("warm-up", WeightSchedule::WarmUp(0)),
        ("progressive", WeightSchedule::Progressive),
    ];
    match (section.choice("schedule", &choices)?, epochs) {
        (Some(WeightSchedule::WarmUp(_)), Some(epochs)) => Ok(WeightSchedule::WarmUp(epochs)),
        (Some(WeightSchedule::WarmUp(_)), None) => {
            Err(section.missing("warmup_epochs", "write in how many epochs the weight is full"))
        }
        (_, Some(_)) => Err(section.error("warmup_epochs", "needs schedule = \"warm-up\"")),
        (schedule, None) => Ok(schedule.unwrap_or(WeightSchedule::Constant)),
    }
}

fn read_when(section: &mut Section) -> Result<When, SpecError> {
    let choices = [("all", When::Always), ("first", When::First), ("later", When::Later)];
    Ok(section.choice("generations", &choices)?.unwrap_or_default())
}

/// Reads `gate`.
pub(super) fn read_gate(section: &mut Section) -> Result<Option<Gate>, SpecError> {
    let gates = [
        ("through", Gate::Through),
        ("cutoff", Gate::Cutoff),
        ("linear", Gate::Linear),
        ("negative-linear", Gate::NegativeLinear),
        ("correct", Gate::Correct),
    ];
    section.choice("gate", &gates)
}
