//! What a peer that is wrong or hostile can do to the others: end the run, and nothing else. Whoever trained with it
//! says who it was and what was wrong, keeps what it had learnt, and does not hang.

use anyhow::{Result, ensure};
use cohort_proto::contribution::Position;
use cohort_proto::exit::Exit;
use cohort_proto::id::{Digest, PeerName, RunId, ViewId};
use cohort_proto::schema::{DType, Schema, TensorSpec};
use cohort_proto::wire;
use cohort_tests::process::Site;

use crate::hostile::{Hostile, Manners, Script};
use crate::setting::{PROGRAM, TWO, run_toml, site};

/// `a` is a real peer, `b` says one thing that is right and then what the script adds. `words` are what `a` must say.
fn attack(script: Script, exit: Exit, words: &[&str]) -> Result<()> {
    attack_on("dml", script, exit, words)
}

/// [`attack`] on a run of a method.
fn attack_on(method: &str, script: Script, exit: Exit, words: &[&str]) -> Result<()> {
    let site = site(method, TWO, "steps = 8")?;
    let coordinator = site.coordinator()?;
    let url = coordinator.url();
    let a = site.peer(&url, "a", &[])?;
    let _hostile = Hostile::join(&url, Manners::Good, script)?;
    let ended = a.wait()?;
    ended.check(exit, words)?;
    ended.check(exit, &["peer a", "after 1 steps is saved"])?;
    ensure!(site.checkpoints("a")? == [1], "what was complete is saved");
    coordinator.process.wait()?.check(Exit::Stopped, words)
}

/// What is right for step 0, and another message.
fn then(honest: wire::Contribution, attack: wire::Contribution) -> Result<Vec<wire::Contribution>> {
    Ok(vec![honest, attack])
}

#[test]
fn a_tensor_of_the_wrong_shape() -> Result<()> {
    let script: Script = |speaker| {
        let spec = TensorSpec { name: "logits".into(), dtype: DType::F32, shape: vec![20, 11] };
        let other = Schema::new(vec![spec])?;
        then(speaker.honest(0)?, speaker.sealed(speaker.header(1)?, &other)?)
    };
    attack(script, Exit::BadData, &["peer b", "step 1", "[20, 11]", "[20, 10]"])
}

#[test]
fn a_tensor_with_fewer_bytes_than_its_shape_asks_for() -> Result<()> {
    let script: Script = |speaker| {
        let mut short = speaker.honest(1)?;
        short.tensors[0].data.truncate(700);
        then(speaker.honest(0)?, short)
    };
    attack(script, Exit::BadData, &["peer b", "step 1", "logits has 700 bytes"])
}

#[test]
fn a_nan() -> Result<()> {
    let script: Script = |speaker| {
        let mut message = speaker.honest(1)?;
        let mut data = message.tensors[0].data.to_vec();
        data[40..44].copy_from_slice(&f32::NAN.to_le_bytes());
        message.tensors[0].data = data.into();
        then(speaker.honest(0)?, message)
    };
    attack(script, Exit::BadData, &["peer b", "step 1", "logits", "not finite", "element 10"])
}

#[test]
fn a_digest_where_a_tensor_was_asked_for() -> Result<()> {
    let script: Script = |speaker| {
        let mut message = speaker.honest(1)?;
        let data = std::mem::take(&mut message.tensors[0].data);
        message.tensors[0].digest = Digest::of(&data).0.to_vec();
        then(speaker.honest(0)?, message)
    };
    attack(script, Exit::BadData, &["peer b", "step 1", "logits was asked for, but only its digest came"])
}

/// Finite, but one step with it would leave the weights of all who listen beyond all numbers.
#[test]
fn a_row_that_is_no_unit_row() -> Result<()> {
    let script: Script = |speaker| {
        let mut message = speaker.honest(1)?;
        let mut data = message.tensors[1].data.to_vec();
        data[3 * 128 * 4..][..4].copy_from_slice(&1e30f32.to_le_bytes());
        message.tensors[1].data = data.into();
        then(speaker.honest(0)?, message)
    };
    attack_on("mcl", script, Exit::BadData, &["peer b", "step 1", "row 3 of tensor embed.0 has length 1.0"])
}

