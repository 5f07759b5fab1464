//! Where the weights are, and what moves them.

use std::sync::Arc;

use anyhow::Result;
#[cfg(not(feature = "yuanrong-native"))]
use anyhow::bail;
use clap::ValueEnum;
use rfork_loader::config::Config;
use rfork_loader::engine::memory::WeightMemory;
use rfork_loader::engine::{tcp, yuanrong};
use rfork_loader::session::{Session, Worker};
use rfork_protocol::manifest::Manifest;

/// What moves the bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Engine {
    #[default]
    Tcp,
    Yuanrong,
}

impl Engine {
    /// As seed keys and metadata have it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tcp => tcp::NAME,
            Self::Yuanrong => yuanrong::NAME,
        }
    }
}

/// Where the weights are.
pub(super) enum Device {
    Host,
    #[cfg(feature = "yuanrong-native")]
    Npu(rfork_loader::engine::device::Device),
}

impl Device {
    /// That of an engine; an NPU goes by its number.
    #[cfg_attr(not(feature = "yuanrong-native"), allow(unused_variables))]
    pub(super) fn of(engine: Engine, npu: i32) -> Result<Self> {
        match engine {
            Engine::Tcp => Ok(Self::Host),
            #[cfg(feature = "yuanrong-native")]
            Engine::Yuanrong => {
                let runtime = rfork_loader::engine::device::Runtime::open()?;
                Ok(Self::Npu(runtime.device(npu)?))
            }
            #[cfg(not(feature = "yuanrong-native"))]
            Engine::Yuanrong => bail!(
                "--engine yuanrong is not part of this build: build rfork with --features yuanrong-native, which needs \
                 a C++ compiler, or use rfork.Session of the Python package, which has it always"
            ),
        }
    }

    pub(super) fn allocate(&self, manifest: &Manifest) -> Result<Arc<WeightMemory>> {
        Ok(match self {
            Self::Host => WeightMemory::allocate(&manifest.tensor_bytes())?,
            #[cfg(feature = "yuanrong-native")]
            Self::Npu(device) => WeightMemory::allocate_on(device, &manifest.tensor_bytes())?,
        })
    }

    pub(super) async fn session(&self, config: Config, worker: Worker) -> Result<Session> {
        Ok(match self {
            Self::Host => Session::over_tcp(config, worker).await?,
            #[cfg(feature = "yuanrong-native")]
            Self::Npu(device) => {
                let engine = async |config: &Config, advertise_host: &str| {
                    let options = yuanrong::YuanRongOptions::of(config, advertise_host);
                    let engine = yuanrong::native::start(options, device.clone()).await?;
                    Ok(Arc::new(engine) as Arc<dyn rfork_loader::engine::TransferEngine>)
                };
                Session::over(config, worker, engine).await?
            }
        })
    }
}
