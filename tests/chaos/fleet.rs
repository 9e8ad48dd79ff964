//! The processes of one run: started, killed, paused, cut off, started again by the very same command.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cohort_proto::exit::Exit;
use cohort_tests::net::Net;
use cohort_tests::process::{Process, Signal};

use crate::setting::Setting;

/// The first argument that makes this binary a coordinator; the name of its process and host as well.
pub(crate) const COORDINATOR: &str = "coordinator";
/// The first argument that makes this binary a peer.
pub(crate) const PEER: &str = "peer";

/// The place of the coordinator among the processes; peers follow in the order of run.toml.
pub(crate) const FIRST: usize = 0;

/// Ports to listen on: below those that systems give to outgoing connections, so that none of a peer's own calls takes
/// the coordinator's while that is down.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// Lines of each log that are shown when something failed.
const TAIL: usize = 25;

/// What a process is doing.
#[derive(Debug)]
pub(crate) enum State {
    /// It runs.
    Up(Process),
    /// It does not, until a time; without one, until somebody gives it one.
    Down(Option<Instant>),
    /// It has done its work.
    Done,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// By our signal.
    Killed,
    Finished,
    /// With its state saved.
    Stopped,
    Unreachable,
    /// Otherwise: what nothing here explains.
    Wrongly(String),
}

/// A process and its successors.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) state: State,
    /// When it is to be continued, if it is paused.
    pub(crate) paused_until: Option<Instant>,
    /// When it is to be killed once more.
    pub(crate) doomed_at: Option<Instant>,
    /// How long it is to stay down after that.
    pub(crate) doomed_pause: Duration,
    /// How often it was started.
    pub(crate) starts: u32,
    /// How often it ended early without having been killed.
    pub(crate) early_ends: u32,
    peak_rss_kb: u64,
    log: PathBuf,
}

impl Slot {
    /// The number of its process, if it has one.
    pub(crate) fn up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// Whether it runs and has said where it listens, on standard output: from then on it knows what to do with a wish that
    /// it stops.
    pub(crate) fn listens(&self) -> bool {
        let said = fs::metadata(self.log.with_extension("out"));
        self.up() && said.is_ok_and(|said| said.len() > 0)
    }

    /// Sends a signal, if it runs. One that has just ended is found later.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if let State::Up(process) = &mut self.state {
            _ = process.signal(signal);
        }
    }

    /// Kills it, and waits until it is gone. How it ended, since it may have been quicker; nothing if it was down.
    pub(crate) fn kill(&mut self) -> Result<Option<End>> {
        self.measure();
        (self.paused_until, self.doomed_at) = (None, None);
        if !self.up() {
            return Ok(None);
        }
        self.signal(Signal::SIGKILL);
        let State::Up(process) = std::mem::replace(&mut self.state, State::Down(None)) else {
            return Ok(None);
        };
        let ended = process.wait()?;
        Ok(Some(end_of(ended.status, &ended.stderr)))
    }

    /// How it ended, if it has by itself.
    pub(crate) fn reap(&mut self) -> Result<Option<End>> {
        let State::Up(process) = &mut self.state else { return Ok(None) };
        let Some(status) = process.ended()? else { return Ok(None) };
        let end = end_of(status, &process.stderr()?);
        (self.paused_until, self.doomed_at) = (None, None);
        self.state = State::Down(None);
        Ok(Some(end))
    }

    /// Takes down how much memory it has used at the most.
    pub(crate) fn measure(&mut self) {
        let State::Up(process) = &self.state else { return };
        let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kb = peak.and_then(|peak| peak.trim().trim_end_matches(" kB").trim().parse().ok());
        self.peak_rss_kb = self.peak_rss_kb.max(kb.unwrap_or(0));
    }

    /// The most memory that any of its processes has used, in megabytes.
    pub(crate) fn peak_rss_mb(&self) -> f64 {
        self.peak_rss_kb as f64 / 1024.0
    }

    /// The last line that it has said.
    pub(crate) fn last_line(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned()
    }
}

fn end_of(status: ExitStatus, stderr: &str) -> End {
    if stderr.contains("panicked") {
        return End::Wrongly("it panicked".to_owned());
    }
    let is = |exit: Exit| status.code() == Some(exit as i32);
    match status.signal() {
        // A peer that is asked to stop before it can listen to that just ends.
        Some(signal) if signal == Signal::SIGKILL as i32 || signal == Signal::SIGTERM as i32 => End::Killed,
        // One that was left behind has nothing more to do, either; the verdict looks at what it has.
        _ if is(Exit::Finished) || is(Exit::LeftBehind) => End::Finished,
        _ if is(Exit::Stopped) => End::Stopped,
        _ if is(Exit::Unreachable) => End::Unreachable,
        _ => End::Wrongly(status.to_string()),
    }
}

