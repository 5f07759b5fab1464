//! Where YuanRong's package is, and which it is.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::MissingLibrary;

/// Where people say that the package is: the directory into which it was installed, its directory `yr/datasystem`, or
/// the library in there.
pub const YUANRONG_PATH: &str = "RFORK_YUANRONG_PATH";
/// Where people say that Python's library is, which YuanRong's needs even in a process without Python.
pub const LIBPYTHON_PATH: &str = "RFORK_LIBPYTHON_PATH";
/// Where YuanRong itself is told its point-to-point library; it looks when it reads for the first time.
pub const P2P_PATH: &str = "TRANSFER_ENGINE_P2P_SO_PATH";

/// The package's directory, below where packages are installed.
const PACKAGE: &str = "yr/datasystem";
/// How the library's file name begins; which Python it is for follows, and its ending.
const LIBRARY_PREFIX: &str = "_transfer_engine.";
const PYTHON_PREFIX: &str = "cpython-3";

/// The parts of a package that are used without Python.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// The shared object that has the `TransferEngine`.
    pub library: PathBuf,
    /// Python's library, which has to be opened first: a path, or a name that the system looks for.
    pub python: PathBuf,
    /// Which package of which version; `None` when nothing beside it tells.
    pub version: Option<String>,
}

/// Finds the package where `RFORK_YUANRONG_PATH` says.
///
/// # Errors
/// [`MissingLibrary`]; also when `TRANSFER_ENGINE_P2P_SO_PATH` is not set, without which no read would work.
pub fn find_package() -> Result<Package, MissingLibrary> {
    find(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
}

fn find(variable: impl Fn(&str) -> Option<OsString>) -> Result<Package, MissingLibrary> {
    let mut tried = String::new();
    let library = match variable(YUANRONG_PATH).map(PathBuf::from) {
        None => {
            // Writing to a string cannot fail.
            let _ = write!(tried, "\n  {YUANRONG_PATH}, which is not set");
            None
        }
        Some(path) => library_at(&path, &mut tried),
    };
    let Some(library) = library else {
        return Err(MissingLibrary {
            name: "YuanRong's TransferEngine",
            tried,
            advice: "Install its package (pip install --target DIRECTORY openyuanrong-datasystem==0.8.1) and set \
                     RFORK_YUANRONG_PATH to that directory.",
        });
    };
    if variable(P2P_PATH).is_none() {
        return Err(MissingLibrary {
            name: "libp2ptransfer.so",
            tried: format!("\n  {P2P_PATH}, which is not set"),
            advice: "Set TRANSFER_ENGINE_P2P_SO_PATH to the point-to-point library of YuanRong's package; it is read \
                     when this process starts.",
        });
    }
    let python = variable(LIBPYTHON_PATH).map_or_else(|| python_of(&library), PathBuf::from);
    let version = library.parent().and_then(package_version);
    Ok(Package { library, python, version })
}

/// The library at, or below, a path.
fn library_at(path: &Path, tried: &mut String) -> Option<PathBuf> {
    if path.is_file() {
        return Some(path.to_owned());
    }
    for directory in [path.to_owned(), path.join(PACKAGE)] {
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries.flatten(),
            Err(error) => {
                let _ = write!(tried, "\n  {}: {error}", directory.display());
                continue;
            }
        };
        let mut libraries: Vec<PathBuf> = entries
            .filter(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                name.starts_with(LIBRARY_PREFIX) && name.ends_with(".so")
            })
            .map(|entry| entry.path())
            .collect();
        libraries.sort();
        if let Some(library) = libraries.into_iter().next() {
            return Some(library);
        }
        let _ = write!(tried, "\n  {}: no {LIBRARY_PREFIX}*.so", directory.display());
    }
    None
}

/// The library of the Python that an extension was built for: `_transfer_engine.cpython-311-….so` is 3.11's.
fn python_of(library: &Path) -> PathBuf {
    let name = library.file_name().unwrap_or_default().to_string_lossy();
    let minor = name.strip_prefix(LIBRARY_PREFIX).and_then(|name| name.strip_prefix(PYTHON_PREFIX));
    let minor = minor.and_then(|rest| rest.split('-').next()).filter(|minor| !minor.is_empty());
    minor.map_or_else(|| "libpython3.so".into(), |minor| format!("libpython3.{minor}.so.1.0").into())
}

/// Name and version of the package that the module's directory `yr/datasystem` belongs to, as Python's installers note
/// them beside it: `openyuanrong-datasystem 0.8.1`. `None` without such a note, or with two.
pub fn package_version(module: &Path) -> Option<String> {
    let installed = module.parent()?.parent()?;
    let mut versions = std::fs::read_dir(installed).ok()?.flatten().filter_map(|entry| {
        let name = entry.file_name();
        let stem = name.to_str()?.strip_suffix(".dist-info")?.to_owned();
        let (name, version) = stem.split_once('-')?;
        name.starts_with("openyuanrong_").then(|| format!("{} {version}", name.replace('_', "-")))
    });
    let version = versions.next()?;
    versions.next().is_none().then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "_transfer_engine.cpython-311-x86_64-linux-gnu.so";

    /// An installed package with these files in its module's directory.
    fn installed(files: &[&str], notes: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let module = directory.path().join(PACKAGE);
        std::fs::create_dir_all(&module).unwrap();
        for file in files {
            std::fs::write(module.join(file), "").unwrap();
        }
        for note in notes {
            std::fs::create_dir(directory.path().join(note)).unwrap();
        }
        directory
    }

    fn found(path: &Path, p2p: bool) -> Result<Package, MissingLibrary> {
        find(|name| match name {
            YUANRONG_PATH => Some(path.into()),
            P2P_PATH => p2p.then(|| "/p2p.so".into()),
            _ => None,
        })
    }

    #[test]
    fn a_package_is_found_from_each_of_its_directories_and_says_its_version() {
        let installed = installed(&["__init__.py", NAME], &["openyuanrong_datasystem-0.8.1.dist-info"]);
        let module = installed.path().join(PACKAGE);
        for path in [installed.path().to_owned(), module.clone(), module.join(NAME)] {
            let package = found(&path, true).unwrap();
            assert_eq!(package.library, module.join(NAME));
            assert_eq!(package.python, Path::new("libpython3.11.so.1.0"));
            assert_eq!(package.version.as_deref(), Some("openyuanrong-datasystem 0.8.1"));
        }
    }

    #[test]
    fn two_notes_or_none_are_no_version() {
        let others = ["openyuanrong_datasystem-1.dist-info", "openyuanrong_transfer_engine-2.dist-info"];
        for notes in [&others[..], &["numpy-2.dist-info"], &[]] {
            let installed = installed(&[NAME], notes);
            assert_eq!(found(installed.path(), true).unwrap().version, None, "{notes:?}");
        }
    }

    #[test]
    fn what_is_missing_is_said_by_name() {
        let text = find(|_| None).unwrap_err().to_string();
        assert!(
            text.contains("RFORK_YUANRONG_PATH, which is not set") && text.contains("pip install"),
            "{text}"
        );
        let text = found(Path::new("/nowhere"), true).unwrap_err().to_string();
        assert!(text.contains("/nowhere: ") && text.contains("/nowhere/yr/datasystem: "), "{text}");
        let empty = installed(&["__init__.py"], &[]);
        let text = found(empty.path(), true).unwrap_err().to_string();
        assert!(text.contains("no _transfer_engine.*.so"), "{text}");
        let text = found(installed(&[NAME], &[]).path(), false).unwrap_err().to_string();
        assert!(text.contains("libp2ptransfer.so") && text.contains(P2P_PATH), "{text}");
    }
}
