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
    let said = |text: &str| RunSpec::parse(text).unwrap().contribution_schema(0).unwrap().to_string();
    assert_eq!(said(GOOD), "[logits F32[128, 10], embed.0 F32[128, 128]]");
    assert_eq!(said(&GOOD.replace("\"mcl\"", "\"mcl\"\nlogit_kd = \"off\"")), "[embed.0 F32[128, 128]]");
    let no_contrast = "\"mcl\"\nalpha = 0\nbeta = 0\ngamma = 0\nlam = 0";
    assert_eq!(said(&GOOD.replace("\"mcl\"", no_contrast)), "[logits F32[128, 10]]");
    assert_eq!(said(&GOOD.replace("\"mcl\"", "\"dml\"")), "[logits F32[128, 10]]");
    assert_eq!(said(&GOOD.replace("\"mcl\"", "\"alone\"")), "[]");
    assert_eq!(said(GOOD.split("[[peer]]\nname = \"b\"").next().unwrap()), "[]");
}

fn mcl(extra: &str) -> String {
    GOOD.replace("\"mcl\"", &format!("\"mcl\"\n{extra}"))
}

#[test]
fn banks_have_the_defaults_of_their_authors_and_leave_other_specs_as_they_were() {
    let spec = RunSpec::parse(&mcl("bank = true")).unwrap();
    let (bank, width) = spec.banks().unwrap();
    assert_eq!((bank.positives, bank.negatives, bank.momentum, bank.bug, width), (1, 8192, 0.5, false, 128));
    assert_eq!(RunSpec::from_json(&spec.to_json()).unwrap(), spec);
    assert_eq!(spec.bank_bytes(1000), 2 * 1000 * 128 * 4);
    assert!(!spec.method.contrasts_in_batches() && spec.method.contrasts());
    let layerwise = RunSpec::parse(&l_mcl("matching = \"uniform\"\nbank = true\nbank_bug = true")).unwrap();
    assert!(layerwise.banks().unwrap().0.bug);
    let learned = RunSpec::parse(&l_mcl("bank = true")).unwrap();
    let MethodSpec::LMcl(l_mcl) = &learned.method else { panic!("{:?}", learned.method) };
    assert!(l_mcl.learns_matching() && l_mcl.meta.freq == 50, "the authors' form for ImageNet");
    let without = RunSpec::parse(&mcl("bank = false")).unwrap();
    assert_eq!(without.banks(), None);
    assert!(!without.to_json().contains("bank"), "the hash of a run without banks stays");
}

#[test]
fn labels_that_banks_cannot_draw_from_are_refused() {
    let error = |extra: &str, labels: &[u8]| {
        let spec = RunSpec::parse(&mcl(&format!("bank = true\n{extra}"))).unwrap();
        spec.check_banks(labels).map_err(|error| error.to_string())
    };
    assert_eq!(error("bank_positives = 2", &[0, 0, 3, 3]), Ok(()));
    assert!(error("", &[4; 9]).unwrap_err().contains("all training samples have one class"));
    let few = error("bank_positives = 3", &[0, 0, 0, 3, 3]).unwrap_err();
    assert!(few.contains("bank_positives is 3") && few.contains("class 3 has only 2"), "{few}");
    let held_out = RunSpec::parse(&GOOD.replace("[data]", "[data]\nvalidation = 5")).unwrap();
    assert_eq!(held_out.trained_on(&[1, 2, 3, 4, 5, 6]).unwrap(), [1]);
    let none = held_out.trained_on(&[1; 5]).unwrap_err().to_string();
    assert!(none.contains("validation is 5") && none.contains("only 5 training images"), "{none}");
    let labels: Vec<u8> = (0..20_000).map(|x| (x % 2) as u8).collect();
    let large = error("feat_dim = 65536", &labels).unwrap_err();
    assert!(large.contains("10000 MB at every peer, more than 4096 MB"), "{large}");
}

const TAUGHT: &str = "role = \"teacher\"\ninit = \"t.safetensors\"";

