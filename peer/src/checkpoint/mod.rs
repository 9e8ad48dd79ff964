//! Checkpoints: a folder per step with `model.safetensors`, `optimizer.safetensors` (both under the names that PyTorch
//! users know) and `progress.bin`. A folder appears whole or not at all: it is written under a temporary name,
//! synced, and renamed. Whatever is read is verified by digest first.

mod owner;
mod progress;
mod best;

pub use best::Best;
pub use progress::Progress;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cohort_proto::id::{Digest, PeerName, Step};

use crate::models::{StateDict, state};
use owner::Owner;
use progress::Record;

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const PROGRESS: &str = "progress.bin";
const PREFIX: &str = "checkpoint-";
/// Begins the name of what is being written, and of what a crash left of it: removed by the next process that takes the
/// folder.
const TEMPORARY: &str = ".checkpoint-in-progress";

/// A checkpoint that could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system.
    #[error("cannot {action} checkpoint file {path}: {cause}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The bytes are not those that were written.
    #[error("checkpoint {path} is damaged: {defect}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How that shows.
        defect: String,
    },
    /// A file that is none is in the way.
    #[error("{path} is no file; remove it")]
    NoFile {
        /// What is there.
        path: PathBuf,
    },
    /// The folder is another peer's.
    #[error("{path} is the state folder of peer {owner}; give peer {peer} another --state")]
    OfAnother {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        owner: PeerName,
        /// Who wanted it.
        peer: PeerName,
    },
    /// Another process of the same peer was started.
    #[error(
        "another process writes into {path} since this one was started; this one writes nothing more there: end it, or give \
         one of the two another --state"
    )]
    Taken {
        /// The folder.
        path: PathBuf,
    },
    /// The tensors cannot be turned into a file.
    #[error("checkpoint {path}: {cause}")]
    Tensors {
        /// The folder.
        path: PathBuf,
        /// What candle said.
        cause: Box<candle_core::Error>,
    },
}

/// A verified checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    /// How far training was.
    pub progress: Progress,
    /// Parameters and buffers by name.
    pub model: StateDict,
    /// The optimiser's state by name.
    pub optimizer: StateDict,
}

/// The checkpoints of one peer.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
    keep: usize,
    /// Those of so many steps, and of every multiple of it, are kept whatever comes after them.
    milestone: Step,
    /// Who writes, unless anybody may.
    owner: Option<Owner>,
}

