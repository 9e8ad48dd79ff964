//! `cohort-peer`: arguments → configuration → run → exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    cohort_peer::cli::main(std::env::args_os())
}