/// The second peer with more lines.
fn teacher(extra: &str) -> String {
    GOOD.replace("\"wrn_16_2\"", &format!("\"wrn_16_2\"\n{extra}"))
}

#[test]
fn a_teacher_says_what_a_student_would() {
    let spec = RunSpec::parse(&teacher(TAUGHT)).unwrap();
    assert_eq!([spec.peers[0].role, spec.peers[1].role], [Role::Student, Role::Teacher]);
    let students = RunSpec::parse(GOOD).unwrap();
    assert_eq!(spec.contribution_schema(1).unwrap(), students.contribution_schema(1).unwrap());
    assert_ne!(spec.hash(), students.hash());
    assert_eq!(RunSpec::from_json(&spec.to_json()).unwrap(), spec);
}

#[test]
fn classes_have_groups_if_they_are_given() {
    let with = |groups: &str| GOOD.replace("train_limit", &format!("groups = {groups}\ntrain_limit"));
    let spec = RunSpec::parse(&with("[0, 3, 0, 0, 0, 1, 0, 1, 2, 1]")).unwrap();
    assert_eq!(spec.data.groups, [0, 3, 0, 0, 0, 1, 0, 1, 2, 1]);
    assert_eq!(RunSpec::from_json(&spec.to_json()).unwrap(), spec);
    assert!(!RunSpec::parse(GOOD).unwrap().to_json().contains("groups"), "the hash of a run without stays");
    assert!(error_of(&with("[0, 1]")).contains("groups has a group for 2 classes, but fashion-mnist has 10"));
    assert!(error_of(&with("[0, 1, 0.5]")).contains("groups must be whole numbers"));
}

#[test]
fn a_teacher_may_keep_what_it_says_of_images_that_stay_the_same() {
    let plain = |text: String| text.replace("train_limit", "augment = \"none\"\ntrain_limit");
    let cached = format!("{TAUGHT}\ncache = true");
    let spec = RunSpec::parse(&plain(teacher(&cached))).unwrap();
    assert_eq!([spec.peers[0].cache, spec.peers[1].cache], [false, true]);
    assert_eq!(RunSpec::from_json(&spec.to_json()).unwrap(), spec);
    let without = RunSpec::parse(&teacher(TAUGHT)).unwrap().to_json();
    assert!(!without.contains("cache"), "the hash of a run without a cache stays");
    assert_eq!(spec.sample_bytes(1).unwrap(), (10 + 128) * 4);
    assert_eq!((spec.check_cache(1, 1_300_000), spec.check_cache(0, usize::MAX)), (Ok(()), Ok(())));
    let large = spec.check_cache(1, 10_000_000).unwrap_err().to_string();
    assert!(large.contains("10000000 samples, 552 bytes each, takes 5264 MB, more than 4096 MB"), "{large}");
    let student = error_of(&plain(teacher("cache = true")));
    assert!(student.contains("[[peer]] b") && student.contains("a student says something else"), "{student}");
    let augmented = error_of(&teacher(&cached));
    assert!(augmented.contains("augmented images are never the same again"), "{augmented}");
}

fn l_mcl(extra: &str) -> String {
    GOOD.replace("\"mcl\"", &format!("\"l-mcl\"\n{extra}"))
}

#[test]
fn l_mcl_has_the_defaults_of_its_authors_and_those_of_the_optimiser() {
    let spec = RunSpec::parse(&format!("{}\n[optim]\nlr = 0.05\nweight_decay = 1e-4", l_mcl(""))).unwrap();
    let MethodSpec::LMcl(l_mcl) = &spec.method else { panic!("{:?}", spec.method) };
    assert_eq!((l_mcl.alpha, l_mcl.beta, l_mcl.gamma, l_mcl.lam), (0.1, 0.1, 1.0, 1.0));
    assert_eq!((l_mcl.tau, l_mcl.kd_t, l_mcl.feat_dim), (0.1, 3.0, 128));
    assert_eq!((l_mcl.kd, l_mcl.double, l_mcl.matching), (true, true, MatchingSpec::Learned));
    let meta = spec.meta().unwrap();
    assert_eq!((meta.freq, meta.times, meta.precision), (50, 2, MetaPrecision::F64));
    assert_eq!((meta.compat_a1, meta.bn), (false, MetaBatchNorm::Official));
    assert_eq!((meta.lr, meta.momentum, meta.weight_decay), (0.05, 0.9, 1e-4));
    assert_eq!(RunSpec::from_json(&spec.to_json()).unwrap(), spec);
}