impl Store {
    /// The checkpoints in a folder, which is made if it is not there; the newest `keep` are kept.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn open(folder: &Path, keep: usize) -> Result<Self, CheckpointError> {
        fs::create_dir_all(folder).map_err(file_error("make", folder))?;
        Ok(Self { folder: folder.to_owned(), keep, milestone: Step::MAX, owner: None })
    }

    /// The same, for a process of a peer: whichever process had it before writes nothing more into it.
    ///
    /// # Errors
    /// If it is another peer's folder, or cannot be written.
    pub fn taken_by(self, peer: &PeerName) -> Result<Self, CheckpointError> {
        let owner = Some(Owner::take(&self.folder, peer)?);
        // Of one that still writes, too: it writes nothing more.
        for name in self.names()?.into_iter().filter(|name| name.starts_with(TEMPORARY)) {
            remove(&self.folder.join(name))?;
        }
        Ok(Self { owner, ..self })
    }

    /// Whether a peer may take the folder.
    ///
    /// # Errors
    /// If it is another peer's, or cannot be read.
    pub fn check_is_of(&self, peer: &PeerName) -> Result<(), CheckpointError> {
        owner::check_is_of(&self.folder, peer)
    }

    /// The same, keeping those of so many steps and of every multiple of it besides.
    pub fn keeping(self, milestone: Step) -> Self {
        Self { milestone: milestone.max(1), ..self }
    }

    /// Where the checkpoint of a step is.
    pub fn path(&self, steps_done: Step) -> PathBuf {
        self.folder.join(format!("{PREFIX}{steps_done}"))
    }

    /// Writes a checkpoint, durably, and lets go of the oldest beyond `keep`, but of none from which the whole cohort
    /// may have to go on: `common` is the newest step of which every peer has one.
    ///
    /// # Errors
    /// If a file cannot be written; what was there before is untouched.
    pub fn save(
        &self,
        progress: &Progress,
        model: &StateDict,
        optimizer: &StateDict,
        common: Step,
    ) -> Result<PathBuf, CheckpointError> {
        let target = self.path(progress.steps_done);
        let encode = |tensors: &StateDict| {
            state::encode(tensors)
                .map_err(|cause| CheckpointError::Tensors { path: target.clone(), cause: Box::new(cause) })
        };
        let (model, optimizer) = (encode(model)?, encode(optimizer)?);
        let record = Record {
            progress: progress.clone(),
            model: Digest::of(&model),
            optimizer: Digest::of(&optimizer),
        };
        // A step that is reached again after a restart from an older one replaces what it left the first time.
        self.put(&target, &[(MODEL, &model), (OPTIMIZER, &optimizer), (PROGRESS, &record.encode())])?;
        self.rotate(progress.steps_done.min(common))?;
        Ok(target)
    }

    /// Puts a folder with these files in the place of whatever is there, durably: a crash leaves it whole, or not there.
    fn put(&self, target: &Path, files: &[(&str, &[u8])]) -> Result<(), CheckpointError> {
        // What another process of the same peer writes has another name.
        let suffix = self.owner.as_ref().map_or("", Owner::word);
        let temporary = self.folder.join(format!("{TEMPORARY}{suffix}"));
        self.check_owner()?;
        remove(&temporary)?;
        let write = || {
            fs::create_dir(&temporary).map_err(file_error("make", &temporary))?;
            files.iter().try_for_each(|(name, bytes)| write_durably(&temporary.join(name), bytes))?;
            sync_folder(&temporary)
        };
        // Half a checkpoint on a full disk would only take the room of the next.
        write().inspect_err(|_| _ = remove(&temporary))?;
        self.check_owner()?;
        remove(target)?;
        fs::rename(&temporary, target).map_err(file_error("rename", target))?;
        sync_folder(&self.folder)
    }

    fn check_owner(&self) -> Result<(), CheckpointError> {
        self.owner.as_ref().map_or(Ok(()), Owner::check)
    }

    /// Removes those of later steps: others have gone on from there with other weights, in another view.
    ///
    /// # Errors
    /// If one cannot be removed.
    pub fn remove_after(&self, step: Step) -> Result<(), CheckpointError> {
        self.check_owner()?;
        let later = self.steps()?.into_iter().filter(|later| *later > step);
        later.map(|later| self.path(later)).try_for_each(|path| remove(&path))
    }

    /// Removes the oldest beyond `keep` that are older than a step.
    fn rotate(&self, needed_from: Step) -> Result<(), CheckpointError> {
        let mut steps = self.steps()?;
        steps.retain(|step| !step.is_multiple_of(self.milestone));
        let surplus = steps.len().saturating_sub(self.keep);
        let old = steps.into_iter().take(surplus).filter(|step| *step < needed_from);
        old.map(|step| self.path(step)).try_for_each(|path| remove(&path))
    }

    /// The steps of all folders that are named like checkpoints, ascending, unverified.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn steps(&self) -> Result<Vec<Step>, CheckpointError> {
        let names = self.names()?;
        let step = |name: &String| name.strip_prefix(PREFIX)?.parse::<Step>().ok();
        let mut steps: Vec<Step> = names.iter().filter_map(step).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Everything in the folder whose name is text.
    fn names(&self) -> Result<Vec<String>, CheckpointError> {
        let failed = file_error("list", &self.folder);
        let entries = fs::read_dir(&self.folder).map_err(&failed)?;
        let name = |entry: io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name().into_string().ok());
        entries.filter_map(|entry| name(entry).transpose()).collect::<io::Result<_>>().map_err(failed)
    }

    /// The progress of every checkpoint that verifies, ascending. A damaged one is named in the log and passed over.
    ///
    /// # Errors
    /// If the folder cannot be listed.
    pub fn held(&self) -> Result<Vec<Progress>, CheckpointError> {
        let mut held = Vec::new();
        for step in self.steps()? {
            match self.verified(step) {
                Ok((record, ..)) => held.push(record.progress),
                Err(error) => tracing::warn!("{error}; it is passed over"),
            }
        }
        Ok(held)
    }

    /// Reads a checkpoint.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    pub fn load(&self, steps_done: Step) -> Result<Checkpoint, CheckpointError> {
        let (record, model, optimizer) = self.verified(steps_done)?;
        let folder = self.path(steps_done);
        let decode = |name: &str, bytes: &[u8]| {
            let path = folder.join(name);
            state::decode(bytes).map_err(|defect| CheckpointError::Damaged { path, defect })
        };
        Ok(Checkpoint {
            progress: record.progress,
            model: decode(MODEL, &model)?,
            optimizer: decode(OPTIMIZER, &optimizer)?,
        })
    }

    fn verified(&self, steps_done: Step) -> Result<(Record, Vec<u8>, Vec<u8>), CheckpointError> {
        let folder = self.path(steps_done);
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read(&path).map_err(file_error("read", &path))
        };
        let damaged = |name: &str, defect: &str| CheckpointError::Damaged {
            path: folder.join(name),
            defect: defect.into(),
        };
        let record = Record::decode(&read(PROGRESS)?).map_err(|defect| damaged(PROGRESS, &defect))?;
        if record.progress.steps_done != steps_done {
            return Err(damaged(PROGRESS, "it is of another step"));
        }
        let (model, optimizer) = (read(MODEL)?, read(OPTIMIZER)?);
        for (name, bytes, digest) in
            [(MODEL, &model, record.model), (OPTIMIZER, &optimizer, record.optimizer)]
        {
            if Digest::of(bytes) != digest {
                return Err(damaged(name, "its bytes do not have the digest that was written beside them"));
            }
        }
        Ok((record, model, optimizer))
    }
}

fn file_error<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> CheckpointError + 'a {
    move |cause| CheckpointError::File { action, path: path.to_owned(), cause }
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let write = || -> io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(file_error("write", path))
}

/// Makes the names in a folder durable.
fn sync_folder(path: &Path) -> Result<(), CheckpointError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(file_error("sync", path))
}

fn remove(path: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(file_error("remove", path)(cause)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
