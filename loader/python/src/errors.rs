//! Python's exceptions, and which of the loader's errors is which.

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use rfork_loader::engine::EngineError;
use rfork_loader::session as loader;

create_exception!(rfork, RForkError, PyException, "Whatever goes wrong in rfork.");
create_exception!(
    rfork,
    ConfigError,
    RForkError,
    "A setting, or a part of the seed key, that cannot be used."
);
create_exception!(
    rfork,
    TensorError,
    RForkError,
    "A tensor that cannot be loaded into; its name is in the text."
);
create_exception!(
    rfork,
    EngineUnavailableError,
    RForkError,
    "A transfer engine that this machine does not have."
);
create_exception!(rfork, LoadError, RForkError, "Neither a seed nor the fallback gave the weights.");
create_exception!(
    rfork,
    TensorsInUseError,
    LoadError,
    "Other workers may still read the tensors, or a call may still write to them: load into other ones."
);
create_exception!(rfork, ServeError, RForkError, "The weights are loaded, and cannot be served.");
create_exception!(
    rfork,
    UnreachableError,
    ServeError,
    "The weights are loaded, and others do not reach this worker; they are served once others do."
);
create_exception!(rfork, SessionError, RForkError, "A session that is closed, busy, or of another process.");

/// The loader's error as this exception.
pub(crate) fn as_error<E: std::fmt::Display>(make: fn(String) -> PyErr) -> impl Fn(E) -> PyErr {
    move |error| make(error.to_string())
}

pub(crate) fn config(text: String) -> PyErr {
    ConfigError::new_err(text)
}

/// A session that does not begin.
pub(crate) fn begin(error: &loader::SessionError) -> PyErr {
    match error {
        // An address that cannot be listened on is a setting.
        loader::SessionError::Engine(engine) if !matches!(engine, EngineError::Bind { .. }) => {
            EngineUnavailableError::new_err(error.to_string())
        }
        error => ConfigError::new_err(error.to_string()),
    }
}

pub(crate) fn tensor(text: String) -> PyErr {
    TensorError::new_err(text)
}

pub(crate) fn load(text: String) -> PyErr {
    LoadError::new_err(text)
}

/// A load that has failed.
pub(crate) fn failed(error: &loader::LoadError) -> PyErr {
    if error.keeps_memory() {
        let advice =
            "leave these tensors alone, and load into other ones in another session, or end this process";
        return TensorsInUseError::new_err(format!("{error}: {advice}"));
    }
    load(error.to_string())
}

/// Weights that are not served, or not yet.
pub(crate) fn serve(error: &loader::ServeError) -> PyErr {
    match error {
        loader::ServeError::Unreachable(_) => UnreachableError::new_err(error.to_string()),
        error => ServeError::new_err(error.to_string()),
    }
}

pub(crate) fn session(text: &str) -> PyErr {
    SessionError::new_err(text.to_owned())
}

pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("RForkError", py.get_type::<RForkError>())?;
    module.add("ConfigError", py.get_type::<ConfigError>())?;
    module.add("TensorError", py.get_type::<TensorError>())?;
    module.add("EngineUnavailableError", py.get_type::<EngineUnavailableError>())?;
    module.add("LoadError", py.get_type::<LoadError>())?;
    module.add("TensorsInUseError", py.get_type::<TensorsInUseError>())?;
    module.add("ServeError", py.get_type::<ServeError>())?;
    module.add("UnreachableError", py.get_type::<UnreachableError>())?;
    module.add("SessionError", py.get_type::<SessionError>())
}
