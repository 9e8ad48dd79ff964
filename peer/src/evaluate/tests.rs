//! The metrics against printed reference values (float64, an independent implementation whose calibration and risk
//! were checked against published code) and against cases worked out by hand.

use super::*;

const LABELS: [usize; 6] = [3, 1, 2, 2, 2, 3];

/// `z_i[n,c] = 3 sin(0.7(i+1) + 1.3n + 2.1c)`, `[6, 5]`.
fn logits_of(i: usize) -> Vec<f64> {
    let cells = (0..6).flat_map(|n| (0..5).map(move |c| (n as f64, c as f64)));
    cells.map(|(n, c)| 3.0 * (0.7 * (i + 1) as f64 + 1.3 * n + 2.1 * c).sin()).collect()
}

#[track_caller]
fn close(got: f64, expected: f64) {
    assert!((got - expected).abs() <= 1e-10 * expected.abs().max(1.0), "got {got}, expected {expected}");
}

#[test]
fn one_network_has_the_printed_values() {
    let metrics = evaluate(&logits_of(0), 5, &LABELS).unwrap();
    assert_eq!(metrics.samples, 6);
    close(metrics.top1, 66.6666666666667);
    close(metrics.top5, 100.0);
    close(metrics.nll, 2.354049764613);
    close(metrics.ece, 46.505541172715);
    close(metrics.ece10, 13.788029467145);
    close(metrics.aurc, 400.0);
    close(metrics.e_aurc, 311.111111111111);
}

#[test]
fn ensembles_have_the_printed_values() {
    let members: Vec<Vec<f64>> = (0..3).map(logits_of).collect();
    let members: Vec<&[f64]> = members.iter().map(Vec::as_slice).collect();
    for logits in
        [ensemble::mean_of_logits(&members).unwrap(), ensemble::mean_of_softmax(&members, 5).unwrap()]
    {
        close(evaluate(&logits, 5, &LABELS).unwrap().top1, 33.3333333333333);
    }
}

#[test]
fn the_softmax_of_the_mean_ensemble_is_the_mean() {
    let (a, b) = ([2.0, 0.0, -1.0], [1e4, -1e4, 0.0]);
    let mean = ensemble::mean_of_softmax(&[&a, &b], 3).unwrap();
    let softmax = |row: &[f64]| log_softmax(row).into_iter().map(f64::exp).collect::<Vec<_>>();
    let (a, b) = (softmax(&a), softmax(&b));
    for (c, p) in softmax(&mean).into_iter().enumerate() {
        close(p, (a[c] + b[c]) / 2.0);
    }
    assert_eq!(ensemble::mean_of_logits(&[&[1.0, 2.0], &[0.5, -2.0]]).unwrap(), [0.75, 0.0]);
}

#[test]
fn of_equal_logits_the_lower_class_goes_first() {
    let flat = [0.0; 7];
    let top = |label| {
        let metrics = evaluate(&flat, 7, &[label]).unwrap();
        (metrics.top1, metrics.top5)
    };
    assert_eq!(top(0), (100.0, 100.0));
    assert_eq!(top(1), (0.0, 100.0));
    assert_eq!(top(4), (0.0, 100.0));
    assert_eq!(top(5), (0.0, 0.0));
}

#[test]
fn few_classes_are_all_among_the_first() {
    let metrics = evaluate(&[0.3, 0.1, 0.0, 2.0], 2, &[1, 0]).unwrap();
    assert_eq!((metrics.top1, metrics.top5), (0.0, 100.0));
}

#[test]
fn a_certain_network_right_or_wrong() {
    let right = evaluate(&[1e4, -1e4, -1e4, 1e4], 2, &[0, 1]).unwrap();
    let expected = Metrics {
        samples: 2,
        top1: 100.0,
        top5: 100.0,
        nll: 0.0,
        ece: 0.0,
        ece10: 0.0,
        brier: 0.0,
        aurc: 0.0,
        e_aurc: 0.0,
    };
    assert_eq!(right, expected);
    let wrong = evaluate(&[1e4, -1e4, -1e4, 1e4], 2, &[1, 0]).unwrap();
    assert_eq!((wrong.nll, wrong.ece, wrong.brier), (2e4, 100.0, 2.0));
    // No ordering of nothing but errors is better than another.
    assert_eq!((wrong.aurc, wrong.e_aurc), (1000.0, 0.0));
}

#[test]
fn confidence_on_the_edge_of_a_bin_belongs_to_the_lower_one() {
    let outcome = |confidence, correct| Outcome { confidence, correct };
    // 0.5 shares (0.4, 0.5] with 0.45, so the gaps cancel in part: |1 + 0 - 0.95| / 2.
    let gap = calibration::expected_error(&[outcome(0.5, true), outcome(0.45, false)], 10);
    close(gap, 0.025);
    // (0.5, 0.6] is another bin: (|1 - 0.55| + |0 - 0.45|) / 2.
    let gap = calibration::expected_error(&[outcome(0.55, true), outcome(0.45, false)], 10);
    close(gap, 0.45);
}

#[test]
fn equal_confidences_keep_the_order_of_the_samples() {
    let outcome = |correct| Outcome { confidence: 0.9, correct };
    let (aurc, e_aurc) = risk::aurc(&[outcome(false), outcome(true)]);
    close(aurc, (1.0 + 0.5) / 2.0);
    close(e_aurc, (1.0 + 0.5 - 0.5) / 2.0);
    let (_, best) = risk::aurc(&[outcome(true), outcome(false)]);
    close(best, 0.0);
}

#[test]
fn what_cannot_be_evaluated_is_refused() {
    use EvaluateError::*;
    let cases = [
        (evaluate(&[], 3, &[]), Empty { samples: 0, classes: 3 }),
        (evaluate(&[0.0; 5], 3, &[0, 1]), Shape { values: 5, samples: 2, classes: 3 }),
        (evaluate(&[0.0; 6], 3, &[0, 3]), Label { sample: 1, label: 3, classes: 3 }),
        (evaluate(&[0.0, f64::NAN], 2, &[0]), NotFinite { sample: 0 }),
    ];
    for (got, expected) in cases {
        assert_eq!(got.unwrap_err(), expected);
    }
    assert_eq!(ensemble::mean_of_logits(&[]).unwrap_err(), Members);
    assert_eq!(ensemble::mean_of_softmax(&[&[1.0, 2.0], &[1.0]], 2).unwrap_err(), Members);
}

#[test]
fn metrics_survive_json() {
    let metrics = evaluate(&logits_of(0), 5, &LABELS).unwrap();
    let json = serde_json::to_string(&metrics).unwrap();
    assert!(json.contains("\"e_aurc\""), "{json}");
    assert_eq!(serde_json::from_str::<Metrics>(&json).unwrap(), metrics);
}
