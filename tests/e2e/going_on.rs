//! Cohorts that go on without the peer they lose, and take it in again.

use anyhow::{Context, Result, ensure};
use cohort_proto::exit::Exit;
use cohort_tests::process::{Coordinator, Process, Signal, Site, wait_until};
use rusqlite::Connection;

use crate::setting::{PROGRAM, run_toml};

const THREE: &[(&str, &str)] = &[("a", "resnet6"), ("b", "resnet8"), ("c", "resnet6")];
const STEPS: u64 = 160;

fn going_on(steps: u64) -> Result<Site> {
    let text = run_toml("mcl", THREE, &format!("steps = {steps}\ncheckpoint_every = 10"));
    let policy = "failure_timeout_ms = 2000\non_failure = \"continue\"";
    Site::new(PROGRAM, &text.replace("failure_timeout_ms = 6000", policy))
}

/// Three peers in the middle of their run, with a checkpoint to come back to.
struct Running {
    site: Site,
    coordinator: Coordinator,
    url: String,
    a: Process,
    b: Process,
    c: Process,
}

fn running() -> Result<Running> {
    let site = going_on(STEPS)?;
    let coordinator = site.coordinator()?;
    let url = coordinator.url();
    let [a, b, c] = [site.peer(&url, "a", &[])?, site.peer(&url, "b", &[])?, site.peer(&url, "c", &[])?];
    wait_until("c to have saved something", || {
        Ok(site.checkpoints("c").is_ok_and(|held| held.len() > 1).then_some(()))
    })?;
    Ok(Running { site, coordinator, url, a, b, c })
}

fn rows(site: &Site, sql: &str) -> Result<Vec<String>> {
    let journal = Connection::open(site.journal())?;
    let mut statement = journal.prepare(sql)?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Of every view: its number, its first step, its members.
fn views(site: &Site) -> Result<Vec<(u64, u64, String)>> {
    let sql = "SELECT view || ' ' || begins_at || ' ' || group_concat(peer, '') FROM views JOIN members USING (view) \
               GROUP BY view ORDER BY view";
    let parse = |row: String| {
        let mut words = row.split(' ');
        let mut word = || words.next().context("three words");
        Ok((word()?.parse()?, word()?.parse()?, word()?.to_owned()))
    };
    rows(site, sql)?.into_iter().map(parse).collect()
}

/// Every step was taken once by each member of the view that held for it, in that view, and by nobody else. One that was
/// lost may have died before it told of the last steps that it took: of those, what the next view's members told counts.
fn check_steps(site: &Site, steps: u64) -> Result<()> {
    let views = views(site)?;
    for step in 0..steps {
        let holds = views.iter().rposition(|(_, begins_at, _)| *begins_at <= step).context("a view")?;
        let (view, _, members) = &views[holds];
        let told = format!(
            "SELECT group_concat(peer, '') || ' ' || max(view) || ' ' || min(view) FROM \
             (SELECT peer, view FROM steps WHERE step = {step} ORDER BY peer)"
        );
        let told = rows(site, &told)?;
        let next = views.get(holds + 1).filter(|(_, begins_at, _)| step + 3 >= *begins_at);
        let all = [format!("{members} {view} {view}")];
        let survivors = next.map(|(_, _, next)| {
            let left: String = members.chars().filter(|member| next.contains(*member)).collect();
            [format!("{left} {view} {view}")]
        });
        ensure!(
            told == all || survivors.is_some_and(|survivors| told == survivors),
            "step {step}: {told:?}, but {members} in view {view}"
        );
    }
    Ok(())
}

#[test]
fn two_go_on_and_the_third_comes_in_again() -> Result<()> {
    let Running { site, mut coordinator, url, a, b, mut c } = running()?;
    c.signal(Signal::SIGKILL)?;
    drop(c);
    coordinator.process.wait_for_words(&["the others go on without c"])?;
    coordinator.process.wait_for_words(&["view 2 begins", "with 2 peers"])?;
    let c = site.peer(&url, "c", &[])?;
    coordinator.process.wait_for_words(&["peer c comes in at step", "with its checkpoint of"])?;
    for process in [a, b, c, coordinator.process] {
        process.wait()?.check(Exit::Finished, &[])?;
    }
    let views = views(&site)?;
    let members: Vec<&str> = views.iter().map(|(_, _, members)| members.as_str()).collect();
    ensure!(members == ["abc", "ab", "abc"], "{views:?}");
    check_steps(&site, STEPS)?;
    for peer in ["a", "b", "c"] {
        site.weights(peer, STEPS)?;
    }
    // Those who were two learnt from one, not from two.
    let (second, third) = (views[1].1, views[2].1);
    ensure!(second < third, "{views:?}");
    Ok(())
}

/// One that hangs is left behind, and comes in again when it moves.
#[test]
fn one_that_hangs_is_left_behind() -> Result<()> {
    let Running { site, mut coordinator, a, b, mut c, .. } = running()?;
    c.signal(Signal::SIGSTOP)?;
    coordinator.process.wait_for_words(&["view 2 begins", "with 2 peers"])?;
    c.signal(Signal::SIGCONT)?;
    coordinator.process.wait_for_words(&["peer c comes in at step"])?;
    for process in [a, b, c, coordinator.process] {
        process.wait()?.check(Exit::Finished, &[])?;
    }
    check_steps(&site, STEPS)
}

/// For one that comes when the others have finished there is nothing to do, and no use in coming again.
#[test]
fn one_that_comes_after_the_end_is_told_so() -> Result<()> {
    let Running { site, coordinator, a, b, mut c, .. } = running()?;
    c.signal(Signal::SIGKILL)?;
    for process in [a, b, coordinator.process] {
        process.wait()?.check(Exit::Finished, &[])?;
    }
    let coordinator = site.coordinator()?;
    let c = site.peer(&coordinator.url(), "c", &[])?.wait()?;
    c.check(Exit::LeftBehind, &["the run is finished", "without this peer"])?;
    coordinator.process.wait()?.check(Exit::Finished, &[])
}

/// With too few left, the cohort waits, whatever the policy.
#[test]
fn too_few_wait() -> Result<()> {
    let Running { site, mut coordinator, url, a, mut b, mut c } = running()?;
    b.signal(Signal::SIGKILL)?;
    c.signal(Signal::SIGKILL)?;
    drop((b, c));
    coordinator.process.wait_for_words(&["died at step", "the others wait for it"])?;
    let (b, c) = (site.peer(&url, "b", &[])?, site.peer(&url, "c", &[])?);
    for process in [a, b, c, coordinator.process] {
        process.wait()?.check(Exit::Finished, &[])?;
    }
    check_steps(&site, STEPS)
}
