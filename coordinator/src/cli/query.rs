//! `plan` and `status`.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use cohort_proto::dataset::{self, DatasetError, DatasetKind, Split};
use cohort_proto::exit::Exit;
use cohort_proto::id::Step;
use cohort_proto::limits::{CONNECT_TIMEOUT, CONTROL_MESSAGE_BYTES_MAX};
use cohort_proto::plan::{PlanError, PlannedBatch};
use cohort_proto::spec::{DataSpec, RunSpec};
use cohort_proto::wire;
use cohort_proto::wire::coordinator_client::CoordinatorClient;
use serde::Serialize;
use tonic::transport::Endpoint;

use super::{Failure, Format, PlanArgs, StatusArgs, load};
use crate::status::StatusView;

/// How far below a checkout's root its binaries are: `target/TRIPLE/PROFILE/deps`, with the binary itself.
const CHECKOUT_DEPTH_MAX: usize = 5;

pub(super) fn status(args: &StatusArgs) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Internal, error))?;
    let reply = runtime.block_on(ask(&args.coordinator))?;
    let view = StatusView::from(reply);
    let text = match args.format {
        Format::Text => view.text(),
        Format::Json => serde_json::to_string(&view).map_err(|error| Failure::new(Exit::Internal, error))?,
    };
    print(&text).map(|_| Exit::Finished)
}

async fn ask(url: &str) -> Result<wire::StatusReply, Failure> {
    let with_scheme = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let endpoint = Endpoint::from_shared(with_scheme).map_err(|error| {
        Failure::new(Exit::Usage, format!("{url:?} is not an address of a coordinator: {error}"))
    })?;
    let unreachable =
        |why: String| Failure::new(Exit::Unreachable, format!("no coordinator answers at {url}: {why}"));
    let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(CONNECT_TIMEOUT).connect().await;
    let channel = channel.map_err(|error| unreachable(causes(&error)))?;
    let mut client = CoordinatorClient::new(channel)
        .max_decoding_message_size(CONTROL_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(CONTROL_MESSAGE_BYTES_MAX);
    let reply = client.status(wire::StatusRequest {}).await;
    reply.map(tonic::Response::into_inner).map_err(|status| unreachable(status.message().to_owned()))
}

/// An error and what is behind it: the transport's own words say only that something failed.
fn causes(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        words.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    words
}

/// A line on stdout; false when nobody reads any more, which is no error.
fn print(line: &str) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new(Exit::Storage, format!("cannot write to stdout: {error}"))),
    }
}

pub(super) fn plan(args: &PlanArgs) -> Result<Exit, Failure> {
    let spec = load(&args.run)?;
    if args.show_graph {
        let graph = spec.graph();
        let text = match args.format {
            Format::Text => graph.text().trim_end().to_owned(),
            Format::Json => {
                serde_json::to_string(&graph).map_err(|error| Failure::new(Exit::Internal, error))?
            }
        };
        return print(&text).map(|_| Exit::Finished);
    }
    let RunSpec { data: DataSpec { dataset, path, train_limit, .. }, .. } = &spec;
    let told = args.data.as_deref().or(path.as_deref());
    let bad_data = |error: DatasetError| Failure::new(Exit::BadData, error);
    let folder = dataset::find(*dataset, &dataset::candidates(told, &bundled(*dataset), *dataset))
        .map_err(bad_data)?;
    let labels = dataset::load_labels(&folder, *dataset, Split::Train, *train_limit).map_err(bad_data)?;
    let wrong = |error: PlanError| Failure::new(Exit::BadSpec, format!("run.toml: {error}"));
    let trained_on = spec
        .trained_on(&labels)
        .map_err(|error| Failure::new(Exit::BadSpec, format!("run.toml: {error}")))?;
    let mut plan = spec.batch_plan(trained_on).map_err(wrong)?;
    let steps = args.steps.unwrap_or(u64::MAX).min(plan.total_steps());
    for step in 0..steps {
        let PlannedBatch { step, epoch, lr, indices, .. } = plan.batch(step).map_err(wrong)?;
        let line = serde_json::to_string(&PlanLine { step, epoch, lr, indices });
        let line = line.map_err(|error| Failure::new(Exit::Internal, error))?;
        if !print(&line)? {
            break;
        }
    }
    Ok(Exit::Finished)
}

/// One line of `plan`.
#[derive(Serialize)]
struct PlanLine {
    step: Step,
    epoch: u64,
    lr: f64,
    indices: Vec<u32>,
}

/// Where a checkout of Cohort keeps the data that come with it: seen from the folder we stand in, and from the binary,
/// which cargo puts some folders below the checkout's root.
fn bundled(dataset: DatasetKind) -> Vec<PathBuf> {
    let inside = Path::new("examples/data").join(dataset.name());
    let binary = std::env::current_exe().unwrap_or_default();
    let above = binary.ancestors().skip(1).take(CHECKOUT_DEPTH_MAX).map(|folder| folder.join(&inside));
    let above: Vec<PathBuf> = above.filter(|folder| folder.is_dir()).collect();
    [inside].into_iter().chain(above).collect()
}
