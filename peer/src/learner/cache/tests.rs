//! The cache by itself, and what it stands on: that a frozen network makes the same bits of an image at any place of a batch
//! and in any company.

use std::collections::BTreeMap;

use candle_core::Var;

use super::*;
use crate::learner::{Additions, Model};
use crate::methods::terms::kd_fn::KdFnParams;
use crate::models::{ImageShape, Params, Pass};

const SAMPLES: usize = 9;

fn spec(more: &str) -> RunSpec {
    let text = format!(
        "[run]\nsteps = 4\n[data]\ndataset = \"fashion-mnist\"\nbatch = 3\naugment = \"none\"\n[method]\nname = \"mcl\"\n\
         feat_dim = 2\n[[peer]]\nname = \"s\"\narch = \"resnet8\"\n[[peer]]\nname = \"t\"\narch = \"resnet8\"\n\
         role = \"teacher\"\ninit = \"t.safetensors\"\n{more}"
    );
    RunSpec::parse(&text).unwrap()
}

fn cache() -> Cache {
    Cache::new(&spec("cache = true"), 1, SAMPLES).unwrap().unwrap()
}

/// What is said of samples: a number for each that depends on the sample and the column.
fn said(indices: &[u32]) -> Vec<contribution::Tensor> {
    let tensor = |name: &str, width: usize| {
        let number = |index: u32, column: usize| (index as f32 + 0.1) * (column as f32 - 0.7);
        let cells = indices.iter().flat_map(|index| (0..width).map(move |column| number(*index, column)));
        let spec = TensorSpec { name: name.to_owned(), dtype: DType::F32, shape: vec![indices.len(), width] };
        contribution::Tensor { spec, data: cells.flat_map(f32::to_le_bytes).collect::<Vec<_>>().into() }
    };
    vec![tensor("logits", 10), tensor("embed.0", 2)]
}

#[test]
fn says_what_was_said_once_all_are_known() {
    assert_eq!(Cache::new(&spec(""), 1, SAMPLES).unwrap(), None);
    let mut cache = cache();
    assert_eq!(cache.recall(&[0]), None);
    cache.keep(&[4, 0, 7], &said(&[4, 0, 7])).unwrap();
    assert_eq!(cache.recall(&[0, 1, 7]), None);
    cache.keep(&[1, 7, 1], &said(&[1, 7, 1])).unwrap();
    for batch in [[0, 1, 7], [7, 4, 1], [4, 4, 0]] {
        assert_eq!(cache.recall(&batch).unwrap(), said(&batch));
    }
    assert_eq!(cache.recall(&[0, 1, 99]), None);
    assert_eq!(cache.recall(&[0, 1]), None, "batches of one size only");
}

/// Maps have more dimensions than a row.
#[test]
fn tensors_come_back_in_their_shape() {
    let spec = spec("cache = true\n[[edge]]\nfrom = \"t\"\nto = \"s\"\nterm = \"afd\"\nchannels = 4");
    let mut cache = Cache::new(&spec, 1, SAMPLES).unwrap().unwrap();
    let said = spec.contribution_schema(1).unwrap().tensors().to_vec().into_iter().map(|spec| {
        let data = (0..spec.shape.iter().product::<usize>() * NUMBER).map(|at| (at % 64) as u8);
        contribution::Tensor { data: data.collect::<Vec<_>>().into(), spec }
    });
    let said: Vec<_> = said.collect();
    assert!(said.iter().any(|tensor| tensor.spec.shape == [3, 4, 7, 7]));
    cache.keep(&[4, 0, 7], &said).unwrap();
    assert_eq!(cache.recall(&[4, 0, 7]).unwrap(), said);
}

