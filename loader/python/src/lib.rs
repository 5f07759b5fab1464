//! The native half of the Python package `rfork`: a [`session`] for tensors that Python owns.
//!
//! What people import is in `python/rfork`; it is documented there. Nothing here needs torch, numpy or vllm.
//!
//! Threads: the loader runs on threads of its own, which never touch the interpreter, but for the one that drives
//! YuanRong's module (`embedded`). All else of Python's is touched on the thread that called, which waits without the
//! GIL. So a load goes on while Python is busy, and a callback is never called on a thread that its author does not know.

use std::ffi::OsString;

use pyo3::prelude::*;

mod embedded;
mod engine;
mod errors;
mod runtime;
mod session;
// Memory that Python owns is handed to the loader by address.
#[allow(unsafe_code)]
mod tensors;
mod wait;

/// The command `rfork` with these arguments, of which the first is its own name; gives its exit code.
#[pyfunction]
fn command(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| rfork_cli::run(arguments))
}

#[pymodule]
fn _rfork(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<session::Session>()?;
    module.add_function(wrap_pyfunction!(session::seed_key, module)?)?;
    module.add_function(wrap_pyfunction!(command, module)?)?;
    errors::add(module)
}
