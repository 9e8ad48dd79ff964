//! The child processes: one coordinator, one process a peer, each this same binary under another name.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use cohort_proto::exit::Exit;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::Failure;
use crate::args::Job;

/// The first argument that makes this binary a coordinator.
pub(crate) const COORDINATOR: &str = "coordinator";
/// The first argument that makes this binary a peer.
pub(crate) const PEER: &str = "peer";

/// How often a process that was killed is started again.
const REVIVALS_MAX: u32 = 3;

/// How long the coordinator may take to listen.
const START: Duration = Duration::from_secs(20);

/// A child, and where its words go.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) child: Child,
    log: PathBuf,
    /// With what it was started, and is started again.
    args: Vec<OsString>,
    revivals: u32,
}

/// A run of processes. Dropping it kills what is left of them.
#[derive(Debug)]
pub(crate) struct Processes {
    pub(crate) coordinator: Process,
    pub(crate) peers: Vec<Process>,
    /// `http://127.0.0.1:port`.
    pub(crate) url: String,
}

impl Processes {
    /// Starts the coordinator, waits until it listens, and starts every peer.
    ///
    /// # Errors
    /// If a process cannot be started, or the coordinator ends at once (with its own exit code and last words).
    pub(crate) async fn start(job: &Job, run_toml: &Path) -> Result<Self, Failure> {
        let logs = job.out.join("logs");
        fs::create_dir_all(&logs).map_err(|error| cannot_write(&logs, &error))?;
        let (state, run) = (job.out.join("coordinator"), run_toml.as_os_str());
        let words = [COORDINATOR, "serve", "--listen", "127.0.0.1:0", "--state"].map(OsString::from);
        let args = words.into_iter().chain([state.into(), "--run".into(), run.to_owned()]).collect();
        let mut coordinator = Process::spawn(args, "coordinator", &logs, Stdio::piped())?;
        let address = listening(&mut coordinator).await?;
        // Started again, it must be where the peers know it.
        if let Some(listen) = coordinator.args.get_mut(3) {
            *listen = address.clone().into();
        }
        let url = format!("http://{address}");
        let mut peers = Vec::new();
        for (index, peer) in job.spec.peers.iter().enumerate() {
            let name = peer.name.as_str();
            let mut args: Vec<OsString> =
                [PEER, "join", "--coordinator", &url, "--name", name].map(OsString::from).into();
            args.extend(["--threads".into(), job.threads.to_string().into()]);
            if let Some(own) = job.cores.chunks(job.threads).nth(index) {
                let own: Vec<String> = own.iter().map(usize::to_string).collect();
                args.extend(["--cores".into(), own.join(",").into()]);
            }
            args.extend(["--state".into(), job.out.join("peers").join(name).into()]);
            if let Some(data) = &job.data {
                args.extend(["--data".into(), data.into()]);
            }
            peers.push(Process::spawn(args, &format!("peer-{name}"), &logs, Stdio::null())?);
        }
        Ok(Self { coordinator, peers, url })
    }

    /// Asks the coordinator to stop the run; asked again, it stops at once.
    pub(crate) fn ask_to_stop(&self) {
        #[cfg(unix)]
        if let Some(pid) = self.coordinator.child.id().and_then(|id| i32::try_from(id).ok()) {
            let terminate = nix::sys::signal::Signal::SIGTERM;
            // A process that has just ended needs no signal.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), terminate);
        }
    }

    /// Starts those again that were killed, each a few times at the most: they go on from where the run is. Returns their
    /// names.
    pub(crate) fn revive(&mut self) -> Vec<String> {
        let all = self.peers.iter_mut().chain(std::iter::once(&mut self.coordinator));
        all.filter_map(|process| process.revive().then(|| process.name.clone())).collect()
    }

    /// The first process that has failed, if any.
    pub(crate) fn failed(&mut self) -> Option<Failure> {
        let all = self.peers.iter_mut().chain(std::iter::once(&mut self.coordinator));
        let mut failures: Vec<Failure> = all.filter_map(Process::failure).collect();
        // One that stopped because another failed says 75: whoever says something else is the cause.
        failures.sort_by_key(|failure| failure.exit == Exit::Stopped);
        failures.into_iter().next()
    }