#[test]
fn comes_back_from_a_checkpoint_bit_by_bit() {
    let mut kept = cache();
    kept.keep(&[4, 0, 7], &said(&[4, 0, 7])).unwrap();
    let state = kept.state_dict().unwrap();
    let mut back = cache();
    back.load(&state).unwrap();
    assert_eq!(back, kept);
    for name in state.keys() {
        let mut less = state.clone();
        less.remove(name);
        assert!(back.load(&less).unwrap_err().to_string().contains(name.as_str()), "{name}");
    }
    let mut other = Cache::new(&spec("cache = true"), 1, SAMPLES + 1).unwrap().unwrap();
    assert!(other.load(&state).is_err());
    assert_eq!(back, kept, "what was refused has changed nothing");
}

#[test]
fn keeps_nothing_else() {
    let mut cache = cache();
    let fresh = cache.clone();
    assert!(cache.keep(&[0, 1], &said(&[0, 1])).is_err());
    assert!(cache.keep(&[0, 1, 2], &said(&[0, 1, 2])[..1]).is_err());
    assert!(cache.keep(&[0, 1, 2], &said(&[0, 1])).is_err());
    assert!(cache.keep(&[0, 1, 9], &said(&[0, 1, 9])).is_err());
    let mut swapped = said(&[0, 1, 2]);
    swapped.reverse();
    assert!(cache.keep(&[0, 1, 2], &swapped).is_err());
    assert_eq!(cache, fresh);
}

/// Rows `[B]` of everything that a model can say of some images, in bits.
fn rows(model: &Model, images: &Tensor, order: &[u32]) -> Vec<Vec<u32>> {
    let picked = Tensor::new(order, &Device::Cpu).unwrap();
    let outputs = model.forward(&images.index_select(&picked, 0).unwrap(), &mut Pass::eval()).unwrap();
    let said = [&outputs.logits].into_iter().chain(&outputs.fn_logits).chain(&outputs.aggregated);
    let said: Vec<&Tensor> = said.chain(&outputs.embeddings).chain(&outputs.matching).collect();
    let row = |n: usize| {
        let of = |tensor: &&Tensor| tensor.get(n).unwrap().to_vec1::<f32>().unwrap();
        said.iter().flat_map(of).map(f32::to_bits).collect()
    };
    (0..order.len()).map(row).collect()
}

#[test]
fn a_frozen_network_makes_the_same_bits_of_an_image_in_any_batch_of_one_size() {
    const IMAGES: u32 = 48;
    let image = ImageShape { channels: 1, height: 28, width: 28 };
    let pixels: Vec<f32> =
        (0..IMAGES as usize * image.image_len()).map(|i| (i as f32 * 0.37).sin()).collect();
    let images = Tensor::from_vec(pixels, (IMAGES as usize, 1, 28, 28), &Device::Cpu).unwrap();
    for (arch, stages) in [("resnet8", true), ("wrn_16_2", false), ("resnet8x4", false), ("resnet6", true)] {
        let additions = Additions {
            stages,
            embedding: Some(128),
            matching: stages.then_some(128),
            fn_norm: Some(KdFnParams::default()),
            radius: None,
            gate: true,
            map: None,
        };
        let params = Params::new(1, arch, candle_core::DType::F32, &Device::Cpu).unwrap();
        let model = Model::build(arch, (image, 10), additions, params).unwrap();
        // Fresh running statistics would hide what normalisation does.
        for (name, var) in model.params.buffers().iter().filter(|(name, _)| name.contains("running_")) {
            shift(var, if name.ends_with("var") { 0.3 } else { 0.05 });
        }
        for size in [1, 2, 5, 20, 24, 33] {
            let mut first: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
            // 7 and 48 have no common divisor, so the strides meet all images.
            for order in [(1, 0), (7, 5), (47, 40), (1, 17)].map(|(stride, from)| {
                (0..size).map(|place| (place * stride + from) % IMAGES).collect::<Vec<u32>>()
            }) {
                for (index, row) in order.iter().zip(rows(&model, &images, &order)) {
                    let known = first.entry(*index).or_insert_with(|| row.clone());
                    assert!(*known == row, "{arch}: image {index} in {order:?}");
                }
            }
        }
    }
}

fn shift(var: &Var, by: f64) {
    var.set(&var.affine(1.0, by).unwrap()).unwrap();
}
