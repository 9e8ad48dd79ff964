//! A short piece of chaos: the program that disturbs runs, as users start it.

use std::process::Command;

use anyhow::Result;
use cohort_proto::exit::Exit;
use cohort_tests::process::{Ended, Process};
use serde_json::Value;

fn chaos(args: &[&str]) -> Result<Ended> {
    let folder = tempfile::tempdir()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaos"));
    command.args(args);
    Process::start(command, "chaos", folder.path())?.wait()
}

#[test]
fn two_runs_that_nobody_disturbs_are_the_same() -> Result<()> {
    let ended = chaos(&["--kills", "0", "--steps", "20", "--no-partitions"])?;
    ended.check(Exit::Finished, &[])?;
    let said: Value = serde_json::from_str(ended.stdout.trim())?;
    let numbers = ["kills_in_all", "lost", "doubled", "disagreements"].map(|key| said[key].as_u64());
    assert_eq!(numbers, [Some(0); 4], "{said}");
    assert_eq!(
        (said["steps"].as_u64(), said["weights_identical"].as_bool()),
        (Some(20), Some(true)),
        "{said}"
    );
    assert_eq!(said["weights_sha256"].as_object().map(serde_json::Map::len), Some(3), "{said}");
    Ok(())
}

/// Enough for a kill in each of several ways; longer ones are for the command line.
#[test]
fn a_few_kills_change_nothing() -> Result<()> {
    let ended = chaos(&["--seed", "3", "--kills", "4", "--no-partitions"])?;
    ended.check(Exit::Finished, &[])?;
    let said: Value = serde_json::from_str(ended.stdout.trim())?;
    assert_eq!((said["kills_in_all"].as_u64(), said["held"].as_bool()), (Some(4), Some(true)), "{said}");
    assert_eq!((said["lost"].as_u64(), said["doubled"].as_u64()), (Some(0), Some(0)), "{said}");
    Ok(())
}
