//! The coordinator's binary; everything is in [`cohort_coordinator::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cohort_coordinator::cli::main(std::env::args_os())
}
