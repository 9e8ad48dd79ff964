//! Samples that are held out: every epoch ends with a look at them, and the network that did best is kept.

use anyhow::{Context, Result, ensure};
use cohort_tests::process::Site;
use rusqlite::{Connection, OpenFlags};

use crate::setting::{PROGRAM, TWO, run_toml};

/// Seven steps of 20 in an epoch, of 140 samples that are trained on.
const EPOCH: i64 = 7;

#[test]
fn the_best_on_held_out_samples_is_kept() -> Result<()> {
    let text = run_toml("dml", TWO, "epochs = 3\ncheckpoint_every = 5")
        .replace("batch = 20", "validation = 60\nbatch = 20");
    let site = Site::new(PROGRAM, &text)?;
    site.finish(&["a", "b"])?;
    let journal = Connection::open_with_flags(site.journal(), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    for peer in ["a", "b"] {
        let mut query = journal
            .prepare("SELECT step, value FROM terms WHERE peer = ? AND name = 'val_top1' ORDER BY step")?;
        let rows = query.query_map([peer], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, f64>(1)?)))?;
        let looks: Vec<(i64, f64)> = rows.collect::<Result<_, _>>()?;
        let steps: Vec<i64> = looks.iter().map(|(step, _)| step + 1).collect();
        ensure!(steps == [EPOCH, 2 * EPOCH, 3 * EPOCH], "measured after {steps:?}");
        let first = looks.iter().rev().max_by(|a, b| a.1.total_cmp(&b.1)).context("no look")?;
        let best = std::fs::read(site.state(peer).join("best/validation.json"))?;
        let best: serde_json::Value = serde_json::from_slice(&best)?;
        ensure!(best["step"] == first.0 + 1, "{best}, but {looks:?}");
        ensure!(best["val_top1"] == first.1, "{best}, but {looks:?}");
        ensure!(site.state(peer).join("best/model.safetensors").is_file(), "no weights");
        ensure!(site.checkpoints(peer)?.contains(&21), "it is not one of the checkpoints");
    }
    Ok(())
}
