//! The loader against the plan and against single images prepared by hand; its ends: the last step, a drop, an
//! error, a panic.

use std::sync::mpsc;
use std::time::Duration;

use cohort_proto::dataset::DatasetKind;
use cohort_proto::plan::{LrSchedule, PlanInputs, RunLength, Sampler};

use super::*;

const STANDARD: Augment = Augment::Standard { flip: true };

/// 20 images of 1x4x4 with labels 0 to 4 in turn.
fn samples() -> Samples {
    let pixels: Vec<u8> = (0..320u32).map(|value| (value * 7 % 255 + 1) as u8).collect();
    let images = Images { count: 20, channels: 1, height: 4, width: 4, pixels: pixels.into() };
    Samples { kind: DatasetKind::Mnist, images, labels: (0..20).map(|n| n % 5).collect() }
}

fn plan(batch: usize, samples: &Samples) -> BatchPlan {
    let inputs = PlanInputs {
        generations: 1,
        seed: 7,
        sampler: Sampler::PerClass { per_class: 2 },
        batch,
        length: RunLength::Epochs(10),
        lr0: 0.1,
        schedule: LrSchedule::Cosine,
        warmup_epochs: 0,
    };
    BatchPlan::new(inputs, &samples.labels).unwrap()
}

fn normalisation() -> Normalisation {
    Normalisation::new(&[0.5], &[0.25], 1).unwrap()
}

fn inputs(augment: Augment) -> LoaderInputs {
    let samples = samples();
    let (plan, normalisation) = (plan(8, &samples), normalisation());
    LoaderInputs { plan, samples: samples.into(), held_out: None, augment, normalisation }
}

fn all(mut loader: Loader) -> Vec<Batch> {
    std::iter::from_fn(|| loader.next_batch().unwrap()).collect()
}

/// Fails the test, instead of blocking it, if `act` does not end.
fn within_seconds<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::spawn(move || sender.send(act()));
    receiver.recv_timeout(Duration::from_secs(20)).expect("hangs or panicked")
}

#[test]
fn batches_follow_the_plan_from_any_step() {
    let from_start = all(Loader::start(inputs(STANDARD), 0).unwrap());
    assert_eq!(from_start.len(), 20);
    let mut plan = plan(8, &samples());
    for (step, batch) in (0..).zip(&from_start) {
        let planned = plan.batch(step).unwrap();
        assert_eq!((batch.step, batch.epoch, batch.lr), (step, planned.epoch, planned.lr));
        assert_eq!((&batch.indices, batch.hash), (&planned.indices, planned.hash));
        assert_eq!((batch.shape, batch.images.len()), ([8, 1, 4, 4], 128));
        assert!(batch.indices.iter().zip(&batch.labels).all(|(index, label)| index % 5 == *label));
    }
    for start in [1, 7, 19] {
        let rest = all(Loader::start(inputs(STANDARD), start as u64).unwrap());
        assert_eq!(rest, from_start[start..]);
    }
    assert_eq!(all(Loader::start(inputs(STANDARD), 20).unwrap()), []);
}

#[test]
fn without_augmentation_images_are_the_normalised_samples() {
    let samples = samples();
    for batch in all(Loader::start(inputs(Augment::None), 0).unwrap()) {
        for (image, &index) in batch.images.chunks_exact(16).zip(&batch.indices) {
            let pixels = samples.images.image(index as usize).unwrap();
            let expected: Vec<f32> = pixels.iter().map(|&p| (f32::from(p) / 255.0 - 0.5) / 0.25).collect();
            assert_eq!(image, expected);
        }
    }
}

/// The same image at the same place of the run gets the same pixels, whatever else is in the batch.
#[test]
fn pixels_depend_on_the_place_only() {
    let samples = samples();
    let of = |indices: &[u32], step| {
        let planned = PlannedBatch {
            step,
            epoch: 1,
            position_in_epoch: 0,
            lr: 0.1,
            indices: indices.to_vec(),
            hash: 0,
        };
        prepare(&samples, planned, 7, STANDARD, &normalisation()).unwrap().images
    };
    let batch = of(&[3, 3, 9, 4, 3, 3, 3, 3], 5);
    let image = |batch: &[f32], position: usize| batch[16 * position..][..16].to_vec();
    assert_eq!(image(&of(&[0, 1, 9], 5), 2), image(&batch, 2));
    assert_eq!(image(&of(&[5, 3], 5), 1), image(&batch, 1));
    let same_sample = [0, 1, 4, 5, 6, 7].map(|position| image(&batch, position));
    assert!(same_sample.iter().any(|other| other != &same_sample[0]), "position is ignored");
    assert_ne!(of(&[3, 3, 9, 4, 3, 3, 3, 3], 6), batch);
}

