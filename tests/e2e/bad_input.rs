//! What users get wrong: each ends with the exit code that scripts rely on and a sentence that says what to do.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use cohort_proto::exit::Exit;
use cohort_tests::process::{HERE, Process, Signal, Site};
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use crate::call::wait_until_attending;
use crate::setting::{DATA, PROGRAM, TWO, run_toml, site};

/// Starts a coordinator that must end at once.
fn refused_coordinator(site: &Site, listen: &str, state: &str) -> Result<Process> {
    let run = site.run_toml();
    let run = run.to_string_lossy();
    site.start(
        "coordinator",
        HERE,
        &["coordinator", "serve", "--run", &run, "--listen", listen, "--state", state],
    )
}

fn check_spec(run_toml: &str, words: &[&str]) -> Result<()> {
    let site = Site::new(PROGRAM, run_toml)?;
    refused_coordinator(&site, "127.0.0.1:0", "state")?.wait()?.check(Exit::BadSpec, words)?;
    ensure!(!site.path().join("state").exists(), "a run.toml that cannot be used leaves nothing behind");
    Ok(())
}

#[test]
fn run_toml_is_read_strictly() -> Result<()> {
    let good = run_toml("mcl", TWO, "steps = 3");
    check_spec(&good.replace("lr = ", "learning_rat = "), &["[optim]", "learning_rat", "known are", "lr"])?;
    check_spec(&good.replace("lr = 0.05", "momentun = 0.9"), &["did you mean \"momentum\""])?;
    check_spec(&good.replace("resnet8", "resnet9"), &["resnet9", "did you mean \"resnet"])?;
    check_spec(&good.replace("\"mcl\"", "\"mcll\""), &["[method]", "did you mean \"mcl\""])?;
    check_spec(&good.replace("steps = 3", ""), &["[run]", "epochs is missing"])?;
    check_spec(&good.replace("\"b\"", "\"a\""), &["\"a\""])?;
    check_spec("not toml", &["not valid TOML"])
}

#[test]
fn a_missing_run_toml_is_named() -> Result<()> {
    let site = site("mcl", TWO, "steps = 3")?;
    fs::remove_file(site.run_toml())?;
    let ended = refused_coordinator(&site, "127.0.0.1:0", "state")?.wait()?;
    ended.check(Exit::BadSpec, &["cannot read", "run.toml"])
}

#[test]
fn the_command_line_is_read_strictly() -> Result<()> {
    let site = site("mcl", TWO, "steps = 3")?;
    for args in [
        ["coordinator", "serve", "--rum", "x"].as_slice(),
        &["coordinator"],
        &["peer", "join", "--coordinator", "http://127.0.0.1:1", "--name", "../a"],
        &["peer", "join", "--coordinator", "nowhere", "--name", "a"],
        &["peer", "join", "--name", "a"],
    ] {
        site.start("usage", HERE, args)?.wait()?.check(Exit::Usage, &[])?;
    }
    for args in [["coordinator", "--help"], ["peer", "--help"], ["peer", "--version"]] {
        let ended = site.start("help", HERE, &args)?.wait()?;
        ended.check(Exit::Finished, &[])?;
        ensure!(!ended.stdout.is_empty() && ended.stderr.is_empty(), "{args:?} answers on stdout");
    }
    Ok(())
}

#[test]
fn a_port_in_use_is_said() -> Result<()> {
    let site = site("mcl", TWO, "steps = 3")?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let words = ["cannot listen on", address.as_str(), "in use", "--listen"];
    refused_coordinator(&site, &address, "state")?.wait()?.check(Exit::Unreachable, &words)?;
    ensure!(!site.path().join("state").exists(), "a second start must not touch the first one's journal");
    let coordinator = site.coordinator()?;
    let peer = site.peer(&coordinator.url(), "a", &["--listen", &address])?;
    peer.wait()?.check(Exit::Unreachable, &words)
}

#[test]
fn a_coordinator_that_is_not_there_is_tried_for_a_while() -> Result<()> {
    let site = site("mcl", TWO, "steps = 3")?;
    // A port that was free a moment ago, on an address of this host that nobody else uses.
    let port = TcpListener::bind("127.0.0.3:0")?.local_addr()?.port();
    let url = format!("http://127.0.0.3:{port}");
    let ended = site.peer(&url, "a", &[])?.wait()?;
    ended.check(Exit::Unreachable, &["the coordinator at", &url, "8 attempts", "refused"])?;
    let status = site.start("status", HERE, &["coordinator", "status", "--coordinator", &url])?.wait()?;
    status.check(Exit::Unreachable, &["no coordinator answers at", &url])
}

#[test]
fn an_unknown_peer_is_told_the_known_ones() -> Result<()> {
    let site = site("mcl", TWO, "steps = 3")?;
    let coordinator = site.coordinator()?;
    let ended = site.peer(&coordinator.url(), "x", &[])?.wait()?;
    ended.check(Exit::Usage, &["no peer x", "a, b"])
}

