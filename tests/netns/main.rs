//! Coordinator and peers on hosts of their own: network namespaces that are joined by a bridge, with addresses that
//! exist nowhere else. Needs root and iproute2; where that is not given, the tests say so on stderr and pass.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use cohort_proto::exit::Exit;
use cohort_tests::DATA;
use cohort_tests::net::Net;
use cohort_tests::process::{Coordinator, Process, Site, wait_until};
use rusqlite::Connection;

const PROGRAM: &str = env!("CARGO_BIN_EXE_cohort");
const PEERS: [&str; 3] = ["a", "b", "c"];

fn site(run: &str) -> Result<Site> {
    let peers: String = PEERS
        .into_iter()
        .zip(["resnet8", "wrn_10_1", "resnet8"])
        .map(|(name, arch)| format!("[[peer]]\nname = \"{name}\"\narch = \"{arch}\"\n"))
        .collect();
    let text = format!(
        "[run]\nname = \"netns\"\nseed = 7\n{run}\n[data]\ndataset = \"fashion-mnist\"\npath = {DATA:?}\n\
         train_limit = 200\nbatch = 20\n[method]\nname = \"mcl\"\n[optim]\nlr = 0.05\n\
         [policy]\nfailure_timeout_ms = 4000\nwait_timeout_ms = 9000\n{peers}"
    );
    Site::new(PROGRAM, &text)
}

/// The hosts, or a line on stderr that says why there are none. Written past the test runner, which would keep it to
/// itself.
fn hosts(letter: char) -> Result<Option<Net>> {
    match Net::new(letter, &["coordinator", "a", "b", "c"]) {
        Ok(net) => Ok(Some(net)),
        Err(why) => {
            writeln!(std::io::stderr(), "SKIPPED: tests/netns: no network namespaces here: {why:#}")?;
            Ok(None)
        }
    }
}

/// The coordinator on its host, and every peer on one of its own. No peer is told what to advertise.
fn start(site: &Site, net: &Net) -> Result<(Coordinator, Vec<Process>)> {
    let listen = format!("{}:4700", net.address("coordinator")?);
    let coordinator = site.coordinator_on(&net.enter("coordinator")?, &listen)?;
    ensure!(coordinator.address == listen, "it listens where it was told");
    let url = coordinator.url();
    let peers: Result<Vec<Process>> =
        PEERS.iter().map(|name| site.peer_on(&net.enter(name)?, &url, name, &[])).collect();
    Ok((coordinator, peers?))
}

#[test]
fn three_hosts_end_in_the_weights_of_one() -> Result<()> {
    let Some(net) = hosts('w')? else { return Ok(()) };
    let apart = site("steps = 6")?;
    let (coordinator, peers) = start(&apart, &net)?;
    for process in peers.into_iter().chain([coordinator.process]) {
        process.wait()?.check(Exit::Finished, &[])?;
    }
    let together = site("steps = 6")?;
    together.finish(&PEERS)?;
    for name in PEERS {
        ensure!(apart.weights(name, 6)? == together.weights(name, 6)?, "peer {name} ends in other weights");
        let address: String = Connection::open(apart.journal())?.query_row(
            "SELECT address FROM members WHERE peer = ?",
            [name],
            |row| row.get(0),
        )?;
        let host = net.address(name)?;
        ensure!(address.starts_with(&format!("{host}:")), "peer {name} was reached at {address}, not {host}");
    }
    Ok(())
}

/// Not a process that is killed, whose connections break, but a host that is gone: nothing arrives any more.
#[test]
fn a_host_that_is_cut_off_ends_the_run_for_the_others() -> Result<()> {
    let Some(net) = hosts('c')? else { return Ok(()) };
    // No run of this length ends by itself.
    let site = site("steps = 1000000\ncheckpoint_every = 3")?;
    let (coordinator, peers) = start(&site, &net)?;
    wait_until("checkpoints of everybody", || {
        let held: Result<Vec<_>> = PEERS.iter().map(|name| site.checkpoints(name)).collect();
        Ok(held.is_ok_and(|held| held.iter().all(|steps| steps.len() > 1)).then_some(()))
    })?;
    net.cut("b")?;
    let [a, b, c]: [Process; 3] = peers.try_into().ok().context("three peers")?;
    let words = ["no step was completed for 9.0 s", "b (given up", "nothing was heard of it"];
    for process in [a, c, coordinator.process] {
        process.wait()?.check(Exit::Stopped, &words)?;
    }
    // The one that is cut off notices as well, and has lost nothing either.
    b.wait()?.check(Exit::Stopped, &["is saved"])?;
    let newest = |name| site.checkpoints(name).map(|steps| steps.last().copied());
    ensure!(newest("a")? == newest("c")?, "the others stop at a common step");
    Ok(())
}
