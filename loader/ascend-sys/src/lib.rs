//! C interfaces of Ascend NPUs: AscendCL, and the shim of YuanRong's `TransferEngine`.
//!
//! A build needs neither the vendor's SDK nor libclang. AscendCL is opened when it is first needed
//! ([`open_ascendcl`]); the bindings are made by bindgen from headers of ours and committed.
#![allow(unsafe_code)]

use std::error::Error;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;

#[allow(missing_docs, non_camel_case_types, non_snake_case, clippy::all, clippy::pedantic)]
#[allow(clippy::undocumented_unsafe_blocks)]
pub mod ascendcl;
#[cfg(feature = "yuanrong-native")]
#[allow(missing_docs, non_camel_case_types, clippy::all, clippy::pedantic)]
pub mod transfer_engine;
pub mod yuanrong;

/// AscendCL as it is called by the system.
const ASCENDCL: &str = "libascendcl.so";
/// Where people say that it is; it alone is tried then.
pub const ASCENDCL_PATH: &str = "RFORK_ASCENDCL_PATH";
/// Variables that CANN's `set_env.sh` sets to a directory with `lib64` in it.
const HOMES: [&str; 2] = ["ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"];
/// Where CANN is installed by default.
const DEFAULT_HOMES: [&str; 2] = ["/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/cann"];

/// A library that is needed and cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} cannot be opened. Looked at:{tried}\n{advice}")]
pub struct MissingLibrary {
    /// Which.
    pub name: &'static str,
    /// Each place, and what the system said of it; one a line.
    pub tried: String,
    /// What to do about it.
    pub advice: &'static str,
}

/// Opens AscendCL: where `RFORK_ASCENDCL_PATH` says, or else through the system's search path, CANN's variables and
/// its default directories.
///
/// # Errors
/// [`MissingLibrary`], with all places that were tried.
pub fn open_ascendcl() -> Result<ascendcl::AscendCl, MissingLibrary> {
    open_first(&candidates(|name| std::env::var_os(name).filter(|value| !value.is_empty())))
}

/// Opens the first of these that can be opened.
///
/// # Errors
/// [`MissingLibrary`], with all of them.
pub fn open_first(paths: &[PathBuf]) -> Result<ascendcl::AscendCl, MissingLibrary> {
    let mut tried = String::new();
    for path in paths {
        // SAFETY: opening runs the library's initialisers, which is what whoever installed it or named it wants; the
        // functions that are looked up are declared as AscendCL's ABI has them.
        match unsafe { ascendcl::AscendCl::new(path) } {
            Ok(library) => return Ok(library),
            Err(error) => {
                // What the system says is the cause. Writing to a string cannot fail.
                let _ = match error.source() {
                    Some(cause) => write!(tried, "\n  {}: {cause}", path.display()),
                    None => write!(tried, "\n  {}: {error}", path.display()),
                };
            }
        }
    }
    Err(MissingLibrary {
        name: ASCENDCL,
        tried,
        advice: "Install Ascend's driver and the CANN runtime, and source CANN's set_env.sh before this process \
                 starts; or set RFORK_ASCENDCL_PATH to the library.",
    })
}

/// Where AscendCL may be, in the order in which to look.
fn candidates(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    if let Some(path) = variable(ASCENDCL_PATH) {
        return vec![path.into()];
    }
    let named = HOMES.iter().filter_map(|name| variable(name)).map(PathBuf::from);
    let homes = named.chain(DEFAULT_HOMES.iter().map(PathBuf::from));
    let mut all = vec![PathBuf::from(ASCENDCL)];
    for path in homes.map(|home| home.join("lib64").join(ASCENDCL)) {
        if !all.contains(&path) {
            all.push(path);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_people_set_is_the_only_one() {
        let set = |name: &str| (name == ASCENDCL_PATH).then(|| "/opt/acl.so".into());
        assert_eq!(candidates(set), [PathBuf::from("/opt/acl.so")]);
    }

    #[test]
    fn the_systems_path_comes_first_then_canns_variables_then_its_defaults() {
        let set = |name: &str| HOMES.contains(&name).then(|| "/opt/cann".into());
        let all = candidates(set);
        assert_eq!(all[0], PathBuf::from(ASCENDCL));
        assert_eq!(all[1], PathBuf::from("/opt/cann/lib64/libascendcl.so"));
        assert_eq!(all.len(), 2 + DEFAULT_HOMES.len(), "the same place is tried once: {all:?}");
    }

    #[test]
    fn what_is_missing_is_said_with_where_it_was_looked_for_and_what_to_do() {
        let paths = ["/nowhere/libascendcl.so", "/nowhere/else/libascendcl.so"].map(PathBuf::from);
        let text = open_first(&paths).err().unwrap().to_string();
        let parts = [
            "/nowhere/libascendcl.so: ",
            "/nowhere/else/libascendcl.so: ",
            "No such file",
            "CANN",
            ASCENDCL_PATH,
        ];
        for part in parts {
            assert!(text.contains(part), "{text}");
        }
    }
}
