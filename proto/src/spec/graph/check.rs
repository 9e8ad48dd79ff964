//! What makes no sense in a graph, refused before anything is trained.

use std::collections::{BTreeMap, BTreeSet};

use super::super::peer::Role;
use super::super::run::FailurePolicy;
use super::super::{LogitKd, MethodSpec, RunSpec, SpecError};
use super::{EdgeSpec, Gate, KdclTarget, LOGITS, TermSpec, When};

impl RunSpec {
    /// # Errors
    /// The first thing that makes no sense.
    pub(in crate::spec) fn check_graph(&self) -> Result<(), SpecError> {
        if !self.edges.is_sorted_by_key(|edge| edge.to) {
            return Err(SpecError::value("[[edge]]", "the list", "is not in the order of targets"));
        }
        if self.run.generations < 2
            && let Some(preset) = self.preset.filter(|preset| preset.generations() > 1)
        {
            let problem =
                format!("is 1, but {:?} trains a network on its past; write 2 or more", preset.name());
            return Err(SpecError::value("[run]", "generations", problem));
        }
        // A preset is named for its looking back; tables may also say how generations differ.
        let looks_back = self.preset.is_some_and(|preset| preset.generations() > 1);
        let differs = |edge: &EdgeSpec| {
            edge.is_open() && (edge.is_of_the_past() || (!looks_back && edge.when != When::Always))
        };
        if self.run.generations > 1 && !self.edges.iter().any(differs) {
            let problem = format!(
                "is {}, but no term looks back to the generation before; write 1, or an [[edge]] of a peer to itself (kd, \
                 kl, dkd or kd-fn)",
                self.run.generations
            );
            return Err(SpecError::value("[run]", "generations", problem));
        }
        for (place, edge) in self.edges.iter().enumerate() {
            self.check_ends(edge)?;
            self.check_generations(edge)?;
            self.check_term(edge)?;
            self.check_gate(edge)?;
            let from = self.edges.partition_point(|other| other.to < edge.to);
            let before = self.edges.get(from..place).unwrap_or_default();
            if let Some(other) = before.iter().find(|other| other.is_parallel(edge)) {
                let problem = format!("stands twice, with weights {} and {}", other.weight, edge.weight);
                return Err(self.about(edge, problem));
            }
        }
        self.check_ensembles()?;
        self.check_members()?;
        self.check_norms()?;
        self.check_maps()?;
        self.check_held_out()?;
        self.check_coupling()?;
        self.check_learners()
    }

    /// An error about an edge, which is called by its ends and its term.
    fn about(&self, edge: &EdgeSpec, problem: impl std::fmt::Display) -> SpecError {
        let name = |index: usize| self.peers.get(index).map_or("?", |peer| peer.name.as_str());
        let section = match edge.is_local() {
            true => format!("[[edge]] {} of {}", edge.term.name(), name(edge.to)),
            false => format!("[[edge]] {} from {} to {}", edge.term.name(), name(edge.from), name(edge.to)),
        };
        SpecError::value(&section, "it", problem.to_string())
    }

    fn check_ends(&self, edge: &EdgeSpec) -> Result<(), SpecError> {
        let Some(target) = self.peers.get(edge.to).filter(|_| edge.from < self.peers.len()) else {
            return Err(self.about(edge, "has an end that is no peer"));
        };
        match (edge.term.is_local(), edge.is_local()) {
            (true, false) => {
                Err(self
                    .about(edge, "is a term of one's own; leave out from, or write the name of the target"))
            }
            (false, true) if self.run.generations < 2 || !edge.term.looks_back() => Err(self.about(
                edge,
                "is learned from another; write that one's name as from, or learn from the generation before with \
                 generations = 2 in [run] (kd, kl, dkd and kd-fn can)",
            )),
            _ if target.role == Role::Teacher => {
                Err(self
                    .about(edge, "goes to a teacher, which never learns; leave its role out, or the edge"))
            }
            _ => Ok(()),
        }
    }

