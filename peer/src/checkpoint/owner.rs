//! Whose folder it is: one peer's, and of all its processes the last that joined. Another peer is refused at once; a
//! process that was taken for dead, and goes on after its successor has joined, publishes nothing more.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use cohort_proto::id::PeerName;

use super::{CheckpointError, file_error, write_durably};

const OWNER: &str = "owner";
/// Begins the name of what becomes that file; the number of the process follows.
const TEMPORARY: &str = ".owner-in-progress-";

/// Bytes that are read of the file: more than we ever write into it.
const LINE_MAX: u64 = 256;

/// A process that may write into a folder until another takes its place.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    path: PathBuf,
    /// The peer's name and the word.
    line: String,
    /// No other process has it.
    word: String,
}

impl Owner {
    /// Takes a folder for a process of a peer.
    pub(super) fn take(folder: &Path, peer: &PeerName) -> Result<Self, CheckpointError> {
        check_is_of(folder, peer)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let process = std::process::id();
        let word = format!("-{process}-{now}");
        let (path, line) = (folder.join(OWNER), format!("{peer} {word}\n"));
        let temporary = folder.join(format!("{TEMPORARY}{process}"));
        write_durably(&temporary, line.as_bytes()).inspect_err(|_| _ = fs::remove_file(&temporary))?;
        fs::rename(&temporary, &path).map_err(file_error("rename", &path))?;
        Ok(Self { path, line, word })
    }

    /// Ends the names of what this process is writing.
    pub(super) fn word(&self) -> &str {
        &self.word
    }

    /// Whether no other process has taken the folder since. One whose file is gone is nobody else's.
    pub(super) fn check(&self) -> Result<(), CheckpointError> {
        let ours = read(&self.path)?.is_none_or(|line| line == self.line);
        let taken = || CheckpointError::Taken { path: self.path.parent().unwrap_or(&self.path).to_owned() };
        if ours { Ok(()) } else { Err(taken()) }
    }
}

/// Whether a folder is a peer's, or nobody's. It is nobody's if its file is not one that we wrote: what a power cut left of
/// it says nothing, and each checkpoint says itself whose it is.
pub(super) fn check_is_of(folder: &Path, peer: &PeerName) -> Result<(), CheckpointError> {
    let line = read(&folder.join(OWNER))?.unwrap_or_default();
    let words = line.strip_suffix('\n').and_then(|line| line.split_once(" -"));
    match words.and_then(|(name, _)| PeerName::new(name).ok()) {
        Some(owner) if owner != *peer => {
            Err(CheckpointError::OfAnother { path: folder.to_owned(), owner, peer: peer.clone() })
        }
        _ => Ok(()),
    }
}

/// The file's beginning; `None` if there is none.
fn read(path: &Path) -> Result<Option<String>, CheckpointError> {
    let failed = file_error("read", path);
    match fs::metadata(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        // Another kind of file could keep a reader waiting for ever.
        Ok(found) if !found.is_file() => return Err(CheckpointError::NoFile { path: path.to_owned() }),
        found => found.map_err(&failed)?,
    };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(LINE_MAX).read_to_end(&mut bytes)).map_err(failed)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str) -> PeerName {
        PeerName::new(name).unwrap()
    }

    #[test]
    fn the_last_process_of_one_peer_has_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = Owner::take(folder.path(), &peer("a")).unwrap();
        first.check().unwrap();
        let second = Owner::take(folder.path(), &peer("a")).unwrap();
        second.check().unwrap();
        assert_ne!(first.word(), second.word());
        let said = first.check().unwrap_err().to_string();
        assert!(
            said.contains("another process") && said.contains(&*folder.path().to_string_lossy()),
            "{said}"
        );
        let said = Owner::take(folder.path(), &peer("b")).unwrap_err().to_string();
        assert!(said.contains("peer a") && said.contains("give peer b another --state"), "{said}");
        check_is_of(folder.path(), &peer("b")).unwrap_err();
        check_is_of(folder.path(), &peer("a")).unwrap();
        second.check().unwrap();
        fs::remove_file(folder.path().join(OWNER)).unwrap();
        second.check().unwrap();
    }

    #[test]
    fn a_file_that_is_none_of_ours_is_nobodys() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(OWNER);
        let name_of_escapes = b"\x1b[2J -1-1\n";
        for bytes in [
            &[0xff; 3000][..],
            &[0; 27],
            b"b",
            b"b\n",
            b"b 1-1\n",
            b"b -1-1",
            b" ",
            b"\n\n",
            b"",
            name_of_escapes,
        ] {
            fs::write(&path, bytes).unwrap();
            Owner::take(folder.path(), &peer("a")).unwrap().check().unwrap();
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let said = Owner::take(folder.path(), &peer("a")).unwrap_err().to_string();
        assert!(said.contains("is no file"), "{said}");
    }
}
