//! Processes that are killed or asked to stop in the middle of a run, and runs that go on afterwards: to bitwise the
//! weights of the run that nobody disturbed.

use anyhow::{Result, ensure};
use cohort_proto::exit::Exit;
use cohort_tests::process::{Coordinator, Process, Signal, Site, wait_until};

use crate::call::{status, wait_until_attending};
use crate::gate::Gate;
use crate::setting::{LONG_STEPS, long_site, site, undisturbed};

/// Bytes that the gate lets through: nine contributions of logits and embeddings with their framing, and part of a
/// tenth.
const NINE: usize = 110_000;

/// A run that stands still after about nine steps, with checkpoints of 4 and 8 steps on both disks.
struct Held {
    site: Site,
    gate: Gate,
    coordinator: Coordinator,
    a: Process,
    b: Process,
}

fn held() -> Result<Held> {
    let site = long_site()?;
    let gate = Gate::new(NINE)?;
    let coordinator = site.coordinator()?;
    let url = coordinator.url();
    let a = site.peer(&url, "a", &[])?;
    let b = site.peer(&url, "b", &["--listen", &gate.listen(), "--advertise", &gate.advertise()])?;
    wait_until("the run to stand still in the middle", || {
        // A step is reported before its checkpoint is written.
        let saved = |name| site.checkpoints(name).is_ok_and(|steps| steps.contains(&8));
        let reported = status(&url)?.members.iter().all(|member| member.steps_done >= 8);
        Ok((reported && saved("a") && saved("b")).then_some(()))
    })?;
    Ok(Held { site, gate, coordinator, a, b })
}

/// Starts everything again; it must finish, from the checkpoint of `from` steps, in the weights of an undisturbed run.
fn goes_on(site: &Site, from: u64) -> Result<()> {
    let coordinator = site.coordinator()?;
    let url = coordinator.url();
    let (mut a, b) = (site.peer(&url, "a", &[])?, site.peer(&url, "b", &[])?);
    let checkpoint = format!("checkpoint-{from}");
    a.wait_for_words(&["going on from", &checkpoint])?;
    for process in [a, b, coordinator.process] {
        process.wait()?.check(Exit::Finished, &[])?;
    }
    let [a, b] = undisturbed()?;
    ensure!(site.weights("a", LONG_STEPS)? == *a, "peer a ends in other weights");
    ensure!(site.weights("b", LONG_STEPS)? == *b, "peer b ends in other weights");
    Ok(())
}

/// The step at which both peers have saved last.
fn common_checkpoint(site: &Site) -> Result<u64> {
    let (a, b) = (site.checkpoints("a")?, site.checkpoints("b")?);
    ensure!(a.last() == b.last(), "not a common step: a has {a:?}, b has {b:?}");
    let last = a.last().copied().unwrap_or(0);
    ensure!((8..LONG_STEPS).contains(&last), "stopped at {last}");
    Ok(last)
}

#[test]
fn a_peer_is_killed() -> Result<()> {
    let Held { site, gate, coordinator, a, mut b } = held()?;
    b.signal(Signal::SIGKILL)?;
    drop((b, gate));
    let died = ["peer b died"];
    a.wait()?.check(Exit::Stopped, &died)?;
    coordinator.process.wait()?.check(Exit::Stopped, &died)?;
    ensure!(site.checkpoints("a")?.contains(&8), "peer a has the checkpoint that b has");
    goes_on(&site, 8)
}

#[test]
fn everybody_is_killed() -> Result<()> {
    let Held { site, gate, coordinator, a, b } = held()?;
    let mut all = [coordinator.process, a, b];
    all.iter_mut().try_for_each(|process| process.signal(Signal::SIGKILL))?;
    drop((all, gate));
    goes_on(&site, 8)
}

#[test]
fn a_peer_is_asked_to_stop() -> Result<()> {
    let Held { site, gate, coordinator, mut a, mut b } = held()?;
    a.signal(Signal::SIGTERM)?;
    b.wait_for_words(&["the coordinator says stop", "peer a asked to stop"])?;
    gate.open();
    let words = ["peer a asked to stop"];
    for process in [a, b, coordinator.process] {
        process.wait()?.check(Exit::Stopped, &words)?;
    }
    let last = common_checkpoint(&site)?;
    goes_on(&site, last)
}

#[test]
fn the_coordinator_is_asked_to_stop() -> Result<()> {
    let Held { site, gate, mut coordinator, mut a, mut b } = held()?;
    coordinator.process.signal(Signal::SIGINT)?;
    for peer in [&mut a, &mut b] {
        peer.wait_for_words(&["the coordinator says stop", "SIGINT"])?;
    }
    gate.open();
    for process in [a, b, coordinator.process] {
        process.wait()?.check(Exit::Stopped, &["SIGINT"])?;
    }
    let last = common_checkpoint(&site)?;
    goes_on(&site, last)
}

#[test]
fn asked_twice_is_at_once() -> Result<()> {
    let Held { site, gate, coordinator, mut a, b } = held()?;
    a.signal(Signal::SIGINT)?;
    a.wait_for_words(&["ask again to stop at once"])?;
    // Nothing passes the gate: only a stop at once ends this.
    a.signal(Signal::SIGINT)?;
    for process in [a, b, coordinator.process] {
        process.wait()?.check(Exit::Stopped, &["peer a was asked to stop"])?;
    }
    drop(gate);
    ensure!(site.checkpoints("b")?.contains(&8));
    Ok(())
}

#[test]
fn the_coordinator_is_killed() -> Result<()> {
    let Held { site, gate, mut coordinator, mut a, mut b } = held()?;
    coordinator.process.signal(Signal::SIGKILL)?;
    for peer in [&mut a, &mut b] {
        peer.wait_for_words(&["the coordinator is gone", "to the end of the lease"])?;
    }
    gate.open();
    for process in [a, b] {
        process.wait()?.check(Exit::Stopped, &["the coordinator is gone"])?;
    }
    let last = common_checkpoint(&site)?;
    goes_on(&site, last)
}

/// A signal while others are still awaited: nothing has begun, so only that one goes, and may come again.
#[test]
fn a_peer_leaves_before_the_run_begins() -> Result<()> {
    let site = site("mcl", crate::setting::TWO, "steps = 3")?;
    let coordinator = site.coordinator()?;
    let url = coordinator.url();
    let mut early = site.peer(&url, "a", &[])?;
    wait_until_attending(&url, "a")?;
    early.signal(Signal::SIGTERM)?;
    early.wait()?.check(Exit::Stopped, &["asked to stop", "nothing was to be saved"])?;
    let peers = ["a", "b"].map(|name| site.peer(&url, name, &[]));
    for process in peers.into_iter().chain([Ok(coordinator.process)]) {
        process?.wait()?.check(Exit::Finished, &[])?;
    }
    Ok(())
}

#[test]
fn a_coordinator_that_waits_for_peers_can_be_stopped() -> Result<()> {
    let site = site("mcl", crate::setting::TWO, "steps = 3")?;
    let mut coordinator = site.coordinator()?;
    let peer = site.peer(&coordinator.url(), "a", &[])?;
    wait_until_attending(&coordinator.url(), "a")?;
    coordinator.process.signal(Signal::SIGTERM)?;
    for process in [peer, coordinator.process] {
        process.wait()?.check(Exit::Stopped, &["SIGTERM"])?;
    }
    Ok(())
}
