//! Libraries that pretend, made with the C compiler from `tests/fakes`: those of NPUs, and storage of a given rate.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// The fake libraries, in a directory that goes with this.
#[derive(Debug)]
pub struct Fakes(TempDir);

impl Fakes {
    /// Compiles them.
    ///
    /// # Panics
    /// When the C compiler does not.
    pub fn build() -> Self {
        let directory = tempfile::tempdir().unwrap();
        library(directory.path(), "ascendcl", &[]);
        library(directory.path(), "p2ptransfer", &["-lascendcl"]);
        Self(directory)
    }

    /// The fake AscendCL.
    pub fn ascendcl(&self) -> PathBuf {
        self.0.path().join("libascendcl.so")
    }
}

/// Storage that gives so much to each process that reads through it.
#[derive(Debug)]
pub struct SlowStorage {
    directory: TempDir,
    bytes_per_sec: u64,
}

impl SlowStorage {
    /// Compiles it.
    ///
    /// # Panics
    /// When the C compiler does not.
    pub fn of(bytes_per_sec: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        library(directory.path(), "slowstorage", &["-ldl"]);
        Self { directory, bytes_per_sec }
    }

    /// The environment in which a process reads through it.
    pub fn environment(&self) -> Vec<(String, String)> {
        let library = self.directory.path().join("libslowstorage.so");
        vec![
            ("LD_PRELOAD".into(), library.to_str().unwrap().to_owned()),
            ("RFORK_TEST_STORAGE_BYTES_PER_SEC".into(), self.bytes_per_sec.to_string()),
        ]
    }
}

/// Compiles one of the libraries into a directory.
fn library(directory: &Path, name: &str, others: &[&str]) {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("fakes");
    let output = Command::new("cc")
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared", "-pthread"])
        .arg(format!("-Wl,-soname,lib{name}.so,-rpath,$ORIGIN"))
        .arg(sources.join(format!("lib{name}.c")))
        .arg("-o")
        .arg(directory.join(format!("lib{name}.so")))
        .arg("-L")
        .arg(directory)
        .args(others)
        .output()
        .expect("a C compiler, named cc");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
