//! `plan` and `status`.

use std::io::{self, Write as _};

use cohort_proto::exit::Exit;
use cohort_proto::limits::{CONNECT_TIMEOUT, CONTROL_MESSAGE_BYTES_MAX};
use cohort_proto::wire;
use cohort_proto::wire::coordinator_client::CoordinatorClient;
use tonic::transport::Endpoint;

use super::{Failure, Format, PlanArgs, StatusArgs};
use crate::status::StatusView;

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

pub(super) fn plan(_args: &PlanArgs) -> Result<Exit, Failure> {
    Err(Failure::new(Exit::Internal, "plan"))
}
