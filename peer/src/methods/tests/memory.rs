//! The memory bank: what is drawn, what is remembered, and gradients of the terms against finite differences. Values are
//! in the golden vectors.

use super::*;
use crate::methods::memory::{Bank, Classes, Draws, MemoryParams, share};

const SAMPLES: usize = 40;

fn classes() -> Classes {
    Classes::new(&(0..SAMPLES).map(|x| (x % 5) as u8).collect::<Vec<_>>())
}

fn bank(network: usize) -> Bank {
    Bank::new(SAMPLES, WIDTH, 3, network).unwrap()
}

#[test]
fn keys_have_the_classes_that_they_should_and_follow_from_the_seed() {
    let batch = [7, 12, 0, 39];
    let draw = |seed, step| Draws::new(&classes(), &batch, seed, step, 2, 30).unwrap();
    let draws = draw(1, 5);
    assert_eq!(draws, draw(1, 5));
    assert_ne!(draws, draw(2, 5));
    assert_ne!(draws, draw(1, 6));
    assert_eq!((draws.anchors(), draws.positives()), (batch.to_vec(), 2));
    for (sample, keys) in batch.iter().zip(draws.all()) {
        let same = |x: &u32| x % 5 == sample % 5;
        assert!(keys[..3].iter().all(same) && !keys[3..].iter().any(same), "{keys:?}");
        assert_eq!((keys[0], keys.len()), (*sample, 33));
        assert_ne!(keys[1], keys[2], "drawn without replacement");
    }
    assert!(draws.intra().iter().zip(draws.all()).all(|(intra, all)| intra == &all[1..]));
    assert!(Draws::new(&Classes::new(&[1; 9]), &[0], 0, 0, 1, 4).is_err());
    assert!(Draws::new(&classes(), &[SAMPLES as u32], 0, 0, 1, 4).is_err());
    // Ten of a class of eight: with replacement, and it ends.
    assert_eq!(Draws::new(&classes(), &[0], 0, 0, 10, 4).unwrap().positives(), 10);
}

#[test]
fn a_batch_is_remembered_at_unit_length_and_its_last_row_wins() {
    let mut bank = bank(0);
    let before = bank.clone();
    let v = embedding_of(0).unwrap();
    let indices = [3, 9, 3, 11, 12, 13];
    bank.update(&indices, &v, 0.5).unwrap();
    let rows = |bank: &Bank| bank.to_tensor().unwrap().to_vec2::<f32>().unwrap();
    let (new, old) = (rows(&bank), rows(&before));
    let expected = |n: usize, x: usize| {
        let v = entries(&v.get(n).unwrap());
        let raw: Vec<f64> = v.iter().zip(&old[x]).map(|(v, m)| 0.5 * v + 0.5 * f64::from(*m)).collect();
        raw.iter().map(|r| r / frobenius(&raw)).collect::<Vec<f64>>()
    };
    for (n, x) in [(2, 3), (1, 9), (5, 13)] {
        let got: Vec<f64> = new[x].iter().map(|g| f64::from(*g)).collect();
        assert!(largest_difference(&got, &expected(n, x)) < 1e-7, "row {x}");
    }
    assert!((0..SAMPLES).filter(|x| !indices.contains(&(*x as u32))).all(|x| new[x] == old[x]));
    assert!(bank.update(&[0, 1, 2, 3, 4, SAMPLES as u32], &v, 0.5).is_err());
    assert_eq!(rows(&bank), new);
}

#[test]
fn a_bank_is_bounded_seeded_and_restored() {
    let bound = (3.0 / WIDTH as f64).sqrt() as f32;
    let values = bank(1).to_tensor().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(values.iter().all(|x| x.abs() <= bound) && values.iter().any(|x| x.abs() > 0.8 * bound));
    assert_eq!(bank(1), bank(1));
    assert_ne!(bank(1), bank(2));
    assert_eq!(Bank::from_tensor(&bank(1).to_tensor().unwrap()).unwrap(), bank(1));
    assert!(Bank::new(usize::MAX, 2, 0, 0).is_err() && Bank::new(1 << 30, 128, 0, 0).is_err());
    assert!(Bank::new(0, 128, 0, 0).is_err());
}

#[test]
fn the_share_has_the_gradient_of_its_values() {
    let banks = [bank(0), bank(1), bank(2)];
    let banks: Vec<&Bank> = banks.iter().collect();
    let draws = Draws::new(&classes(), &[7, 12, 0, 39, 1, 2], 1, 1, 2, 9).unwrap();
    let v = all(3, embedding_of).unwrap();
    let params = MemoryParams { lam: 0.7, ..MemoryParams::default() };
    check_gradient(&v[1], |moved| {
        let v = [v[0].clone(), moved.clone(), v[2].clone()];
        let terms = share(1, &v, &banks, &draws, &params)?;
        let mut total = Tensor::zeros((), DType::F64, &Device::Cpu)?;
        for (_, weight, value) in terms {
            total = (total + (value * weight)?)?;
        }
        Ok(total)
    });
    assert!(share(3, &v, &banks, &draws, &params).is_err());
    assert!(share(0, &v, &banks[..2], &draws, &params).is_err());
}
