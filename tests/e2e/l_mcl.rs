//! Layer-wise mutual contrastive learning with meta-updates, as users run it.

use anyhow::{Context, Result, ensure};
use cohort_proto::exit::Exit;
use cohort_proto::meta::RoundPlan;
use cohort_proto::schema::DType;
use cohort_proto::spec::RunSpec;
use cohort_tests::process::{Signal, Site, wait_until};
use rusqlite::Connection;

use crate::call::status;
use crate::gate::Gate;
use crate::setting::{PROGRAM, TWO, run_toml};

/// Two epochs of three steps; a meta-update follows the first and the last of each.
const STEPS: u64 = 6;

/// The step whose meta-update is interrupted: the third of them.
const HELD_AT: u64 = 3;

fn toml(peers: &[(&str, &str)], run: &str) -> String {
    let text = run_toml("l-mcl", peers, &format!("steps = {STEPS}\n{run}"));
    let text = text.replace("train_limit = 200", "train_limit = 60");
    text.replace("[optim]", "feat_dim = 16\nmeta_freq = 2\nmeta_precision = \"f32\"\n[optim]")
}

fn finished(peers: &[(&str, &str)], run: &str) -> Result<Site> {
    let site = Site::new(PROGRAM, &toml(peers, run))?;
    site.finish(&["a", "b"])?;
    Ok(site)
}

/// All rows of a query, as text with a bar between columns.
fn rows(site: &Site, sql: &str) -> Result<Vec<String>> {
    let journal = Connection::open(site.journal())?;
    let mut statement = journal.prepare(sql)?;
    let columns = statement.column_count();
    let row = |row: &rusqlite::Row<'_>| -> rusqlite::Result<String> {
        let cells = (0..columns).map(|i| row.get::<_, rusqlite::types::Value>(i));
        let cells = cells.map(|cell| {
            cell.map(|value| match value {
                rusqlite::types::Value::Integer(number) => number.to_string(),
                rusqlite::types::Value::Text(text) => text,
                other => format!("{other:?}"),
            })
        });
        Ok(cells.collect::<rusqlite::Result<Vec<_>>>()?.join("|"))
    };
    Ok(statement.query_map([], row)?.collect::<rusqlite::Result<_>>()?)
}

/// Bytes of tensors that a peer has said when the meta-update after [`HELD_AT`] is half over.
fn half_of_the_third(spec: &RunSpec, index: usize) -> Result<usize> {
    let schema = spec.contribution_schema(index)?;
    let meta = spec.meta().context("no meta-updates")?;
    let meta = RoundPlan::new(meta.times).meta_bytes(&schema, DType::F32)?;
    let steps = (HELD_AT + 1) * schema.byte_len() as u64;
    Ok(usize::try_from(steps + 2 * meta + meta / 2)?)
}

/// Kills peer b while a meta-update is half over, and starts everything again.
#[test]
fn a_peer_is_killed_in_a_meta_update() -> Result<()> {
    let often = finished(TWO, "checkpoint_every = 1\nkeep = 10")?;
    let site = Site::new(PROGRAM, &toml(TWO, "checkpoint_every = 2"))?;
    let gate = Gate::new(half_of_the_third(&RunSpec::parse(&toml(TWO, ""))?, 1)?)?;
    let mut coordinator = site.coordinator()?;
    let url = coordinator.url();
    let a = site.peer(&url, "a", &[])?;
    let mut b = site.peer(&url, "b", &["--listen", &gate.listen(), "--advertise", &gate.advertise()])?;
    wait_until("both to have taken the steps before, and b to wait at the gate", || {
        let reported = status(&url)?.members.iter().all(|member| member.steps_done == HELD_AT);
        let saved = |name| site.checkpoints(name).is_ok_and(|steps| steps == [2]);
        Ok((reported && gate.holds() && saved("a") && saved("b")).then_some(()))
    })?;
    b.signal(Signal::SIGKILL)?;
    drop((b, gate));
    coordinator.process.wait_for_words(&["peer b: its connection"])?;
    coordinator.process.signal(Signal::SIGINT)?;
    a.wait()?.check(Exit::Stopped, &["SIGINT"])?;
    coordinator.process.wait()?.check(Exit::Stopped, &["SIGINT"])?;
    // The step before is what a saves, without a trace of the one that was given up.
    ensure!(site.weights("a", HELD_AT)? == often.weights("a", HELD_AT)?, "peer a kept something");

    let coordinator = site.coordinator()?;
    let url = coordinator.url();
    let (mut a, b) = (site.peer(&url, "a", &[])?, site.peer(&url, "b", &[])?);
    a.wait_for_words(&["going on from", "checkpoint-2"])?;
    for process in [a, b, coordinator.process] {
        process.wait()?.check(Exit::Finished, &[])?;
    }
    for peer in ["a", "b"] {
        ensure!(
            site.weights(peer, STEPS)? == often.weights(peer, STEPS)?,
            "peer {peer} ends in other weights"
        );
    }
    let updates =
        "SELECT peer, group_concat(step, ' ') FROM terms WHERE name = 'meta_gradient' GROUP BY peer";
    ensure!(rows(&site, updates)? == ["a|0 2 3 5", "b|0 2 3 5"], "{:?}", rows(&site, updates)?);
    Ok(())
}

/// Networks of two and of three stages, twice.
#[test]
fn unequal_numbers_of_stages_and_twice_the_same() -> Result<()> {
    let peers = [("a", "resnet6"), ("b", "resnet8")];
    let (first, second) = (finished(&peers, "")?, finished(&peers, "")?);
    for peer in ["a", "b"] {
        ensure!(
            first.weights(peer, STEPS)? == second.weights(peer, STEPS)?,
            "peer {peer} ends in other weights"
        );
    }
    let never = toml(&peers, "").replace("meta_freq = 2\nmeta_precision = \"f32\"", "meta_freq = 0");
    let without = Site::new(PROGRAM, &never)?;
    without.finish(&["a", "b"])?;
    ensure!(without.weights("a", STEPS)? != first.weights("a", STEPS)?, "meta-updates have no effect");

    let pairs =
        "SELECT peer, stage, source, source_stage, steps FROM matching WHERE epoch = 1 ORDER BY 1, 2, 4";
    let expected =
        [("a", 2, "b", 3), ("b", 3, "a", 2)].into_iter().flat_map(|(peer, own, source, theirs)| {
            (0..own).flat_map(move |k| (0..theirs).map(move |z| format!("{peer}|{k}|{source}|{z}|3")))
        });
    ensure!(rows(&first, pairs)? == expected.collect::<Vec<_>>(), "{:?}", rows(&first, pairs)?);
    // Both sides of a pair see the same weight, up to rounding.
    let sides = "SELECT count(*) FROM matching a JOIN matching b ON a.epoch = b.epoch AND a.stage = b.source_stage \
                 AND a.source_stage = b.stage AND a.peer = b.source WHERE abs(a.mean - b.mean) < 1e-6";
    ensure!(rows(&first, sides)? == ["24"], "{:?}", rows(&first, sides)?);
    ensure!(rows(&first, "SELECT count(*) FROM matching WHERE mean NOT BETWEEN 0.26 AND 0.74")? == ["0"]);
    Ok(())
}
