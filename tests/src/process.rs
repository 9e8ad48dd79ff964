//! Real processes under test: where they live, how they are started, waited for, asked to stop and killed. Nothing here
//! sleeps for a fixed time: whoever waits names a condition, and a deadline only ends a wait that has failed anyway.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cohort_proto::exit::Exit;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tempfile::TempDir;

pub use nix::sys::signal::Signal;

/// How long a condition may take to come true. Far more than any takes, even on a machine that is busy otherwise.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The host of a process that needs no words to get there.
pub const HERE: &[&str] = &[];

/// The pause between two looks at a condition.
const GLANCE: Duration = Duration::from_millis(5);

/// Looks until there is something to see.
///
/// # Errors
/// What a look fails with, or that [`PATIENCE`] is over.
pub fn wait_until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look()? {
            return Ok(seen);
        }
        ensure!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for: {what}");
        std::thread::sleep(GLANCE);
    }
}

/// A process under test. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// How a process ended, and everything that it said.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Which process.
    pub name: String,
    /// How; no code if a signal killed it.
    pub status: ExitStatus,
    /// Its data.
    pub stdout: String,
    /// Its words.
    pub stderr: String,
}

impl Process {
    /// Starts a command whose output goes to `NAME.out` and `NAME.err` in a folder.
    ///
    /// # Errors
    /// If the files or the process cannot be made.
    pub fn start(mut command: Command, name: &str, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let (stdout, stderr) = (folder.join(format!("{name}.out")), folder.join(format!("{name}.err")));
        command.env_remove("RUST_LOG").stdin(Stdio::null());
        command.stdout(File::create(&stdout)?).stderr(File::create(&stderr)?);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), child, stdout, stderr })
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it has ended, if it has.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// What it has written to stdout so far.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn stdout(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.stdout)?)
    }

    /// What it has written to stderr so far.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn stderr(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.stderr)?)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If it has ended already.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        ensure!(
            self.child.try_wait()?.is_none(),
            "{} has ended before {signal}:\n{}",
            self.name,
            self.stderr()?
        );
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// Waits until a line on stderr contains all words.
    ///
    /// # Errors
    /// If it ends without such a line, or never says it.
    pub fn wait_for_words(&mut self, words: &[&str]) -> Result<()> {
        wait_until(&format!("{} to say {words:?}", self.name), || {
            let over = self.child.try_wait()?.is_some();
            match says(&self.stderr()?, words) {
                true => Ok(Some(())),
                false if over => bail!("{} ended without saying {words:?}:\n{}", self.name, self.stderr()?),
                false => Ok(None),
            }
        })
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// If it does not; it is then killed.
    pub fn wait(mut self) -> Result<Ended> {
        let ended = wait_until(&format!("the end of {}", self.name), || Ok(self.child.try_wait()?));
        let (stdout, stderr) = (self.stdout()?, self.stderr()?);
        let status = ended.with_context(|| format!("{} said:\n{stderr}", self.name))?;
        Ok(Ended { name: self.name.clone(), status, stdout, stderr })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended needs no killing.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

impl Ended {
    /// Holds it to an exit code, and to a line on stderr that contains all words (none: no line is looked for).
    ///
    /// # Errors
    /// If it ended otherwise, or did not say so. The error shows all it said.
    pub fn check(&self, exit: Exit, words: &[&str]) -> Result<()> {
        let Self { name, status, stderr, .. } = self;
        let code = exit as i32;
        ensure!(status.code() == Some(code), "{name}: {status}, not exit code {code} ({exit:?}):\n{stderr}");
        ensure!(words.is_empty() || says(stderr, words), "{name}: no line says {words:?}:\n{stderr}");
        ensure!(!stderr.contains("panicked"), "{name} panicked:\n{stderr}");
        Ok(())
    }
}

fn says(text: &str, words: &[&str]) -> bool {
    text.lines().any(|line| words.iter().all(|word| line.contains(word)))
}

/// A temporary folder with one run in it: its run.toml, the state of its processes, and what they said.
#[derive(Debug)]
pub struct Site {
    folder: TempDir,
    program: PathBuf,
    /// Names the output files of a process that is started again.
    started: AtomicU32,
}

/// A coordinator that listens.
#[derive(Debug)]
pub struct Coordinator {
    /// The process.
    pub process: Process,
    /// Where it listens, `host:port`.
    pub address: String,
}

impl Coordinator {
    /// What peers are told.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Site {
    /// A folder for a run of the program that is both coordinator and peer.
    ///
    /// # Errors
    /// If the system gives no temporary folder.
    pub fn new(program: &str, run_toml: &str) -> Result<Self> {
        let site = Self {
            folder: tempfile::tempdir()?,
            program: PathBuf::from(program),
            started: AtomicU32::new(0),
        };
        fs::write(site.run_toml(), run_toml)?;
        Ok(site)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Its run.toml.
    pub fn run_toml(&self) -> PathBuf {
        self.path().join("run.toml")
    }

    /// Where a peer keeps its checkpoints.
    pub fn state(&self, peer: &str) -> PathBuf {
        self.path().join("peers").join(peer)
    }

    /// The coordinator's journal.
    pub fn journal(&self) -> PathBuf {
        self.path().join("coordinator/journal.sqlite")
    }

    /// Starts the program with some arguments, behind the words of `host` if they are not empty (such as those that
    /// enter a network namespace).
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&self, name: &str, host: &[impl AsRef<OsStr>], args: &[&str]) -> Result<Process> {
        let mut command = match host {
            [] => Command::new(&self.program),
            [enter, words @ ..] => {
                let mut command = Command::new(enter);
                command.args(words).arg(&self.program);
                command
            }
        };
        command.args(args).current_dir(self.path());
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        Process::start(command, &format!("{name}-{number}"), &self.path().join("logs"))
    }

    /// Starts the coordinator and waits until it says where it listens.
    ///
    /// # Errors
    /// If it ends instead; the error shows what it said.
    pub fn coordinator_on(&self, host: &[impl AsRef<OsStr>], listen: &str) -> Result<Coordinator> {
        let (run, state) = (self.run_toml(), self.path().join("coordinator"));
        let (run, state) = (run.to_string_lossy(), state.to_string_lossy());
        let args = ["coordinator", "serve", "--run", &run, "--listen", listen, "--state", &state];
        let mut process = self.start("coordinator", host, &args)?;
        let address = wait_until("the coordinator to listen", || {
            if let Some(line) = process.stdout()?.strip_suffix('\n') {
                let line: serde_json::Value = serde_json::from_str(line)?;
                let address = line["listening"].as_str().context("no address")?;
                return Ok(Some(address.to_owned()));
            }
            match process.child.try_wait()? {
                Some(status) => bail!("the coordinator ended ({status}):\n{}", process.stderr()?),
                None => Ok(None),
            }
        })?;
        Ok(Coordinator { process, address })
    }

    /// As [`Site::coordinator_on`] a free port of loopback.
    ///
    /// # Errors
    /// If it ends instead of listening.
    pub fn coordinator(&self) -> Result<Coordinator> {
        self.coordinator_on(HERE, "127.0.0.1:0")
    }

    /// Starts a peer with more arguments; without `--threads` among them it has one thread.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn peer_on(
        &self,
        host: &[impl AsRef<OsStr>],
        url: &str,
        name: &str,
        more: &[&str],
    ) -> Result<Process> {
        let state = self.state(name);
        let state = state.to_string_lossy();
        let mut args = vec!["peer", "join", "--coordinator", url, "--name", name];
        for (option, value) in [("--threads", "1"), ("--state", &*state)] {
            if !more.contains(&option) {
                args.extend([option, value]);
            }
        }
        args.extend(more);
        self.start(name, host, &args)
    }

    /// As [`Site::peer_on`] this host.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn peer(&self, url: &str, name: &str, more: &[&str]) -> Result<Process> {
        self.peer_on(HERE, url, name, more)
    }

    /// Runs coordinator and peers to the end, which must be a good one.
    ///
    /// # Errors
    /// The first that did not finish.
    pub fn finish(&self, peers: &[&str]) -> Result<()> {
        self.finish_with(peers, &[])
    }

    /// As [`Site::finish`], with more arguments to every peer.
    ///
    /// # Errors
    /// The first that did not finish.
    pub fn finish_with(&self, peers: &[&str], more: &[&str]) -> Result<()> {
        let coordinator = self.coordinator()?;
        let url = coordinator.url();
        let started: Result<Vec<Process>> = peers.iter().map(|name| self.peer(&url, name, more)).collect();
        for process in started?.into_iter().chain([coordinator.process]) {
            process.wait()?.check(Exit::Finished, &[])?;
        }
        Ok(())
    }

    /// The bytes of a peer's weights after so many steps.
    ///
    /// # Errors
    /// If there is no such checkpoint.
    pub fn weights(&self, peer: &str, steps: u64) -> Result<Vec<u8>> {
        let file = self.state(peer).join(format!("checkpoint-{steps}/model.safetensors"));
        fs::read(&file).with_context(|| format!("no checkpoint {}", file.display()))
    }

    /// The steps of the checkpoints that a peer has written, ascending.
    ///
    /// # Errors
    /// If its folder cannot be listed.
    pub fn checkpoints(&self, peer: &str) -> Result<Vec<u64>> {
        let mut steps = Vec::new();
        for entry in fs::read_dir(self.state(peer))? {
            let name = entry?.file_name();
            let step = name.to_str().and_then(|name| name.strip_prefix("checkpoint-"));
            steps.extend(step.and_then(|step| step.parse::<u64>().ok()));
        }
        steps.sort_unstable();
        Ok(steps)
    }
}
