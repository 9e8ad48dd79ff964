//! A cohort in which knowledge goes one way, and one that mixes methods: whoever nobody learns from says nothing, nobody
//! waits for it, and a peer that is killed replays what its sources said.

use anyhow::{Context, Result, ensure};
use cohort_peer::models::{ImageShape, Params, build, state};
use cohort_proto::exit::Exit;
use cohort_tests::process::{Signal, Site, wait_until};

use crate::call::status;
use crate::setting::{PROGRAM, run_toml};

const STEPS: u64 = 60;

/// Initial weights for a teacher, in the folder of a site.
fn teach(site: &Site) -> Result<()> {
    let mut params = Params::new(99, "t", candle_core::DType::F32, &candle_core::Device::Cpu)?;
    build("resnet6", ImageShape { channels: 1, height: 28, width: 28 }, 10, &mut params)?;
    Ok(std::fs::write(site.path().join("t.safetensors"), state::encode(&params.state_dict()?)?)?)
}

/// A teacher and two students of a method, with whatever edges it has besides.
fn site(method: &str, edges: &str) -> Result<Site> {
    let students = [("a", "resnet8"), ("b", "wrn_10_1")];
    let run = format!("steps = {STEPS}\ncheckpoint_every = 4");
    // Seven steps to an epoch, where networks are weighed by what they make of held-out samples.
    let held_out = if edges.contains("general") { "validation = 60\nbatch = 20" } else { "batch = 20" };
    let text = run_toml(method, &students, &run).replace("batch = 20", held_out)
        + "[[peer]]\nname = \"t\"\narch = \"resnet6\"\nrole = \"teacher\"\ninit = \"t.safetensors\"\n"
        + edges;
    let site = Site::new(PROGRAM, &text)?;
    teach(&site)?;
    Ok(site)
}

/// The weights of both students after a run that nobody disturbs.
fn undisturbed(method: &str, edges: &str) -> Result<[Vec<u8>; 2]> {
    let site = site(method, edges)?;
    site.finish(&["a", "b", "t"])?;
    Ok([site.weights("a", STEPS)?, site.weights("b", STEPS)?])
}

/// Kills a peer in the middle and starts it again.
fn killed(method: &str, edges: &str, victim: &'static str) -> Result<[Vec<u8>; 2]> {
    let site = site(method, edges)?;
    let coordinator = site.coordinator()?;
    let url = coordinator.url();
    let mut peers = Vec::new();
    for name in ["a", "b", "t"] {
        peers.push((name, site.peer(&url, name, &[])?));
    }
    wait_until("the middle of the run", || {
        let members = status(&url)?.members;
        let member = members.iter().find(|member| member.name == victim).context("no such member")?;
        Ok((member.steps_done >= 10).then_some(()))
    })?;
    for (name, process) in &mut peers {
        if *name == victim {
            process.signal(Signal::SIGKILL)?;
            *process = site.peer(&url, victim, &[])?;
        }
    }
    for process in peers.into_iter().map(|(_, process)| process).chain([coordinator.process]) {
        process.wait()?.check(Exit::Finished, &[])?;
    }
    Ok([site.weights("a", STEPS)?, site.weights("b", STEPS)?])
}

#[test]
fn knowledge_goes_one_way() -> Result<()> {
    let weights = undisturbed("kd", "")?;
    let [a, _] = undisturbed("alone", "")?;
    ensure!(weights[0] != a, "the teacher taught nothing");
    ensure!(killed("kd", "", "t")? == weights, "other weights after the teacher's death");
    ensure!(killed("kd", "", "b")? == weights, "other weights after a student's death");
    Ok(())
}

#[test]
fn a_mixed_cohort_survives_the_death_of_one_that_remembers() -> Result<()> {
    let edges = "[[edge]]\nfrom = \"t\"\nto = [\"a\", \"b\"]\nterm = \"dkd\"\n\
                 [[edge]]\nfrom = [\"a\", \"b\"]\nto = [\"a\", \"b\"]\nterm = \"mcl\"\n\
                 [[edge]]\nto = \"b\"\nterm = \"ps-kd\"\n";
    let weights = undisturbed("graph", edges)?;
    ensure!(killed("graph", edges, "b")? == weights, "other weights");
    Ok(())
}

/// A gated ensemble, adversaries and weights by held-out samples in one run: what is said once an epoch is heard again, and a
/// discriminator goes on from its checkpoint.
#[test]
fn gates_adversaries_and_weights_survive_a_death() -> Result<()> {
    let students = "from = [\"a\", \"b\"]\nto = [\"a\", \"b\"]";
    let edges = format!(
        "[[edge]]\n{students}\nterm = \"one\"\nramp = 2\n[[edge]]\n{students}\nterm = \"afd\"\nlr_g = 0.001\n\
         [[edge]]\nfrom = \"all\"\nto = \"all\"\nterm = \"kdcl\"\ntarget = \"general\"\n"
    );
    let weights = undisturbed("graph", &edges)?;
    ensure!(killed("graph", &edges, "b")? == weights, "other weights after a student's death");
    ensure!(killed("graph", &edges, "t")? == weights, "other weights after the teacher's death");
    Ok(())
}
