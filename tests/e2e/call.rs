//! Calls to a coordinator or a peer by hand.

use std::future::Future;

use anyhow::Result;
use cohort_proto::limits::PROTOCOL_VERSION;
use cohort_proto::spec::RunSpec;
use cohort_proto::wire;
use cohort_proto::wire::coordinator_client::CoordinatorClient;
use cohort_proto::{convert, dataset};
use cohort_tests::process::wait_until;
use tonic::transport::{Channel, Endpoint};

/// Runs a future on a small runtime of its own.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

pub(crate) async fn channel(url: &str) -> Result<Channel> {
    Ok(Endpoint::from_shared(url.to_owned())?.connect().await?)
}

pub(crate) async fn client(url: &str) -> Result<CoordinatorClient<Channel>> {
    Ok(CoordinatorClient::new(channel(url).await?))
}

pub(crate) fn status(url: &str) -> Result<wire::StatusReply> {
    block_on(async { Ok(client(url).await?.status(wire::StatusRequest {}).await?.into_inner()) })
}

/// Waits until a member's status is as wanted.
pub(crate) fn wait_for_member(
    url: &str,
    name: &str,
    what: &str,
    is: impl Fn(&wire::MemberStatus) -> bool,
) -> Result<wire::MemberStatus> {
    wait_until(&format!("peer {name} {what}"), || {
        let members = status(url)?.members;
        Ok(members.into_iter().find(|member| member.name == name && is(member)))
    })
}

pub(crate) fn wait_until_attending(url: &str, name: &str) -> Result<wire::MemberStatus> {
    wait_for_member(url, name, "to attend", |member| member.state() == wire::MemberState::Attending)
}

/// The request with which a real peer of that name would join, but for its address.
pub(crate) async fn honest_join(
    client: &mut CoordinatorClient<Channel>,
    name: &str,
    address: &str,
) -> Result<(RunSpec, wire::JoinRequest)> {
    let status = client.status(wire::StatusRequest {}).await?.into_inner();
    let spec = RunSpec::from_json(&status.spec_json)?;
    let data = &spec.data;
    let folder = data.path.clone().unwrap_or_default();
    let samples = dataset::load(&folder, data.dataset, dataset::Split::Train, data.train_limit)?;
    let index = spec.peers.iter().position(|peer| peer.name.as_str() == name);
    let arch = index.and_then(|index| spec.peers.get(index)).map(|peer| peer.arch.clone());
    let schema = spec.contribution_schema(index.unwrap_or(0))?;
    let request = wire::JoinRequest {
        protocol_version: PROTOCOL_VERSION,
        name: name.to_owned(),
        spec_hash: status.spec_hash,
        arch: arch.unwrap_or_default(),
        classes: 10,
        address: address.to_owned(),
        schema: schema.tensors().iter().map(Into::into).collect(),
        dataset_fingerprint: dataset::fingerprint(&samples).to_vec(),
        total_steps: spec.batch_plan(&samples.labels)?.total_steps(),
        checkpoints: vec![],
        checkpoint_run: 0,
        standing: None,
    };
    // What this builds must be what a peer would send: one that does not even decode would prove nothing.
    cohort_proto::control::JoinRequest::try_from(request.clone())
        .map_err(|error: convert::WireError| error)?;
    Ok((spec, request))
}