#[test]
fn the_second_of_two_peers_of_one_name_is_refused() -> Result<()> {
    let site = site("mcl", TWO, "steps = 3")?;
    let coordinator = site.coordinator()?;
    let url = coordinator.url();
    let first = site.peer(&url, "a", &[])?;
    wait_until_attending(&url, "a")?;
    // Started twice by mistake, with the same command.
    let second = site.peer(&url, "a", &[])?.wait()?;
    second.check(Exit::Usage, &["refused", "a peer named a attends already"])?;
    // The first one has not noticed, and its folder is still its own.
    let other = site.peer(&url, "b", &[])?;
    for process in [first, other, coordinator.process] {
        process.wait()?.check(Exit::Finished, &[])?;
    }
    Ok(())
}

/// A copy of the bundled training data in which one file is changed.
fn changed_data(site: &Site, file: &str, change: impl FnOnce(Vec<u8>) -> Result<Vec<u8>>) -> Result<PathBuf> {
    let folder = site.path().join("data");
    fs::create_dir_all(&folder)?;
    for name in [IMAGES, LABELS].into_iter().filter(|name| *name != file) {
        fs::copy(Path::new(DATA).join(name), folder.join(name))?;
    }
    let changed = change(fs::read(Path::new(DATA).join(file))?)?;
    fs::write(folder.join(file), changed)?;
    Ok(folder)
}

const IMAGES: &str = "train-images-idx3-ubyte.gz";
const LABELS: &str = "train-labels-idx1-ubyte.gz";

fn unzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut plain)?;
    Ok(plain)
}

fn zip(plain: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain)?;
    Ok(encoder.finish()?)
}

fn check_data(file: &str, change: impl FnOnce(Vec<u8>) -> Result<Vec<u8>>, words: &[&str]) -> Result<()> {
    let site = site("mcl", TWO, "steps = 3")?;
    let coordinator = site.coordinator()?;
    let data = changed_data(&site, file, change)?;
    let data = data.to_string_lossy();
    let ended = site.peer(&coordinator.url(), "a", &["--data", &data])?.wait()?;
    ended.check(Exit::BadData, words)
}

#[test]
fn damaged_data_are_named_with_the_defect() -> Result<()> {
    let flip = |mut bytes: Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x40;
        Ok(bytes)
    };
    check_data(IMAGES, flip, &[IMAGES])?;
    let cut = |mut bytes: Vec<u8>| {
        bytes.truncate(bytes.len() / 2);
        Ok(bytes)
    };
    check_data(IMAGES, cut, &[IMAGES])?;
    let other_magic = |bytes: Vec<u8>| {
        let mut plain = unzip(&bytes)?;
        plain[3] = 9;
        zip(&plain)
    };
    check_data(LABELS, other_magic, &[LABELS])?;
    let fewer = |bytes: Vec<u8>| {
        let mut plain = unzip(&bytes)?;
        plain.truncate(8 + 9_000);
        plain[4..8].copy_from_slice(&9_000u32.to_be_bytes());
        zip(&plain)
    };
    check_data(LABELS, fewer, &[IMAGES, LABELS, "10000", "9000"])?;
    let no_class = |bytes: Vec<u8>| {
        let mut plain = unzip(&bytes)?;
        plain[8 + 5] = 77;
        zip(&plain)
    };
    check_data(LABELS, no_class, &[LABELS, "label 77", "position 5"])
}

#[test]
fn missing_data_are_said_with_where_they_were_looked_for() -> Result<()> {
    let site = site("mcl", TWO, "steps = 3")?;
    let coordinator = site.coordinator()?;
    let ended = site.peer(&coordinator.url(), "a", &["--data", "no-such-folder"])?.wait()?;
    ended.check(Exit::BadData, &["no fashion-mnist data", "no-such-folder", "--data"])
}

#[test]
fn a_peer_with_other_data_is_refused() -> Result<()> {
    let site = site("mcl", TWO, "steps = 3")?;
    let coordinator = site.coordinator()?;
    let url = coordinator.url();
    let first = site.peer(&url, "a", &[])?;
    wait_until_attending(&url, "a")?;
    // One pixel of the first image is another one.
    let data = changed_data(&site, IMAGES, |bytes| {
        let mut plain = unzip(&bytes)?;
        plain[16] ^= 1;
        zip(&plain)
    })?;
    let data = data.to_string_lossy();
    let ended = site.peer(&url, "b", &["--data", &data])?.wait()?;
    ended.check(Exit::BadData, &["refused", "fingerprint", "peer a"])?;
    let right = site.peer(&url, "b", &[])?;
    for process in [first, right, coordinator.process] {
        process.wait()?.check(Exit::Finished, &[])?;
    }
    Ok(())
}

