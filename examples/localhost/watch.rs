//! Progress: bars on a terminal, plain lines elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use cohort_proto::control::Term;
use cohort_proto::limits::CONTROL_MESSAGE_BYTES_MAX;
use cohort_proto::wire;
use cohort_proto::wire::coordinator_client::CoordinatorClient;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::args::Job;

/// How long the coordinator may take to answer before it is asked anew.
const ANSWER: Duration = Duration::from_secs(2);

/// How often a plain line is written.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Shows how far a run is.
pub(crate) struct Watch {
    title: String,
    url: String,
    client: Option<CoordinatorClient<Channel>>,
    bars: BTreeMap<String, ProgressBar>,
    all: MultiProgress,
    plain: bool,
    last_plain: Option<Instant>,
    rates: BTreeMap<String, Rate>,
    message: String,
}

/// What is known of a peer's pace.
#[derive(Debug, Default, Clone)]
struct Rate {
    since: Option<(Instant, u64)>,
    images_per_s: f64,
    last_step: Option<u64>,
    waited_ms: f64,
    total_ms: f64,
}

impl Watch {
    pub(crate) fn new(job: &Job, title: &str, url: &str) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let all = MultiProgress::with_draw_target(if plain {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        });
        let style = ProgressStyle::with_template("{prefix:16} {bar:24} {pos}/{len} {msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bars = job.spec.peers.iter().map(|peer| {
            let bar = all.add(ProgressBar::new(0).with_style(style.clone()));
            bar.set_prefix(format!("{title} {} {}", peer.name, peer.arch));
            (peer.name.to_string(), bar)
        });
        let bars = bars.collect();
        let (title, url) = (title.to_owned(), url.to_owned());
        Self {
            title,
            url,
            client: None,
            bars,
            all,
            plain,
            last_plain: None,
            rates: BTreeMap::new(),
            message: String::new(),
        }
    }

    /// Asks the coordinator and shows the answer. One that does not answer is asked again next time.
    pub(crate) async fn poll(&mut self) {
        if self.client.is_none() {
            let client =
                timeout(ANSWER, CoordinatorClient::connect(self.url.clone())).await.ok().and_then(Result::ok);
            self.client = client.map(|client| client.max_decoding_message_size(CONTROL_MESSAGE_BYTES_MAX));
        }
        let Some(client) = &mut self.client else { return };
        match timeout(ANSWER, client.status(wire::StatusRequest {})).await {
            Ok(Ok(status)) => self.show(&status.into_inner()),
            _ => self.client = None,
        }
    }

    fn show(&mut self, status: &wire::StatusReply) {
        if status.message != self.message && !status.message.is_empty() {
            self.say(&status.message.clone());
        }
        self.message.clone_from(&status.message);
        for member in &status.members {
            let Some(report) = &member.report else { continue };
            let rate = self.rates.entry(member.name.clone()).or_default();
            rate.update(member.steps_done, report);
            if let Some(bar) = self.bars.get(&member.name) {
                bar.set_length(status.total_steps);
                bar.set_position(member.steps_done);
                bar.set_message(words(report, rate, status.total_steps, member.steps_done));
            }
        }
        let due = self.last_plain.is_none_or(|last| last.elapsed() >= PLAIN_EVERY);
        if self.plain && due && status.members.iter().any(|member| member.report.is_some()) {
            self.last_plain = Some(Instant::now());
            self.plain_lines(status);
        }
    }

    fn plain_lines(&self, status: &wire::StatusReply) {
        for member in &status.members {
            if let (Some(report), Some(rate)) = (&member.report, self.rates.get(&member.name)) {
                let words = words(report, rate, status.total_steps, member.steps_done);
                crate::say(
                    std::io::stderr(),
                    &format!(
                        "{} {} {}/{} {words}",
                        self.title, member.name, member.steps_done, status.total_steps
                    ),
                );
            }
        }
    }

    /// A line above the bars.
    pub(crate) fn say(&self, line: &str) {
        if self.plain {
            crate::say(std::io::stderr(), &format!("{}: {line}", self.title));
        } else {
            // A terminal that has gone away needs no line.
            let _ = self.all.println(format!("{}: {line}", self.title));
        }
    }

    pub(crate) fn finish(&self) {
        self.bars.values().for_each(|bar| bar.abandon());
    }

    /// Share of each peer's step time spent publishing and waiting, by name, over the steps that were seen.
    pub(crate) fn waiting_share(&self) -> BTreeMap<String, f64> {
        let share = |rate: &Rate| if rate.total_ms > 0.0 { rate.waited_ms / rate.total_ms } else { 0.0 };
        self.rates.iter().map(|(name, rate)| (name.clone(), share(rate))).collect()
    }
}

impl Rate {
    fn update(&mut self, steps_done: u64, report: &wire::StepReport) {
        let now = Instant::now();
        let (since, first) = *self.since.get_or_insert((now, steps_done));
        let elapsed = now.duration_since(since).as_secs_f64();
        if elapsed > 0.5 {
            self.images_per_s = steps_done.saturating_sub(first) as f64 * report.images as f64 / elapsed;
        }
        if self.last_step.replace(report.step) != Some(report.step) {
            let ms = |acts: &[&str]| -> f64 {
                let counted = report
                    .timings
                    .iter()
                    .filter(|timing| acts.is_empty() || acts.contains(&timing.act.as_str()));
                counted.map(|timing| timing.ms).sum()
            };
            self.waited_ms += ms(&["say", "listen"]);
            self.total_ms += ms(&[]);
        }
    }
}

/// Epoch, loss terms, images per second, waiting, time left.
fn words(report: &wire::StepReport, rate: &Rate, total: u64, done: u64) -> String {
    let terms = report.terms.iter().filter(|term| !Term::is_matching(&term.name));
    let terms: Vec<String> = terms.map(|term| format!("{} {:.3}", term.name, term.value)).collect();
    let steps_per_s = rate.images_per_s / (report.images.max(1) as f64);
    let eta = if steps_per_s > 0.0 { total.saturating_sub(done) as f64 / steps_per_s } else { 0.0 };
    let waits = if rate.total_ms > 0.0 { 100.0 * rate.waited_ms / rate.total_ms } else { 0.0 };
    format!(
        "epoch {} | {} | {:.0} images/s | waits {waits:.0} % | {eta:.0} s left",
        report.epoch,
        terms.join(" "),
        rate.images_per_s
    )
}