/// All processes of a run.
#[derive(Debug)]
pub(crate) struct Fleet<'a> {
    pub(crate) slots: Vec<Slot>,
    pub(crate) net: Option<&'a Net>,
    folder: PathBuf,
    program: PathBuf,
    listen: String,
}

impl<'a> Fleet<'a> {
    /// The processes of a run in a folder, none of them started yet.
    pub(crate) fn new(setting: &Setting, folder: &Path, net: Option<&'a Net>) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let listen = match net {
            Some(net) => format!("{}:4700", net.address(COORDINATOR)?),
            None => format!("127.0.0.1:{}", free_port()?),
        };
        let slot = |name: &str| Slot {
            name: name.to_owned(),
            state: State::Down(Some(Instant::now())),
            paused_until: None,
            doomed_at: None,
            doomed_pause: Duration::ZERO,
            starts: 0,
            early_ends: 0,
            peak_rss_kb: 0,
            log: PathBuf::new(),
        };
        let slots = std::iter::once(COORDINATOR).chain(setting.peers()).map(slot).collect();
        let program = std::env::current_exe().context("where this program is")?;
        Ok(Self { slots, net, folder: folder.to_owned(), program, listen })
    }

    /// What peers and watchers are told.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// Where a peer keeps its checkpoints.
    pub(crate) fn state_of(&self, peer: &str) -> PathBuf {
        self.folder.join("peers").join(peer)
    }

    /// Starts a process by the command that is always the same.
    pub(crate) fn start(&mut self, place: usize) -> Result<()> {
        let command = self.command(place)?;
        let logs = self.folder.join("logs");
        let slot = self.slots.get_mut(place).context("no such process")?;
        let name = format!("{}-{}", slot.name, slot.starts);
        slot.log = logs.join(format!("{name}.err"));
        slot.starts += 1;
        slot.state = State::Up(Process::start(command, &name, &logs)?);
        Ok(())
    }

    fn command(&self, place: usize) -> Result<Command> {
        let name = self.slots.get(place).map(|slot| slot.name.as_str()).context("no such process")?;
        let mut command = match self.net {
            Some(net) => {
                let words = net.enter(name)?;
                let mut command = Command::new(words.first().context("no words")?);
                command.args(words.iter().skip(1)).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        if place == FIRST {
            command.args([COORDINATOR, "serve", "--insecure", "--listen", &self.listen, "--run"]);
            command.arg(self.folder.join("../run.toml"));
            command.arg("--state").arg(self.folder.join(COORDINATOR));
        } else {
            command.args([PEER, "join", "--insecure", "--coordinator", &self.url(), "--name", name]);
            command.args(["--threads", "1", "--state"]).arg(self.state_of(name));
        }
        // Its own group: Ctrl-C reaches this program alone, and its end is theirs.
        command.current_dir(&self.folder).process_group(0);
        Ok(command)
    }

    /// Whether all have done their work.
    pub(crate) fn over(&self) -> bool {
        self.slots.iter().all(|slot| matches!(slot.state, State::Done))
    }

    /// Whether every process that has not done its work runs and is not paused.
    pub(crate) fn all_up(&self) -> bool {
        self.slots.iter().all(|slot| !matches!(slot.state, State::Down(_)) && slot.paused_until.is_none())
    }

    /// The places of the peers that run.
    pub(crate) fn peers_up(&self) -> Vec<usize> {
        let up = self.slots.iter().enumerate().skip(FIRST + 1).filter(|(_, slot)| slot.up());
        up.map(|(place, _)| place).collect()
    }

    /// The ends of all logs.
    pub(crate) fn last_words(&self) -> String {
        let mut words = String::new();
        for slot in &self.slots {
            let text = fs::read_to_string(&slot.log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(TAIL)..).unwrap_or_default().join("\n");
            words.push_str(&format!("---- {} ----\n{tail}\n", slot.log.display()));
        }
        words
    }
}

/// A port that nobody listens on. Which one is nobody's business, so chance may decide it.
fn free_port() -> Result<u16> {
    let first = usize::try_from(std::process::id())? * 7 % PORTS.len();
    let ports = PORTS.cycle().skip(first).take(PORTS.len());
    let mut free = ports.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    let port = free.next();
    ensure!(port.is_some(), "no free port");
    port.context("no free port")
}
