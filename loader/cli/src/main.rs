//! The `rfork` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    forget_empty();
    ExitCode::from(rfork_cli::run(std::env::args_os().collect()))
}

/// Takes variables of Postgres' (`PGHOST` and others) out of the environment that are empty: its driver would take them for
/// a host without a name.
#[allow(unsafe_code)]
fn forget_empty() {
    let empty = std::env::vars_os()
        .filter(|(name, value)| value.is_empty() && name.as_encoded_bytes().starts_with(b"PG"))
        .map(|(name, _)| name);
    for name in empty.collect::<Vec<_>>() {
        // SAFETY: no other thread is there yet that could read the environment.
        unsafe { std::env::remove_var(name) };
    }
}