#[test]
fn a_peer_of_l_mcl_says_as_much_as_it_has_stages() {
    let said = |index: usize, extra: &str| {
        let mut spec = RunSpec::parse(&l_mcl(extra)).unwrap();
        spec.peers[1].arch = "resnet18".into();
        spec.contribution_schema(index).unwrap().to_string()
    };
    let expected = "[aggregated F32[128, 10], embed.0 F32[128, 128], embed.1 F32[128, 128], embed.2 F32[128, 128], \
                    match.0 F32[128, 128], match.1 F32[128, 128], match.2 F32[128, 128]]";
    assert_eq!(said(0, ""), expected);
    let four = said(1, "kd = false\nmatching = \"uniform\"\nfeat_dim = 64");
    let stages = [0, 1, 2, 3].map(|k| format!("embed.{k} F32[128, 64]"));
    assert_eq!(four, format!("[{}]", stages.join(", ")));
    assert_eq!(said(0, "alpha = 0\nbeta = 0\ngamma = 0\nlam = 0"), "[aggregated F32[128, 10]]");
    let spec = RunSpec::parse(GOOD).unwrap();
    assert_eq!(spec.contribution_schema(2), Err(crate::schema::SchemaError::NoPeer(2)));
}

#[test]
fn there_is_no_meta_update_without_something_to_learn() {
    let meta = |extra: &str| RunSpec::parse(&l_mcl(extra)).unwrap().meta().map(|meta| meta.freq);
    assert_eq!(meta("meta_freq = 7"), Some(7));
    assert_eq!(meta("meta_freq = 0"), None);
    assert_eq!(meta("matching = \"one-to-one\""), None);
    let lone = l_mcl("").split("[[peer]]\nname = \"b\"").next().unwrap().to_owned();
    assert!(RunSpec::parse(&lone).unwrap().meta().is_none());
}

