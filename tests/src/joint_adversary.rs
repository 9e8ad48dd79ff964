//! Adversarial distillation of a whole cohort in one graph: the sum of what all networks minimise against their
//! discriminators, and the sum of what all discriminators minimise. Each takes the gradient of the sum by what is its own.

use candle_core::{DType, Device, Result, Tensor};
use cohort_peer::learner::{Contest, Learner};
use cohort_peer::methods::Heard;
use cohort_peer::step::forward::Forward;

/// What each network has a part of: the sums over all networks, with its own discriminator's statistics; none for those
/// without one.
///
/// # Errors
/// Maps that are missing, or shapes that do not fit.
pub fn contests(learners: &[Learner], outputs: &[Forward]) -> Result<Vec<Option<Contest>>> {
    let zero = || Tensor::zeros((), DType::F64, &Device::Cpu);
    let (mut generators, mut discriminators) = (zero()?, zero()?);
    let mut contests = Vec::with_capacity(learners.len());
    for (learner, output) in learners.iter().zip(outputs) {
        // With their graphs: what is a constant is the contest's own business.
        let said = |(index, other): (usize, &Forward)| Heard {
            map: other.outputs.map.clone(),
            ..Heard::nothing(index)
        };
        let heard: Vec<Heard> = outputs.iter().enumerate().map(said).collect();
        let contest = match &learner.adversary {
            Some(adversary) => adversary.contest(&output.outputs, &heard)?,
            None => None,
        };
        if let Some(contest) = &contest {
            generators = (generators + &contest.generator)?;
            discriminators = (discriminators + &contest.discriminator)?;
        }
        contests.push(contest);
    }
    let of_sums = |contest: Contest| Contest {
        generator: generators.clone(),
        discriminator: discriminators.clone(),
        ..contest
    };
    Ok(contests.into_iter().map(|contest| contest.map(of_sums)).collect())
}
