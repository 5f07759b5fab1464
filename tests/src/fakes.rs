//! Libraries of NPUs that pretend: made with the C compiler from `tests/fakes`.

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
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("fakes");
        let library = |name: &str, others: &[&str]| {
            let output = Command::new("cc")
                .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared", "-pthread"])
                .arg(format!("-Wl,-soname,lib{name}.so,-rpath,$ORIGIN"))
                .arg(sources.join(format!("lib{name}.c")))
                .arg("-o")
                .arg(directory.path().join(format!("lib{name}.so")))
                .arg("-L")
                .arg(directory.path())
                .args(others)
                .output()
                .expect("a C compiler, named cc");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        library("ascendcl", &[]);
        library("p2ptransfer", &["-lascendcl"]);
        Self(directory)
    }

    /// The fake AscendCL.
    pub fn ascendcl(&self) -> PathBuf {
        self.0.path().join("libascendcl.so")
    }
}
