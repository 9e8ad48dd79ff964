//! A disk that takes longer over a checkpoint than a silence may last: the peer is waited for, not given up, and the
//! status says who waits for it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use cohort_proto::exit::Exit;
use cohort_tests::process::{Site, wait_until};

use crate::call::status;
use crate::setting::{LONG_STEPS, TWO, site, undisturbed};

/// What a checkpoint waits for: three files and two folders. Together they take longer than the failure timeout of
/// these runs, 6 s.
const SLOW: &str = "#include <unistd.h>\nint fsync(int file) { (void)file; usleep(1500000); return 0; }\n";

/// A library that makes the disk of whoever loads it slow, or nothing where it cannot be made.
fn slow_disk(site: &Site) -> Result<Option<PathBuf>> {
    let (source, library) = (site.path().join("slow.c"), site.path().join("slow.so"));
    fs::write(&source, SLOW)?;
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    let there = cfg!(target_os = "linux") && compiled.is_ok_and(|status| status.success());
    Ok(there.then_some(library))
}

#[test]
fn one_whose_disk_is_slow_is_waited_for() -> Result<()> {
    let site = site("mcl", TWO, &format!("steps = {LONG_STEPS}\ncheckpoint_every = 60"))?;
    let Some(library) = slow_disk(&site)? else {
        eprintln!("SKIPPED: no C compiler here to make a slow disk with");
        return Ok(());
    };
    let coordinator = site.coordinator()?;
    let url = coordinator.url();
    let preload = format!("LD_PRELOAD={}", library.display());
    let a = site.peer(&url, "a", &[])?;
    let b = site.peer_on(&["env", &preload], &url, "b", &[])?;
    wait_until("a to wait for b while b writes its checkpoint", || {
        let members = status(&url)?.members;
        let waits = members.iter().find(|member| member.name == "a").context("no a")?;
        let named = waits.waits_for.iter().any(|name| name == "b") && waits.waits_ms >= 3000;
        ensure!(members.iter().all(|member| member.steps_done < LONG_STEPS), "nobody waited: {members:?}");
        Ok(named.then_some(()))
    })?;
    let mut logs = String::new();
    for process in [a, b, coordinator.process] {
        let ended = process.wait()?;
        ended.check(Exit::Finished, &[])?;
        logs.push_str(&ended.stderr);
    }
    ensure!(
        !logs.contains("nothing was heard") && !logs.contains("given up"),
        "it was taken for dead:\n{logs}"
    );
    let [a, b] = undisturbed()?;
    ensure!(site.weights("a", LONG_STEPS)? == *a && site.weights("b", LONG_STEPS)? == *b, "other weights");
    Ok(())
}
