//! The runs of these tests: small networks, few images, few steps.

use std::sync::OnceLock;

use anyhow::{Result, anyhow};
pub(crate) use cohort_tests::DATA;
use cohort_tests::process::Site;

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_cohort");

/// Two networks of different families.
pub(crate) const TWO: &[(&str, &str)] = &[("a", "resnet8"), ("b", "wrn_10_1")];

/// Steps of the run that tests disturb: more than the longest lease reaches beyond the place where they hold it, so that
/// a graceful stop comes before the end.
pub(crate) const LONG_STEPS: u64 = 90;

/// A run.toml of a method and peers (name, architecture); `run` are further lines of its section `[run]`.
pub(crate) fn run_toml(method: &str, peers: &[(&str, &str)], run: &str) -> String {
    let peers = peers.iter().map(|(name, arch)| format!("[[peer]]\nname = \"{name}\"\narch = \"{arch}\"\n"));
    format!(
        "[run]\nname = \"e2e\"\nseed = 7\n{run}\n[data]\ndataset = \"fashion-mnist\"\npath = {DATA:?}\n\
         train_limit = 200\nbatch = 20\n[method]\nname = \"{method}\"\n[optim]\nlr = 0.05\n\
         [policy]\nfailure_timeout_ms = 6000\n{}",
        peers.collect::<String>()
    )
}

/// A folder for a run of a method and peers.
pub(crate) fn site(method: &str, peers: &[(&str, &str)], run: &str) -> Result<Site> {
    Site::new(PROGRAM, &run_toml(method, peers, run))
}

/// A folder for the run that tests disturb.
pub(crate) fn long_site() -> Result<Site> {
    site("mcl", TWO, &format!("steps = {LONG_STEPS}\ncheckpoint_every = 4"))
}

/// The last weights of `a` and `b` in an undisturbed run of [`long_site`].
pub(crate) fn undisturbed() -> Result<&'static [Vec<u8>; 2]> {
    static WEIGHTS: OnceLock<Result<[Vec<u8>; 2], String>> = OnceLock::new();
    let run = || -> Result<[Vec<u8>; 2]> {
        let site = long_site()?;
        site.finish(&["a", "b"])?;
        Ok([site.weights("a", LONG_STEPS)?, site.weights("b", LONG_STEPS)?])
    };
    let weights = WEIGHTS.get_or_init(|| run().map_err(|error| format!("{error:#}")));
    weights.as_ref().map_err(|error| anyhow!("the undisturbed run: {error}"))
}