#[test]
fn dropped_midway_it_stops() {
    within_seconds(|| {
        for taken in 0..6 {
            let mut loader = Loader::start(inputs(STANDARD), 0).unwrap();
            for _ in 0..taken {
                loader.next_batch().unwrap();
            }
            // Long enough for the thread to fill the queue and wait for room.
            thread::sleep(Duration::from_millis(20));
            drop(loader);
        }
    });
}

#[test]
fn it_runs_ahead_by_no_more_than_the_queue() {
    let (sender, prepared) = mpsc::sync_channel(100);
    let batch = all(Loader::start(inputs(STANDARD), 19).unwrap()).remove(0);
    let loader = Loader::spawn(0, 50, move |step| {
        sender.send(step).unwrap();
        Ok(batch.clone())
    })
    .unwrap();
    thread::sleep(Duration::from_millis(50));
    drop(loader);
    // Those in the queue and the one that waits for room.
    assert!(prepared.iter().count() <= READY_BATCHES + 1);
}

#[test]
fn panic_and_error_of_the_thread_are_reported() {
    within_seconds(|| {
        let mut loader = Loader::spawn(0, 3, |step| panic!("step {step} is cursed")).unwrap();
        let error = loader.next_batch().unwrap_err().to_string();
        assert_eq!(error, "the loader thread failed: step 0 is cursed");
        assert!(matches!(loader.next_batch(), Err(LoaderError::Stopped)));

        let failure = LoaderError::NoSuchSample { index: 9, step: 0, samples: 3 };
        let mut failure = Some(failure);
        let mut loader = Loader::spawn(0, 3, move |_| Err(failure.take().unwrap())).unwrap();
        assert!(matches!(loader.next_batch(), Err(LoaderError::NoSuchSample { index: 9, .. })));
        assert!(matches!(loader.next_batch(), Err(LoaderError::Stopped)));
    });
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let fewer = Samples { labels: vec![0, 1, 2, 3, 4, 0, 1, 2, 3, 4].into(), ..samples() };
    let other = LoaderInputs { plan: plan(8, &fewer), ..inputs(STANDARD) };
    assert!(matches!(Loader::start(other, 0), Err(LoaderError::OtherSamples { planned: 10, loaded: 20 })));
    let grey = Normalisation::new(&[0.5; 3], &[0.5; 3], 3).unwrap();
    let samples = samples();
    assert!(matches!(
        EvaluationBatches::new(&samples, &grey, 8),
        Err(LoaderError::OtherChannels { images: 1, normalisation: 3 })
    ));
    let colour = LoaderInputs { normalisation: grey, ..inputs(STANDARD) };
    assert!(matches!(Loader::start(colour, 0), Err(LoaderError::OtherChannels { .. })));
    assert!(matches!(Loader::start(inputs(STANDARD), 21), Err(LoaderError::Plan(_))));
}

#[test]
fn evaluation_covers_the_file_in_order() {
    let (samples, normalisation) = (samples(), normalisation());
    let batches: Vec<_> = EvaluationBatches::new(&samples, &normalisation, 8).unwrap().collect();
    let sizes: Vec<_> = batches.iter().map(|batch| (batch.first, batch.shape)).collect();
    assert_eq!(sizes, [(0, [8, 1, 4, 4]), (8, [8, 1, 4, 4]), (16, [4, 1, 4, 4])]);
    let labels: Vec<u32> = batches.iter().flat_map(|batch| batch.labels.clone()).collect();
    assert_eq!(labels, samples.labels.iter().map(|&label| u32::from(label)).collect::<Vec<_>>());
    let images: Vec<f32> = batches.into_iter().flat_map(|batch| batch.images).collect();
    let mut expected = Vec::new();
    for index in 0..20 {
        normalisation.apply(
            samples.images.image(index).unwrap(),
            crate::models::ImageShape::from(&samples.images),
            &mut expected,
        );
    }
    assert_eq!(images, expected);
}
