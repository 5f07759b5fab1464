//! Which transfer engine moves the bytes, and how it is made.

use std::sync::Arc;

use pyo3::prelude::*;
use rfork_loader::config::Config;
use rfork_loader::engine::device::{Device, Runtime};
use rfork_loader::engine::yuanrong::{OnHang, YuanRongEngine, YuanRongOptions};
use rfork_loader::engine::{TransferEngine, tcp, yuanrong};
use rfork_loader::session::{Session, SessionError, Worker};

use crate::embedded::{Embedded, Library, library};
use crate::errors::{self, EngineUnavailableError};
use crate::tensors::Tensors;

/// Devices of the host, as torch names them.
const HOST: &str = "cpu";
/// What the names of Ascend NPUs begin with.
const NPU: &str = "npu:";

/// What the caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// That which reaches the tensors.
    Auto,
    Tcp,
    YuanRong,
}

impl Wanted {
    /// Reads the caller's word for it.
    ///
    /// # Errors
    /// `ConfigError`.
    pub(crate) fn named(name: &str) -> PyResult<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            tcp::NAME => Ok(Self::Tcp),
            yuanrong::NAME => Ok(Self::YuanRong),
            other => {
                Err(errors::config(format!("engine must be 'auto', 'tcp' or 'yuanrong', got '{other}'")))
            }
        }
    }

    /// As it stands in seed keys; `Auto` before any tensor is known counts as TCP.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto | Self::Tcp => tcp::NAME,
            Self::YuanRong => yuanrong::NAME,
        }
    }
}

/// An engine that reaches the tensors.
pub(crate) enum Chosen {
    Tcp,
    YuanRong { library: Library, device: Device, ready: Option<Py<PyAny>> },
}

impl Chosen {
    /// The engine that is wanted, for these tensors; over a `ready` engine of YuanRong's, if there is one.
    ///
    /// # Errors
    /// `TensorError` for a tensor that it does not reach, `EngineUnavailableError` when it is not there.
    pub(crate) fn of(
        py: Python<'_>,
        wanted: Wanted,
        ready: Option<&Py<PyAny>>,
        tensors: &Tensors,
    ) -> PyResult<Self> {
        let mut elsewhere = tensors.devices.iter().filter(|(device, _)| *device != HOST);
        let first = elsewhere.next();
        match (wanted, first) {
            (Wanted::Auto | Wanted::Tcp, None) => return Ok(Self::Tcp),
            (Wanted::Tcp, Some((device, name))) => {
                return Err(errors::tensor(format!(
                    "tensor '{name}' is on {device}: the engine 'tcp' moves host memory only"
                )));
            }
            (Wanted::Auto | Wanted::YuanRong, _) => {}
        }
        if let Some(name) = tensors.devices.get(HOST) {
            return Err(errors::tensor(format!(
                "tensor '{name}' is in host memory: the engine 'yuanrong' moves an NPU's memory only; load what is on \
                 the host apart"
            )));
        }
        let Some((device, name)) = first else { return Err(errors::tensor("there is no tensor".into())) };
        let number = device.strip_prefix(NPU).and_then(|number| number.parse::<u16>().ok());
        let Some(number) = number else {
            return Err(EngineUnavailableError::new_err(format!(
                "tensor '{name}' is on {device}: no engine reaches it; 'tcp' moves host memory ('cpu'), 'yuanrong' that \
                 of Ascend NPUs ('npu:0')"
            )));
        };
        if let Some((other, name)) = elsewhere.next() {
            return Err(errors::tensor(format!(
                "tensor '{name}' is on {other}, others on {device}: a session is for one NPU"
            )));
        }
        let library = library(py)?;
        let device = Runtime::open().and_then(|runtime| runtime.device(number.into()));
        let device = device.map_err(|error| EngineUnavailableError::new_err(error.to_string()))?;
        Ok(Self::YuanRong { library, device, ready: ready.map(|ready| ready.clone_ref(py)) })
    }

    /// As it stands in seed keys.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Tcp => tcp::NAME,
            Self::YuanRong { .. } => yuanrong::NAME,
        }
    }

    /// The device that the tensors are on; `None` for the host.
    pub(crate) fn device(&self) -> Option<Device> {
        match self {
            Self::Tcp => None,
            Self::YuanRong { device, .. } => Some(device.clone()),
        }
    }

    /// Whether it holds the GIL while it reads.
    pub(crate) fn holds_gil(&self) -> bool {
        matches!(self, Self::YuanRong { .. })
    }

    /// A session over it.
    ///
    /// # Errors
    /// [`SessionError`].
    pub(crate) async fn session(self, config: Config, worker: Worker) -> Result<Session, SessionError> {
        let Self::YuanRong { library, device, ready } = self else {
            return Session::over_tcp(config, worker).await;
        };
        Session::over(config, worker, async |config: &Config, advertise_host: &str| {
            // The call that hangs holds the GIL: nobody could be told to load elsewhere.
            let options = YuanRongOptions {
                on_hang: OnHang::EndProcess,
                ..YuanRongOptions::of(config, advertise_host)
            };
            let (host, trying) = (advertise_host.to_owned(), options.trying_ports());
            let open = move || Embedded::open(library, ready, &host, trying, &device);
            Ok(Arc::new(YuanRongEngine::start(options, open).await?) as Arc<dyn TransferEngine>)
        })
        .await
    }
}
