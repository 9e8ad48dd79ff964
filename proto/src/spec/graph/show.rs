//! The graph for people and scripts: what every peer minimises, from whom, and what travels for it.

use serde::Serialize;

use super::super::{DmlReduce, DmlTarget, MethodSpec, RunSpec};
use super::{EdgeSpec, Gate, TermSpec, WeightSchedule, When};

/// All terms of a run, by target.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GraphView {
    /// The run's name.
    pub run: String,
    /// What `[method]` calls the graph.
    pub method: &'static str,
    /// Its edges.
    pub edges: Vec<EdgeView>,
}

/// One edge.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EdgeView {
    /// Who is learned from.
    pub from: String,
    /// Who learns.
    pub to: String,
    /// The term.
    pub term: String,
    /// Its hyper-parameters with every default.
    pub with: serde_json::Map<String, serde_json::Value>,
    /// Its factor.
    pub weight: f64,
    /// How the factor changes.
    pub schedule: WeightSchedule,
    /// What passes.
    pub gate: Gate,
    /// In which generations.
    pub when: When,
    /// The tensors that travel for it.
    pub says: Vec<String>,
}

impl RunSpec {
    /// The whole graph, with what presets and the coupling stand for.
    pub fn graph(&self) -> GraphView {
        let mut edges = Vec::new();
        for target in 0..self.peers.len() {
            let local = |term: TermSpec| self.view(&EdgeSpec::plain(target, target, term));
            edges.extend(self.has_plain_ce(target).then(|| local(TermSpec::Ce)));
            edges.extend(
                self.edges.iter().filter(|edge| edge.to == target && edge.is_local()).map(|e| self.view(e)),
            );
            // A teacher minimises nothing.
            if self.is_student(target) {
                edges.extend(self.coupling_local(target));
                let sources = self.coupling_sources(target);
                edges.extend(sources.iter().map(|source| self.coupling_edge(*source, target, sources.len())));
            }
            edges.extend(
                self.edges.iter().filter(|edge| edge.to == target && !edge.is_local()).map(|e| self.view(e)),
            );
        }
        GraphView { run: self.run.name.clone(), method: self.method_name(), edges }
    }

    fn name_of(&self, index: usize) -> String {
        self.peers.get(index).map_or_else(|| index.to_string(), |peer| peer.name.to_string())
    }

    fn view(&self, edge: &EdgeSpec) -> EdgeView {
        let EdgeSpec { from, to, term, weight, schedule, gate, when } = edge;
        let (schedule, gate) = (*schedule, *gate);
        // The first has no past.
        let when = if edge.is_of_the_past() { When::Later } else { *when };
        let with = numbers(term, "term");
        let says = edge.says().into_iter().map(str::to_owned);
        let (from, to, term) = (self.name_of(*from), self.name_of(*to), term.name().to_owned());
        EdgeView {
            from,
            to,
            term,
            with,
            weight: *weight,
            schedule,
            gate,
            when,
            says: says.into_iter().collect(),
        }
    }

    /// The coupling's terms of a network by itself.
    fn coupling_local(&self, target: usize) -> Option<EdgeView> {
        let l_mcl = matches!(self.method, MethodSpec::LMcl(_));
        let what = match (l_mcl, self.is_relabelled(target)) {
            (true, false) => "ce of every stage and of their aggregation",
            (true, true) => "ce of every stage but the last, and of their aggregation",
            (false, _) => "vcl",
        };
        let vcl = matches!(&self.method, MethodSpec::Mcl(mcl) if mcl.alpha > 0.0);
        let is_local = l_mcl || (vcl && self.is_coupled(target));
        is_local.then(|| EdgeView { term: what.to_owned(), ..self.coupling_view(target, target, 1.0) })
    }

    fn coupling_edge(&self, from: usize, to: usize, sources: usize) -> EdgeView {
        let (weight, together) = match &self.method {
            MethodSpec::Dml(dml) if dml.target == DmlTarget::Ensemble => {
                (1.0, ", one term with all its sources")
            }
            // DML's mean over the sources.
            MethodSpec::Dml(dml) if dml.reduce == DmlReduce::Mean => (1.0 / sources.max(1) as f64, ""),
            _ => (1.0, ""),
        };
        let schema = self.contribution_schema(from).unwrap_or_default();
        let names = schema.tensors().iter().map(|tensor| tensor.name.clone());
        let says = names.filter(|name| self.couples_by(name, to)).collect();
        let view = self.coupling_view(from, to, weight);
        EdgeView { says, term: view.term + together, ..view }
    }

    fn coupling_view(&self, from: usize, to: usize, weight: f64) -> EdgeView {
        EdgeView {
            from: self.name_of(from),
            to: self.name_of(to),
            term: self.method.name().to_owned(),
            with: numbers(&self.method, "name"),
            weight,
            schedule: WeightSchedule::Constant,
            gate: Gate::Through,
            when: When::Always,
            says: Vec::new(),
        }
    }
}

/// The fields of something that serialises as a table, but for the one that names it.
fn numbers(term: &impl Serialize, name: &str) -> serde_json::Map<String, serde_json::Value> {
    let mut fields = match serde_json::to_value(term) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    fields.remove(name);
    fields
}

impl GraphView {
    /// One line an edge.
    pub fn text(&self) -> String {
        let line = |edge: &EdgeView| {
            let mut words = vec![format!("weight {}", edge.weight)];
            words.extend((edge.schedule != WeightSchedule::Constant).then(|| schedule_words(edge.schedule)));
            words.extend((edge.gate != Gate::Through).then(|| format!("gate {}", plain(&edge.gate))));
            words.extend(
                (edge.when != When::Always).then(|| format!("in the {} generations", plain(&edge.when))),
            );
            words.extend(edge.with.iter().map(|(key, value)| format!("{key} {value}")));
            words.extend((!edge.says.is_empty()).then(|| format!("says {}", edge.says.join(" "))));
            format!("{} <- {}  {}  ({})\n", edge.to, edge.from, edge.term, words.join(", "))
        };
        let lines: String = self.edges.iter().map(line).collect();
        format!("{} of run {}: target <- source  term\n{lines}", self.method, self.run)
    }
}

fn schedule_words(schedule: WeightSchedule) -> String {
    match schedule {
        WeightSchedule::WarmUp(epochs) => format!("schedule warm-up over {epochs} epochs"),
        other => format!("schedule {}", plain(&other)),
    }
}

/// A word as run.toml spells it.
fn plain(word: &impl Serialize) -> String {
    serde_json::to_value(word).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