    /// An edge is there in some generation.
    fn check_generations(&self, edge: &EdgeSpec) -> Result<(), SpecError> {
        if !edge.is_open() {
            return Ok(());
        }
        if edge.when == When::Later && self.run.generations < 2 {
            let problem =
                "is of the later generations, but there is one; write generations = 2 or more in [run]";
            return Err(self.about(edge, problem));
        }
        if edge.when == When::First && edge.is_of_the_past() {
            let problem =
                "looks back to the generation before, which the first has not; leave out its generations";
            return Err(self.about(edge, problem));
        }
        Ok(())
    }

    fn check_term(&self, edge: &EdgeSpec) -> Result<(), SpecError> {
        let classes = self.data.dataset.classes();
        match &edge.term {
            TermSpec::Dkd { alpha, beta, .. } if *alpha == 0.0 && *beta == 0.0 => Err(self
                .about(edge, "has alpha and beta 0, so nothing is learned by it; give one of them a weight")),
            TermSpec::Dkd { .. } if classes < 3 => {
                Err(self.about(edge, "has nothing to decouple with two classes; write term = \"kd\""))
            }
            TermSpec::Tolerant { k } if *k > classes => {
                Err(self.about(edge, format!("looks at k = {k} scores, but there are {classes} classes")))
            }
            TermSpec::AnisotropicLabelSmoothing { groups, .. } if groups.len() != classes => Err(self.about(
                edge,
                format!("has groups for {} classes, but there are {classes} classes", groups.len()),
            )),
            TermSpec::AnisotropicLabelSmoothing { groups, .. } => {
                let alone =
                    |class: &usize| groups.iter().filter(|group| **group == groups[*class]).count() == 1;
                match (0..classes).find(alone) {
                    Some(class) => Err(self.about(
                        edge,
                        format!("has class {class} alone in group {}, which smooths nothing", groups[class]),
                    )),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    fn check_gate(&self, edge: &EdgeSpec) -> Result<(), SpecError> {
        if edge.gate == Gate::Correct && edge.term.is_of_ensembles() {
            let problem =
                "has gate = \"correct\", which goes by what one source says, and its term is of several";
            return Err(self.about(edge, problem));
        }
        Ok(())
    }

    /// All edges of an ensemble's term into a peer are one term.
    fn check_ensembles(&self) -> Result<(), SpecError> {
        for target in 0..self.peers.len() {
            let mut first: BTreeMap<&str, &EdgeSpec> = BTreeMap::new();
            for edge in self.into(target).iter().filter(|edge| edge.term.is_of_ensembles()) {
                if !first.entry(edge.term.name()).or_insert(edge).has_numbers_of(edge) {
                    let problem = "and the others of this term into the same peer are one term; give all the same numbers";
                    return Err(self.about(edge, problem));
                }
            }
        }
        Ok(())
    }

    /// A gated ensemble is one term of all its members: each minimises the same cross-entropy by its own logits and gate.
    fn check_members(&self) -> Result<(), SpecError> {
        let gated = |to: usize| self.edges_to(to).filter(|edge| matches!(edge.term, TermSpec::One { .. }));
        let members = |of: usize| gated(of).map(|edge| edge.from).chain([of]).collect::<BTreeSet<usize>>();
        // The number of the first peer with the same members: ensembles are the same if these are.
        let mut known: BTreeMap<BTreeSet<usize>, usize> = BTreeMap::new();
        let ensembles: Vec<usize> =
            (0..self.peers.len()).map(|of| *known.entry(members(of)).or_insert(of)).collect();
        for target in 0..self.peers.len() {
            // All edges of the term into a peer have the same numbers.
            let Some(edge) = gated(target).next() else { continue };
            if self.data.batch < 2 {
                let problem = "has a gate that normalises over the batch, so a batch has two samples or more";
                return Err(self.about(edge, problem));
            }
            let differs = |other: &usize| {
                let student = self.peers.get(*other).is_some_and(|peer| peer.role == Role::Student);
                let same = gated(*other).next().is_none_or(|theirs| theirs.has_numbers_of(edge));
                student && (ensembles.get(*other) != ensembles.get(target) || !same)
            };
            if let Some(other) = gated(target).map(|edge| edge.from).find(differs) {
                let name = self.peers.get(other).map_or("?", |peer| peer.name.as_str());
                let problem = format!(
                    "is of an ensemble whose students all learn from all its members with the same numbers, and {name} \
                     does not; take topology = \"all\" or \"groups\", or write from and to with the same names"
                );
                return Err(self.about(edge, problem));
            }
        }
        Ok(())
    }

    /// A peer has one classifier at one norm, for itself and for all that learn from it.
    fn check_norms(&self) -> Result<(), SpecError> {
        let of = |name: &'static str| self.edges.iter().filter(move |edge| edge.term.name() == name);
        for (name, what) in
            [("kd-fn", "another norm"), ("hypersphere", "another norm"), ("afd", "other numbers")]
        {
            let differs = of(name).zip(of(name).skip(1)).find(|(one, other)| one.term != other.term);
            if let Some((_, other)) = differs {
                return Err(self.about(other, format!("has {what} than an edge before; one run has one")));
            }
        }
        Ok(())
    }

    /// Maps are compared as they are, by one discriminator a peer, with optimisers of their own.
    fn check_maps(&self) -> Result<(), SpecError> {
        for target in 0..self.peers.len() {
            let mut all = self.edges_to(target).filter(|edge| matches!(edge.term, TermSpec::Afd { .. }));
            let Some(edge) = all.next() else { continue };
            let plain = EdgeSpec::plain(edge.from, edge.to, edge.term.clone());
            let side = |index: usize| self.map_of(index).map_or(0, |[_, rows, _]| rows);
            let (from, to) = (side(edge.from), side(edge.to));
            let said = self.contribution_schema(edge.from);
            let problem = match all.next() {
                Some(_) => "stands beside another; a peer has one discriminator, against one other".to_owned(),
                None if *edge != plain => {
                    "has a weight, a schedule, a gate or generations; it is no part of the loss, lr_g and lr_d are its \
                     strength"
                        .to_owned()
                }
                None if from != to => format!(
                    "compares maps of {from}x{from} with maps of {to}x{to}; take architectures with as many stages"
                ),
                None if self.data.batch < 2 => {
                    "has a discriminator that normalises over the batch, so a batch has two samples or more".to_owned()
                }
                None if matches!(self.method, MethodSpec::LMcl(_)) => {
                    "would stand beside l-mcl, whose meta-updates follow one optimiser".to_owned()
                }
                None => match said {
                    Ok(_) => continue,
                    Err(error) => format!("has maps that are too large to say: {error}; write a smaller batch"),
                },
            };
            return Err(self.about(edge, problem));
        }
        Ok(())
    }

    /// Weights by errors on held-out samples need these, and all networks of the epoch.
    fn check_held_out(&self) -> Result<(), SpecError> {
        let general =
            |edge: &&EdgeSpec| matches!(edge.term, TermSpec::Kdcl { target: KdclTarget::General, .. });
        let Some(edge) = self.edges.iter().filter(|edge| edge.is_open()).find(general) else { return Ok(()) };
        let size = (self.data.validation, self.data.dataset.classes());
        let said = self.contribution_schema(edge.from).and_then(|schema| schema.for_held_out(size));
        let problem = match said {
            _ if size.0 == 0 => {
                "has target = \"general\", which weighs networks by their errors on samples that nobody trains on; write \
                 validation = 500 in [data]"
                    .to_owned()
            }
            _ if matches!(self.method, MethodSpec::LMcl(_)) => {
                "has target = \"general\" beside l-mcl; a step has the further rounds of one of them".to_owned()
            }
            _ if self.policy.on_failure == FailurePolicy::Continue => {
                "has target = \"general\", whose weights are of all networks for an epoch; write on_failure = \"wait\""
                    .to_owned()
            }
            Err(error) => format!("has held-out logits that are too large to say: {error}; hold fewer samples out"),
            Ok(_) => return Ok(()),
        };
        Err(self.about(edge, problem))
    }

    /// Whoever has nothing to learn from is a teacher.
    fn check_learners(&self) -> Result<(), SpecError> {
        let idle = |index: &usize| {
            let own = |generation| self.has_terms_of_its_own(*index, generation);
            self.kinds_of_generations().any(|kind| !own(kind) && self.sources_of_loss(*index, kind, 0) == 0)
        };
        match (0..self.peers.len()).filter(|index| self.is_student(*index)).find(idle) {
            Some(index) => {
                let name = self.peers.get(index).map_or("?", |peer| peer.name.as_str());
                let problem = format!(
                    "of {name} are all cut off, of weight 0 or of other generations, so it would learn nothing in one at \
                     least; write role = \"teacher\", or a term that is always there"
                );
                Err(SpecError::value("[[edge]]", "the terms", problem))
            }
            None => Ok(()),
        }
    }

    fn check_coupling(&self) -> Result<(), SpecError> {
        let whole = self.couples_all();
        let layerwise = matches!(self.method, MethodSpec::LMcl(_));
        let in_method = |problem: &str| Err(SpecError::value("[method]", "name", problem));
        let silent = match &self.method {
            MethodSpec::Alone | MethodSpec::Dml(_) => false,
            MethodSpec::Mcl(_) => {
                let distils = |target: &usize| {
                    self.couples_by(LOGITS, *target) && !self.coupling_sources(*target).is_empty()
                };
                let mut students = (0..self.peers.len()).filter(|index| self.is_student(*index));
                !self.method.contrasts() && !students.any(|target| distils(&target))
            }
            MethodSpec::LMcl(l_mcl) => !l_mcl.contrasts() && !l_mcl.kd,
        };
        if silent && self.peers.len() > 1 {
            let off = if layerwise { "kd is false" } else { "nobody learns by logit_kd" };
            return in_method(&format!(
                "is {:?} without a term: alpha, beta, gamma and lam are 0 and {off}; give one of them a weight, or write \
                 name = \"alone\"",
                self.method.name()
            ));
        }
        if layerwise && !whole {
            return in_method(
                "is \"l-mcl\", whose meta-updates need every peer; write [method] name = \"l-mcl\" in the place of its \
                 [[edge]] tables",
            );
        }
        if self.banks().is_some() && !whole {
            return in_method(
                "has memory banks, which are for all peers; leave out bank, or write its name and numbers in [method] in \
                 the place of its [[edge]] tables",
            );
        }
        let relabelled = self.edges.iter().find(|edge| edge.term.is_of_labels());
        if let Some(edge) = relabelled.filter(|_| layerwise && self.banks().is_some()) {
            return Err(self.about(edge, "cannot be had with l-mcl and memory banks; write bank = false"));
        }
        if self.policy.on_failure == FailurePolicy::Continue && self.run.generations > 1 {
            let problem =
                "is \"continue\", but who comes back must go through all generations; write \"wait\"";
            return Err(SpecError::value("[policy]", "on_failure", problem));
        }
        if self.policy.on_failure == FailurePolicy::Continue && !self.is_uniform() {
            let problem = "is \"continue\", which needs a graph in which every peer learns from every other; write \
                           \"wait\"";
            return Err(SpecError::value("[policy]", "on_failure", problem));
        }
        self.check_those_left_alone()
    }

    /// Whoever is left learns something even then, whichever of the others have gone.
    fn check_those_left_alone(&self) -> Result<(), SpecError> {
        if self.policy.on_failure != FailurePolicy::Continue {
            return Ok(());
        }
        let least = self.policy.min_peers;
        let gone_at_most = self.peers.len().saturating_sub(least);
        for (target, peer) in self.peers.iter().enumerate().filter(|(index, _)| self.is_student(*index)) {
            for generation in self.kinds_of_generations() {
                let sources = self.sources_of_loss(target, generation, gone_at_most);
                if self.has_terms_of_its_own(target, generation) || sources > gone_at_most {
                    continue;
                }
                let more = match sources {
                    0 => String::new(),
                    sources => format!("write {}, or ", self.peers.len() + 1 - sources),
                };
                let problem = format!(
                    "is {least}, but peer {} learns from others only, and all of these may be gone then; {more}give it a \
                     term of its own",
                    peer.name
                );
                return Err(SpecError::value("[policy]", "min_peers", problem));
            }
        }
        Ok(())
    }

    /// The first generation, and one that stands for all later ones if there are any.
    fn kinds_of_generations(&self) -> std::ops::Range<u64> {
        if self.run.generations > 1 { 0..2 } else { 0..1 }
    }

    /// Whether the loss of a peer has a term that needs nobody else.
    fn has_terms_of_its_own(&self, target: usize, generation: u64) -> bool {
        let coupled = self.is_coupled(target)
            && match &self.method {
                MethodSpec::LMcl(_) => true,
                MethodSpec::Mcl(mcl) => mcl.alpha > 0.0,
                MethodSpec::Alone | MethodSpec::Dml(_) => false,
            };
        // What only smooths or spreads what the network says teaches it nothing.
        let teaches =
            |term: &TermSpec| !matches!(term, TermSpec::Tolerant { .. } | TermSpec::ConfidencePenalty { .. });
        let mut own = self.edges_to(target).filter(|edge| edge.is_local() && teaches(&edge.term));
        coupled || self.has_plain_ce(target) || own.any(|edge| edge.is_of_loss(generation))
    }

    /// From how many others the terms of a peer's loss are, of whom so many may go.
    fn sources_of_loss(&self, target: usize, generation: u64, gone_at_most: usize) -> usize {
        let edges = self.edges_to(target).filter(|edge| !edge.is_local() && edge.is_of_loss(generation));
        let couples = match &self.method {
            MethodSpec::Alone => false,
            MethodSpec::Dml(_) | MethodSpec::LMcl(_) => true,
            // Who is the last of those who are left is not known.
            MethodSpec::Mcl(mcl) => {
                let distils = gone_at_most == 0 || mcl.logit_kd == LogitKd::All;
                self.method.contrasts() || (distils && self.couples_by(LOGITS, target))
            }
        };
        let coupled = if couples { self.coupling_sources(target) } else { Vec::new() };
        edges.map(|edge| edge.from).chain(coupled).collect::<BTreeSet<usize>>().len()
    }
}

impl EdgeSpec {
    /// Whether it is a term of the loss in a generation: a discriminator is none, and the first has no past.
    fn is_of_loss(&self, generation: u64) -> bool {
        let discriminates = matches!(self.term, TermSpec::Afd { .. });
        let looks_back_in_vain = generation == 0 && self.is_of_the_past();
        self.when.includes(generation) && !discriminates && !looks_back_in_vain
    }

    /// Whether both are one term with the same weight at all times.
    fn has_numbers_of(&self, other: &Self) -> bool {
        let of =
            |edge: &Self| (edge.term.clone(), edge.schedule, edge.gate, edge.when, edge.weight.to_bits());
        of(self) == of(other)
    }

    /// Whether both are the same term between the same peers in the same generations.
    pub(in crate::spec) fn is_parallel(&self, other: &Self) -> bool {
        let together = self.when == other.when || self.when == When::Always || other.when == When::Always;
        together && (self.from, self.to, self.term.name()) == (other.from, other.to, other.term.name())
    }
}
