//! Graphs: what presets and tables become, what is refused, and what is shown.

use super::super::{MethodSpec, RunSpec};
use super::{EdgeSpec, Gate, TermSpec, WeightSchedule};

/// Peers t (a teacher), a and b, and whatever else a run.toml says.
fn with(rest: &str) -> String {
    format!(
        "{rest}\n[run]\nsteps = 4\n[data]\ndataset = \"mnist\"\nbatch = 20\n\
         [[peer]]\nname = \"t\"\narch = \"resnet20\"\nrole = \"teacher\"\ninit = \"t.safetensors\"\n\
         [[peer]]\nname = \"a\"\narch = \"resnet8\"\n[[peer]]\nname = \"b\"\narch = \"resnet14\"\n"
    )
}

fn spec(rest: &str) -> RunSpec {
    RunSpec::parse(&with(rest)).unwrap_or_else(|error| panic!("{error}"))
}

fn error(rest: &str) -> String {
    RunSpec::parse(&with(rest)).unwrap_err().to_string()
}

fn edge(from: &str, to: &str, rest: &str) -> String {
    format!("[[edge]]\nfrom = {from}\nto = {to}\n{rest}\n")
}

fn said(spec: &RunSpec) -> Vec<String> {
    (0..spec.peers.len()).map(|index| spec.contribution_schema(index).unwrap().to_string()).collect()
}

const MIXED: &str = "[[edge]]\nfrom = \"t\"\nto = [\"a\", \"b\"]\nterm = \"dkd\"\n\
                     [[edge]]\nfrom = \"a\"\nto = \"b\"\nterm = \"mcl\"\nlogit_kd = \"off\"\n\
                     [[edge]]\nfrom = \"b\"\nto = \"a\"\nterm = \"mcl\"\nlogit_kd = \"off\"\n\
                     [[edge]]\nto = \"b\"\nterm = \"ps-kd\"\n";

/// Who learns from logits is not sent embeddings, and the other way round; all who learn hear of everything by digest.
#[test]
fn only_what_an_edge_needs_is_wanted() {
    let logits_too = edge("\"a\"", "\"t2\"", "term = \"kd\"");
    let rest = format!("{MIXED}{logits_too}[[peer]]\nname = \"t2\"\narch = \"resnet8\"\n");
    let wanted = |rest: &str, source: usize, target: usize| {
        let spec = spec(rest);
        let numbers = [crate::meta::NORMS, crate::meta::HELD_OUT];
        let mut names: Vec<String> = spec.wanted(source, target).unwrap().into_iter().collect();
        names.retain(|name| !numbers.contains(&name.as_str()));
        names.join(" ")
    };
    assert_eq!(said(&spec(&rest))[2], "[logits F32[20, 10], embed.0 F32[20, 128]]");
    assert_eq!((wanted(&rest, 2, 3), wanted(&rest, 2, 0)), ("embed.0".into(), "logits".into()));
    assert_eq!((wanted(&rest, 1, 2), wanted(&rest, 3, 2)), ("logits".into(), "embed.0".into()));
    assert_eq!(wanted(&rest, 0, 2), "", "nobody learns from the last one");
    let (kd, l_mcl) = (edge("\"a\"", "\"b\"", "term = \"kd\""), "[method]\nname = \"l-mcl\"\n");
    let both = format!("{l_mcl}{kd}");
    assert!(wanted(&both, 1, 2).starts_with("aggregated embed.0"));
    assert!(wanted(&both, 1, 2).ends_with("match.2"), "{}", wanted(&both, 1, 2));
}

