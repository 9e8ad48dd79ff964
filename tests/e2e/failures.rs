//! Processes that are killed or asked to stop in the middle of a run, which goes on afterwards: to bitwise the weights of
//! the run that nobody disturbed.

use std::fs;

use anyhow::{Result, ensure};
use cohort_proto::exit::Exit;
use cohort_tests::process::{Coordinator, HERE, Process, Signal, Site, wait_until};

use crate::call::{status, wait_until_attending};
use crate::gate::Gate;
use crate::setting::{LONG_STEPS, PROGRAM, TWO, long_site, run_toml, site, undisturbed};

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
    ends_undisturbed(site, [a, b, coordinator.process])
}

/// The step at which both peers have saved last.
fn common_checkpoint(site: &Site) -> Result<u64> {
    let (a, b) = (site.checkpoints("a")?, site.checkpoints("b")?);
    ensure!(a.last() == b.last(), "not a common step: a has {a:?}, b has {b:?}");
    let last = a.last().copied().unwrap_or(0);
    ensure!((8..LONG_STEPS).contains(&last), "stopped at {last}");
    Ok(last)
}

/// The run ends as if nobody had disturbed it.
fn ends_undisturbed(site: &Site, processes: impl IntoIterator<Item = Process>) -> Result<()> {
    for process in processes {
        process.wait()?.check(Exit::Finished, &[])?;
    }
    let [a, b] = undisturbed()?;
    ensure!(site.weights("a", LONG_STEPS)? == *a, "peer a ends in other weights");
    ensure!(site.weights("b", LONG_STEPS)? == *b, "peer b ends in other weights");
    Ok(())
}

/// The other goes on where it stands; only the one that died loads a checkpoint.
#[test]
fn a_peer_is_killed_and_replays() -> Result<()> {
    let Held { site, gate, mut coordinator, a, mut b } = held()?;
    b.signal(Signal::SIGKILL)?;
    drop((b, gate));
    coordinator.process.wait_for_words(&["peer b: its connection"])?;
    let mut b = site.peer(&coordinator.url(), "b", &[])?;
    b.wait_for_words(&["going on from", "checkpoint-"])?;
    ensure!(!a.stderr()?.contains("going on from"), "a survivor is not rolled back:\n{}", a.stderr()?);
    ends_undisturbed(&site, [a, b, coordinator.process])
}

/// The next process of a peer waits for the name, and meanwhile the one before goes on, saves, and lets old checkpoints go.
#[test]
fn one_that_waits_for_its_predecessor_looks_at_the_disk_when_that_is_gone() -> Result<()> {
    let Held { site, gate, coordinator, a, mut b } = held()?;
    let mut next = site.peer(&coordinator.url(), "b", &[])?;
    next.wait_for_words(&["waiting in case that one has died"])?;
    gate.open();
    let found = site.checkpoints("b")?;
    wait_until("b to let go of all that there was", || {
        let there = site.checkpoints("b")?;
        Ok((!found.iter().any(|step| there.contains(step))).then_some(()))
    })?;
    b.signal(Signal::SIGKILL)?;
    drop(b);
    next.wait_for_words(&["going on from", "checkpoint-"])?;
    ensure!(!a.stderr()?.contains("going on from"), "a survivor is not rolled back:\n{}", a.stderr()?);
    ends_undisturbed(&site, [a, next, coordinator.process])
}

/// One that is given up is awaited all the same.
#[test]
fn a_peer_is_killed_and_comes_late() -> Result<()> {
    let Held { site, gate, mut coordinator, a, mut b } = held()?;
    b.signal(Signal::SIGKILL)?;
    drop((b, gate));
    coordinator.process.wait_for_words(&["peer b died at step", "start it again with the same command"])?;
    let waiting = status(&coordinator.url())?.message;
    ensure!(waiting.contains("waiting for b (given up"), "{waiting}");
    let b = site.peer(&coordinator.url(), "b", &[])?;
    ends_undisturbed(&site, [a, b, coordinator.process])
}

#[test]
fn both_peers_are_killed() -> Result<()> {
    let Held { site, gate, coordinator, mut a, mut b } = held()?;
    a.signal(Signal::SIGKILL)?;
    b.signal(Signal::SIGKILL)?;
    drop((a, b, gate));
    let url = coordinator.url();
    let peers = [site.peer(&url, "b", &[])?, site.peer(&url, "a", &[])?];
    ends_undisturbed(&site, peers.into_iter().chain([coordinator.process]))
}

