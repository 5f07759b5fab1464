//! YuanRong's library as the running interpreter has it: the Python module `yr.datasystem`, of any version.
//!
//! Its calls hold the GIL until they return. They are made on the engine's own thread, and nothing that keeps a
//! worker's lease or heartbeat alive needs the GIL.

use std::path::PathBuf;
use std::time::Duration;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use rfork_ascend_sys::yuanrong::package_version;
use rfork_loader::engine::device::Device;
use rfork_loader::engine::memory::Region;
use rfork_loader::engine::yuanrong::{
    Ranges, Timeouts, Vendor, VendorError, check_backing, initialize_on_free_port,
};

use crate::errors::EngineUnavailableError;

const MODULE: &str = "yr.datasystem";
/// What Python raised instead of an answer. The codes below 0 are not the vendor's.
const RAISED: i32 = -3;
/// The interpreter is ending.
const ENDING: i32 = -4;

/// Finds the library.
///
/// # Errors
/// `EngineUnavailableError`, with what to install.
pub(crate) fn library(py: Python<'_>) -> PyResult<Library> {
    let found = py.import(MODULE).and_then(|module| {
        let class = module.getattr("TransferEngine")?;
        Ok((module, class))
    });
    let (module, class) = found.map_err(|cause| {
        let error = EngineUnavailableError::new_err(format!(
            "{MODULE}.TransferEngine, which the engine 'yuanrong' needs, cannot be imported ({cause}): install the \
             package openyuanrong-datasystem of the version that the other workers have"
        ));
        error.set_cause(py, Some(cause));
        error
    })?;
    // Only in newer versions.
    let registration = module.getattr_opt("MemoryRegistration")?.map(Bound::unbind);
    Ok(Library { class: class.unbind(), registration, version: version(&module) })
}

/// What the package that a module came from is called, as Python's installers note it.
fn version(module: &Bound<'_, PyModule>) -> Option<String> {
    let file: PathBuf = module.getattr("__file__").ok()?.extract().ok()?;
    package_version(file.parent()?)
}

/// The vendor's module.
pub(crate) struct Library {
    class: Py<PyAny>,
    registration: Option<Py<PyAny>>,
    version: Option<String>,
}

/// The vendor's engine, initialised.
pub(crate) struct Embedded {
    engine: Py<PyAny>,
    registration: Option<Py<PyAny>>,
    version: Option<String>,
    port: u16,
    /// How bytes reach peers, and how long it waits for them. Versions that tell the first have the second.
    route: Option<(String, Timeouts)>,
    /// Whoever made it ends it.
    lent: bool,
}

impl Embedded {
    /// Takes a `ready` engine, or makes one that listens on a free port of `host`; on this thread, which gets `device`.
    pub(crate) fn open(
        library: Library,
        ready: Option<Py<PyAny>>,
        host: &str,
        trying: Duration,
        device: &Device,
    ) -> Result<Self, VendorError> {
        // The library needs it for each read, on the thread that reads.
        device
            .set_on_this_thread()
            .map_err(|error| VendorError { code: VendorError::RUNTIME, message: error.to_string() })?;
        let lent = ready.is_some();
        let Library { class, registration, version } = library;
        attached(|py| {
            let engine = match ready {
                Some(engine) => engine.into_bound(py),
                None => made(class.bind(py), host, trying, device.index())?,
            };
            let port =
                engine.call_method0(intern!(py, "get_rpc_port")).and_then(|port| port.extract::<i64>());
            let port = port.map_err(|error| raised(&error))?;
            let port = u16::try_from(port).ok().filter(|port| *port > 0).ok_or_else(|| VendorError {
                code: VendorError::RUNTIME,
                message: format!("its port is {port}: is the TransferEngine initialised?"),
            })?;
            // Whoever has the class may lack the method.
            let has_it = engine.hasattr(intern!(py, "batch_register_memory_ex")).unwrap_or(false);
            let registration = registration.filter(|_| has_it);
            let route = route(&engine)?.map(|route| (route, Timeouts::from_env()));
            Ok(Self { engine: engine.unbind(), registration, version, port, route, lent })
        })
    }

