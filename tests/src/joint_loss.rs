//! The loss of a whole cohort in one graph: what the peers' separate steps must amount to.

use candle_core::{Result, Tensor};
use cohort_peer::methods::cross_entropy::cross_entropy;
use cohort_peer::methods::mcl::Scores;
use cohort_peer::methods::{Method, Own, dml, logit_kd};

use crate::joint_lmcl;

/// The sum of every term of `method` over all networks, given in ascending index; scalar.
///
/// Its gradient for the tensors of network i equals that of the share that peer i minimises.
///
/// # Errors
/// No networks, embeddings missing that the method needs, shapes or labels that do not fit.
pub fn joint_loss(method: &Method, cohort: &[Own<'_>], labels: &Tensor) -> Result<Tensor> {
    let logits: Vec<Tensor> = cohort.iter().map(|own| own.logits.clone()).collect();
    match method {
        Method::Alone => sum_of_cross_entropies(&logits, labels),
        Method::Dml(params) => dml::joint(&logits, labels, params),
        Method::Mcl(params) => {
            let mut total = sum_of_cross_entropies(&logits, labels)?;
            if params.contrasts() {
                let scores = Scores::joint(&first_embeddings(cohort)?, labels, params)?;
                for (_, weight, term) in scores.terms(params)? {
                    total = (total + (term * weight)?)?;
                }
            }
            total + logit_kd::joint(&logits, params.logit_kd, params.kd_t)?
        }
        Method::LMcl(params) => joint_lmcl::step(cohort, labels, params, &[]),
    }
}

fn sum_of_cross_entropies(logits: &[Tensor], labels: &Tensor) -> Result<Tensor> {
    let Some((first, rest)) = logits.split_first() else {
        candle_core::bail!("a cohort needs at least one network");
    };
    let mut total = cross_entropy(first, labels)?;
    for z in rest {
        total = (total + cross_entropy(z, labels)?)?;
    }
    Ok(total)
}

fn first_embeddings(cohort: &[Own<'_>]) -> Result<Vec<Tensor>> {
    let mut embeddings = Vec::with_capacity(cohort.len());
    for (index, own) in cohort.iter().enumerate() {
        let Some(embedding) = own.embeddings.first() else {
            candle_core::bail!("network {index} made no embedding");
        };
        embeddings.push(embedding.clone());
    }
    Ok(embeddings)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};
    use cohort_peer::methods::primitives::unit;
    use cohort_peer::methods::{DmlParams, Heard, MclParams, Reduce, Students, Target};

    use super::*;

    const BATCH: usize = 6;

    fn filled(columns: usize, f: impl Fn(f64, f64) -> f64) -> Tensor {
        let cells = (0..BATCH).flat_map(|n| (0..columns).map(move |c| (n as f64, c as f64)));
        let values: Vec<f64> = cells.map(|(n, c)| f(n, c)).collect();
        Tensor::from_vec(values, (BATCH, columns), &Device::Cpu).unwrap()
    }

    fn logits(i: usize) -> Tensor {
        filled(5, |n, c| 3.0 * (0.7 * (i + 1) as f64 + 1.3 * n + 2.1 * c).sin())
    }

    fn embedding(i: usize) -> Tensor {
        unit(&filled(4, |n, d| (0.9 * (i + 1) as f64 + 1.1 * n + 1.7 * d).cos() + 0.1 * d)).unwrap()
    }

    /// One sample has no partner in its class.
    fn labels() -> Tensor {
        Tensor::new(&[0i64, 0, 1, 1, 2, 0], &Device::Cpu).unwrap()
    }

    fn methods() -> Vec<Method> {
        let dml = |reduce, target, t| Method::Dml(DmlParams { t, reduce, target });
        let mcl = |logit_kd| Method::Mcl(MclParams { logit_kd, ..MclParams::default() });
        vec![
            Method::Alone,
            dml(Reduce::Mean, Target::Each, 1.0),
            dml(Reduce::Sum, Target::Each, 3.0),
            dml(Reduce::Mean, Target::Ensemble, 2.0),
            mcl(Students::Off),
            mcl(Students::Last),
            mcl(Students::All),
            Method::Mcl(MclParams { alpha: 0.0, beta: 0.0, gamma: 0.0, lam: 0.0, ..MclParams::default() }),
        ]
    }

    fn gradients(loss: &Tensor, of: [&Var; 2]) -> Vec<f64> {
        let store = loss.backward().unwrap();
        let entries = of.iter().flat_map(|var| match store.get(var.as_tensor()) {
            Some(gradient) => gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap(),
            None => vec![0.0; var.elem_count()],
        });
        entries.collect()
    }

    /// What peer `me` of `m` computes: the gradients for its logits and its embedding.
    fn gradients_of_peer(method: &Method, me: usize, m: usize) -> Vec<f64> {
        let (z, v) = (Var::from_tensor(&logits(me)).unwrap(), Var::from_tensor(&embedding(me)).unwrap());
        let others = (0..m).filter(|j| *j != me);
        let heard = others.map(|j| Heard {
            logits: Some(logits(j)),
            embeddings: vec![embedding(j)],
            ..Heard::nothing(j)
        });
        let heard: Vec<Heard> = heard.collect();
        let embeddings = [v.as_tensor().clone()];
        let own = Own::new(z.as_tensor(), &embeddings);
        let share = method.loss(me, m, own, &heard, &labels(), None).unwrap();
        assert_eq!(share.total.dtype(), DType::F64);
        gradients(&share.total, [&z, &v])
    }

    #[test]
    fn each_share_has_its_part_of_the_joint_gradient() {
        for m in 1..=4 {
            for method in methods() {
                let z: Vec<Var> = (0..m).map(|i| Var::from_tensor(&logits(i)).unwrap()).collect();
                let v: Vec<Var> = (0..m).map(|i| Var::from_tensor(&embedding(i)).unwrap()).collect();
                let embeddings: Vec<[Tensor; 1]> = v.iter().map(|v| [v.as_tensor().clone()]).collect();
                let cohort = z.iter().zip(&embeddings);
                let cohort = cohort.map(|(z, v)| Own::new(z.as_tensor(), v));
                let joint = joint_loss(&method, &cohort.collect::<Vec<_>>(), &labels()).unwrap();
                for me in 0..m {
                    let joint = gradients(&joint, [&z[me], &v[me]]);
                    let share = gradients_of_peer(&method, me, m);
                    let scale = joint.iter().fold(1f64, |top, g| top.max(g.abs()));
                    for (share, joint) in share.iter().zip(&joint) {
                        let difference = (share - joint).abs();
                        assert!(
                            difference <= 1e-12 * scale,
                            "{method:?}, peer {me} of {m}: {share} and {joint}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_cohort_without_networks_or_embeddings_is_refused() {
        let (z, method) = (logits(0), Method::Mcl(MclParams::default()));
        assert!(joint_loss(&Method::Alone, &[], &labels()).is_err());
        let own = Own::new(&z, &[]);
        assert!(joint_loss(&method, &[own], &labels()).unwrap_err().to_string().contains("network 0"));
    }
}