/// What is printed of a graph is what travels, and a teacher minimises nothing.
#[test]
fn what_is_shown_is_what_travels() {
    let says = |rest: &str| {
        let view = spec(rest).graph();
        let line = |edge: &super::show::EdgeView| {
            (edge.from != edge.to).then(|| format!("{}{} {}", edge.from, edge.to, edge.says.join(" ")))
        };
        view.edges.iter().filter_map(line).collect::<Vec<_>>()
    };
    let correct = edge("\"t\"", "\"a\"", "term = \"kd-fn\"\ngate = \"correct\"");
    assert_eq!(says(&correct), ["ta fn_logits logits"]);
    assert_eq!(said(&spec(&correct))[0], "[logits F32[20, 10], fn_logits F32[20, 10]]");
    assert_eq!(says("[method]\nname = \"dml\"\n"), ["ta logits", "ba logits", "tb logits", "ab logits"]);
    let closed = edge("\"t\"", "\"a\"", "term = \"kd\"\ngate = \"cutoff\"");
    assert_eq!(says(&closed), ["ta "], "nothing travels for what is cut off");
    let past = with("[method]\nname = \"generations\"\n").replace("steps = 4", "steps = 4\ngenerations = 2");
    let own = RunSpec::parse(&past).unwrap().graph().edges;
    assert!(own.iter().any(|edge| edge.term == "kd"));
    assert!(own.iter().all(|edge| edge.says.is_empty()), "one's own past does not travel");
    // Of three, the last distils.
    let mcl = "[method]\nname = \"mcl\"\n";
    assert_eq!(says(mcl), ["ta embed.0", "ba embed.0", "tb logits embed.0", "ab logits embed.0"]);
    let wanted = |rest: &str, source, target| spec(rest).wanted(source, target).unwrap();
    assert!(!wanted(mcl, 1, 0).contains("embed.0"), "nothing that a teacher would learn from");
    assert!(!wanted("[method]\nname = \"l-mcl\"\n", 1, 0).contains("embed.0"), "nor in meta-updates");
    assert!(!wanted(mcl, 2, 1).contains("logits"));
    let going_on = format!("{mcl}[policy]\non_failure = \"continue\"\n");
    assert!(wanted(&going_on, 2, 1).contains("logits"), "who stays hands on what it heard");
    let general = edge("\"a\"", "\"b\"", "term = \"kdcl\"\ntarget = \"general\"");
    let both = general.clone() + &edge("\"t\"", "\"b\"", "term = \"kd\"");
    let text = with(&both).replace("batch = 20", "validation = 9");
    let spec = RunSpec::parse(&text).unwrap();
    let held_out = |source: usize| spec.wanted(source, 2).unwrap().contains(crate::meta::HELD_OUT);
    assert_eq!((held_out(0), held_out(1)), (false, true));
}

#[test]
fn a_mixed_graph() {
    let spec = spec(MIXED);
    assert_eq!(said(&spec), ["[logits F32[20, 10]]", "[embed.0 F32[20, 128]]", "[embed.0 F32[20, 128]]"]);
    assert_eq!([0, 1, 2].map(|peer| spec.coupling_sources(peer)), [vec![], vec![2], vec![1]]);
    assert_eq!([0, 1, 2].map(|peer| spec.sources(peer)), [[].into(), [0, 2].into(), [0, 1].into()]);
    assert_eq!([0, 1, 2].map(|peer| spec.is_coupled(peer)), [false, true, true]);
    assert_eq!(
        [0, 1, 2].map(|peer| spec.has_plain_ce(peer)),
        [false, true, false],
        "b has labels of its own"
    );
    let text = spec.graph().text();
    let lines: Vec<&str> = text.lines().collect();
    let begin = |line: usize| lines[line].split("  (").next().unwrap();
    assert_eq!(lines.len(), 9, "{text}");
    assert_eq!(
        (1..9).map(begin).collect::<Vec<_>>(),
        [
            "a <- a  ce",
            "a <- a  vcl",
            "a <- b  mcl",
            "a <- t  dkd",
            "b <- b  ps-kd",
            "b <- b  vcl",
            "b <- a  mcl",
            "b <- t  dkd"
        ]
    );
    assert!(
        lines[4].ends_with("(weight 1, alpha 1.0, beta 8.0, t 4.0, warmup 20, says logits)"),
        "{}",
        lines[4]
    );
    let again = RunSpec::from_json(&spec.to_json()).unwrap();
    assert_eq!((again.hash(), again), (spec.hash(), spec.clone()));
}

