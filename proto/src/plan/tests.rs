//! The batch plan against values from an independent Python program that follows the sampler's definition word for
//! word, against closed forms of the schedules, and against a slow second version in Rust.

use proptest::prelude::*;

use super::*;

fn inputs(sampler: Sampler, batch: usize) -> PlanInputs {
    PlanInputs {
        seed: 7,
        sampler,
        batch,
        generations: 1,
        length: RunLength::Epochs(3),
        lr0: 0.1,
        schedule: LrSchedule::Cosine,
        warmup_epochs: 0,
    }
}

fn plan(inputs: PlanInputs, labels: &[u8]) -> BatchPlan {
    BatchPlan::new(inputs, labels).unwrap()
}

fn per_class(per_class: usize) -> Sampler {
    Sampler::PerClass { per_class }
}

/// Labels 0, 1, ... classes − 1, 0, 1, ...
fn cycle(samples: usize, classes: usize) -> Vec<u8> {
    (0..samples).map(|sample| (sample % classes) as u8).collect()
}

#[test]
fn per_class_golden() {
    let mut plan = plan(inputs(per_class(2), 8), &cycle(20, 5));
    assert_eq!((plan.steps_per_epoch(), plan.epochs(), plan.total_steps(), plan.samples()), (2, 3, 6, 20));
    let expected: [(&[u32], u64); 4] = [
        (&[14, 19, 10, 5, 17, 2, 1, 11], 14027703845306921870),
        (&[19, 14, 13, 8, 17, 2, 15, 0], 13622781867872977344),
        (&[11, 6, 9, 19, 18, 8, 0, 15], 17498863934916848996),
        (&[2, 12, 9, 19, 6, 16, 10, 0], 10427071290278339503),
    ];
    for (step, (indices, hash)) in (0..).zip(expected) {
        let batch = plan.batch(step).unwrap();
        assert_eq!((batch.step, batch.epoch, batch.position_in_epoch), (step, step / 2, step % 2));
        assert_eq!((&batch.indices[..], batch.hash), (indices, hash));
    }
}

#[test]
fn small_class_is_drawn_with_replacement_golden() {
    let labels = [0, 1, 1, 0, 1, 2, 0, 1, 0, 1, 2, 0];
    let mut plan = plan(PlanInputs { seed: 3, ..inputs(per_class(3), 6) }, &labels);
    let epoch = |plan: &mut BatchPlan, first| [first, first + 1].map(|s| plan.batch(s).unwrap().indices);
    assert_eq!(epoch(&mut plan, 0), SMALL_CLASS_EPOCHS[0]);
    assert_eq!(epoch(&mut plan, 2), SMALL_CLASS_EPOCHS[1]);
}

const SMALL_CLASS_EPOCHS: [[[u32; 6]; 2]; 2] =
    [[[9, 2, 7, 10, 10, 10], [10, 5, 10, 9, 4, 2]], [[0, 11, 3, 5, 5, 10], [8, 3, 11, 2, 7, 4]]];

#[test]
fn shuffle_golden_and_partial_batch_dropped() {
    let mut plan = plan(inputs(Sampler::Shuffle, 4), &cycle(10, 10));
    let batches: Vec<Vec<u32>> = (0..4).map(|step| plan.batch(step).unwrap().indices).collect();
    assert_eq!(batches, [[4, 1, 9, 2], [5, 8, 0, 7], [7, 3, 2, 5], [6, 9, 8, 0]]);
}

#[test]
fn exact_steps_cut_the_last_epoch() {
    let length = RunLength::Steps(5);
    let mut plan = plan(PlanInputs { length, ..inputs(Sampler::Shuffle, 4) }, &cycle(10, 10));
    assert_eq!((plan.total_steps(), plan.epochs()), (5, 3));
    assert_eq!(plan.batch(4).unwrap().epoch, 2);
    assert_eq!(plan.batch(5), Err(PlanError::StepOutOfRange { step: 5, total: 5 }));
    // The schedule runs over the three epochs that five steps touch.
    assert_eq!(plan.lr(1), 0.1 * 0.5 * (1.0 + (std::f64::consts::PI / 3.0).cos()));
}

fn rates(schedule: LrSchedule, epochs: u64, warmup_epochs: u64) -> Vec<f64> {
    let length = RunLength::Epochs(epochs);
    let inputs = PlanInputs { length, schedule, warmup_epochs, ..inputs(Sampler::Shuffle, 5) };
    let mut plan = plan(inputs, &cycle(10, 5));
    (0..epochs).map(|epoch| plan.batch(2 * epoch + 1).unwrap().lr).collect()
}

fn assert_close(rates: &[f64], expected: &[f64]) {
    assert_eq!(rates.len(), expected.len());
    for (rate, expected) in rates.iter().zip(expected) {
        assert!((rate - expected).abs() < 1e-15, "{rates:?} is not {expected:?}");
    }
}

#[test]
fn schedules() {
    let half = std::f64::consts::FRAC_1_SQRT_2;
    assert_close(&rates(LrSchedule::Cosine, 4, 0), &[0.1, 0.05 * (1.0 + half), 0.05, 0.05 * (1.0 - half)]);
    assert_close(&rates(LrSchedule::Constant, 3, 0), &[0.1, 0.1, 0.1]);
    let steps = || LrSchedule::Multistep { milestones: vec![3, 1], factor: 0.1 };
    assert_close(&rates(steps(), 5, 0), &[0.1, 0.01, 0.01, 0.001, 0.001]);
    assert_close(&rates(steps(), 5, 2), &[0.05, 0.1, 0.01, 0.001, 0.001]);
}

