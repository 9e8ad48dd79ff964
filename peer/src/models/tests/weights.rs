//! State dicts in and out, in memory and in files.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;

use super::{TINY, network, params, values};
use crate::models::projection::Projection;
use crate::models::state::{Mismatch, encode, load_safetensors, save_safetensors};
use crate::models::{Init, Params, StateDict, StateError, Strictness, build};

fn of_seed(seed: u64, dtype: DType) -> Params {
    let mut params = Params::new(seed, "a", dtype, &Device::Cpu).unwrap();
    build("resnet8", TINY, 5, &mut params).unwrap();
    params
}

fn assert_same(params: &Params, source: &StateDict) {
    for (name, tensor) in &params.state_dict().unwrap() {
        assert_eq!(values(tensor), values(&source[name]), "{name}");
    }
}

fn mismatch(result: Result<crate::models::LoadReport, StateError>) -> Mismatch {
    match result {
        Err(StateError::Mismatch(mismatch)) => mismatch,
        other => panic!("expected a mismatch, got {other:?}"),
    }
}

fn renamed(source: StateDict, rename: impl Fn(&str) -> String) -> StateDict {
    source.into_iter().map(|(name, tensor)| (rename(&name), tensor)).collect()
}

#[test]
fn a_file_gives_back_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let (from, to) = (of_seed(1, DType::F32), of_seed(2, DType::F32));
    save_safetensors(&path, &from.state_dict().unwrap()).unwrap();
    let source = load_safetensors(&path).unwrap();
    let report = to.load(&source, Strictness::Strict).unwrap();
    assert_eq!(report.loaded, source.len());
    assert_same(&to, &from.state_dict().unwrap());
    assert_eq!(source["bn1.num_batches_tracked"].dtype(), DType::I64);
    assert_eq!(source["bn1.num_batches_tracked"].dims(), [0usize; 0]);
    let header = String::from_utf8_lossy(&std::fs::read(&path).unwrap()[8..60]).into_owned();
    assert!(header.contains(r#""format":"pt""#), "{header}");
}

#[test]
fn bytes_depend_on_the_tensors_alone() {
    let encoded = |seed| encode(&of_seed(seed, DType::F32).state_dict().unwrap()).unwrap();
    assert_eq!(encoded(1), encoded(1));
    assert_ne!(encoded(1), encoded(2));
}

#[test]
fn a_state_dict_is_a_copy() {
    let params = of_seed(1, DType::F32);
    let copy = params.state_dict().unwrap();
    let before = values(&copy["fc.bias"]);
    params.trainable()["fc.bias"].set(&Tensor::zeros(5, DType::F32, &Device::Cpu).unwrap()).unwrap();
    assert_eq!(values(&copy["fc.bias"]), before);
}

#[test]
fn element_types_are_converted() {
    let (single, double) = (of_seed(1, DType::F32), of_seed(2, DType::F64));
    double.load(&single.state_dict().unwrap(), Strictness::Strict).unwrap();
    assert_same(&double, &single.state_dict().unwrap());
    single.load(&double.state_dict().unwrap(), Strictness::Strict).unwrap();
    assert_same(&single, &double.state_dict().unwrap());
}

#[test]
fn other_spellings_are_understood() {
    let (from, to) = (of_seed(1, DType::F32), of_seed(2, DType::F32));
    let state = from.state_dict().unwrap();
    let parallel = renamed(state.clone(), |name| format!("module.{name}"));
    to.load(&parallel, Strictness::Strict).unwrap();
    assert_same(&to, &state);
    let to = of_seed(3, DType::F32);
    to.load(&renamed(parallel, |name| name.replace("fc.", "classifier.")), Strictness::Strict).unwrap();
    assert_same(&to, &state);
}

#[test]
fn counters_may_be_missing() {
    let (from, to) = (of_seed(1, DType::F32), of_seed(2, DType::F32));
    let mut source = from.state_dict().unwrap();
    source.retain(|name, _| !name.ends_with("num_batches_tracked"));
    let report = to.load(&source, Strictness::Strict).unwrap();
    assert_eq!(report.kept.len(), 9);
    assert_eq!(report.loaded, source.len());
}

#[test]
fn every_misfit_is_named_and_nothing_is_replaced() {
    let (from, to) = (of_seed(1, DType::F32), of_seed(2, DType::F32));
    let before = to.state_dict().unwrap();
    let mut source = from.state_dict().unwrap();
    source.remove("conv1.weight");
    source.insert("head.weight".into(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap());
    source.insert("fc.bias".into(), Tensor::zeros(6, DType::F32, &Device::Cpu).unwrap());
    source.insert("bn1.bias".into(), Tensor::zeros(16, DType::I64, &Device::Cpu).unwrap());
    let nan = Tensor::new(&[f32::NAN; 16], &Device::Cpu).unwrap();
    source.insert("bn1.weight".into(), nan);
    let found = mismatch(to.load(&source, Strictness::Strict));
    let expected = Mismatch {
        missing: vec!["conv1.weight".into()],
        unexpected: vec!["head.weight".into()],
        wrong_shape: vec![("fc.bias".into(), vec![5], vec![6])],
        wrong_type: vec!["bn1.bias".into()],
        not_finite: vec!["bn1.weight".into()],
    };
    assert_eq!(found, expected);
    let words = found.to_string();
    assert!(words.contains("fc.bias is [6] instead of [5]") && words.contains("head.weight"), "{words}");
    assert_same(&to, &before);
}

#[test]
fn a_long_list_of_names_is_cut() {
    let words = mismatch(of_seed(1, DType::F32).load(&StateDict::new(), Strictness::Strict)).to_string();
    assert!(words.starts_with("missing: bn1.bias, ") && words.contains(" more"), "{words}");
    assert!(words.len() < 400, "{words}");
}

#[test]
fn a_complete_source_may_have_more_heads_but_not_fewer() {
    let plain = of_seed(1, DType::F32);
    let mut with_head = of_seed(2, DType::F32);
    Projection::new(with_head.scope("embed.0"), 64, 8).unwrap();
    let complete = Strictness::Complete { prefixes: &["embed."] };
    let report = plain.load(&with_head.state_dict().unwrap(), complete).unwrap();
    assert_eq!((report.ignored.len(), report.kept.len()), (4, 0));
    let found = mismatch(with_head.load(&plain.state_dict().unwrap(), complete));
    assert_eq!(found.missing.len(), 4, "{found}");
    let mut other = plain.state_dict().unwrap();
    other.insert("surplus".into(), Tensor::zeros(9, DType::F32, &Device::Cpu).unwrap());
    assert_eq!(mismatch(plain.load(&other, complete)).unexpected, ["surplus"]);
}

#[test]
fn heads_may_be_missing_on_either_side() {
    let plain = of_seed(1, DType::F32);
    let mut with_head = of_seed(2, DType::F32);
    Projection::new(with_head.scope("embed.0"), 64, 8).unwrap();
    let lenient = Strictness::Lenient { prefixes: &["embed."] };
    let head_before = values(&with_head.trainable()["embed.0.2.bias"]);

    assert_eq!(mismatch(with_head.load(&plain.state_dict().unwrap(), Strictness::Strict)).missing.len(), 4);
    let report = with_head.load(&plain.state_dict().unwrap(), lenient).unwrap();
    assert_eq!(report.kept.len(), 4);
    assert_eq!(values(&with_head.trainable()["embed.0.2.bias"]), head_before);
    assert_eq!(values(&with_head.trainable()["fc.bias"]), values(&plain.trainable()["fc.bias"]));

    let source = with_head.state_dict().unwrap();
    assert_eq!(mismatch(plain.load(&source, Strictness::Strict)).unexpected.len(), 4);
    assert_eq!(plain.load(&source, lenient).unwrap().ignored.len(), 4);
    // A prefix does not excuse what lies outside it, nor a wrong shape inside it.
    let mut wrong = source.clone();
    wrong.remove("conv1.weight");
    wrong.insert("embed.0.0.bias".into(), Tensor::zeros(9, DType::F32, &Device::Cpu).unwrap());
    let found = mismatch(with_head.load(&wrong, lenient));
    assert_eq!((found.missing.len(), found.wrong_shape.len()), (1, 1));
}

#[test]
fn unusable_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gone.safetensors");
    let gone = load_safetensors(&path).unwrap_err();
    assert!(
        matches!(&gone, StateError::File { .. }) && gone.to_string().contains("gone.safetensors"),
        "{gone}"
    );
    let unwritable = save_safetensors(&folder.path().join("no/such/folder"), &StateDict::new()).unwrap_err();
    assert!(unwritable.to_string().contains("no/such/folder"), "{unwritable}");
    for bytes in [b"".as_slice(), b"not weights", &huge_shape(), &odd_type()] {
        std::fs::write(&path, bytes).unwrap();
        let damaged = load_safetensors(&path).unwrap_err();
        assert!(matches!(&damaged, StateError::Damaged { .. }), "{damaged}");
        assert!(damaged.to_string().contains("gone.safetensors"), "{damaged}");
    }
}

/// A file whose one tensor has no elements and sides whose product no integer holds.
fn huge_shape() -> Vec<u8> {
    let side = 1u64 << 40;
    file_of(&format!(r#"{{"w":{{"dtype":"F32","shape":[0,{side},{side}],"data_offsets":[0,0]}}}}"#), &[])
}

/// A file with an element type of four bits.
fn odd_type() -> Vec<u8> {
    file_of(r#"{"w":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}"#, &[7])
}

fn file_of(header: &str, data: &[u8]) -> Vec<u8> {
    [(header.len() as u64).to_le_bytes().as_slice(), header.as_bytes(), data].concat()
}

#[test]
fn half_precision_weights_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("half.safetensors");
    // 1.0 and -2.0 as float16 and as bfloat16.
    for (dtype, data) in [("F16", [0x00, 0x3c, 0x00, 0xc0]), ("BF16", [0x80, 0x3f, 0x00, 0xc0])] {
        let header = format!(r#"{{"w":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,4]}}}}"#);
        std::fs::write(&path, file_of(&header, &data)).unwrap();
        let mut params = params(DType::F32);
        let w = params.root().trainable("w", &[2], Init::Zeros).unwrap();
        params.load(&load_safetensors(&path).unwrap(), Strictness::Strict).unwrap();
        assert_eq!(values(&w), [1.0, -2.0], "{dtype}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the damage, the answer is tensors or an error.
    #[test]
    fn damaged_files_never_panic(cut in 0usize..1200, flips in prop::collection::vec((0usize..1200, 0u8..8), 0..4)) {
        let mut params = params(DType::F32);
        Projection::new(params.scope("embed.0"), 4, 6).unwrap();
        let mut bytes = encode(&params.state_dict().unwrap()).unwrap();
        bytes.truncate(cut);
        for (place, bit) in flips {
            if let Some(byte) = bytes.get_mut(place) {
                *byte ^= 1 << bit;
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(source) = load_safetensors(Path::new(&path)) {
            let _ = params.load(&source, Strictness::Strict);
        }
    }
}

#[test]
fn the_wrong_network_is_refused() {
    let (residual, _) = network("resnet8", TINY, 5, DType::F32);
    let (wide, _) = network("wrn_10_1", TINY, 5, DType::F32);
    let found = mismatch(wide.load(&residual.state_dict().unwrap(), Strictness::Strict));
    assert!(found.missing.iter().any(|name| name == "block1.layer.0.bn1.weight"));
    assert!(found.unexpected.iter().any(|name| name == "layer1.0.bn1.weight"));
}
