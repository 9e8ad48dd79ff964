//! Memory banks as users run them: a run whose processes are all killed goes on with the banks that it had, and banks that
//! cannot be are refused before anything is trained.

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use cohort_proto::exit::Exit;
use cohort_proto::meta::RoundPlan;
use cohort_proto::schema::DType;
use cohort_proto::spec::RunSpec;
use cohort_tests::process::{Signal, Site, wait_until};

use crate::call::status;
use crate::gate::Gate;
use crate::setting::{PROGRAM, TWO, run_toml};

const STEPS: u64 = 12;

/// A run at banks; `method` are further lines of its section `[method]`.
fn toml(name: &str, method: &str) -> String {
    let text = run_toml(name, TWO, &format!("steps = {STEPS}\ncheckpoint_every = 4"));
    text.replace("[optim]", &format!("bank = true\nbank_negatives = 64\n{method}\n[optim]"))
}

/// How a run ended.
struct End {
    /// Of peers a and b, as bytes.
    weights: [Vec<u8>; 2],
    /// Of both networks, as each peer has them.
    banks: Vec<Vec<f32>>,
}

/// The end of a run, after checking that both peers have the same banks, bit for bit.
fn end(site: &Site) -> Result<End> {
    let mut banks = Vec::new();
    for peer in ["a", "b"] {
        let file = site.state(peer).join(format!("checkpoint-{STEPS}/optimizer.safetensors"));
        let held = candle_core::safetensors::load(file, &Device::Cpu)?;
        for name in ["bank.0", "bank.1"] {
            let bank = held.get(name).with_context(|| format!("peer {peer} has no {name}"))?;
            ensure!(bank.dims() == [200, 128], "{name} is {:?}", bank.dims());
            banks.push(bank.flatten_all()?.to_vec1::<f32>()?);
        }
    }
    ensure!(banks[..2] == banks[2..], "the replicas of a and b are not the same");
    ensure!(banks[0] != banks[1], "networks remember different things");
    Ok(End { weights: [site.weights("a", STEPS)?, site.weights("b", STEPS)?], banks })
}

/// Kills everybody after nine steps and their meta-updates, between two checkpoints, and starts everything again.
fn killed_and_gone_on(text: &str, meta_updates: u64) -> Result<()> {
    let undisturbed = Site::new(PROGRAM, text)?;
    undisturbed.finish(&["a", "b"])?;

    let site = Site::new(PROGRAM, text)?;
    let schema = RunSpec::parse(text)?.contribution_schema(1)?;
    let said = schema.byte_len();
    let of_meta_updates = meta_updates * RoundPlan::new(2).meta_bytes(&schema, DType::F32)?;
    // Nine contributions with their framing, and a part of the tenth.
    let gate = Gate::new(9 * said + 9 * said / 10 + of_meta_updates as usize)?;
    let coordinator = site.coordinator()?;
    let url = coordinator.url();
    let a = site.peer(&url, "a", &[])?;
    let b = site.peer(&url, "b", &["--listen", &gate.listen(), "--advertise", &gate.advertise()])?;
    wait_until("the run to stand still in the middle", || {
        let saved = |name| site.checkpoints(name).is_ok_and(|steps| steps.contains(&8));
        let reported = status(&url)?.members.iter().all(|member| (8..STEPS).contains(&member.steps_done));
        Ok((reported && gate.holds() && saved("a") && saved("b")).then_some(()))
    })?;
    let mut all = [coordinator.process, a, b];
    all.iter_mut().try_for_each(|process| process.signal(Signal::SIGKILL))?;
    drop((all, gate));

    let coordinator = site.coordinator()?;
    let url = coordinator.url();
    let (mut a, b) = (site.peer(&url, "a", &[])?, site.peer(&url, "b", &[])?);
    a.wait_for_words(&["going on from", "checkpoint-8"])?;
    for process in [a, b, coordinator.process] {
        process.wait()?.check(Exit::Finished, &[])?;
    }
    let (found, expected) = (end(&site)?, end(&undisturbed)?);
    ensure!(found.weights == expected.weights, "a peer ends in other weights");
    ensure!(found.banks == expected.banks, "a peer ends with other memories");
    Ok(())
}

#[test]
fn mcl_at_banks_is_killed_and_goes_on() -> Result<()> {
    killed_and_gone_on(&toml("mcl", ""), 0)
}

#[test]
fn l_mcl_at_banks_is_killed_and_goes_on() -> Result<()> {
    killed_and_gone_on(&toml("l-mcl", "matching = \"uniform\""), 0)
}

/// Meta-updates change the banks once more; two come before the accident.
#[test]
fn l_mcl_at_banks_that_learns_its_matching_is_killed_and_goes_on() -> Result<()> {
    killed_and_gone_on(&toml("l-mcl", "meta_freq = 5\nmeta_precision = \"f32\""), 2)
}

#[test]
fn banks_that_cannot_be_are_refused_before_training() -> Result<()> {
    let few = toml("mcl", "bank_positives = 150");
    let large = toml("mcl", "feat_dim = 65536").replace("train_limit = 200", "train_limit = 10000");
    let cases = [
        (few, ["bank_positives is 150", "class 0 has only", "training samples"]),
        (large, ["2 networks with 10000 samples of width 65536", "5000 MB", "lower feat_dim"]),
    ];
    for (text, words) in cases {
        let site = Site::new(PROGRAM, &text)?;
        let coordinator = site.coordinator()?;
        let peer = site.peer(&coordinator.url(), "a", &[])?;
        peer.wait()?.check(Exit::BadSpec, &words)?;
        ensure!(site.checkpoints("a").unwrap_or_default().is_empty(), "something was trained");
    }
    Ok(())
}
