//! A disk that has no room for a checkpoint: the peer says so, what was there before is not touched, and once there is
//! room the run goes on as if nothing had been.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};
use cohort_proto::exit::Exit;
use cohort_tests::process::{Coordinator, Signal, Site, wait_until};

use crate::setting::site;

/// More than are taken before a graceful stop that is asked for at the second checkpoint.
const STEPS: u64 = 120;

const EVERY: u64 = 4;

fn one(keep: u64) -> Result<Site> {
    let run = format!("steps = {STEPS}\ncheckpoint_every = {EVERY}\nkeep = {keep}");
    site("alone", &[("a", "resnet8")], &run)
}

/// All checkpoints of a run whose disk has room.
fn roomy() -> Result<&'static Site> {
    static SITE: OnceLock<Result<Site, String>> = OnceLock::new();
    let run = || -> Result<Site> {
        let site = one(1000)?;
        site.finish(&["a"])?;
        Ok(site)
    };
    let site = SITE.get_or_init(|| run().map_err(|error| format!("{error:#}")));
    site.as_ref().map_err(|error| anyhow!("the run with room: {error}"))
}

/// Ends a coordinator whose only peer is gone, if that has not ended it.
fn stop(mut coordinator: Coordinator) -> Result<()> {
    // One that has ended needs no signal.
    _ = coordinator.process.signal(Signal::SIGTERM);
    coordinator.process.wait()?.check(Exit::Stopped, &[])
}

/// The checkpoints of these steps, byte for byte.
fn contents(folder: &Path, steps: &[u64]) -> Result<Vec<Vec<u8>>> {
    let names = ["model.safetensors", "optimizer.safetensors", "progress.bin"];
    let files = steps.iter().flat_map(|step| names.map(|name| format!("checkpoint-{step}/{name}")));
    files.map(|file| fs::read(folder.join(&file)).with_context(|| file)).collect()
}

/// Starts everything again, now that there is room.
fn goes_on(site: &Site, checkpoint: &str) -> Result<()> {
    let coordinator = site.coordinator()?;
    let mut peer = site.peer(&coordinator.url(), "a", &[])?;
    peer.wait_for_words(&["going on from", checkpoint])?;
    for process in [peer, coordinator.process] {
        process.wait()?.check(Exit::Finished, &[])?;
    }
    ensure!(site.weights("a", STEPS)? == roomy()?.weights("a", STEPS)?, "it ends in other weights");
    Ok(())
}

/// A file system of its own in a folder; gone when dropped.
struct Small(PathBuf);

impl Small {
    fn new(folder: PathBuf, bytes: u64) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "that needs root");
        fs::create_dir_all(&folder)?;
        mount(&["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"], &folder)?;
        Ok(Self(folder))
    }

    fn grow(&self, bytes: u64) -> Result<()> {
        mount(&["-o", &format!("remount,size={bytes}")], &self.0)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: a process that is being killed may still have a file there.
        _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn mount(args: &[&str], folder: &Path) -> Result<()> {
    let done = Command::new("mount").args(args).arg(folder).output().context("running mount")?;
    ensure!(done.status.success(), "mount: {}", String::from_utf8_lossy(&done.stderr).trim());
    Ok(())
}

#[test]
fn a_small_disk_fills_up() -> Result<()> {
    let site = one(1000)?;
    let whole: u64 = ["model.safetensors", "optimizer.safetensors", "progress.bin"]
        .iter()
        .map(|name| Ok(fs::metadata(roomy()?.state("a").join(format!("checkpoint-{EVERY}/{name}")))?.len()))
        .sum::<Result<u64>>()?;
    // Room for two checkpoints and half of the third.
    let disk = match Small::new(site.state("a"), 5 * whole / 2) {
        Ok(disk) => disk,
        Err(why) => {
            writeln!(std::io::stderr(), "SKIPPED: tests/e2e: no file system can be mounted here: {why:#}")?;
            return Ok(());
        }
    };
    let coordinator = site.coordinator()?;
    let ended = site.peer(&coordinator.url(), "a", &[])?.wait()?;
    ended.check(Exit::Storage, &["cannot write checkpoint file", "No space left on device"])?;
    let steps = site.checkpoints("a")?;
    ensure!(steps == [EVERY, 2 * EVERY], "{steps:?}");
    for step in steps {
        ensure!(site.weights("a", step)? == roomy()?.weights("a", step)?, "checkpoint {step} was touched");
    }
    stop(coordinator)?;
    disk.grow(1 << 30)?;
    goes_on(&site, &format!("checkpoint-{}", 2 * EVERY))
}

/// The coordinator's: it says so, everybody stops with what is complete saved, and it ends.
#[test]
fn the_coordinators_disk_fills_up() -> Result<()> {
    let site = one(1000)?;
    let folder = site.path().join("coordinator");
    let disk = match Small::new(folder.clone(), 4 << 20) {
        Ok(disk) => disk,
        Err(why) => {
            writeln!(std::io::stderr(), "SKIPPED: tests/e2e: no file system can be mounted here: {why:#}")?;
            return Ok(());
        }
    };
    let coordinator = site.coordinator()?;
    let peer = site.peer(&coordinator.url(), "a", &[])?;
    wait_until("a checkpoint", || {
        Ok(site.checkpoints("a").is_ok_and(|steps| !steps.is_empty()).then_some(()))
    })?;
    // What is left, to the last byte.
    let mut filler = fs::File::create(folder.join("filler"))?;
    let mut bytes = 1 << 16;
    while bytes > 0 {
        if filler.write_all(&vec![0; bytes]).is_err() {
            bytes /= 2;
        }
    }
    peer.wait()?.check(Exit::Stopped, &["journal cannot be written", "is saved"])?;
    coordinator.process.wait()?.check(Exit::Storage, &["journal", "full"])?;
    // From one that the journal knows of.
    disk.grow(1 << 30)?;
    goes_on(&site, "checkpoint-")
}

/// The same without any privilege: files may not grow beyond a size that no checkpoint keeps to.
#[test]
fn files_may_not_grow() -> Result<()> {
    let site = one(1000)?;
    let coordinator = site.coordinator()?;
    let peer = site.peer(&coordinator.url(), "a", &[])?;
    wait_until("two checkpoints", || {
        Ok(site.checkpoints("a").is_ok_and(|steps| steps.len() >= 2).then_some(()))
    })?;
    stop(coordinator)?;
    peer.wait()?.check(Exit::Stopped, &[])?;
    let before = site.checkpoints("a")?;
    let bytes = contents(&site.state("a"), &before)?;
    let newest = *before.last().context("a checkpoint")?;
    ensure!(newest < STEPS, "it was over before it was to stop");

    let coordinator = site.coordinator()?;
    // 64 or 128 KiB, by the shell; the signal that would end the process is ignored, and the write fails.
    let limited = ["sh", "-c", "trap '' XFSZ; ulimit -f 128; exec \"$0\" \"$@\""];
    let ended = site.peer_on(&limited, &coordinator.url(), "a", &[])?.wait()?;
    ended.check(Exit::Storage, &["cannot write checkpoint file", "File too large"])?;
    ensure!(site.checkpoints("a")? == before, "a checkpoint came or went");
    ensure!(contents(&site.state("a"), &before)? == bytes, "a checkpoint was touched");
    stop(coordinator)?;
    goes_on(&site, &format!("checkpoint-{newest}"))
}
