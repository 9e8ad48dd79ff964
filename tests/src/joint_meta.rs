//! The meta-update of a whole cohort held by one process: one vector of all networks' θ, one graph over all of them,
//! one backward pass for each gradient, in f64 whatever the run says. Written from the equations of the reverse
//! accumulation; nothing is exchanged, and of `cohort_peer::meta` only the schedule is used.

use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};
use cohort_peer::kernels::GateTape;
use cohort_peer::learner::{Learner, Model, Outputs};
use cohort_peer::meta::{Schedule, Settings};
use cohort_peer::methods::cross_entropy::cross_entropy;
use cohort_peer::methods::{LMclParams, Method};
use cohort_peer::models::Pass;
use cohort_peer::optim::Gradients;
use cohort_peer::step::load::Input;
use cohort_proto::spec::Role;

use crate::joint_lmcl::{Stages, contrast};
use crate::joint_memory::JointMemory;

/// `‖ε b‖ / ‖θ‖` of the displaced passes: second derivatives to about nine digits in f64.
const DISPLACEMENT: f64 = 1e-6;

/// Changes φ, the running statistics and the banks of all learners as the meta-update that follows a step with this
/// learning rate does.
///
/// # Errors
/// If a method learns no matching, or the device fails.
pub fn meta_update(
    learners: &mut [Learner],
    memory: &mut Option<JointMemory>,
    input: &Input,
    schedule: &Schedule,
    lr: f64,
) -> Result<()> {
    let settings = schedule.settings(lr);
    let cohort = Cohort::of(learners, input)?;
    let Found { phi, passes, memory: told } = cohort.hypergradient(&settings, memory.as_ref())?;
    if settings.statistics {
        *memory = told;
    }
    let mut rest = phi.as_slice();
    for ((learner, (_, model)), pass) in learners.iter_mut().zip(&cohort.models).zip(passes) {
        if learner.role == Role::Teacher {
            continue;
        }
        let mut gradients = Gradients::new();
        for (name, var) in learner.model.phi() {
            gradients.insert(name.clone(), take(&mut rest, var)?);
        }
        learner.matching_optimizer.step(&learner.model.params, gradients, settings.descent.lr)?;
        if settings.statistics {
            pass.commit()?;
            for (name, buffer) in learner.model.params.buffers() {
                let learnt = model.params.buffers()[name].as_detached_tensor();
                buffer.set(&learnt.to_dtype(buffer.dtype())?)?;
            }
        }
    }
    Ok(())
}

/// All networks in f64, and the batch. Teachers have neither θ nor φ.
struct Cohort {
    models: Vec<(Role, Model)>,
    method: LMclParams,
    images: Tensor,
    input: Input,
}

/// What a meta-update changes: φ along dJ/dφ of all networks, the statistics of the passes at the first θ, and the banks
/// after these.
struct Found {
    phi: Vec<f64>,
    passes: Vec<Pass>,
    memory: Option<JointMemory>,
}

/// A place of the path and what stays fixed around it.
struct Point {
    theta: Vec<f64>,
    gates: Vec<GateTape>,
    teachers: Vec<Stages>,
    memory: Option<JointMemory>,
    inner: bool,
}

/// Gradients of one scalar by all networks' θ and φ.
struct Gradient {
    theta: Vec<f64>,
    phi: Vec<f64>,
}

impl Cohort {
    fn of(learners: &[Learner], input: &Input) -> Result<Self> {
        let method = learners.iter().find_map(|learner| match &learner.method {
            Method::LMcl(params) => Some(params.clone()),
            _ => None,
        });
        let method = method.ok_or_else(|| anyhow::anyhow!("no network learns a matching"))?;
        let twins = learners.iter().map(|learner| Ok((learner.role, learner.model.twin(DType::F64)?)));
        let models = twins.collect::<Result<Vec<_>>>()?;
        Ok(Self { models, method, images: input.images.to_dtype(DType::F64)?, input: input.clone() })
    }

    fn hypergradient(&self, settings: &Settings, memory: Option<&JointMemory>) -> Result<Found> {
        let (lr, mu, wd) = (settings.descent.lr, settings.descent.momentum, settings.descent.weight_decay);
        let mut theta = self.theta()?;
        let mut v = vec![0.0; theta.len()];
        let (mut path, mut first) = (Vec::new(), (Vec::new(), None));
        let mut memory = memory.cloned();
        for t in 0..=settings.inner_steps {
            let (outputs, mut passes) = self.forward(&theta, None)?;
            let gates = passes.iter_mut().map(|pass| pass.take_gates().unwrap_or_default()).collect();
            let teachers = stages(&outputs)?.iter().map(Stages::constant).collect();
            let inner = t < settings.inner_steps;
            let point = Point { theta: theta.clone(), gates, teachers, memory: memory.clone(), inner };
            let gradient = self.gradient(&self.objective(&outputs, &point)?)?;
            for n in 0..theta.len() {
                v[n] = mu * v[n] + gradient.theta[n] + wd * theta[n];
                theta[n] -= lr * v[n];
            }
            path.push(point);
            if let Some(memory) = &mut memory {
                let said: Vec<&[Tensor]> = outputs.iter().map(|outputs| &outputs.embeddings[..]).collect();
                memory.remember(&said, &self.input.indices)?;
            }
            if t == 0 {
                first = (passes, memory.clone());
            }
        }
        let (outputs, _) = self.forward(&theta, None)?;
        let mut a0 = self.gradient(&self.outer(&outputs)?)?.theta;
        let mut a1 = vec![0.0; a0.len()];
        let mut phi = vec![0.0; self.phi().map(|var| var.elem_count()).sum()];
        for point in path.iter().rev() {
            let b: Vec<f64> = a1.iter().zip(&a0).map(|(a1, a0)| a1 - lr * a0).collect();
            let second = self.along(point, &b)?;
            let velocity = if settings.compat_a1 { 1.0 } else { wd };
            for n in 0..b.len() {
                a0[n] = (1.0 - lr * wd) * a0[n] + velocity * a1[n] + second.theta[n];
                a1[n] = mu * b[n];
            }
            phi.iter_mut().zip(&second.phi).for_each(|(sum, term)| *sum += term);
        }
        Ok(Found { phi, passes: first.0, memory: first.1 })
    }

