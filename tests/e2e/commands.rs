//! The commands around a run: `status`, `plan`, and what gRPC tools ask.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use cohort_proto::exit::Exit;
use cohort_tests::process::HERE;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::call::{block_on, channel, wait_until_attending};
use crate::setting::{DATA, PROGRAM, TWO, site};

/// What a service says of its health and of its schema.
fn check_service(url: &str, service: &str) -> Result<()> {
    block_on(async {
        let channel = channel(url).await?;
        for name in ["", service] {
            let request = HealthCheckRequest { service: name.into() };
            let reply = HealthClient::new(channel.clone()).check(request).await?.into_inner();
            ensure!(reply.status() == ServingStatus::Serving, "{name:?}: {reply:?}");
        }
        let ask = |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
        let questions = [
            MessageRequest::ListServices(String::new()),
            MessageRequest::FileContainingSymbol(service.into()),
        ];
        let asked = tokio_stream::iter(questions.map(ask));
        let mut answers =
            ServerReflectionClient::new(channel).server_reflection_info(asked).await?.into_inner();
        let listed = answers.message().await?.and_then(|answer| answer.message_response);
        let Some(MessageResponse::ListServicesResponse(listed)) = listed else {
            anyhow::bail!("no list of services: {listed:?}")
        };
        ensure!(listed.service.iter().any(|listed| listed.name == service), "{listed:?}");
        let file = answers.message().await?.and_then(|answer| answer.message_response);
        ensure!(matches!(file, Some(MessageResponse::FileDescriptorResponse(_))), "{file:?}");
        Ok(())
    })
}

#[test]
fn health_and_reflection_answer_on_both_sides() -> Result<()> {
    let site = site("mcl", TWO, "steps = 3")?;
    let coordinator = site.coordinator()?;
    let url = coordinator.url();
    check_service(&url, "cohort.v1.Coordinator")?;
    let _peer = site.peer(&url, "a", &[])?;
    let address = wait_until_attending(&url, "a")?.address;
    check_service(&format!("http://{address}"), "cohort.v1.Exchange")
}

#[test]
fn status_for_people_and_for_programs() -> Result<()> {
    let site = site("mcl", TWO, "steps = 3")?;
    let coordinator = site.coordinator()?;
    let url = coordinator.url();
    let _peer = site.peer(&url, "a", &[])?;
    wait_until_attending(&url, "a")?;
    let status = |format: &str| -> Result<String> {
        let args = ["coordinator", "status", "--coordinator", &url, "--format", format];
        let ended = site.start("status", HERE, &args)?.wait()?;
        ended.check(Exit::Finished, &[])?;
        Ok(ended.stdout)
    };
    let text = status("text")?;
    for word in ["run e2e", "gathering", "waiting for b", "resnet8", "wrn_10_1", "attending", "expected"] {
        ensure!(text.contains(word), "no {word:?} in:\n{text}");
    }
    let json: Value = serde_json::from_str(&status("json")?)?;
    ensure!(json["phase"] == "gathering" && json["run_name"] == "e2e" && json["total_steps"] == 3, "{json}");
    ensure!(json["members"][0]["name"] == "a" && json["members"][0]["state"] == "attending", "{json}");
    ensure!(json["members"][1]["name"] == "b" && json["members"][1]["state"] == "expected", "{json}");
    ensure!(json["spec"]["method"]["name"] == "mcl", "{json}");
    // Without a scheme it is found as well.
    let args = ["coordinator", "status", "--coordinator", &coordinator.address];
    site.start("status", HERE, &args)?.wait()?.check(Exit::Finished, &[])
}

#[test]
fn the_plan_is_one_json_object_a_line() -> Result<()> {
    let site = site("mcl", TWO, "steps = 25")?;
    let run = site.run_toml();
    let run = run.to_string_lossy();
    let plan =
        |more: &[&str]| site.start("plan", HERE, &[&["coordinator", "plan", "--run", &run], more].concat());
    let all = plan(&[])?.wait()?;
    all.check(Exit::Finished, &[])?;
    let lines: Vec<Value> = all.stdout.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(lines.len() == 25, "{} lines", lines.len());
    for (step, line) in lines.iter().enumerate() {
        ensure!(line["step"] == step && line["epoch"] == step / 10 && line["lr"].is_number(), "{line}");
        let indices = line["indices"].as_array().context("no indices")?;
        ensure!(indices.len() == 20 && indices.iter().all(|index| index.as_u64() < Some(200)), "{line}");
    }
    let some = plan(&["--steps", "3", "--data", DATA])?.wait()?;
    ensure!(some.stdout.lines().eq(all.stdout.lines().take(3)), "--steps shows the first of them");
    plan(&["--data", "no-such-folder"])?.wait()?.check(Exit::BadData, &["no-such-folder"])
}

/// `plan | head -1` is no error.
#[test]
fn a_reader_of_the_plan_that_has_enough_is_no_error() -> Result<()> {
    let site = site("mcl", TWO, "steps = 1000000")?;
    let mut command = Command::new(PROGRAM);
    command.args(["coordinator", "plan", "--run"]).arg(site.run_toml());
    let mut plan = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(plan.stdout.take().context("no stdout")?).read_line(&mut line)?;
    let ended = plan.wait_with_output()?;
    ensure!(serde_json::from_str::<Value>(&line)?["step"] == 0, "{line}");
    let words = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.success() && words.is_empty(), "{}: {words}", ended.status);
    Ok(())
}
