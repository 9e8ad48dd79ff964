//! Coordinator and peer under one name, so that tests find the programs without building anything themselves: the first
//! word says which.

use std::ffi::OsString;
use std::process::ExitCode;

use cohort_proto::exit::Exit;

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let word = if args.len() > 1 { args.remove(1) } else { OsString::new() };
    match word.to_str() {
        Some("coordinator") => cohort_coordinator::cli::main(args),
        Some("peer") => cohort_peer::cli::main(args),
        _ => {
            eprintln!("cohort: the first word must be coordinator or peer");
            Exit::Usage.into()
        }
    }
}
