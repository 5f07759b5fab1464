//! Libraries that pretend, made with the C compiler from `tests/fakes`: those of NPUs, slow storage, and a
//! damaged wire.

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

/// Storage that stops on the way, for each process that reads through it.
#[derive(Debug)]
pub struct StoppingStorage {
    directory: TempDir,
    after_bytes: u64,
}

impl StoppingStorage {
    /// Compiles one that gives so much, and the rest when it is told to go on.
    ///
    /// # Panics
    /// When the C compiler does not.
    pub fn after(after_bytes: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        library(directory.path(), "slowstorage", &["-ldl"]);
        Self { directory, after_bytes }
    }

    /// It gives the rest, to all who read through it now and later.
    pub fn go_on(&self) {
        std::fs::write(self.word(), "").unwrap();
    }

    fn word(&self) -> PathBuf {
        self.directory.path().join("goes-on")
    }

    /// The environment in which a process reads through it.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let variables = [
            ("LD_PRELOAD", text(self.directory.path().join("libslowstorage.so"))),
            ("RFORK_TEST_STORAGE_STOPS_AFTER_BYTES", self.after_bytes.to_string()),
            ("RFORK_TEST_STORAGE_GOES_ON", text(self.word())),
        ];
        variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// A wire that damages what comes over it, for each process that reads through it.
#[derive(Debug)]
pub struct DamagedWire(TempDir);

impl DamagedWire {
    /// Compiles it.
    ///
    /// # Panics
    /// When the C compiler does not.
    pub fn build() -> Self {
        let directory = tempfile::tempdir().unwrap();
        library(directory.path(), "damagedwire", &["-ldl"]);
        Self(directory)
    }

    /// The environment in which a process reads through it: of so many large pieces one is damaged, which ones says `seed`.
    pub fn environment(&self, one_of: u64, seed: u64) -> Vec<(String, String)> {
        let library = self.0.path().join("libdamagedwire.so");
        let variables = [
            ("LD_PRELOAD", library.to_str().unwrap().to_owned()),
            ("RFORK_TEST_WIRE_DAMAGES_ONE_OF", one_of.to_string()),
            ("RFORK_TEST_WIRE_SEED", seed.to_string()),
        ];
        variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
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
