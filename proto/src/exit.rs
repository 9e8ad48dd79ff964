//! The exit codes that scripts rely on: sysexits where one fits.

use std::process::ExitCode;

/// How a process of Cohort ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The work is done.
    Finished = 0,
    /// A bug or a machine failure; the words on stderr are all there is.
    Internal = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The run is finished without this peer, which the others had left behind: nothing can go on.
    LeftBehind = 3,
    /// Training data, weights or a contribution are missing or damaged.
    BadData = 65,
    /// The coordinator cannot be reached, or an address cannot be used.
    Unreachable = 69,
    /// A checkpoint or the journal could not be written or read.
    Storage = 74,
    /// Stopped before the end with the state saved: start again to go on.
    Stopped = 75,
    /// Another protocol version, contribution schema, architecture or run.
    Mismatch = 76,
    /// run.toml is wrong.
    BadSpec = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}