#[test]
fn presets_are_edges() {
    let terms = |name: &str| -> Vec<(usize, usize, &str, f64)> {
        let text = format!("[method]\nname = \"{name}\"\n");
        let edges = spec(&text).edges;
        edges.iter().map(|edge| (edge.from, edge.to, edge.term.name(), edge.weight)).collect()
    };
    assert_eq!(terms("kd"), [(1, 1, "ce", 0.1), (0, 1, "kd", 0.9), (2, 2, "ce", 0.1), (0, 2, "kd", 0.9)]);
    assert_eq!(terms("dkd"), [(1, 1, "ce", 1.0), (0, 1, "dkd", 1.0), (2, 2, "ce", 1.0), (0, 2, "dkd", 1.0)]);
    assert_eq!(
        terms("kd-fn"),
        [(1, 1, "ce", 1.0), (0, 1, "kd-fn", 9.0), (2, 2, "ce", 1.0), (0, 2, "kd-fn", 9.0)]
    );
    assert_eq!(terms("ps-kd"), [(1, 1, "ps-kd", 1.0), (2, 2, "ps-kd", 1.0)]);
    let ktg = [(1, 1, "ce"), (0, 1, "kl"), (2, 1, "kl"), (2, 2, "ce"), (0, 2, "kl"), (1, 2, "kl")];
    assert_eq!(terms("ktg"), ktg.map(|(from, to, term)| (from, to, term, 1.0)));
    assert_eq!(terms("kdcl").len(), 6);
    let one = [(1, 1, "ce"), (0, 1, "one"), (2, 1, "one"), (2, 2, "ce"), (0, 2, "one"), (1, 2, "one")];
    assert_eq!(terms("one"), one.map(|(from, to, term)| (from, to, term, 1.0)));
    let self_kd = [(1, 1, "ce", 1.0), (1, 1, "ce", 0.5), (1, 1, "kd", 0.5)];
    assert_eq!(terms("self-kd")[..3], self_kd);
    let tsd = [(1, 1, "ce", 0.6), (1, 1, "tolerant", 0.4), (1, 1, "ce", 0.6), (1, 1, "kd", 0.4)];
    assert_eq!(terms("tsd")[..4], tsd);
    assert_eq!(
        ["self-kd", "tsd"].map(|name| spec(&format!("[method]\nname = \"{name}\"\n")).run.generations),
        [2, 3]
    );
    assert_eq!(terms("alone"), []);
    assert_eq!(spec("[method]\nname = \"kd\"\n").method_name(), "kd");
    let says = |name: &str| said(&spec(&format!("[method]\nname = \"{name}\"\n")));
    assert_eq!(says("kd"), ["[logits F32[20, 10]]", "[]", "[]"], "nobody learns from a student");
    let afd = [(1, 1, "ce"), (0, 1, "kl"), (0, 1, "afd"), (2, 2, "ce"), (1, 2, "kl"), (1, 2, "afd")];
    assert_eq!(terms("afd"), afd.map(|(from, to, term)| (from, to, term, 1.0)));
    let said_maps = "[logits F32[20, 10], map F32[20, 64, 7, 7]]";
    assert_eq!(says("afd"), [said_maps, said_maps, "[]"], "nobody follows the last");
    assert_eq!(says("one"), ["[logits F32[20, 10], score F32[20, 1]]"; 3]);
    assert_eq!(says("kd-fn"), ["[fn_logits F32[20, 10]]", "[]", "[]"]);
}

#[test]
fn a_table_replaces_an_edge_of_a_preset_and_extends_it() {
    let kd = "[method]\nname = \"kd\"\n";
    let more = edge("\"t\"", "\"a\"", "term = \"kd\"\nt = 2.0\nweight = 0.5")
        + &edge("\"b\"", "\"a\"", "term = \"kl\"");
    let spec = spec(&(kd.to_owned() + &more));
    let to_a: Vec<&EdgeSpec> = spec.edges_to(1).collect();
    assert_eq!(to_a.len(), 3);
    assert_eq!(*to_a[1], EdgeSpec::plain(0, 1, TermSpec::Kd { t: 2.0 }).weighing(0.5));
    assert_eq!(*to_a[2], EdgeSpec::plain(2, 1, TermSpec::Kl { t: 1.0 }));
    assert_eq!(spec.edges_to(2).count(), 2, "what the table does not name stays");
}

#[test]
fn schedules_and_gates() {
    let one = |rest: &str| spec(&edge("\"t\"", "\"all\"", &format!("term = \"kl\"\n{rest}"))).edges;
    let warm = one("schedule = \"warm-up\"\nwarmup_epochs = 3\ngate = \"correct\"");
    assert_eq!(warm.len(), 2, "every student");
    assert_eq!((warm[0].schedule, warm[0].gate), (WeightSchedule::WarmUp(3), Gate::Correct));
    let cut = spec(&edge("\"t\"", "\"a\"", "term = \"kl\"\ngate = \"cutoff\""));
    assert_eq!((said(&cut)[0].as_str(), cut.sources(1).len()), ("[]", 0), "nothing travels on a cut edge");
    assert_eq!(one("weight = 0.0").iter().filter(|edge| edge.is_open()).count(), 0);
}

