//! The `rfork` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(rfork_cli::run(std::env::args_os().collect()))
}
