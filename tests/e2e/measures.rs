//! `eval` of several networks, and `probe`: what trained networks are worth beyond their accuracy.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use cohort_peer::models::{ImageShape, Params, build, state};
use cohort_proto::exit::Exit;
use cohort_tests::process::{Ended, HERE, Site};
use serde_json::Value;

use crate::setting::{DATA, TWO, site};

/// Runs `eval` or `probe` on a network and images.
fn measure(site: &Site, command: &str, weights: &Path, more: &[&str]) -> Result<Ended> {
    let weights = weights.to_string_lossy();
    let args = ["peer", command, "--arch", "resnet8", "--weights", &weights, "--data", DATA];
    site.start(command, HERE, &[&args, more].concat())?.wait()
}

fn json(ended: &Ended) -> Result<Value> {
    ended.check(Exit::Finished, &[])?;
    Ok(serde_json::from_str(&ended.stdout)?)
}

fn number(value: &Value, name: &str) -> Result<f64> {
    value[name].as_f64().with_context(|| format!("no number {name} in {value}"))
}

#[test]
fn eval_of_two_networks_compares_them() -> Result<()> {
    let site = site("mcl", TWO, "steps = 20")?;
    site.finish(&["a", "b"])?;
    let [a, b] = ["a", "b"].map(|peer| site.state(peer).join("checkpoint-20/model.safetensors"));
    let [with, same] = [format!("wrn_10_1:{}", b.display()), format!("resnet8:{}", a.display())];
    let fashion = ["--dataset", "fashion-mnist"];
    let groups = ["--groups", "0,3,0,0,0,1,0,1,2,1", "--with", &with, "--with", &same];
    let all = json(&measure(&site, "eval", &a, &[fashion.as_slice(), &groups].concat())?)?;

    let rows = all["confusion"].as_array().context("no confusion")?;
    let row = |row: &Value| row.as_array().into_iter().flatten().filter_map(Value::as_u64).sum::<u64>();
    ensure!(rows.len() == 10 && rows.iter().all(|counts| row(counts) == 1000), "{rows:?}");
    let right: u64 = rows.iter().enumerate().filter_map(|(class, row)| row[class].as_u64()).sum();
    ensure!((right as f64 / 100.0 - number(&all, "top1")?).abs() < 1e-9, "{right} are right: {all}");
    ensure!(number(&all, "group_top1")? > number(&all, "top1")?, "{all}");
    ensure!(number(&all, "dist_within")? < number(&all, "dist_between")?, "{all}");
    ensure!(number(&all, "dist_c")? > 0.0 && number(&all, "dist_s")? > 0.0, "{all}");

    let agreed = |i: usize, j: usize| all["agreement"][i][j].as_f64();
    ensure!(agreed(0, 0) == Some(100.0) && agreed(0, 2) == Some(100.0), "{}", all["agreement"]);
    ensure!(agreed(0, 1) == agreed(1, 0) && agreed(0, 1) < Some(100.0), "{}", all["agreement"]);
    ensure!(all["others"][0]["arch"] == "wrn_10_1" && all["others"][1]["top1"] == all["top1"], "{all}");
    let ensemble = |kind: &str| number(&all["ensemble"][kind], "nll");
    ensure!(ensemble("mean_of_probabilities")? != ensemble("mean_of_logits")?, "{}", all["ensemble"]);

    let one = json(&measure(&site, "eval", &a, &fashion)?)?;
    ensure!(one["top1"] == all["top1"] && one["confusion"] == all["confusion"], "{one}");
    ensure!(one.get("agreement").is_none() && one.get("group_top1").is_none(), "{one}");

    for (more, words) in [
        (["--groups", "0,1"].as_slice(), ["for 2 classes", "has 10"]),
        (&["--groups", "0,0,0,0,0,0,0,0,0,0,1"], ["for 11 classes", "has 10"]),
        (&["--with", "resnet8"], ["--with", "ARCH:FILE"]),
        (&["--with", "resnet9:x"], ["resnet9", "nearest"]),
    ] {
        measure(&site, "eval", &a, &[&fashion, more].concat())?.check(Exit::Usage, &words)?;
    }
    Ok(())
}

/// The bundled images under the name of a data set whose files have the same names, seen by a network of seven classes.
#[test]
fn a_probe_classifies_the_features_of_another_network() -> Result<()> {
    const PROBE: &[&str] = &["--dataset", "mnist", "--limit", "1000", "--epochs", "10"];
    let site = site("alone", &[("a", "resnet8")], "steps = 1")?;
    let weights = site.path().join("seven.safetensors");
    let mut params = Params::new(3, "seven", DType::F32, &Device::Cpu)?;
    build("resnet8", ImageShape { channels: 1, height: 28, width: 28 }, 7, &mut params)?;
    std::fs::write(&weights, state::encode(&params.state_dict()?)?)?;
    let before = std::fs::read(&weights)?;

    let probe = |more: &[&str]| measure(&site, "probe", &weights, &[PROBE, more].concat());
    let one = probe(&["--seed", "1"])?;
    let got = json(&one)?;
    ensure!(got["dataset"] == "mnist" && got["classes"] == 10 && got["width"] == 64, "{got}");
    ensure!(got["train_samples"] == 1000 && got["samples"] == 10_000 && got["epochs"] == 10, "{got}");
    // Features of random filters tell clothes apart far better than chance.
    ensure!(number(&got, "top1")? > 25.0 && number(&got, "train_top1")? > 25.0, "{got}");
    ensure!(std::fs::read(&weights)? == before, "the weights have changed");
    ensure!(
        probe(&["--seed", "1", "--threads", "1"])?.stdout == one.stdout,
        "another result of the same seed"
    );
    ensure!(probe(&["--seed", "2"])?.stdout != one.stdout, "the seed decides nothing");

    probe(&["--lr", "0"])?.check(Exit::Usage, &["--lr", "must be a positive number"])?;
    let empty = site.path().join("empty.safetensors");
    let some = params.state_dict()?.into_iter().filter(|(name, _)| !name.starts_with("fc."));
    std::fs::write(&empty, state::encode(&some.collect())?)?;
    measure(&site, "probe", &empty, PROBE)?.check(Exit::BadData, &["empty.safetensors", "no classifier"])
}
