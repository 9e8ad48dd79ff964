//! A teacher among real processes: it never changes, a run with it goes on from a checkpoint, and weights that do not make
//! one are refused with a word of what is missing.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use cohort_proto::exit::Exit;
use cohort_tests::process::{HERE, Site};

use crate::setting::{PROGRAM, run_toml};

const STEPS: u64 = 6;

/// The teacher's architecture, which has three stages.
const ARCH: &str = "resnet8";

fn toml(method: &str, peers: &[(&str, &str)]) -> String {
    let text = run_toml(method, peers, &format!("steps = {STEPS}\ncheckpoint_every = 4"));
    let text = text.replace("train_limit = 200", "train_limit = 60");
    match method {
        "l-mcl" => text.replace("[optim]", "feat_dim = 16\nmeta_freq = 2\nmeta_precision = \"f32\"\n[optim]"),
        _ => text,
    }
}

/// A network of the teacher's architecture that learnt alone by a method.
fn trained(method: &str) -> Result<Vec<u8>> {
    let site = Site::new(PROGRAM, &toml(method, &[("t", ARCH)]))?;
    site.finish(&["t"])?;
    site.weights("t", STEPS)
}

/// A run of L-MCL of a student and a teacher with these weights.
fn taught(weights: &[u8]) -> Result<Site> {
    let text = toml("l-mcl", &[("s", "resnet6"), ("t", ARCH)]);
    let site = Site::new(PROGRAM, &format!("{text}role = \"teacher\"\ninit = \"teacher.safetensors\"\n"))?;
    fs::write(site.path().join("teacher.safetensors"), weights)?;
    Ok(site)
}

/// Changes a bit of a file.
fn damage(file: &Path) -> Result<()> {
    let mut bytes = fs::read(file)?;
    bytes.iter_mut().next_back().into_iter().for_each(|last| *last ^= 1);
    Ok(fs::write(file, bytes)?)
}

#[test]
fn a_teacher_stays_as_it_is_and_the_run_goes_on_from_a_checkpoint() -> Result<()> {
    let weights = trained("l-mcl")?;
    let site = taught(&weights)?;
    site.finish(&["s", "t"])?;
    for step in [4, STEPS] {
        ensure!(site.weights("t", step)? == weights, "the teacher has changed in {step} steps");
    }
    let learnt = site.weights("s", STEPS)?;
    ensure!(site.weights("s", 4)? != learnt, "the student does not learn");

    damage(&site.state("s").join(format!("checkpoint-{STEPS}/model.safetensors")))?;
    let coordinator = site.coordinator()?;
    let url = coordinator.url();
    let mut student = site.peer(&url, "s", &[])?;
    // One that has finished would not wait for it.
    student.wait_for_words(&["joined run"])?;
    let mut teacher = site.peer(&url, "t", &[])?;
    teacher.wait_for_words(&["going on from", "checkpoint-4"])?;
    for process in [student, teacher, coordinator.process] {
        process.wait()?.check(Exit::Finished, &[])?;
    }
    ensure!(site.weights("s", STEPS)? == learnt, "the student ends in other weights");
    ensure!(site.weights("t", STEPS)? == weights, "the teacher has changed");
    Ok(())
}

/// What a teacher keeps changes nothing that its student ends in, and is in its checkpoints.
#[test]
fn a_teacher_that_keeps_what_it_said_teaches_the_same() -> Result<()> {
    let weights = trained("dml")?;
    let taught = |cache: &str| -> Result<Site> {
        let text = toml("dml", &[("s", "resnet6"), ("t", ARCH)]);
        let text = text.replace("batch = 20", "augment = \"none\"\nbatch = 20");
        let teacher = format!("role = \"teacher\"\ninit = \"teacher.safetensors\"\n{cache}");
        let site = Site::new(PROGRAM, &(text + &teacher))?;
        fs::write(site.path().join("teacher.safetensors"), &weights)?;
        site.finish(&["s", "t"])?;
        Ok(site)
    };
    let [plain, kept] = [taught("")?, taught("cache = true\n")?];
    let learnt = plain.weights("s", STEPS)?;
    ensure!(kept.weights("s", STEPS)? == learnt, "the student ends in other weights");
    damage(&kept.state("t").join(format!("checkpoint-{STEPS}/optimizer.safetensors")))?;
    let coordinator = kept.coordinator()?;
    let url = coordinator.url();
    let mut teacher = kept.peer(&url, "t", &[])?;
    // One that has finished would not wait for it.
    teacher.wait_for_words(&["joined run"])?;
    let student = kept.peer(&url, "s", &[])?;
    for process in [teacher, student, coordinator.process] {
        process.wait()?.check(Exit::Finished, &[])?;
    }
    ensure!(kept.weights("s", STEPS)? == learnt, "the student ends in other weights after a restart");
    Ok(())
}

#[test]
fn weights_that_lack_a_head_make_no_teacher() -> Result<()> {
    let site = taught(&trained("mcl")?)?;
    let coordinator = site.coordinator()?;
    let ended = site.peer(&coordinator.url(), "t", &[])?.wait()?;
    let words =
        ["weights of a teacher", "teacher.safetensors", "missing", "aggregator.", "it learns nothing"];
    ended.check(Exit::BadData, &words)
}

#[test]
fn a_teacher_without_weights_and_a_run_without_students_are_refused() -> Result<()> {
    let text = toml("dml", &[("s", "resnet6"), ("t", ARCH)]);
    let teacher = "role = \"teacher\"\n";
    let init = "init = \"teacher.safetensors\"\n";
    let only = text.replace("\"resnet6\"\n", &format!("\"resnet6\"\n{teacher}{init}"));
    for (text, words) in [
        (format!("{text}{teacher}"), ["init is missing", "a teacher never learns"]),
        (format!("{only}{teacher}{init}"), ["teachers only", "somebody must learn"]),
    ] {
        let site = Site::new(PROGRAM, &text)?;
        let run = site.run_toml();
        let args = ["coordinator", "serve", "--run", &run.to_string_lossy(), "--state", "state"];
        site.start("coordinator", HERE, &args)?.wait()?.check(Exit::BadSpec, &words)?;
    }
    Ok(())
}
