//! What a method asks of a peer, and what it refuses.

use super::*;
use crate::methods::{DmlParams, Heard, MclParams, Method, Own, Students};

fn heard(index: usize) -> Heard {
    Heard {
        logits: Some(logits_of(index).unwrap()),
        embeddings: vec![embedding_of(index).unwrap()],
        ..Heard::nothing(index)
    }
}

fn loss(method: &Method, me: usize, cohort: usize, heard: &[Heard]) -> Result<crate::methods::Terms> {
    let embeddings = [embedding_of(me)?];
    let logits = logits_of(me)?;
    method.loss(me, cohort, Own::new(&logits, &embeddings), heard, &labels(&LABELS)?, None)
}

fn names(method: &Method, me: usize, heard: &[Heard]) -> Vec<String> {
    let terms = loss(method, me, heard.len() + 1, heard).unwrap();
    terms.named.into_iter().map(|(name, _)| name.into_owned()).collect()
}

#[test]
fn what_a_peer_says_follows_from_the_method() {
    let mcl = Method::Mcl(MclParams::default());
    let silent = Method::Mcl(MclParams { logit_kd: Students::Off, ..MclParams::default() });
    assert!(!Method::Alone.says_logits());
    assert!(Method::Dml(DmlParams::default()).says_logits());
    assert!(mcl.says_logits());
    assert!(!silent.says_logits());
    assert_eq!(mcl.needs_embedding(), Some(128));
    assert_eq!(Method::Dml(DmlParams::default()).needs_embedding(), None);
}

#[test]
fn the_total_is_the_weighted_sum_of_the_named_terms() {
    let params = MclParams { alpha: 0.3, beta: 0.7, gamma: 1.1, lam: 0.05, ..MclParams::default() };
    let terms = loss(&Method::Mcl(params), 2, 3, &[heard(0), heard(1)]).unwrap();
    let weights = [1.0, 0.3, 1.1, 0.7, 0.05, 1.0];
    let sum: f64 = terms.named.iter().zip(weights).map(|((_, term), weight)| weight * value(term)).sum();
    let names: Vec<_> = terms.named.iter().map(|(name, _)| name.as_ref()).collect();
    assert_eq!(names, ["ce", "vcl", "soft_vcl", "icl", "soft_icl", "logit_kd"]);
    close(value(&terms.total), sum, 1e-14);
}

#[test]
fn only_learners_of_the_ensemble_have_its_term() {
    let mcl = Method::Mcl(MclParams::default());
    assert!(!names(&mcl, 0, &[heard(1), heard(2)]).contains(&"logit_kd".to_owned()));
    assert!(names(&mcl, 0, &[heard(1)]).contains(&"logit_kd".to_owned()));
    // The last of those that are there, whatever their index in the run.
    assert!(names(&mcl, 5, &[heard(1), heard(2)]).contains(&"logit_kd".to_owned()));
}

#[test]
fn a_lone_network_has_local_terms_only() {
    let expected = ["ce", "vcl", "soft_vcl", "icl", "soft_icl"];
    let terms = loss(&Method::Mcl(MclParams::default()), 0, 1, &[]).unwrap();
    let names: Vec<_> = terms.named.iter().map(|(name, _)| name.as_ref()).collect();
    assert_eq!(names, expected);
    for (name, term) in &terms.named[2..] {
        assert_eq!(value(term), 0.0, "{name}");
    }
    let ce = value(&loss(&Method::Alone, 0, 1, &[]).unwrap().total);
    let dml = loss(&Method::Dml(DmlParams::default()), 0, 1, &[]).unwrap();
    assert_eq!(value(&dml.total), ce);
}

#[test]
fn networks_missing_doubled_or_out_of_order_are_refused() {
    let dml = Method::Dml(DmlParams::default());
    let mute = Heard { logits: None, ..heard(1) };
    let narrow = Heard { logits: Some(logits_of(1).unwrap().narrow(1, 0, 3).unwrap()), ..heard(1) };
    let cases: [(&str, usize, Vec<Heard>); 6] = [
        ("heard 1", 3, vec![heard(1)]),
        ("after network 2", 3, vec![heard(2), heard(1)]),
        ("after network 1", 3, vec![heard(1), heard(1)]),
        ("heard itself", 2, vec![heard(0)]),
        ("did not say logits", 2, vec![mute]),
        ("the own is", 2, vec![narrow]),
    ];
    for (expected, cohort, others) in cases {
        let error = loss(&dml, 0, cohort, &others).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let mute = Heard { embeddings: vec![], ..heard(1) };
    let error = loss(&Method::Mcl(MclParams::default()), 0, 2, &[mute]).unwrap_err().to_string();
    assert!(error.contains("did not say embed.0"), "{error}");
}

#[test]
fn terms_have_the_dtype_of_training() {
    let single = |t: Tensor| t.to_dtype(DType::F32).unwrap();
    let (logits, embeddings) = (single(logits_of(0).unwrap()), [single(embedding_of(0).unwrap())]);
    let own = Own::new(&logits, &embeddings);
    let other = Heard {
        logits: Some(single(logits_of(1).unwrap())),
        embeddings: vec![single(embedding_of(1).unwrap())],
        ..Heard::nothing(1)
    };
    let mcl = Method::Mcl(MclParams::default());
    let terms = mcl.loss(0, 2, own, &[other], &labels(&LABELS).unwrap(), None).unwrap();
    assert_eq!(terms.total.dtype(), DType::F32);
    assert!(terms.named.iter().all(|(_, term)| term.dtype() == DType::F32));
}