#[test]
fn a_message_over_the_limit() -> Result<()> {
    let script: Script = |speaker| {
        let mut message = speaker.honest(1)?;
        message.tensors[0].data = vec![0; 32 << 20].into();
        then(speaker.honest(0)?, message)
    };
    attack(script, Exit::BadData, &["peer b", "larger"])
}

#[test]
fn a_digest_of_something_else() -> Result<()> {
    let script: Script = |speaker| {
        let mut message = speaker.honest(1)?;
        message.digest = vec![7; 32];
        then(speaker.honest(0)?, message)
    };
    attack(script, Exit::BadData, &["peer b", "step 1", "digest", "070707"])
}

#[test]
fn another_run_or_view() -> Result<()> {
    let run: Script = |speaker| {
        let mut header = speaker.header(1)?;
        header.run = RunId(header.run.0 ^ 1);
        then(speaker.honest(0)?, speaker.sealed(header, &speaker.schema)?)
    };
    attack(run, Exit::BadData, &["peer b sent", "not this run"])?;
    let view: Script = |speaker| {
        let mut header = speaker.header(1)?;
        header.view = ViewId(9);
        then(speaker.honest(0)?, speaker.sealed(header, &speaker.schema)?)
    };
    // What comes from a view that does not hold is not taken, so nothing has come.
    silent(Manners::Good, view, "word from b to a")
}

#[test]
fn a_step_that_is_far_ahead() -> Result<()> {
    let script: Script = |speaker| {
        let mut header = speaker.header(1)?;
        header.position = Position::of(1 << 60);
        then(speaker.honest(0)?, speaker.sealed(header, &speaker.schema)?)
    };
    attack(script, Exit::BadData, &["peer b sent step", "while step 1"])
}

#[test]
fn another_batch() -> Result<()> {
    let script: Script = |speaker| {
        let mut header = speaker.header(1)?;
        header.batch_hash ^= 1;
        then(speaker.honest(0)?, speaker.sealed(header, &speaker.schema)?)
    };
    attack(script, Exit::BadData, &["peer b", "another batch at step 1"])
}

#[test]
fn the_name_of_another_peer() -> Result<()> {
    let script: Script = |speaker| {
        let mut header = speaker.header(1)?;
        header.source = PeerName::new("a")?;
        then(speaker.honest(0)?, speaker.sealed(header, &speaker.schema)?)
    };
    attack(script, Exit::BadData, &["peer b", "step 1", "signed a"])
}

/// `b` says what is right for step 0 and then nothing that counts: the run stops when its wait timeout is over.
fn silent(manners: Manners, script: Script, waits_for: &str) -> Result<()> {
    let text = run_toml("dml", TWO, "steps = 8");
    let hasty = "failure_timeout_ms = 1500\nwait_timeout_ms = 4000";
    let site = Site::new(PROGRAM, &text.replace("failure_timeout_ms = 6000", hasty))?;
    let coordinator = site.coordinator()?;
    let url = coordinator.url();
    let a = site.peer(&url, "a", &[])?;
    let _hostile = Hostile::join(&url, manners, script)?;
    let words = ["no step was completed for 4.0 s", waits_for];
    a.wait()?.check(Exit::Stopped, &words)?;
    ensure!(site.checkpoints("a")? == [1], "what was complete is saved");
    coordinator.process.wait()?.check(Exit::Stopped, &words)
}

#[test]
fn a_peer_that_is_never_heard_again() -> Result<()> {
    silent(Manners::Mute, |speaker| Ok(vec![speaker.honest(0)?]), "nothing was heard of it")
}

/// Alive to the coordinator, silent to its followers: no connection breaks and no heartbeat is missing.
#[test]
fn a_peer_that_lives_and_says_nothing() -> Result<()> {
    silent(Manners::Good, |speaker| Ok(vec![speaker.honest(0)?]), "word from b to a")
}
