//! `cohort-peer join`.

use cohort_proto::control::StopKind;
use cohort_proto::exit::Exit;

use super::{JoinArgs, say};
use crate::driver;
use crate::error::PeerError;
use crate::trainer::Ending;

pub(super) fn run(args: JoinArgs) -> Result<Exit, PeerError> {
    let JoinArgs { coordinator, name, device, data, listen, advertise, cpu: _, state, insecure } = args;
    let who = name.clone();
    let config = driver::Config { coordinator, name, device, data, listen, advertise, state, insecure };
    // The network needs little; what computes has threads of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| PeerError::Internal(format!("no runtime: {error}")))?;
    let Ending { steps_done, saved, cause } =
        runtime.block_on(driver::run(config, driver::Machine::default()))?;
    runtime.shutdown_background();
    let state = if saved {
        format!("its state after {steps_done} steps is saved")
    } else {
        "nothing was to be saved".into()
    };
    match cause {
        Ok(stop) if stop.kind == StopKind::Finished => {
            tracing::info!("peer {who} finished after {steps_done} steps");
            Ok(Exit::Finished)
        }
        Ok(stop) => {
            say(&format!("cohort-peer: peer {who} stopped: {}; {state}", stop.sentence));
            Ok(Exit::Stopped)
        }
        Err(error) => {
            say(&format!("cohort-peer: peer {who}: {state}"));
            Err(error)
        }
    }
}