    /// Derivative of a point's gradient along `b`, gates and teachers held.
    fn along(&self, point: &Point, b: &[f64]) -> Result<Gradient> {
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let epsilon = DISPLACEMENT * norm(&point.theta) / norm(b);
        let side = |epsilon: f64| {
            let theta: Vec<f64> = point.theta.iter().zip(b).map(|(theta, b)| theta + epsilon * b).collect();
            let (outputs, _) = self.forward(&theta, Some(&point.gates))?;
            self.gradient(&self.objective(&outputs, point)?)
        };
        let (plus, minus) = (side(epsilon)?, side(-epsilon)?);
        let quotient = |plus: &[f64], minus: &[f64]| {
            plus.iter().zip(minus).map(|(p, m)| (p - m) / (2.0 * epsilon)).collect()
        };
        Ok(Gradient { theta: quotient(&plus.theta, &minus.theta), phi: quotient(&plus.phi, &minus.phi) })
    }

    fn objective(&self, outputs: &[Outputs], point: &Point) -> Result<Tensor> {
        let stages = stages(outputs)?;
        match &point.memory {
            _ if !point.inner => self.outer(outputs),
            Some(memory) => Ok(memory.inner(&self.method, (&stages, &point.teachers), &self.input)?),
            None => Ok(contrast(&stages, &point.teachers, &self.input.labels, &self.method)?),
        }
    }

    /// Cross-entropy of all stages of all networks.
    fn outer(&self, outputs: &[Outputs]) -> Result<Tensor> {
        let mut total = Tensor::zeros((), DType::F64, &Device::Cpu)?;
        for z in outputs.iter().flat_map(|outputs| &outputs.stage_logits) {
            total = (total + cross_entropy(z, &self.input.labels)?)?;
        }
        Ok(total)
    }

    fn forward(&self, theta: &[f64], gates: Option<&[GateTape]>) -> Result<(Vec<Outputs>, Vec<Pass>)> {
        let (mut rest, mut outputs, mut passes) = (theta, Vec::new(), Vec::new());
        for (i, (role, model)) in self.models.iter().enumerate() {
            let mut pass = match (role, gates) {
                (Role::Teacher, _) => Pass::eval(),
                (Role::Student, None) => Pass::recording(),
                (Role::Student, Some(gates)) => Pass::replaying(&gates[i]),
            };
            if *role == Role::Student {
                for (_, var) in model.theta() {
                    var.set(&take(&mut rest, var)?)?;
                }
            }
            outputs.push(model.forward(&self.images, &mut pass)?);
            passes.push(pass);
        }
        Ok((outputs, passes))
    }

    fn gradient(&self, loss: &Tensor) -> Result<Gradient> {
        let store = loss.backward()?;
        let flat = |vars: &mut dyn Iterator<Item = &Var>| -> Result<Vec<f64>> {
            let mut all = Vec::new();
            for var in vars {
                match store.get(var.as_tensor()) {
                    Some(gradient) => all.extend(gradient.flatten_all()?.to_vec1::<f64>()?),
                    None => all.resize(all.len() + var.elem_count(), 0.0),
                }
            }
            Ok(all)
        };
        Ok(Gradient { theta: flat(&mut self.theta_vars())?, phi: flat(&mut self.phi())? })
    }

    fn theta(&self) -> Result<Vec<f64>> {
        let mut all = Vec::new();
        for var in self.theta_vars() {
            all.extend(var.flatten_all()?.to_vec1::<f64>()?);
        }
        Ok(all)
    }

    fn theta_vars(&self) -> impl Iterator<Item = &Var> {
        self.students().flat_map(|model| model.theta().map(|(_, var)| var))
    }

    fn phi(&self) -> impl Iterator<Item = &Var> {
        self.students().flat_map(|model| model.phi().map(|(_, var)| var))
    }

    fn students(&self) -> impl Iterator<Item = &Model> {
        self.models.iter().filter(|(role, _)| *role == Role::Student).map(|(_, model)| model)
    }
}

fn stages(outputs: &[Outputs]) -> Result<Vec<Stages>> {
    let of = |outputs: &Outputs| Ok(Stages::of(&outputs.embeddings, &outputs.matching)?);
    outputs.iter().map(of).collect()
}

/// The next numbers of `rest` in the shape and type of a variable.
fn take(rest: &mut &[f64], var: &Var) -> Result<Tensor> {
    let (values, after) =
        rest.split_at_checked(var.elem_count()).ok_or_else(|| anyhow::anyhow!("too few"))?;
    *rest = after;
    Ok(Tensor::from_slice(values, var.shape(), &Device::Cpu)?.to_dtype(var.dtype())?)
}
