//! Auxiliary classifiers: names of the published code, shapes, gradients, published state dicts.

use std::collections::BTreeMap;

use candle_core::DType;
use cohort_proto::spec::{ARCHITECTURES, last_map_of, stages_of};

use super::{TINY, images, network, params, values};
use crate::models::{ImageShape, Params, Pass, StateDict, Strictness, build, known};

/// Networks of 2, 3 and 4 stages, and their stages' channels.
const STAGES: [(&str, &[usize]); 4] = [
    ("resnet6", &[16, 32]),
    ("resnet8", &[16, 32, 64]),
    ("wrn_10_1", &[16, 32, 64]),
    ("resnet10", &[64, 128, 256, 512]),
];

/// Names and shapes under `auxiliary_classifier.` as the script made them with PyTorch.
fn published(arch: &str) -> BTreeMap<String, String> {
    let lines = include_str!("../testdata/auxiliary_names.txt").lines();
    let words = lines.map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>());
    words.filter(|words| words[0] == arch).map(|words| (words[1].clone(), words[2].clone())).collect()
}

fn with_auxiliary(arch: &str, image: ImageShape, classes: usize, seed: u64) -> Params {
    let mut params = Params::new(seed, "a", DType::F32, &candle_core::Device::Cpu).unwrap();
    let network = build(arch, image, classes, &mut params).unwrap();
    network.auxiliary_classifier(params.scope("auxiliary_classifier")).unwrap();
    params
}

#[test]
fn names_are_those_of_the_published_code() {
    let colour = ImageShape { channels: 3, height: 32, width: 32 };
    for arch in ["resnet6", "resnet14", "resnet10", "wrn_16_2"] {
        let state = with_auxiliary(arch, colour, 10, 7).state_dict().unwrap();
        let added = state.iter().filter(|(name, _)| name.starts_with("auxiliary_classifier."));
        let found: BTreeMap<String, String> = added
            .map(|(name, tensor)| {
                let sides: Vec<String> = tensor.dims().iter().map(usize::to_string).collect();
                let shape = if sides.is_empty() { "scalar".to_owned() } else { sides.join("x") };
                (name.clone(), shape)
            })
            .collect();
        assert!(found.len() >= 20, "{arch}");
        assert_eq!(found, published(arch), "{arch}");
    }
    let wide = published("wrn_16_2");
    for name in ["block_extractor1.1.layer.0.convShortcut.weight", "bn2.running_var", "fc1.bias"] {
        assert!(wide.contains_key(&format!("auxiliary_classifier.{name}")), "{name}");
    }
    assert!(
        published("resnet14").contains_key("auxiliary_classifier.block_extractor2.0.0.downsample.1.weight")
    );
}

/// Coordinator and peers derive what is said from the run file alone.
#[test]
fn run_files_know_every_network_and_its_stages() {
    assert_eq!(ARCHITECTURES.as_slice(), known());
    for arch in known() {
        let (_, network) = network(arch, TINY, 5, DType::F32);
        assert_eq!(stages_of(arch), network.stage_widths().len(), "{arch}");
        assert_eq!(Some(&last_map_of(arch, 28).0), network.stage_widths().last(), "{arch}");
    }
}

#[test]
fn every_stage_but_the_last_has_a_branch() {
    for (arch, widths) in STAGES {
        let (mut params, network) = network(arch, TINY, 5, DType::F32);
        let auxiliary = network.auxiliary_classifier(params.scope("auxiliary_classifier")).unwrap();
        assert_eq!(network.stage_widths(), widths, "{arch}");
        let mut pass = Pass::train();
        let output = network.forward(&images(TINY, 4, DType::F32), &mut pass).unwrap();
        let branches = auxiliary.forward(&output.stages, &mut pass).unwrap();
        assert_eq!(branches.len(), widths.len() - 1, "{arch}");
        let mut loss = output.logits.exp().unwrap().mean_all().unwrap();
        for branch in &branches {
            assert_eq!(branch.feature.dims(), [4, network.feature_width()], "{arch}");
            assert_eq!(branch.logits.dims(), [4, 5], "{arch}");
            loss = (loss + branch.logits.exp().unwrap().mean_all().unwrap()).unwrap();
        }
        let gradients = params.gradients(&loss.backward().unwrap());
        for name in params.trainable().keys() {
            let gradient = gradients.get(name).unwrap_or_else(|| panic!("{arch}: none for {name}"));
            // A map of one pixel has gradients that cancel in batch norm up to rounding, not beyond.
            assert!(values(gradient).iter().any(|value| *value != 0.0), "{arch}: {name} is 0");
        }
        let short = auxiliary.forward(&output.stages[1..], &mut pass).unwrap_err();
        assert!(short.to_string().contains("branches"), "{short}");
    }
}

#[test]
fn classifiers_of_branches_start_as_published() {
    let params = with_auxiliary("resnet8", TINY, 5, 7);
    let start = |name: &str| values(&params.trainable()[&format!("auxiliary_classifier.{name}")]);
    assert!(start("fc1.bias").iter().all(|value| *value == 0.0));
    assert!(start("fc1.weight").iter().any(|value| *value != 0.0));
    assert_ne!(start("block_extractor1.1.0.conv1.weight"), start("block_extractor2.0.0.conv1.weight"));
}

/// The published code saves the network as `backbone` beside its classifiers, in a list of networks.
#[test]
fn published_state_dicts_load() {
    let state = with_auxiliary("resnet8", TINY, 5, 1).state_dict().unwrap();
    let published = |wrapper: &str| -> StateDict {
        let rename = |name: &String| match name.starts_with("auxiliary_classifier.") {
            true => format!("{wrapper}{name}"),
            false => format!("{wrapper}backbone.{name}"),
        };
        state.iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect()
    };
    for wrapper in ["", "module_list.0.", "module.module_list.0."] {
        let to = with_auxiliary("resnet8", TINY, 5, 2);
        to.load(&published(wrapper), Strictness::Strict).unwrap();
        for (name, tensor) in &to.state_dict().unwrap() {
            assert_eq!(values(tensor), values(&state[name]), "{wrapper}{name}");
        }
        // A network without branches takes its own part.
        let mut bare = params(DType::F32);
        build("resnet8", TINY, 5, &mut bare).unwrap();
        let lenient = Strictness::Lenient { prefixes: &["auxiliary_classifier."] };
        assert!(!bare.load(&published(wrapper), lenient).unwrap().ignored.is_empty());
    }
}

/// Sides that are not halved evenly are rounded up.
#[test]
fn last_maps_are_as_large_as_the_run_spec_says() {
    for arch in ["resnet6", "resnet8", "resnet8x4", "resnet10", "wrn_10_1", "wrn_16_2"] {
        for side in [10, 28] {
            let image = ImageShape { channels: 1, height: side, width: side };
            let (_, network) = network(arch, image, 5, DType::F32);
            let output = network.forward(&images(image, 1, DType::F32), &mut Pass::eval()).unwrap();
            let (channels, side) = last_map_of(arch, side);
            assert_eq!(output.stages.last().unwrap().dims(), [1, channels, side, side], "{arch}");
        }
    }
}
