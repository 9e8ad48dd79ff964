//! `cohort-peer bench`.

use super::{BenchArgs, BenchMethod, print_json};
use crate::bench::{Workload, measure};
use crate::error::PeerError;
use crate::methods::{DmlParams, LMclParams, MclParams, Method};
use crate::models::{ImageShape, registry};

pub(super) fn run(args: &BenchArgs, threads: usize) -> Result<(), PeerError> {
    let sides: Option<Vec<usize>> = args.image.split('x').map(|side| side.parse().ok()).collect();
    let Some([channels, height, width]) =
        sides.as_deref().and_then(|sides| <[usize; 3]>::try_from(sides).ok())
    else {
        return Err(PeerError::Usage(format!(
            "--image {:?} is not channels x height x width, such as 3x32x32",
            args.image
        )));
    };
    if [channels, height, width].iter().any(|side| !(1..=4096).contains(side)) {
        return Err(PeerError::Usage(format!("--image {:?}: each of the three is 1 to 4096", args.image)));
    }
    registry::check_name(&args.arch).map_err(|error| PeerError::Usage(error.to_string()))?;
    let image = ImageShape { channels, height, width };
    let workload = Workload {
        image,
        classes: args.classes as usize,
        batch: args.batch as usize,
        steps: args.steps as usize,
    };
    let method = match args.method {
        BenchMethod::Alone => Method::Alone,
        BenchMethod::Dml => Method::Dml(DmlParams::default()),
        BenchMethod::Mcl => Method::Mcl(MclParams::default()),
        BenchMethod::LMcl => Method::LMcl(LMclParams::default()),
    };
    print_json(&measure(&args.arch, method, workload, threads)?)
}