/// A checkpoint that was damaged meanwhile is named and passed over; if the logs of the others do not reach back to the
/// one before, all fall back together.
#[test]
fn a_checkpoint_is_damaged() -> Result<()> {
    let Held { site, gate, coordinator, a, mut b } = held()?;
    b.signal(Signal::SIGKILL)?;
    drop((b, gate));
    let newest = site.checkpoints("b")?.pop().unwrap_or_default();
    let model = site.state("b").join(format!("checkpoint-{newest}/model.safetensors"));
    let mut bytes = std::fs::read(&model)?;
    bytes[1000] ^= 1;
    std::fs::write(&model, bytes)?;
    let mut b = site.peer(&coordinator.url(), "b", &[])?;
    b.wait_for_words(&["model.safetensors is damaged", "passed over"])?;
    ends_undisturbed(&site, [a, b, coordinator.process])
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

/// Training does not notice before the lease is over, and goes on when the coordinator is back.
#[test]
fn the_coordinator_is_killed() -> Result<()> {
    let Held { site, gate, mut coordinator, mut a, mut b } = held()?;
    let address = coordinator.address.clone();
    coordinator.process.signal(Signal::SIGKILL)?;
    for peer in [&mut a, &mut b] {
        peer.wait_for_words(&["the coordinator is gone", "to the end of the lease"])?;
    }
    gate.open();
    drop(coordinator);
    let coordinator = site.coordinator_on(HERE, &address)?;
    for peer in [&mut a, &mut b] {
        peer.wait_for_words(&["back at the coordinator"])?;
        ensure!(!peer.stderr()?.contains("going on from"), "nobody is rolled back");
    }
    ends_undisturbed(&site, [a, b, coordinator.process])
}

/// What the journal says is complete is being taken again, since one peer lost its last checkpoints.
#[test]
fn the_coordinator_is_killed_while_last_steps_are_taken_again() -> Result<()> {
    let site = long_site()?;
    site.finish(&["a", "b"])?;
    for step in site.checkpoints("a")?.into_iter().skip(1) {
        let file = site.state("a").join(format!("checkpoint-{step}/model.safetensors"));
        let mut bytes = fs::read(&file)?;
        bytes.truncate(1000);
        fs::write(&file, bytes)?;
    }
    let gate = Gate::new(NINE / 3)?;
    let mut coordinator = site.coordinator()?;
    let url = coordinator.url();
    let mut a = site.peer(&url, "a", &[])?;
    let mut b = site.peer(&url, "b", &["--listen", &gate.listen(), "--advertise", &gate.advertise()])?;
    for peer in [&mut a, &mut b] {
        peer.wait_for_words(&["going on from"])?;
    }
    wait_until("the replay to stand still", || Ok(gate.holds().then_some(())))?;
    let address = coordinator.address.clone();
    coordinator.process.signal(Signal::SIGKILL)?;
    drop(coordinator);
    let coordinator = site.coordinator_on(HERE, &address)?;
    for peer in [&mut a, &mut b] {
        peer.wait_for_words(&["back at the coordinator"])?;
    }
    gate.open();
    ends_undisturbed(&site, [a, b, coordinator.process])
}

#[test]
fn a_coordinator_that_does_not_come_back() -> Result<()> {
    let text = run_toml("mcl", TWO, &format!("steps = {LONG_STEPS}\ncheckpoint_every = 4"));
    let hasty = "failure_timeout_ms = 1000\nwait_timeout_ms = 3000";
    let site = Site::new(PROGRAM, &text.replace("failure_timeout_ms = 6000", hasty))?;
    let mut coordinator = site.coordinator()?;
    let url = coordinator.url();
    let (a, b) = (site.peer(&url, "a", &[])?, site.peer(&url, "b", &[])?);
    wait_until("some steps", || {
        Ok(site.checkpoints("a").is_ok_and(|steps| steps.contains(&4)).then_some(()))
    })?;
    coordinator.process.signal(Signal::SIGKILL)?;
    for process in [a, b] {
        process.wait()?.check(Exit::Stopped, &["the coordinator at", "did not come back within"])?;
    }
    // What was done without it is not on record, so it is done again.
    common_checkpoint(&site)?;
    let coordinator = site.coordinator()?;
    let url = coordinator.url();
    let (a, b) = (site.peer(&url, "a", &[])?, site.peer(&url, "b", &[])?);
    ends_undisturbed(&site, [a, b, coordinator.process])
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