#[test]
fn warm_up_comes_before_the_schedule() {
    assert_close(&rates(LrSchedule::Constant, 4, 2), &[0.05, 0.1, 0.1, 0.1]);
    // After two epochs of warm-up the cosine runs over the other two.
    assert_close(&rates(LrSchedule::Cosine, 4, 2), &[0.05, 0.1, 0.1, 0.05]);
    // A run that is shorter than its warm-up never reaches the schedule.
    assert_close(&rates(LrSchedule::Cosine, 2, 4), &[0.025, 0.05]);
}

#[test]
fn impossible_numbers_are_refused_by_name() {
    let check = |change: fn(&mut PlanInputs), labels: &[u8], expected: PlanError| {
        let mut inputs = inputs(per_class(2), 8);
        change(&mut inputs);
        assert_eq!(BatchPlan::new(inputs, labels).unwrap_err(), expected);
    };
    let labels = cycle(20, 5);
    check(|i| i.batch = 0, &labels, PlanError::Zero("batch"));
    check(|i| i.length = RunLength::Epochs(0), &labels, PlanError::Zero("epochs"));
    check(|i| i.length = RunLength::Steps(0), &labels, PlanError::Zero("steps"));
    check(|i| i.sampler = per_class(0), &labels, PlanError::Zero("per_class"));
    check(|i| i.sampler = per_class(3), &labels, PlanError::PerClassDoesNotDivide { per_class: 3, batch: 8 });
    check(
        |i| i.sampler = per_class(1),
        &labels,
        PlanError::TooFewClasses { per_class: 1, classes: 5, batch: 8 },
    );
    check(|_| {}, &labels[..7], PlanError::BatchLargerThanData { batch: 8, samples: 7 });
    check(|_| {}, &[], PlanError::NoSamples);
    check(|i| i.lr0 = 0.0, &labels, PlanError::NotPositive { name: "lr", value: 0.0 });
    check(|i| i.lr0 = f64::INFINITY, &labels, PlanError::NotPositive { name: "lr", value: f64::INFINITY });
    check(
        |i| i.schedule = LrSchedule::Multistep { milestones: vec![], factor: -1.0 },
        &labels,
        PlanError::NotPositive { name: "factor", value: -1.0 },
    );
    check(
        |i| i.length = RunLength::Epochs(u64::MAX),
        &labels,
        PlanError::TooLong { epochs: u64::MAX, steps_per_epoch: 2 },
    );
}

/// The sampler per class as it is defined, with a copy of the class for each draw.
fn per_class_slowly(labels: &[u8], inputs: &PlanInputs, m: usize, epoch: u64) -> Vec<u32> {
    let a = SplitMix64::new(inputs.seed).next_u64();
    let b = SplitMix64::new(a ^ epoch).next_u64();
    let mut rng = SplitMix64::new(b);
    let mut classes: Vec<u8> = labels.to_vec();
    classes.sort_unstable();
    classes.dedup();
    let mut out = Vec::new();
    for _ in 0..labels.len() / inputs.batch {
        for i in (1..classes.len()).rev() {
            let j = rng.below(i as u64 + 1) as usize;
            classes.swap(i, j);
        }
        for class in &classes[..inputs.batch / m] {
            let mut list: Vec<u32> =
                (0..labels.len()).filter(|&n| labels[n] == *class).map(|n| n as u32).collect();
            for place in 0..m {
                if list.len() >= m {
                    let other = place + rng.below((list.len() - place) as u64) as usize;
                    list.swap(place, other);
                    out.push(list[place]);
                } else {
                    out.push(list[rng.below(list.len() as u64) as usize]);
                }
            }
        }
    }
    out
}

proptest! {
    #[test]
    fn per_class_equals_its_definition(
        labels in prop::collection::vec(0u8..4, 12..40),
        seed: u64,
        m in 1usize..4,
        groups in 1usize..4,
    ) {
        let inputs = PlanInputs { seed, batch: m * groups, ..inputs(per_class(m), 0) };
        let Ok(mut plan) = BatchPlan::new(inputs.clone(), &labels) else { return Ok(()) };
        for epoch in [2, 0] {
            let first = epoch * plan.steps_per_epoch();
            let batches = (first..first + plan.steps_per_epoch()).map(|s| plan.batch(s).unwrap().indices);
            prop_assert_eq!(
                batches.collect::<Vec<_>>().concat(),
                per_class_slowly(&labels, &inputs, m, epoch)
            );
        }
    }

    #[test]
    fn any_order_of_asking_gives_the_same_batches(
        steps in prop::collection::vec(0u64..30, 1..20),
        seed: u64,
        shuffled: bool,
    ) {
        let sampler = if shuffled { Sampler::Shuffle } else { per_class(2) };
        let inputs = PlanInputs { seed, length: RunLength::Epochs(6), ..inputs(sampler, 4) };
        let labels = cycle(23, 5);
        let mut asked = plan(inputs.clone(), &labels);
        for step in steps {
            prop_assert_eq!(asked.batch(step), plan(inputs.clone(), &labels).batch(step));
        }
    }

    #[test]
    fn shuffled_epoch_has_no_sample_twice(seed: u64, samples in 1usize..60, batch in 1usize..20) {
        let Ok(mut plan) =
            BatchPlan::new(PlanInputs { seed, ..inputs(Sampler::Shuffle, batch) }, &cycle(samples, 3))
        else {
            return Ok(());
        };
        let mut seen: Vec<u32> = (0..plan.steps_per_epoch()).flat_map(|s| plan.batch(s).unwrap().indices).collect();
        prop_assert_eq!(seen.len(), samples - samples % batch);
        seen.sort_unstable();
        seen.dedup();
        prop_assert_eq!(seen.len(), samples - samples % batch);
        prop_assert!(seen.iter().all(|&index| (index as usize) < samples));
    }
}
