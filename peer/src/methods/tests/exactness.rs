//! The gradient of each peer's share is its part of the gradient of the whole sum.

use super::*;
use crate::methods::mcl::Scores;
use crate::methods::primitives::{Positives, contrastive};
use crate::methods::{DmlParams, Heard, MclParams, Method, Own, Reduce, Students, Target, dml, logit_kd};

/// Logits, then embeddings, of `m` networks; one sample has no partner.
struct Cohort {
    labels: Tensor,
    logits: Vec<Tensor>,
    embeddings: Vec<Tensor>,
}

fn cohort(m: usize) -> Cohort {
    let (logits, embeddings) = (all(m, logits_of).unwrap(), all(m, embedding_of).unwrap());
    Cohort { labels: labels(&[0, 0, 1, 1, 2, 0]).unwrap(), logits, embeddings }
}

/// The loss over all networks, by the joint functions of each file.
fn joint_loss(method: &Method, logits: &[Tensor], embeddings: &[Tensor], y: &Tensor) -> Result<Tensor> {
    match method {
        Method::Dml(params) => dml::joint(logits, y, params),
        Method::Mcl(params) => {
            let mut total = logit_kd::joint(logits, params.logit_kd, params.kd_t)?;
            for z in logits {
                total = (total + crate::methods::cross_entropy::cross_entropy(z, y)?)?;
            }
            for (_, weight, term) in Scores::joint(embeddings, y, params)?.terms(params)? {
                total = (total + (term * weight)?)?;
            }
            Ok(total)
        }
        Method::Alone => unreachable!("networks alone have no joint loss"),
    }
}

/// Gradients of the share of `me` for its logits and its embedding.
fn share_gradients(method: &Method, me: usize, cohort: &Cohort) -> [Vec<f64>; 2] {
    let m = cohort.logits.len();
    let z = Var::from_tensor(&cohort.logits[me]).unwrap();
    let v = Var::from_tensor(&cohort.embeddings[me]).unwrap();
    let heard = (0..m).filter(|j| *j != me).map(|j| Heard {
        index: j,
        logits: Some(cohort.logits[j].clone()),
        embeddings: vec![cohort.embeddings[j].clone()],
    });
    let heard: Vec<Heard> = heard.collect();
    let embeddings = [v.as_tensor().clone()];
    let own = Own { logits: z.as_tensor(), embeddings: &embeddings };
    let total = method.loss(me, m, own, &heard, &cohort.labels).unwrap().total;
    [gradient(&total, &z), gradient(&total, &v)]
}

fn methods() -> Vec<Method> {
    let dml = |reduce, target, t| Method::Dml(DmlParams { t, reduce, target });
    let mcl = |logit_kd| Method::Mcl(MclParams { logit_kd, ..MclParams::default() });
    vec![
        dml(Reduce::Mean, Target::Each, 1.0),
        dml(Reduce::Sum, Target::Each, 3.0),
        dml(Reduce::Mean, Target::Ensemble, 2.0),
        mcl(Students::Off),
        mcl(Students::Last),
        mcl(Students::All),
    ]
}

#[test]
fn shares_add_up_to_the_joint_gradient() {
    for m in [2, 3, 4] {
        let cohort = cohort(m);
        for method in methods() {
            let (z_vars, z) = variables(&cohort.logits).unwrap();
            let (v_vars, v) = variables(&cohort.embeddings).unwrap();
            let joint = joint_loss(&method, &z, &v, &cohort.labels).unwrap();
            for me in 0..m {
                let shares = share_gradients(&method, me, &cohort);
                for (share, variable) in shares.iter().zip([&z_vars[me], &v_vars[me]]) {
                    let joint = gradient(&joint, variable);
                    let scale = frobenius(&joint).max(1.0);
                    let difference = largest_difference(share, &joint);
                    assert!(difference <= 1e-12 * scale, "{method:?} M {m} peer {me}: {difference:e}");
                }
            }
        }
    }
}

/// A share of ICL with only the own anchors, the natural mistake, misses most of the gradient: the comparison above
/// can tell.
#[test]
fn the_anchors_of_the_others_matter() {
    let cohort = cohort(2);
    let params = MclParams::default();
    let (vars, v) = variables(&cohort.embeddings).unwrap();
    let whole = Scores::share(0, &v, &cohort.labels, &params).unwrap().icl().unwrap();
    let whole = gradient(&whole, &vars[0]);

    let own_anchors = (v[0].matmul(&v[1].detach().t().unwrap()).unwrap() / params.tau).unwrap();
    let positives = Positives::new(&cohort.labels, &v[0]).unwrap();
    let half = gradient(&contrastive(&own_anchors, &positives).unwrap(), &vars[0]);
    assert!(largest_difference(&whole, &half) > 0.1 * frobenius(&whole));
}