#[test]
fn a_state_folder_that_cannot_be_written_is_named() -> Result<()> {
    let site = site("mcl", TWO, "steps = 3")?;
    fs::write(site.path().join("file"), "")?;
    let ended = refused_coordinator(&site, "127.0.0.1:0", "file/state")?.wait()?;
    ended.check(Exit::Storage, &["file/state", "cannot be used"])?;
    let coordinator = site.coordinator()?;
    let ended = site.peer(&coordinator.url(), "a", &["--state", "file/state"])?.wait()?;
    ended.check(Exit::Storage, &["cannot make", "file/state"])
}

#[test]
fn a_state_folder_of_another_run_is_refused() -> Result<()> {
    let site = site("alone", &[("a", "resnet8")], "steps = 1")?;
    site.finish(&["a"])?;
    fs::write(site.run_toml(), run_toml("alone", &[("a", "resnet8")], "steps = 2"))?;
    let ended = refused_coordinator(&site, "127.0.0.1:0", "coordinator")?.wait()?;
    ended.check(Exit::BadSpec, &["belongs to run", "--state"])?;
    // A coordinator with a fresh folder: the peer's checkpoint is of the run before.
    fs::remove_dir_all(site.path().join("coordinator"))?;
    let coordinator = site.coordinator()?;
    let ended = site.peer(&coordinator.url(), "a", &[])?.wait()?;
    ended.check(Exit::Mismatch, &["checkpoint-1", "another run", "--state"])
}

#[test]
fn a_state_folder_in_use_is_left_alone() -> Result<()> {
    let site = site("mcl", TWO, "steps = 3")?;
    let _first = site.coordinator()?;
    let ended = refused_coordinator(&site, "127.0.0.1:0", "coordinator")?.wait()?;
    ended.check(Exit::Storage, &["in use by another coordinator"])
}

#[test]
fn a_state_folder_is_one_peers() -> Result<()> {
    let site = site("dml", TWO, "steps = 4")?;
    let coordinator = site.coordinator()?;
    let url = coordinator.url();
    let mut a = site.peer(&url, "a", &[])?;
    a.wait_for_words(&["joined run"])?;
    let others = site.state("a").to_string_lossy().into_owned();
    let b = site.peer(&url, "b", &["--state", &others])?.wait()?;
    b.check(Exit::Storage, &["is the state folder of peer a", "give peer b another --state"])?;
    let b = site.peer(&url, "b", &[])?;
    for process in [a, b, coordinator.process] {
        process.wait()?.check(Exit::Finished, &[])?;
    }
    Ok(())
}

/// Started again, a finished run asks everybody first; whoever waits for that may be asked to stop, and so may the
/// coordinator, also by the signal of a scheduler.
#[test]
fn one_that_waits_to_hear_that_it_is_complete_can_be_stopped() -> Result<()> {
    let site = site("dml", TWO, "steps = 4")?;
    site.finish(&["a", "b"])?;
    let mut coordinator = site.coordinator()?;
    let mut a = site.peer(&coordinator.url(), "a", &[])?;
    coordinator.process.wait_for_words(&["peer a is complete"])?;
    a.signal(Signal::SIGTERM)?;
    a.wait()?.check(Exit::Stopped, &["asked to stop before it had joined"])?;
    let b = site.peer(&coordinator.url(), "b", &[])?;
    coordinator.process.wait_for_words(&["peer b is complete"])?;
    coordinator.process.signal(Signal::SIGUSR1)?;
    b.wait()?.check(Exit::Finished, &[])?;
    coordinator.process.wait()?.check(Exit::Finished, &[])
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_the_one_before() -> Result<()> {
    let site = site("mcl", TWO, "steps = 6\ncheckpoint_every = 2")?;
    site.finish(&["a", "b"])?;
    let good = [site.weights("a", 6)?, site.weights("b", 6)?];
    let file = site.state("a").join("checkpoint-6/model.safetensors");
    let mut bytes = fs::read(&file)?;
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes)?;
    let mut coordinator = site.coordinator()?;
    let url = coordinator.url();
    // One that has finished waits for it, as long as it may still come.
    let b = site.peer(&url, "b", &[])?;
    coordinator.process.wait_for_words(&["peer b is complete"])?;
    let mut a = site.peer(&url, "a", &[])?;
    a.wait_for_words(&["checkpoint-6", "damaged", "passed over"])?;
    a.wait_for_words(&["going on from", "checkpoint-4"])?;
    for process in [a, b, coordinator.process] {
        process.wait()?.check(Exit::Finished, &[])?;
    }
    ensure!([site.weights("a", 6)?, site.weights("b", 6)?] == good);
    let names =
        fs::read_dir(site.state("a"))?.map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()));
    let names = names.collect::<Result<Vec<String>>>()?;
    ensure!(!names.iter().any(|name| name.starts_with('.')), "only whole checkpoints are left: {names:?}");
    Ok(())
}
