//! run.toml: what is read, and what is said about what cannot be.

use super::*;

const GOOD: &str = r#"
[run]
name = "two-on-fashion"
seed = 7
epochs = 20
[data]
dataset = "fashion-mnist"
train_limit = 10000
[method]
name = "mcl"
[[peer]]
name = "a"
arch = "resnet20"
[[peer]]
name = "b"
arch = "wrn_16_2"
"#;

fn error_of(text: &str) -> String {
    RunSpec::parse(text).unwrap_err().to_string()
}

#[test]
fn defaults_are_filled_in() {
    let spec = RunSpec::parse(GOOD).unwrap();
    assert_eq!(spec.run.checkpoint_every, 200);
    assert_eq!(spec.run.keep, 3);
    assert_eq!(spec.data.batch, 128);
    assert_eq!(spec.data.sampler, SamplerSpec::Shuffle);
    assert_eq!(spec.optim.schedule, ScheduleSpec::Cosine);
    assert!(spec.optim.nesterov);
    assert_eq!(spec.policy.failure_timeout_ms, 10_000);
    assert_eq!(spec.policy.min_peers, 2);
    let MethodSpec::Mcl(mcl) = &spec.method else { panic!("{:?}", spec.method) };
    assert_eq!((mcl.alpha, mcl.beta, mcl.gamma, mcl.lam), (0.1, 0.1, 1.0, 1.0));
}

#[test]
fn auto_sampler_follows_the_method() {
    let sampler = |text: &str| RunSpec::parse(text).unwrap().data.sampler;
    let small = GOOD.replace("train_limit", "batch = 20\ntrain_limit");
    assert_eq!(sampler(&small), SamplerSpec::PerClass(2));
    assert_eq!(sampler(&small.replace("\"mcl\"", "\"dml\"")), SamplerSpec::Shuffle);
    assert_eq!(sampler(GOOD), SamplerSpec::Shuffle, "2 of each of 10 classes do not fill a batch of 128");
    assert_eq!(
        sampler(&GOOD.replace("train_limit", "per_class = 16\ntrain_limit")),
        SamplerSpec::PerClass(16)
    );
}

#[test]
fn what_is_said_follows_from_the_method() {
    let said = |text: &str| RunSpec::parse(text).unwrap().contribution_schema().unwrap().to_string();
    assert_eq!(said(GOOD), "[logits F32[128, 10], embed.0 F32[128, 128]]");
    assert_eq!(said(&GOOD.replace("\"mcl\"", "\"mcl\"\nlogit_kd = \"off\"")), "[embed.0 F32[128, 128]]");
    let no_contrast = "\"mcl\"\nalpha = 0\nbeta = 0\ngamma = 0\nlam = 0";
    assert_eq!(said(&GOOD.replace("\"mcl\"", no_contrast)), "[logits F32[128, 10]]");
    assert_eq!(said(&GOOD.replace("\"mcl\"", "\"dml\"")), "[logits F32[128, 10]]");
    assert_eq!(said(&GOOD.replace("\"mcl\"", "\"alone\"")), "[]");
    assert_eq!(said(GOOD.split("[[peer]]\nname = \"b\"").next().unwrap()), "[]");
}

#[test]
fn steps_win_over_epochs() {
    let spec = RunSpec::parse(&GOOD.replace("epochs = 20", "epochs = 20\nsteps = 400")).unwrap();
    assert_eq!(spec.run.length, Length::Steps(400));
}

#[test]
fn json_round_trips_and_the_hash_follows_content() {
    let spec = RunSpec::parse(GOOD).unwrap();
    assert_eq!(RunSpec::from_json(&spec.to_json()).unwrap(), spec);
    assert_eq!(spec.hash(), RunSpec::parse(&format!("# a comment\n{GOOD}")).unwrap().hash());
    assert_ne!(spec.hash(), RunSpec::parse(&GOOD.replace("seed = 7", "seed = 8")).unwrap().hash());
}

#[test]
fn errors_name_the_key_and_the_remedy() {
    let cases = [
        (GOOD.replace("epochs = 20", "epoch = 20"), vec!["[run]", "epochs is missing"]),
        (GOOD.replace("seed = 7", "sed = 7"), vec!["[run]", "unknown key \"sed\"", "\"seed\""]),
        (GOOD.replace("[run]", "[runn]"), vec!["[run]", "missing"]),
        (format!("{GOOD}\n[optm]\nlr = 1"), vec!["unknown key \"optm\"", "\"optim\""]),
        (GOOD.replace("resnet20", "resnet21"), vec!["[[peer]] 1", "resnet21", "resnet20"]),
        (GOOD.replace("\"b\"", "\"a\""), vec!["two peers named \"a\""]),
        (GOOD.replace("\"mcl\"", "\"mlc\""), vec!["[method]", "\"mcl\""]),
        (GOOD.replace("\"mcl\"", "\"dml\"\nalpha = 1.0"), vec!["[method]", "unknown key \"alpha\""]),
        (format!("{GOOD}\n[optim]\nlr = \"fast\""), vec!["[optim]", "lr must be a number", "fast"]),
        (format!("{GOOD}\n[optim]\nlr = nan"), vec!["lr is NaN"]),
        (format!("{GOOD}\n[optim]\nlr = -0.1"), vec!["lr is -0.1", "greater than 0"]),
        (format!("{GOOD}\n[optim]\nschedule = \"multistep\""), vec!["milestones is missing"]),
        (format!("{GOOD}\n[policy]\non_failure = \"continue\""), vec!["on_failure", "not supported"]),
        (format!("{GOOD}\n[policy]\nmin_peers = 3"), vec!["min_peers is 3", "2 peers"]),
        (GOOD.replace("fashion-mnist", "fashion_mnist"), vec!["[data]", "fashion-mnist"]),
        (GOOD.replace("\"a\"", "\"a/../b\""), vec!["not a usable name"]),
        ("run = [".into(), vec!["not valid TOML"]),
        (String::new(), vec!["[run]", "missing"]),
    ];
    for (text, parts) in cases {
        let error = error_of(&text);
        for part in parts {
            assert!(error.contains(part), "{error:?} should contain {part:?}");
        }
    }
}

#[test]
fn relative_paths_are_taken_from_the_folder_of_the_file() {
    let folder = std::env::temp_dir().join(format!("cohort-spec-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("a.safetensors"), b"").unwrap();
    let file = folder.join("run.toml");
    std::fs::write(&file, GOOD.replace("\"resnet20\"", "\"resnet20\"\ninit = \"a.safetensors\"")).unwrap();
    let spec = RunSpec::load(&file).unwrap();
    assert_eq!(spec.peers[0].init, Some(folder.join("a.safetensors")));
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(RunSpec::load(&file).unwrap_err().to_string().contains("cannot read"));
}

proptest::proptest! {
    /// No text makes the reader panic.
    #[test]
    fn any_text_is_answered(text in ".{0,200}") {
        let _ = RunSpec::parse(&text);
    }
}