    /// Whether every process has ended.
    pub(crate) fn all_ended(&mut self) -> bool {
        let mut all = self.peers.iter_mut().chain(std::iter::once(&mut self.coordinator));
        all.all(|process| process.status().is_some())
    }
}

impl Process {
    fn spawn(args: Vec<OsString>, name: &str, logs: &Path, stdout: Stdio) -> Result<Self, Failure> {
        let log = logs.join(format!("{name}.log"));
        let child = start(&args, name, &log, stdout)?;
        Ok(Self { name: name.to_owned(), child, log, args, revivals: 0 })
    }

    /// Starts it again if a signal killed it and it was not started again too often.
    fn revive(&mut self) -> bool {
        let killed = self.status().is_some_and(|status| status.code().is_none());
        if !killed || self.revivals >= REVIVALS_MAX {
            return false;
        }
        self.revivals += 1;
        match start(&self.args, &self.name, &self.log, Stdio::null()) {
            Ok(child) => {
                self.child = child;
                true
            }
            Err(_) => false,
        }
    }

    fn status(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// How it failed, if it has ended otherwise than well.
    fn failure(&mut self) -> Option<Failure> {
        let status = self.status().filter(|status| !status.success())?;
        Some(self.failure_of(status))
    }

    fn failure_of(&self, status: std::process::ExitStatus) -> Failure {
        let known = [
            Exit::Usage,
            Exit::BadData,
            Exit::Unreachable,
            Exit::Storage,
            Exit::Stopped,
            Exit::Mismatch,
            Exit::BadSpec,
            Exit::LeftBehind,
        ];
        let exit =
            known.into_iter().find(|exit| Some(*exit as i32) == status.code()).unwrap_or(Exit::Internal);
        let how = match status.code() {
            Some(_) => self.last_words(),
            None => format!("it was killed ({status}); the same command with the same --out goes on"),
        };
        let exit = if status.code().is_none() { Exit::Stopped } else { exit };
        Failure::new(exit, format!("{}: {how} (log: {})", self.name, self.log.display()))
    }

    /// The last line of its log, without the program's name.
    fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let line = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it ended without a word");
        let programs = ["cohort-peer: ", "cohort-coordinator: "];
        programs.iter().find_map(|program| line.strip_prefix(program)).unwrap_or(line).to_owned()
    }
}

/// Starts this binary with other words; what it says on stderr goes to a log.
fn start(args: &[OsString], name: &str, log: &Path, stdout: Stdio) -> Result<Child, Failure> {
    // What an earlier start said is kept: it may tell why that one ended.
    let file =
        File::options().append(true).create(true).open(log).map_err(|error| cannot_write(log, &error))?;
    let mut command = this_binary()?;
    command.args(args).stdin(Stdio::null()).stdout(stdout).stderr(file).kill_on_drop(true);
    // Its own group: Ctrl-C reaches this process alone, which passes it on once, to the coordinator.
    #[cfg(unix)]
    command.process_group(0);
    command.spawn().map_err(|error| Failure::internal(format!("cannot start {name}: {error}")))
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Storage, format!("cannot write {}: {error}", path.display()))
}

fn this_binary() -> Result<Command, Failure> {
    let path = std::env::current_exe();
    path.map(Command::new).map_err(|error| Failure::internal(format!("cannot find this program: {error}")))
}

/// Reads the line in which the coordinator says where it listens.
async fn listening(coordinator: &mut Process) -> Result<String, Failure> {
    let Some(stdout) = coordinator.child.stdout.take() else {
        return Err(Failure::internal("the coordinator has no stdout"));
    };
    let mut line = String::new();
    let read = timeout(START, BufReader::new(stdout).read_line(&mut line)).await;
    let address = serde_json::from_str::<serde_json::Value>(&line).ok();
    let address =
        address.as_ref().and_then(|said| said.get("listening")).and_then(|address| address.as_str());
    if let (Ok(Ok(_)), Some(address)) = (read, address) {
        return Ok(address.to_owned());
    }
    match timeout(Duration::from_secs(1), coordinator.child.wait()).await {
        Ok(Ok(status)) => Err(coordinator.failure_of(status)),
        _ => Err(Failure::internal("the coordinator did not say where it listens")),
    }
}