    fn call(
        &self,
        method: &str,
        arguments: impl FnOnce(Python<'_>) -> PyResult<Arguments>,
    ) -> Result<(), VendorError> {
        attached(|py| {
            let arguments = arguments(py).map_err(|error| raised(&error))?;
            answered(self.engine.bind(py), method, arguments.bind(py))
        })
    }
}

/// The arguments of a call.
type Arguments = Py<PyTuple>;

/// An engine that listens on a free port of `host`; ports are tried for so long as `trying`.
fn made<'py>(
    class: &Bound<'py, PyAny>,
    host: &str,
    trying: Duration,
    device: i32,
) -> Result<Bound<'py, PyAny>, VendorError> {
    let py = class.py();
    let engine = class.call0().map_err(|error| raised(&error))?;
    initialize_on_free_port(host, trying, |address| {
        let arguments = (address, "ascend", format!("npu:{device}")).into_pyobject(py);
        answered(&engine, "initialize", &arguments.map_err(|error| raised(&error))?)
    })?;
    Ok(engine)
}

/// What a version with several routes to peers calls the one that it takes.
fn route(engine: &Bound<'_, PyAny>) -> Result<Option<String>, VendorError> {
    let method = intern!(engine.py(), "get_route_policy");
    if !engine.hasattr(method).unwrap_or(false) {
        return Ok(None);
    }
    let route = engine.call_method0(method).and_then(|route| route.extract());
    route.map(Some).map_err(|error| raised(&error))
}

/// Calls a method, whose result is a `Status` or a `Result`, as versions call it.
fn answered(
    engine: &Bound<'_, PyAny>,
    method: &str,
    arguments: &Bound<'_, PyTuple>,
) -> Result<(), VendorError> {
    let py = engine.py();
    let told = || {
        let result = engine.call_method1(method, arguments)?;
        if !result.call_method0(intern!(py, "is_error"))?.is_truthy()? {
            return Ok(None);
        }
        // An enumeration, which counts as a number.
        let code =
            result.call_method0(intern!(py, "get_code"))?.call_method0(intern!(py, "__int__"))?.extract()?;
        let message = result.call_method0(intern!(py, "get_msg"))?.str()?.to_string();
        Ok(Some(VendorError { code, message }))
    };
    match told() {
        Ok(None) => Ok(()),
        Ok(Some(error)) => Err(error),
        Err(error) => Err(raised(&error)),
    }
}

fn raised(error: &PyErr) -> VendorError {
    VendorError { code: RAISED, message: format!("Python raised {error}") }
}

/// With the interpreter, unless it is ending.
fn attached<T>(f: impl FnOnce(Python<'_>) -> Result<T, VendorError>) -> Result<T, VendorError> {
    Python::try_attach(f).unwrap_or_else(|| {
        Err(VendorError { code: ENDING, message: "the Python interpreter is ending".into() })
    })
}

impl Vendor for Embedded {
    fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn timeouts(&self) -> Option<Timeouts> {
        self.route.as_ref().map(|(_, timeouts)| *timeouts)
    }

    fn register(&mut self, regions: &[Region]) -> Result<(), VendorError> {
        if let Some((route, _)) = &self.route {
            check_backing(route, regions)?;
        }
        if let Some(registration) = &self.registration {
            return self.call("batch_register_memory_ex", |py| {
                let of = |region: &Region| {
                    let (backing_start, backing_bytes) = region.allocation;
                    registration.bind(py).call1((region.start, region.bytes, backing_start, backing_bytes))
                };
                let all = regions.iter().map(of).collect::<PyResult<Vec<_>>>()?;
                Ok((all,).into_pyobject(py)?.unbind())
            });
        }
        let (starts, lens): (Vec<u64>, Vec<u64>) =
            regions.iter().map(|region| (region.start, region.bytes)).unzip();
        self.call("batch_register_memory", |py| Ok((starts, lens).into_pyobject(py)?.unbind()))
    }

    fn unregister(&mut self, starts: &[u64]) -> Result<(), VendorError> {
        self.call("batch_unregister_memory", |py| Ok((starts.to_vec(),).into_pyobject(py)?.unbind()))
    }

    fn read(&mut self, peer: &str, ranges: Ranges<'_>) -> Result<(), VendorError> {
        let arguments = (peer, ranges.to.to_vec(), ranges.from.to_vec(), ranges.lens.to_vec());
        self.call("batch_transfer_sync_read", |py| Ok(arguments.into_pyobject(py)?.unbind()))
    }

    fn is_lent(&self) -> bool {
        self.lent
    }

    fn finalize(&mut self) -> Result<(), VendorError> {
        self.call("finalize", |py| Ok(PyTuple::empty(py).unbind()))
    }
}
