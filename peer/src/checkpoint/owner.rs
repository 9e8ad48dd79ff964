//! Whose folder it is: one peer's, and of all its processes the last that was started. Another peer is refused at once; a
//! process that was taken for dead, and goes on after its successor was started, writes nothing more.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{CheckpointError, file_error, write_durably};

const OWNER: &str = "owner";
const TEMPORARY: &str = ".owner-in-progress";

/// A process that may write into a folder until another takes its place.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    path: PathBuf,
    /// The peer's name and a word that no other process has.
    line: String,
}

impl Owner {
    /// Takes a folder for a process of a peer.
    pub(super) fn take(folder: &Path, peer: &str) -> Result<Self, CheckpointError> {
        let path = folder.join(OWNER);
        let before = read(&path)?;
        let name = before.split(' ').next().unwrap_or_default();
        if !name.is_empty() && name != peer {
            let (path, owner) = (folder.to_owned(), name.chars().take(NAME_SHOWN).collect());
            return Err(CheckpointError::OfAnother { path, owner, peer: peer.to_owned() });
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let line = format!("{peer} {}-{now}\n", std::process::id());
        let temporary = folder.join(TEMPORARY);
        write_durably(&temporary, line.as_bytes())?;
        fs::rename(&temporary, &path).map_err(file_error("rename", &path))?;
        Ok(Self { path, line })
    }

    /// Whether no other process has taken the folder since.
    pub(super) fn check(&self) -> Result<(), CheckpointError> {
        let holds = read(&self.path)? == self.line;
        let taken = || CheckpointError::Taken { path: self.path.parent().unwrap_or(&self.path).to_owned() };
        if holds { Ok(()) } else { Err(taken()) }
    }
}

/// Letters of a name in a message: the file may be anything.
const NAME_SHOWN: usize = 64;

/// Bytes that are read of the file: more than we ever write into it.
const LINE_MAX: u64 = 1024;

fn read(path: &Path) -> Result<String, CheckpointError> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(LINE_MAX).read_to_end(&mut bytes)) {
        Ok(_) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(cause) => Err(file_error("read", path)(cause)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_process_of_one_peer_has_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = Owner::take(folder.path(), "a").unwrap();
        first.check().unwrap();
        let second = Owner::take(folder.path(), "a").unwrap();
        second.check().unwrap();
        let said = first.check().unwrap_err().to_string();
        assert!(
            said.contains("another process") && said.contains(&*folder.path().to_string_lossy()),
            "{said}"
        );
        let said = Owner::take(folder.path(), "b").unwrap_err().to_string();
        assert!(said.contains("peer a") && said.contains("give peer b another --state"), "{said}");
        second.check().unwrap();
    }

    #[test]
    fn a_file_that_is_none_of_ours_is_answered() {
        let folder = tempfile::tempdir().unwrap();
        for bytes in [&[0xff; 3000][..], b"a", b" ", b"\n\n", b""] {
            fs::write(folder.path().join(OWNER), bytes).unwrap();
            if let Ok(owner) = Owner::take(folder.path(), "a") {
                owner.check().unwrap();
            }
        }
        fs::remove_file(folder.path().join(OWNER)).unwrap();
        let owner = Owner::take(folder.path(), "a").unwrap();
        fs::remove_file(folder.path().join(OWNER)).unwrap();
        owner.check().unwrap_err();
    }
}
