//! Runs that finish.

use std::fs;

use anyhow::{Context, Result, ensure};
use cohort_proto::exit::Exit;
use cohort_tests::process::{HERE, Signal, Site};
use rusqlite::Connection;

use crate::setting::{TWO, site};

fn one<T: rusqlite::types::FromSql>(site: &Site, sql: &str) -> Result<T> {
    Ok(Connection::open(site.journal())?.query_row(sql, [], |row| row.get(0))?)
}

/// What the journal must say of a finished run.
fn check_journal(site: &Site, peers: i64, steps: i64) -> Result<()> {
    ensure!(one::<String>(site, "SELECT phase FROM runs")? == "finished");
    ensure!(one::<i64>(site, "SELECT total_steps FROM runs")? == steps);
    ensure!(
        one::<i64>(site, "SELECT count(*) FROM steps")? == peers * steps,
        "a report of every step of every peer"
    );
    ensure!(one::<i64>(site, "SELECT count(*) FROM members WHERE view = 1")? == peers);
    let last = format!("SELECT count(DISTINCT peer) FROM checkpoints WHERE step = {steps}");
    ensure!(one::<i64>(site, &last)? == peers, "a last checkpoint of every peer");
    ensure!(one::<i64>(site, "SELECT count(*) FROM events WHERE warn = 1")? == 0, "nothing was wrong");
    Ok(())
}

#[test]
fn two_peers_learn_from_each_other_and_twice_the_same() -> Result<()> {
    let run = || -> Result<Site> {
        let site = site("mcl", TWO, "steps = 6\ncheckpoint_every = 4")?;
        site.finish(&["a", "b"])?;
        check_journal(&site, 2, 6)?;
        ensure!(site.checkpoints("a")? == [4, 6] && site.checkpoints("b")? == [4, 6]);
        Ok(site)
    };
    let (first, second) = (run()?, run()?);
    for peer in ["a", "b"] {
        ensure!(first.weights(peer, 6)? == second.weights(peer, 6)?, "peer {peer} ends in other weights");
        ensure!(first.weights(peer, 4)? != first.weights(peer, 6)?, "peer {peer} does not learn");
    }
    let alone = site("alone", TWO, "steps = 6")?;
    alone.finish(&["a", "b"])?;
    ensure!(alone.weights("a", 6)? != first.weights("a", 6)?, "what the others say has no effect");
    Ok(())
}

/// What each peer said in every step, by digest, and the weights that it ended with.
#[test]
fn the_number_of_threads_changes_no_bit() -> Result<()> {
    // Digests cover the number of the run, which is drawn when its journal begins: here the three begin with one.
    let begun = site("mcl", TWO, "steps = 4")?;
    let mut coordinator = begun.coordinator()?;
    coordinator.process.signal(Signal::SIGTERM)?;
    coordinator.process.wait()?.check(Exit::Stopped, &[])?;
    let run = |threads: &str| -> Result<(Vec<String>, [Vec<u8>; 2])> {
        let site = site("mcl", TWO, "steps = 4")?;
        let journal = site.journal();
        fs::create_dir(journal.parent().context("a folder")?)?;
        Connection::open(begun.journal())?.execute("VACUUM INTO ?1", [journal.to_string_lossy()])?;
        site.finish_with(&["a", "b"], &["--threads", threads])?;
        let journal = Connection::open(journal)?;
        let mut said = journal.prepare("SELECT digest FROM steps ORDER BY peer, step")?;
        let said = said.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
        ensure!(said.len() == 8, "a digest of every step of every peer");
        Ok((said, [site.weights("a", 4)?, site.weights("b", 4)?]))
    };
    let (said, weights) = run("1")?;
    for threads in ["2", "3"] {
        let other = run(threads)?;
        ensure!(other.0 == said, "{threads} threads say other things than one");
        ensure!(other.1 == weights, "{threads} threads end in other weights than one");
    }
    Ok(())
}

#[test]
fn three_peers_dml() -> Result<()> {
    let site = site("dml", &[("a", "resnet8"), ("b", "wrn_10_1"), ("c", "resnet8")], "steps = 4")?;
    site.finish(&["a", "b", "c"])?;
    check_journal(&site, 3, 4)?;
    ensure!(site.weights("a", 4)? != site.weights("c", 4)?, "weights are drawn by name");
    Ok(())
}

#[test]
fn one_peer_alone() -> Result<()> {
    let site = site("alone", &[("a", "resnet8")], "epochs = 1")?;
    site.finish(&["a"])?;
    check_journal(&site, 1, 10)
}

#[test]
fn a_finished_run_takes_nobody_in_and_is_not_run_again() -> Result<()> {
    let site = site("alone", &[("a", "resnet8")], "steps = 2")?;
    site.finish(&["a"])?;
    let weights = site.weights("a", 2)?;
    site.finish(&["a"])?;
    ensure!(site.weights("a", 2)? == weights);
    ensure!(one::<i64>(&site, "SELECT starts FROM runs")? == 2);
    Ok(())
}

#[test]
fn evaluation_of_what_was_trained() -> Result<()> {
    let site = site("alone", &[("a", "resnet8")], "steps = 2")?;
    site.finish(&["a"])?;
    let weights = site.state("a").join("checkpoint-2/model.safetensors");
    let weights = weights.to_string_lossy();
    let data = ["--dataset", "fashion-mnist", "--data", crate::setting::DATA, "--threads", "1"];
    let eval = |arch: &str| -> Result<_> {
        let args = [["peer", "eval", "--arch", arch, "--weights", &weights].as_slice(), &data].concat();
        site.start("eval", HERE, &args)?.wait()
    };
    let good = eval("resnet8")?;
    good.check(Exit::Finished, &[])?;
    let metrics: serde_json::Value = serde_json::from_str(good.stdout.trim())?;
    ensure!(metrics["top1"].is_number() && metrics["nll"].is_number(), "{metrics}");
    eval("resnet14")?.check(Exit::BadData, &["model.safetensors"])
}

/// Peak resident memory after few steps and after many, of one process each.
#[test]
fn memory_does_not_grow_with_the_steps() -> Result<()> {
    let site = site("alone", &[("a", "resnet8")], "steps = 2")?;
    let peak = |steps: &str| -> Result<f64> {
        let network = ["--arch", "resnet8", "--image", "1x28x28", "--classes", "10", "--batch", "16"];
        let args = [["peer", "bench", "--threads", "1", "--steps", steps].as_slice(), &network].concat();
        let ended = site.start("bench", HERE, &args)?.wait()?;
        ended.check(Exit::Finished, &[])?;
        let printed: serde_json::Value = serde_json::from_str(ended.stdout.trim())?;
        printed["peak_rss_mb"].as_f64().context("a number")
    };
    // What the allocator touches differs from run to run by 1.6 MB of 30; what stayed of every step would add up.
    let (few, many) = (peak("20")?, peak("400")?);
    ensure!(many < 1.1 * few, "{few} MB after 20 steps, {many} MB after 400");
    Ok(())
}
