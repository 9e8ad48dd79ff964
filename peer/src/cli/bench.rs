//! `cohort-peer bench`.

use super::{BenchArgs, print_json};
use crate::bench::{Workload, measure};
use crate::error::PeerError;
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
    if args.batch == 0 || args.steps == 0 {
        return Err(PeerError::Usage("--batch and --steps must be at least 1".into()));
    }
    registry::check_name(&args.arch).map_err(|error| PeerError::Usage(error.to_string()))?;
    let image = ImageShape { channels, height, width };
    let workload = Workload { image, classes: args.classes, batch: args.batch, steps: args.steps };
    print_json(&measure(&args.arch, workload, threads)?)
}