#[test]
fn topologies_couple_neighbours() {
    let ring = spec("[method]\nname = \"dml\"\ntopology = \"ring\"\n");
    assert!((0..3).all(|peer| ring.coupling_sources(peer).len() == 2), "three are a ring of all");
    let star = spec("[method]\nname = \"mcl\"\ntopology = \"star\"\n");
    assert_eq!([0, 1, 2].map(|peer| star.coupling_sources(peer)), [vec![1, 2], vec![0], vec![0]]);
    assert!(matches!(star.method, MethodSpec::Mcl(_)));
}

#[test]
fn tables_that_name_every_pair_say_what_method_says() {
    for (name, rest) in [("mcl", "feat_dim = 16"), ("dml", ""), ("l-mcl", "meta_freq = 3")] {
        let tables = spec(&edge("\"all\"", "\"all\"", &format!("term = \"{name}\"\n{rest}")));
        let method = spec(&format!("[method]\nname = \"{name}\"\n{rest}\n"));
        assert_eq!((tables.method, tables.links), (method.method, method.links), "{name}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_in_a_sentence() {
    let one = |from: &str, to: &str, rest: &str| error(&edge(from, to, rest));
    for (said, words) in [
        (one("\"a\"", "\"a\"", "term = \"kd\""), "learned from another"),
        (one("\"b\"", "\"a\"", "term = \"ce\""), "term of one's own"),
        (one("\"a\"", "\"t\"", "term = \"kl\""), "teacher, which never learns"),
        (one("\"t\"", "\"a\"", "term = \"kd\"\nt = 0"), "greater than 0"),
        (one("\"t\"", "\"a\"", "term = \"kd\"\nweight = -1"), "0 or greater"),
        (one("\"t\"", "\"a\"", "term = \"dkd\"\nbeta = -2"), "0 or greater"),
        (one("\"a\"", "\"a\"", "term = \"ps-kd\"\nalpha = 1.5"), "0 to 1"),
        (one("\"x\"", "\"a\"", "term = \"kd\""), "the peers are t, a, b"),
        (one("\"t\"", "\"a\"", "term = \"kdd\""), "did you mean \"kd\""),
        (one("\"t\"", "\"a\"", "term = \"kd\"\ntemperature = 2"), "unknown key"),
        (one("\"t\"", "\"a\"", "term = \"kdcl\"\ngate = \"correct\""), "of several"),
        (one("\"a\"", "\"a\"", "term = \"tolerant\"\nk = 11"), "10 classes"),
        (
            one("\"a\"", "\"a\"", "term = \"anisotropic-label-smoothing\"\ngroups = [0,0,0,0,0,1,1,1,1,2]"),
            "class 9 alone",
        ),
        (one("\"a\"", "\"a\"", "term = \"anisotropic-label-smoothing\"\ngroups = [0,0]"), "for 2 classes"),
        (error(&edge("\"t\"", "\"a\"", "term = \"kd\"").repeat(2)), "stands twice"),
        (one("\"b\"", "\"a\"", "term = \"afd\"\nweight = 2.0"), "no part of the loss"),
        (one("\"b\"", "\"a\"", "term = \"afd\"\ngate = \"linear\""), "no part of the loss"),
        (one("\"b\"", "\"a\"", "term = \"afd\"\nlr_g = 0"), "greater than 0"),
        (
            error(
                &(edge("\"b\"", "\"a\"", "term = \"afd\"")
                    + &edge("\"a\"", "\"a\"", "term = \"ce\"\nweight = 0")),
            ),
            "it would learn nothing",
        ),
        (one("[\"t\", \"b\"]", "\"a\"", "term = \"afd\""), "one discriminator"),
        (
            error(
                &(edge("\"b\"", "\"a\"", "term = \"afd\"")
                    + &edge("\"a\"", "\"b\"", "term = \"afd\"\nchannels = 8")),
            ),
            "other numbers than an edge before",
        ),
        (
            error(&("[method]\nname = \"l-mcl\"\n".to_owned() + &edge("\"b\"", "\"a\"", "term = \"afd\""))),
            "follow one optimiser",
        ),
        (
            one("\"b\"", "\"a\"", "term = \"one\""),
            "of an ensemble whose students all learn from all its members",
        ),
        (one("\"t\"", "\"a\"", "term = \"one\"\ngate = \"correct\""), "of several"),
        (
            one("\"a\"", "\"a\"", "term = \"ce\"\ngenerations = \"later\""),
            "of the later generations, but there is one",
        ),
        (one("\"a\"", "\"a\"", "term = \"ce\"\ngenerations = \"first\"\nweight = 0"), "of other generations"),
        (
            error(
                &edge("\"a\"", "\"a\"", "term = \"kd\"\ngenerations = \"first\"")
                    .replace("[[edge]]", "[method]\nname = \"self-kd\"\n[[edge]]"),
            ),
            "which the first has not",
        ),
        (
            error("[method]\nname = \"mcl\"\n[[edge]]\nfrom = \"a\"\nto = \"b\"\nterm = \"mcl\"\n"),
            "leave out this table",
        ),
        (
            error("[method]\nname = \"l-mcl\"\ntopology = \"ring\"\n"),
            "topology is of terms between some peers, not of \"l-mcl\"",
        ),
        (error("[method]\nname = \"self-kd\"\nterm = \"kd-fn\"\nalpha = 0.3\n"), "is of term = \"kd\""),
        (error("[method]\nname = \"l-mcl\"\nmeta_freq = 0\nmeta_times = 3\n"), "of which there are none"),
        (one("\"t\"", "\"a\"", "term = \"kl\"\nt = 1e200"), "beyond"),
        (one("\"t\"", "\"a\"", "term = \"kl\"\nweight = 5e-324"), "beyond"),
        (one("\"a\"", "\"b\"", "term = \"mcl\"\ngenerations = \"first\""), "generations is no number of"),
        (one("\"b\"", "\"a\"", "term = \"afd\"\nchannels = 1025"), "1 to 1024"),
        (
            error(
                &(edge("\"b\"", "\"a\"", "term = \"one\"")
                    + &edge("\"a\"", "\"b\"", "term = \"one\"\nweight = 0.5")),
            ),
            "and b does not",
        ),
        (
            error(
                &(edge("\"b\"", "\"a\"", "term = \"kdcl\"\ngenerations = \"first\"")
                    + &edge("\"t\"", "\"a\"", "term = \"kdcl\"")),
            ),
            "give all the same numbers",
        ),
        (error("[method]\nname = \"kd\"\n[[edge]]\nto = \"a\"\nterm = \"l-mcl\"\n"), "itself"),
        (
            error(&("[method]\nname = \"l-mcl\"\n".to_owned() + &edge("\"a\"", "\"b\"", "term = \"l-mcl\""))),
            "leave out this table",
        ),
        (
            error(&(MIXED.to_owned() + "[policy]\non_failure = \"continue\"\n")),
            "every peer learns from every other",
        ),
        (error(&(MIXED.to_owned() + &edge("\"a\"", "\"b\"", "term = \"dml\""))), "one coupling"),
        (error(&edge("\"a\"", "\"t\"", "term = \"mcl\"")), "to names t, a teacher, which never learns"),
        (error(&edge("\"a\"", "\"b\"", "term = \"mcl\"\nweight = 0.5")), "weight is no number of \"mcl\""),
        (error(&edge("\"a\"", "\"b\"", "term = \"l-mcl\"")), "need every peer"),
        (
            error("[method]\nname = \"mcl\"\nalpha = 0\nbeta = 0\ngamma = 0\nlam = 0\nlogit_kd = \"off\"\n"),
            "without a term",
        ),
        (
            error("[method]\nname = \"l-mcl\"\nalpha = 0\nbeta = 0\ngamma = 0\nlam = 0\nkd = false\n"),
            "without a term",
        ),
        (
            error("[method]\nname = \"alone\"\n[[edge]]\nfrom = \"a\"\nto = \"b\"\nterm = \"dml\"\n"),
            "leave out [method]",
        ),
        (error("[method]\nname = \"alone\"\ntopology = \"ring\"\n"), "which has none"),
        (
            error(
                &(edge("\"a\"", "\"b\"", "term = \"dml\"")
                    + "[[edge]]\nto = \"a\"\nterm = \"ce\"\nweight = 0\n"),
            ),
            "it would learn nothing",
        ),
        (
            error(
                "[method]\nname = \"mcl\"\nalpha = 0\nbeta = 0\ngamma = 0\nlam = 0\n[[edge]]\nto = \"a\"\nterm = \"ce\"\nweight = 0\n",
            ),
            "of a are all cut off",
        ),
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let pair = |policy: &str| {
        let edges = edge("\"a\"", "\"b\"", "term = \"kl\"") + &edge("\"b\"", "\"a\"", "term = \"kl\"");
        let silent = "[[edge]]\nto = \"b\"\nterm = \"ce\"\nweight = 0\n";
        let text = format!("{}{silent}[policy]\non_failure = \"continue\"\n{policy}\n", with(&edges));
        let teacher = text.split("[[peer]]").nth(1).unwrap();
        RunSpec::parse(&text.replace(&format!("[[peer]]{teacher}"), "")).map_err(|error| error.to_string())
    };
    assert!(pair("").is_ok());
    assert!(pair("min_peers = 1").unwrap_err().contains("peer b learns from others only"));
    // Of three, a has a term of b and a discriminator against c; or a and b are coupled, and c learns from both.
    let silent = |name: &str| format!("[[edge]]\nto = \"{name}\"\nterm = \"ce\"\nweight = 0\n");
    let kl = |from: &str, to: &str| edge(from, to, "term = \"kl\"");
    let of_c = kl("[\"a\", \"b\"]", "\"c\"");
    let against = kl("\"b\"", "\"a\"") + &edge("\"c\"", "\"a\"", "term = \"afd\"");
    let against = against + &kl("[\"a\", \"c\"]", "\"b\"") + &of_c + &silent("a");
    let both = edge("\"a\"", "\"b\"", "term = \"mcl\"") + &edge("\"b\"", "\"a\"", "term = \"mcl\"");
    let beside = both + &kl("\"c\"", "[\"a\", \"b\"]") + &of_c + &silent("c");
    let going_on = |edges: &str, least: usize| {
        let peers = ["a", "b", "c"].map(|name| format!("[[peer]]\nname = \"{name}\"\narch = \"resnet8\"\n"));
        let text = format!(
            "{edges}[run]\nsteps = 4\n[data]\ndataset = \"mnist\"\nbatch = 20\n[policy]\non_failure = \"continue\"\n\
             min_peers = {least}\n{}",
            peers.concat()
        );
        RunSpec::parse(&text).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!((going_on(&against, 3), going_on(&beside, 2)), (Ok(()), Ok(())));
    let said = going_on(&against, 2).unwrap_err();
    assert!(
        said.contains("peer a learns from others only") && said.contains("write 3, or give it"),
        "{said}"
    );
    let said = going_on(&beside, 1).unwrap_err();
    assert!(
        said.contains("peer c learns from others only") && said.contains("write 2, or give it"),
        "{said}"
    );
    // Of three that learn by logits alone, the last does, as long as it is known to be the last.
    let none = "alpha = 0\nbeta = 0\ngamma = 0\nlam = 0\n";
    let last = format!("[method]\nname = \"mcl\"\n{none}{}", silent("c"));
    assert_eq!(going_on(&last, 3), Ok(()));
    assert!(going_on(&last, 2).unwrap_err().contains("peer c learns from others only"));
    let named_all = with("").replace("name = \"a\"", "name = \"all\"");
    assert!(RunSpec::parse(&named_all).unwrap_err().to_string().contains("means every peer"));
    let general = |rest: &str| {
        let text = with("[method]\nname = \"kdcl\"\ntarget = \"general\"\n").replace("batch = 20", rest);
        RunSpec::parse(&text).map_err(|error| error.to_string())
    };
    let continued = "validation = 9\n[policy]\non_failure = \"continue\"";
    assert!(general("batch = 20\nvalidation = 100").unwrap().weighs_by_held_out());
    assert!(general("batch = 20").unwrap_err().contains("samples that nobody trains on"));
    assert!(general(continued).unwrap_err().contains("write on_failure = \"wait\""));
    assert!(general("validation = 2000000").unwrap_err().contains("too large to say"));
    let beside = "[method]\nname = \"l-mcl\"\n[[edge]]\nfrom = \"t\"\nto = \"a\"\nterm = \"kdcl\"\ntarget = \"general\"\n";
    let beside = with(beside).replace("batch = 20", "validation = 9");
    assert!(RunSpec::parse(&beside).unwrap_err().to_string().contains("one of them"));
    let afd = |rest: &str| with(&edge("\"b\"", "\"a\"", &format!("term = \"afd\"\n{rest}")));
    for (text, words) in [
        (afd("").replace("resnet14", "resnet6"), "maps of 14x14 with maps of 7x7"),
        (afd("").replace("batch = 20", "batch = 1"), "two samples or more"),
        (afd("channels = 1024").replace("batch = 20", "batch = 512"), "too large to say"),
        (
            with(&edge("\"a\"", "\"a\"", "term = \"afd\""))
                .replace("steps = 4", "steps = 4\ngenerations = 2"),
            "learned from another",
        ),
    ] {
        let error = RunSpec::parse(&text).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
    let alone = with("[method]\nname = \"one\"\n").replace("batch = 20", "batch = 1");
    assert!(RunSpec::parse(&alone).unwrap_err().to_string().contains("normalises over the batch"));
    let banks = "[method]\nname = \"l-mcl\"\nmatching = \"uniform\"\nbank = true\n[[edge]]\nto = \"a\"\nterm = \"ps-kd\"\n";
    let students = with(banks).replace("role = \"teacher\"", "");
    assert!(RunSpec::parse(&students).unwrap_err().to_string().contains("with l-mcl and memory banks"));
    let no_teacher = with("[method]\nname = \"kd\"\n").replace("role = \"teacher\"", "");
    assert!(RunSpec::parse(&no_teacher).unwrap_err().to_string().contains("needs a teacher"));
}

/// Maps have the least number of channels of those that are compared, or what the edges say.
#[test]
fn maps_have_a_common_number_of_channels() {
    let afd = |rest: &str| spec(&edge("\"b\"", "\"a\"", &format!("term = \"afd\"\n{rest}")));
    assert_eq!([0, 1, 2].map(|peer| afd("").map_of(peer)), [None, Some([64, 7, 7]), Some([64, 7, 7])]);
    assert_eq!(said(&afd("channels = 16")), ["[]", "[]", "[map F32[20, 16, 7, 7]]"]);
    let wide = with(&edge("\"b\"", "\"a\"", "term = \"afd\"")).replace("resnet14", "resnet8x4");
    assert_eq!(RunSpec::parse(&wide).unwrap().map_of(2), Some([64, 7, 7]));
    assert!(afd("").graph().text().contains("a <- b  afd  (weight 1, lr_d 0.0002, lr_g 0.00002, says map)"));
}

/// Every stage of l-mcl has a cross-entropy; a term of labels stands in the place of the last one's.
#[test]
fn layer_wise_learning_with_labels_of_ones_own() {
    let spec = spec("[method]\nname = \"l-mcl\"\n[[edge]]\nto = \"b\"\nterm = \"label-smoothing\"\n");
    assert_eq!([1, 2].map(|peer| spec.is_relabelled(peer)), [false, true]);
    assert_eq!([1, 2].map(|peer| spec.has_plain_ce(peer)), [false, false]);
    let text = spec.graph().text();
    for line in [
        "a <- a  ce of every stage and of their aggregation",
        "b <- b  label-smoothing",
        "b <- b  ce of every stage but the last, and of their aggregation",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

/// What peers are told of a run fits into a message; until then the checks of a graph take no time to speak of.
#[test]
fn a_graph_that_no_status_can_carry_is_refused() {
    let run = |peers: usize, topology: &str| {
        let peers = (0..peers).map(|i| format!("[[peer]]\nname = \"p{i}\"\narch = \"resnet8\"\n"));
        RunSpec::parse(&format!(
            "[run]\nsteps = 1\n[data]\ndataset = \"mnist\"\n[method]\nname = \"one\"\n{topology}\n{}",
            peers.collect::<String>()
        ))
    };
    assert!(run(100, "").is_ok());
    let error = run(300, "").unwrap_err().to_string();
    assert!(error.contains("of one and 300 peers") && error.contains("topology = \"groups\""), "{error}");
    assert!(run(300, "topology = \"groups\"\ngroup = 3").is_ok());
}

/// What would be trained otherwise than it says, or not at all.
#[test]
fn what_says_nothing_or_says_it_twice_is_refused() {
    let every = |term: &str| edge("[\"t\", \"a\", \"b\"]", "[\"a\", \"b\"]", &format!("term = \"{term}\""));
    let own = |term: &str| edge("\"a\"", "\"a\"", &format!("term = \"{term}\""));
    let twice = edge("\"a\"", "\"b\"", "term = \"mcl\"");
    let nothing = "alpha = 0\nbeta = 0\ngamma = 0\nlam = 0";
    let without_labels = |term: &str| own(term) + "[[edge]]\nto = \"a\"\nterm = \"ce\"\nweight = 0\n";
    let generations = with("[method]\nname = \"mcl\"\n").replace("steps = 4", "steps = 4\ngenerations = 3");
    for (said, words) in [
        (error(&(every("dml") + &own("dml"))), "from a to itself"),
        (error(&(every("l-mcl") + "[[edge]]\nto = \"a\"\nterm = \"l-mcl\"\n")), "from a to itself"),
        (error(&(twice.clone() + &twice)), "as in a table before"),
        (error(&edge("\"t\"", "\"a\"", "term = \"dkd\"\nalpha = 0\nbeta = 0")), "alpha and beta 0"),
        (
            error(&edge(
                "[\"a\", \"t\"]",
                "\"b\"",
                &format!("term = \"mcl\"\n{nothing}\nlogit_kd = \"off\""),
            )),
            "nobody learns",
        ),
        (
            error(&edge("\"b\"", "\"a\"", &format!("term = \"mcl\"\n{nothing}\nlogit_kd = \"off\""))),
            "without a term",
        ),
        (
            error("[method]\nname = \"dml\"\ntarget = \"ensemble\"\nreduce = \"sum\"\n"),
            "there is one; leave it out",
        ),
        (RunSpec::parse(&generations).unwrap_err().to_string(), "no term looks back"),
        (error("[method]\nname = \"self-kd\"\nalpha = 0\n"), "no term looks back"),
        (error("[method]\nname = \"generations\"\nalpha = 0\n"), "no term looks back"),
        (error("[method]\nname = \"tsd\"\nlambda = 1\n"), "no term looks back"),
        (
            error(&(String::from("[method]\nname = \"alone\"\n") + &edge("\"b\"", "\"a\"", "term = \"kd\""))),
            "kd is learned by a from b",
        ),
        (error(&without_labels("confidence-penalty")), "it would learn nothing"),
        (error(&without_labels("tolerant")), "it would learn nothing"),
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // The teacher is the last of three, and nobody else is told by logit_kd = "last".
    let last = format!("[method]\nname = \"mcl\"\n{nothing}\n");
    let teacher_last = "[run]\nsteps = 4\n[data]\ndataset = \"mnist\"\nbatch = 20\n[[peer]]\nname = \"a\"\narch = \"resnet8\"\n\
                        [[peer]]\nname = \"b\"\narch = \"resnet8\"\n[[peer]]\nname = \"t\"\narch = \"resnet8\"\nrole = \"teacher\"\n\
                        init = \"t.safetensors\"\n";
    let said = RunSpec::parse(&(last + teacher_last)).unwrap_err().to_string();
    assert!(said.contains("nobody learns by logit_kd"), "{said}");
    let normalize = with("[method]\nname = \"alone\"\n")
        .replace("batch = 20", "batch = 20\nnormalize = { mean = [0.5], std = [1e-30] }");
    assert!(RunSpec::parse(&normalize).unwrap_err().to_string().contains("beyond"));
    let far = with("[method]\nname = \"alone\"\n").replace("\"mnist\"", "\"cifar10\"");
    assert!(!RunSpec::parse(&far).unwrap_err().to_string().contains("did you mean"));
}

#[test]
fn the_graph_that_is_shown_is_the_one_that_trains() {
    let shown = |text: &str| RunSpec::parse(text).unwrap().graph().text();
    let ensemble = shown(&with("[method]\nname = \"dml\"\ntarget = \"ensemble\"\n"));
    assert!(ensemble.contains("a <- b  dml, one term with all its sources  (weight 1"), "{ensemble}");
    let mcl = shown(&with("[method]\nname = \"mcl\"\nalpha = 0\n"));
    assert!(!mcl.contains("a <- a  vcl"), "{mcl}");
    let past =
        with(&edge("\"a\"", "\"a\"", "term = \"kd\"")).replace("steps = 4", "steps = 4\ngenerations = 2");
    assert!(shown(&past).contains("in the later generations"), "{}", shown(&past));
}
