//! Tidiness as a test: what the project asks of every file, checked on every file.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of code and comment that a file may have, its tests not counted.
const LINES_MAX: usize = 500;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every file of ours with an ending, as (path from the root, text).
fn files(ending: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for top in ["proto", "coordinator", "peer", "tests", "examples"] {
        walk(&root().join(top), ending, &mut found);
    }
    assert!(!found.is_empty());
    found.sort();
    found
}

fn walk(folder: &Path, ending: &str, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            walk(&path, ending, found);
        } else if path.to_str().unwrap().ends_with(ending) {
            let name = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}

fn check(what: &str, offenders: Vec<String>) {
    assert!(offenders.is_empty(), "{what}:\n{}", offenders.join("\n"));
}

#[test]
fn every_file_says_first_what_it_is_for() {
    let offenders = files(".rs").into_iter().filter(|(_, text)| !text.starts_with("//! "));
    check("no //! line first", offenders.map(|(name, _)| name).collect());
}

#[test]
fn files_stay_small() {
    let length = |text: &str| text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text).lines().count();
    let long = files(".rs").into_iter().map(|(name, text)| (name, length(&text)));
    let long = long.filter(|(name, lines)| *lines > LINES_MAX && !name.contains("tests"));
    check("over 500 lines", long.map(|(name, lines)| format!("{name}: {lines}")).collect());
}

#[test]
fn nothing_is_left_for_later() {
    // Built from parts, so that this file does not find itself.
    let banned = [
        ["TO", "DO"],
        ["FIX", "ME"],
        ["dbg", "!("],
        ["todo", "!("],
        ["#[ign", "ore"],
        ["#[should_", "panic"],
    ];
    let banned = banned.map(|parts| parts.concat());
    let mut offenders = Vec::new();
    for (name, text) in files(".rs").into_iter().chain(files(".proto")) {
        for (i, line) in text.lines().enumerate() {
            if banned.iter().any(|word| line.contains(word.as_str())) {
                offenders.push(format!("{name}:{}: {}", i + 1, line.trim()));
            }
        }
    }
    check("left for later", offenders);
}

#[test]
fn unsafe_code_is_in_the_kernels_only() {
    let word = ["unsafe", " {"].concat();
    let offenders = files(".rs").into_iter().filter(|(name, text)| {
        !name.replace('\\', "/").contains("peer/src/kernels/")
            && !name.contains("tidy")
            && text.contains(&word)
    });
    check("unsafe outside peer/src/kernels", offenders.map(|(name, _)| name).collect());
}

/// What a folder may import from this workspace: the rules that keep decisions, tensors and sockets apart.
#[test]
fn dependencies_point_one_way() {
    let rules: [(&str, &[&str]); 8] = [
        ("proto/src/", &["cohort_peer", "cohort_coordinator"]),
        ("coordinator/src/", &["cohort_peer", "candle_core"]),
        ("peer/src/", &["cohort_coordinator"]),
        (
            "peer/src/methods/",
            &["crate::net", "crate::models", "crate::step", "cohort_proto", "tokio", "tonic"],
        ),
        (
            "peer/src/kernels/",
            &["crate::net", "crate::models", "crate::step", "cohort_proto", "tokio", "tonic"],
        ),
        ("peer/src/models/", &["crate::net", "crate::step", "crate::methods", "tokio", "tonic"]),
        ("peer/src/optim/", &["crate::net", "crate::step", "crate::methods", "tokio", "tonic"]),
        ("peer/src/step/", &["crate::net", "tokio", "tonic"]),
    ];
    let mut offenders = Vec::new();
    for (name, text) in files(".rs") {
        let name = name.replace('\\', "/");
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        // The generator is arithmetic like theirs, and every peer must draw the same.
        let code: Vec<&str> = code.filter(|line| !line.contains("use cohort_proto::rng::")).collect();
        for (folder, banned) in rules.iter().filter(|(folder, _)| name.contains(folder)) {
            for word in banned.iter().filter(|word| code.iter().any(|line| line.contains(*word))) {
                offenders.push(format!("{name} in {folder} uses {word}"));
            }
        }
    }
    check("imports that the layout forbids", offenders);
}

#[test]
fn sans_io_files_know_no_clock_and_no_socket() {
    let pure = [
        "peer/src/round.rs",
        "coordinator/src/event.rs",
        "coordinator/src/membership.rs",
        "coordinator/src/lease.rs",
        "coordinator/src/agreement.rs",
        "coordinator/src/cluster",
        "proto/src/plan",
    ];
    let banned = ["tokio", "tonic", "std::time::Instant", "SystemTime", "HashMap", "std::fs", "rusqlite"];
    let mut offenders = Vec::new();
    let mut seen = 0;
    for (name, text) in files(".rs") {
        let name = name.replace('\\', "/");
        if pure.iter().any(|pure| name.contains(pure)) {
            seen += 1;
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let words = code.filter(|line| banned.iter().any(|word| line.contains(word)));
            offenders.extend(words.map(|line| format!("{name}: {}", line.trim())));
        }
    }
    assert!(seen >= pure.len(), "the list of pure files is out of date");
    check("not sans-IO", offenders);
}

#[test]
fn every_run_file_can_be_used() {
    let offenders = files(".toml").into_iter().filter(|(_, text)| text.contains("[[peer]]"));
    let checked: Vec<(String, Option<String>)> = offenders
        .map(|(name, text)| {
            (name, cohort_proto::spec::RunSpec::parse(&text).err().map(|error| error.to_string()))
        })
        .collect();
    assert!(checked.len() >= 5, "the run files have moved");
    let bad = checked.into_iter().filter_map(|(name, error)| Some(format!("{name}: {}", error?)));
    check("run files with errors", bad.collect());
}

#[test]
fn architecture_mentions_every_folder() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut missing = Vec::new();
    for krate in ["proto", "coordinator", "peer"] {
        for entry in fs::read_dir(root().join(krate).join("src")).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            let name = name.trim_end_matches(".rs").to_owned();
            if !["main", "lib"].contains(&name.as_str()) && !text.contains(&format!("`{name}")) {
                missing.push(format!("{krate}/src/{name}"));
            }
        }
    }
    check("not in ARCHITECTURE.md", missing);
}