#[test]
fn meta_updates_count_among_what_is_contributed() {
    let bytes = |extra: &str, steps: u64| {
        let spec = RunSpec::parse(&l_mcl(extra)).unwrap();
        spec.contributed_bytes(&spec.contribution_schema(0).unwrap(), steps).unwrap()
    };
    let step = 128 * 10 * 4 + 6 * 128 * 128 * 4;
    assert_eq!(bytes("meta_freq = 0", 10), 10 * step);
    // 78 steps an epoch: one update in each 10 steps, and two epochs begun.
    let update = 6 * (6 * 128 * 128 * 4) + 3 * 32;
    assert_eq!(bytes("meta_freq = 10\nmeta_precision = \"f32\"", 20), 20 * step + 4 * update);
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
        (teacher("role = \"teacher\""), vec!["[[peer]] 2: init is missing", "a teacher never learns"]),
        (teacher("role = \"techer\""), vec!["[[peer]] 2", "techer", "did you mean \"teacher\""]),
        (
            teacher(TAUGHT).replace("\"resnet20\"", &format!("\"resnet20\"\n{TAUGHT}")),
            vec!["[[peer]] has teachers only", "somebody must learn"],
        ),
        (GOOD.replace("\"b\"", "\"a\""), vec!["two peers named \"a\""]),
        (GOOD.replace("\"mcl\"", "\"mcll\""), vec!["[method]", "\"mcl\""]),
        (GOOD.replace("\"mcl\"", "\"dml\"\nalpha = 1.0"), vec!["[method]", "unknown key \"alpha\""]),
        (l_mcl("meta_times = 0"), vec!["meta_times is 0", "1 to 16"]),
        (l_mcl("meta_freq = 5\nmatching = \"uniform\""), vec!["meta_freq needs matching = \"learned\""]),
        (l_mcl("meta_precision = \"f16\""), vec!["meta_precision", "f16", "f32, f64"]),
        (l_mcl("meta_lr = 0"), vec!["meta_lr is 0", "greater than 0"]),
        (l_mcl("matching = \"one_to_one\""), vec!["did you mean \"one-to-one\""]),
        (mcl("bank_negatives = 5"), vec!["bank_negatives needs bank = true"]),
        (mcl("bank = true\nbank_momentum = 1"), vec!["bank_momentum is 1", "less than 1"]),
        (mcl("bank = true\nbank_positives = 0"), vec!["bank_positives is 0", "1 to"]),
        (mcl("bank = true\nbank_bug = true"), vec!["unknown key \"bank_bug\""]),
        (
            mcl("bank = true\nalpha = 0\nbeta = 0\ngamma = 0\nlam = 0"),
            vec!["nothing to contrast with memory"],
        ),
        (l_mcl("logit_kd = \"all\""), vec!["unknown key \"logit_kd\""]),
        (format!("{GOOD}\n[optim]\nlr = \"fast\""), vec!["[optim]", "lr must be a number", "fast"]),
        (format!("{GOOD}\n[optim]\nlr = nan"), vec!["lr is NaN"]),
        (format!("{GOOD}\n[optim]\nlr = -0.1"), vec!["lr is -0.1", "greater than 0"]),
        (format!("{GOOD}\n[optim]\nschedule = \"multistep\""), vec!["milestones is missing"]),
        (format!("{GOOD}\n[policy]\non_failure = \"go on\""), vec!["on_failure", "go on", "continue"]),
        (
            format!(
                "{}\n[policy]\non_failure = \"continue\"",
                GOOD.replace("\"mcl\"", "\"mcl\"\nbank = true")
            ),
            vec!["on_failure", "memory banks", "bank = false"],
        ),
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

/// Every number of L-MCL that nothing can be trained with, and what is said of it.
#[test]
fn numbers_that_l_mcl_cannot_have_are_refused_with_their_range() {
    let weights = ["alpha", "beta", "gamma", "lam", "meta_weight_decay"].map(|key| (key, "0 or greater"));
    let temperatures = ["tau", "kd_t", "meta_lr"].map(|key| (key, "greater than 0"));
    for (key, range) in weights.into_iter().chain(temperatures).chain([("meta_momentum", "less than 1")]) {
        for value in ["-0.1", "nan", "inf", "-inf"] {
            let error = error_of(&l_mcl(&format!("{key} = {value}")));
            assert!(error.starts_with(&format!("[method]: {key} is ")) && error.contains(range), "{error}");
        }
        assert!(
            error_of(&l_mcl(&format!("{key} = true"))).contains("must be a number, not boolean"),
            "{key}"
        );
    }
    let cases = [
        ("tau = 0", "tau is 0; it must be greater than 0"),
        ("kd_t = 0.0", "kd_t is 0; it must be greater than 0"),
        ("feat_dim = 0", "feat_dim is 0; it must be 1 to 65536"),
        ("feat_dim = 1.5", "feat_dim must be a whole number, not float"),
        ("meta_times = 17", "meta_times is 17; it must be 1 to 16"),
        ("meta_times = -1", "meta_times is -1; it must be 1 to 16"),
        ("meta_freq = -1", "meta_freq is -1; it must be 0 to"),
        ("meta_momentum = 1", "meta_momentum is 1; it must be 0 or greater, and less than 1"),
        ("matching = \"best\"", "(known: learned, uniform, one-to-one)"),
        ("meta_bn = \"batch\"", "(known: official, none)"),
        ("bank_positives = 2", "bank_positives needs bank = true"),
        ("matching = \"uniform\"\nbank = true\nbank_negatives = 0", "bank_negatives is 0; it must be 1 to"),
    ];
    for (line, words) in cases {
        let error = error_of(&l_mcl(line));
        assert!(error.starts_with("[method]: ") && error.contains(words), "{line}: {error}");
    }
    let taught = teacher(TAUGHT).replace("\"mcl\"", "\"mcl\"\nbank = true");
    assert!(error_of(&taught).contains("bank is true, but a teacher keeps no memory"));
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
