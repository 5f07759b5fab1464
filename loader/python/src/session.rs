//! `rfork.Session`: one worker's life, driven from Python.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use rfork_loader::config::Config;
use rfork_loader::engine::memory::WeightMemory;
use rfork_loader::fallback::{Fallback, NoFallback, Whole};
use rfork_loader::identity::Identity;
use rfork_loader::session::{
    self as loader, LoadReport, Phase, Progress, ServeError, Serving, Source, Worker,
};
use rfork_loader::storage::Checkpoint;
use rfork_protocol::SeedKey;
use rfork_protocol::manifest::Manifest;
use rfork_protocol::manifest::agreement::{Tolerance, agree};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::engine::{Chosen, Wanted};
use crate::errors::{self, as_error};
use crate::runtime;
use crate::tensors::Tensors;
use crate::wait::{Callbacks, CallerLoads, Message, wait};

/// What makes up the seed key.
enum KeySource {
    Ready(SeedKey),
    Identity(Box<Identity>),
}

impl KeySource {
    fn key(&self, config: &Config, engine: &str) -> PyResult<SeedKey> {
        match self {
            Self::Ready(key) => Ok(key.clone()),
            Self::Identity(identity) => identity.seed_key(config, engine).map_err(as_error(errors::config)),
        }
    }
}

/// Where a session stands.
enum Stage {
    Idle,
    /// Some thread waits for it to do something.
    Busy,
    Open(Box<loader::Session>),
    Closed,
}

/// See `rfork.Session`.
#[pyclass(frozen, module = "rfork._rfork")]
pub(crate) struct Session {
    config: Config,
    key: KeySource,
    rank: u32,
    global_rank: u32,
    draft: bool,
    tolerance: Tolerance,
    engine: Wanted,
    /// A `TransferEngine` of the caller's.
    transfer_engine: Option<Py<PyAny>>,
    /// The process that made it: only there do its threads exist.
    process: u32,
    /// Locked only with the GIL and never while it is given up.
    stage: Mutex<Stage>,
}

/// What a load begins with.
struct Prepared {
    worker: Worker,
    engine: Chosen,
    manifest: Manifest,
    memory: Arc<WeightMemory>,
}

/// What a load, or another part of a life, comes back with.
type Outcome<T, E> = (Box<loader::Session>, Result<T, E>);
/// What the end of a load is: no session, or one that has loaded or failed to.
type Loaded = Result<Outcome<LoadReport, loader::LoadError>, loader::SessionError>;

const LOADS_ONCE: &str = "a session loads once; make another one";

#[pymethods]
impl Session {
    #[new]
    #[allow(clippy::too_many_arguments)] // Python's class has as many.
    fn new(
        config: &str,
        seed_key: Option<&[u8]>,
        identity: Option<&str>,
        rank: Option<u32>,
        global_rank: Option<u32>,
        draft: bool,
        engine: &str,
        shared: Vec<String>,
        transfer_engine: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let config = settings(config)?;
        let (key, own_rank, own_draft) = match (seed_key, identity) {
            (Some(key), None) => {
                (KeySource::Ready(SeedKey::new(key).map_err(as_error(errors::config))?), 0, false)
            }
            (None, Some(identity)) => {
                let identity = self::identity(identity)?;
                let (rank, draft) = (identity.tp_rank, identity.draft);
                (KeySource::Identity(Box::new(identity)), rank, draft)
            }
            _ => return Err(errors::config("give either seed_key or identity".into())),
        };
        let engine = Wanted::named(engine)?;
        if transfer_engine.is_some() && engine == Wanted::Tcp {
            return Err(errors::config("transfer_engine is YuanRong's, and engine is 'tcp'".into()));
        }
        // A key that cannot be built is told here, not after a model was prepared.
        key.key(&config, engine.name())?;
        let rank = rank.unwrap_or(own_rank);
        Ok(Self {
            config,
            key,
            rank,
            global_rank: global_rank.unwrap_or(rank),
            draft: draft || own_draft,
            tolerance: Tolerance { shared: shared.into_iter().collect(), reshapes: false },
            engine,
            transfer_engine,
            process: std::process::id(),
            stage: Mutex::new(Stage::Idle),
        })
    }

    /// Loads, and gives a dict for `rfork.LoadReport`.
    fn load<'py>(
        &self,
        py: Python<'py>,
        tensors: Vec<(String, Bound<'py, PyAny>)>,
        path: Option<PathBuf>,
        reload: Option<&Bound<'py, PyAny>>,
        progress: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Report> {
        let Prepared { worker, engine, manifest, memory } = self.prepare(py, tensors)?;
        let runtime = runtime::get(py)?;
        let (tell, mut told) = channel();
        let fallback: Box<dyn Fallback> = match (path, reload) {
            (Some(path), _) => Box::new(checkpoint(py, &path, &manifest, &self.tolerance)?),
            (None, Some(_)) => Box::new(Whole(CallerLoads(tell.clone()))),
            (None, None) => Box::new(NoFallback),
        };
        self.begin(|stage| matches!(stage, Stage::Idle), LOADS_ONCE)?;
        let (config, cancel) = (self.config.clone(), CancellationToken::new());
        let holds_gil = engine.holds_gil();
        let (watching, watched) = channel();
        let stop = cancel.clone();
        runtime.spawn(async move {
            let mut session = match engine.session(config, worker).await {
                Ok(session) => Box::new(session),
                Err(error) => return drop(tell.send(Message::Done(Err(error)))),
            };
            // Whoever waits may have no use for it.
            let _ = watching.send(session.progress());
            // The caller has its tensors back when this returns, and may change them.
            session.pass_on_until_loaded();
            let loaded = session.load(&manifest, memory, fallback.as_ref(), &stop).await;
            drop(tell.send(Message::Done(Ok((session, loaded)))));
        });
        let mut seen = None;
        let mut telling = progress.map(|callback| {
            move || {
                seen = watched.try_recv().ok().or(seen.take());
                match &mut seen {
                    Some(now) if now.has_changed().unwrap_or(false) => {
                        callback.call1((Seen::of(&now.borrow_and_update()),)).map(drop)
                    }
                    _ => Ok(()),
                }
            }
        });
        let progress = telling.as_mut().map(|telling| telling as &mut dyn FnMut() -> PyResult<()>);
        let callbacks = Callbacks { reload, progress, cancel: Some(&cancel), holds_gil };
        let waited = wait(py, &mut told, callbacks);
        self.loaded(waited)
    }

    /// Takes over tensors that are loaded, and gives a dict for `rfork.LoadReport`.
    fn adopt(&self, py: Python<'_>, tensors: Vec<(String, Bound<'_, PyAny>)>) -> PyResult<Report> {
        let Prepared { worker, engine, manifest, memory } = self.prepare(py, tensors)?;
        let runtime = runtime::get(py)?;
        self.begin(|stage| matches!(stage, Stage::Idle), LOADS_ONCE)?;
        let (tell, mut told) = channel();
        let config = self.config.clone();
        runtime.spawn(async move {
            let mut session = match engine.session(config, worker).await {
                Ok(session) => Box::new(session),
                Err(error) => return drop(tell.send(Message::Done(Err(error)))),
            };
            let adopted = session.adopt(&manifest, memory).await;
            drop(tell.send(Message::Done(Ok((session, adopted)))));
        });
        let waited = wait(py, &mut told, Callbacks::default());
        self.loaded(waited)
    }

    /// Serves, and gives a dict for `rfork.Serving`.
    fn serve(&self, py: Python<'_>, verify: bool) -> PyResult<Served> {
        let Stage::Open(mut session) =
            self.begin(|stage| matches!(stage, Stage::Open(_)), "a session serves after it has loaded")?
        else {
            return Err(errors::session("it is not open"));
        };
        let (tell, mut told) = channel();
        runtime::get(py)?.spawn(async move {
            let fit = if verify { session.verify().await } else { Ok(()) };
            let serving = match fit {
                Ok(()) => session.serve().await,
                Err(error) => Err(error),
            };
            drop(tell.send(Message::Done((session, serving))));
        });
        let (outcome, raised) = self.until_end(py, &mut told)?;
        let (session, serving): Outcome<Serving, ServeError> = outcome;
        self.end(Stage::Open(session));
        match (raised, serving) {
            (Some(error), _) => Err(error),
            (None, Ok(Serving { identity, url })) => Ok(Served { identity: identity.to_string(), url }),
            (None, Err(error)) => Err(errors::serve(&error)),
        }
    }

    /// Ends everything; a second time it does nothing. In a forked child it only forgets.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        if self.process != std::process::id() {
            return Ok(());
        }
        let stage =
            self.begin(|stage| !matches!(stage, Stage::Busy), "another thread is using this session")?;
        self.end(Stage::Closed);
        let Stage::Open(session) = stage else { return Ok(()) };
        let (tell, mut told) = channel();
        runtime::get(py)?.spawn(async move {
            session.close().await;
            drop(tell.send(Message::Done(())));
        });
        let ((), raised) = wait(py, &mut told, Callbacks::default())?;
        raised.map_or(Ok(()), Err)
    }

    /// Whether it was closed.
    #[getter]
    fn closed(&self) -> bool {
        matches!(*self.stage.lock().unwrap_or_else(PoisonError::into_inner), Stage::Closed)
    }
}

impl Session {
    /// Who this worker is, and the memory that it is about.
    fn prepare(&self, py: Python<'_>, tensors: Vec<(String, Bound<'_, PyAny>)>) -> PyResult<Prepared> {
        let tensors = Tensors::of(tensors)?;
        let engine = Chosen::of(py, self.engine, self.transfer_engine.as_ref(), &tensors)?;
        let key = self.key.key(&self.config, engine.name())?;
        let (manifest, memory) = tensors.into_memory(py, engine.device())?;
        let worker = Worker {
            key,
            rank: self.rank,
            global_rank: self.global_rank,
            draft: self.draft,
            tolerance: self.tolerance.clone(),
        };
        Ok(Prepared { worker, engine, manifest, memory })
    }

    /// Ends a load, whatever came of it.
    fn loaded(&self, waited: PyResult<(Loaded, Option<PyErr>)>) -> PyResult<Report> {
        let (result, raised) = waited.inspect_err(|_| self.end(Stage::Closed))?;
        let (session, loaded) = match result {
            Ok(result) => result,
            Err(error) => {
                self.end(Stage::Idle);
                return Err(raised.unwrap_or_else(|| errors::begin(&error)));
            }
        };
        self.end(Stage::Open(session));
        match (raised, loaded) {
            (Some(error), _) => Err(error),
            (None, Ok(report)) => Ok(Report::of(&report)),
            (None, Err(error)) => Err(errors::failed(&error)),
        }
    }

    /// Takes the stage if it is one that `fits`; it is busy until [`Session::end`].
    fn begin(&self, fits: impl FnOnce(&Stage) -> bool, otherwise: &str) -> PyResult<Stage> {
        if self.process != std::process::id() {
            let text = format!("this session belongs to process {}; make one after the fork", self.process);
            return Err(errors::session(&text));
        }
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        match &*stage {
            Stage::Busy => Err(errors::session("another thread is using this session")),
            known if fits(known) => Ok(std::mem::replace(&mut *stage, Stage::Busy)),
            Stage::Closed => Err(errors::session("this session is closed")),
            _ => Err(errors::session(otherwise)),
        }
    }

    fn end(&self, next: Stage) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = next;
    }

    fn until_end<T: Send>(
        &self,
        py: Python<'_>,
        told: &mut Receiver<Message<T>>,
    ) -> PyResult<(T, Option<PyErr>)> {
        let waited = wait(py, told, Callbacks::default());
        if waited.is_err() {
            self.end(Stage::Closed);
        }
        waited
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let stage = self.stage.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Stage::Open(session) = std::mem::replace(stage, Stage::Closed) else { return };
        if self.process != std::process::id() {
            // Its lease, its sockets and its threads are the parent's.
            std::mem::forget(session);
            return;
        }
        // Nobody waits for this: a process that ends meanwhile is as good as one that was killed.
        if let Some(Ok(runtime)) = Python::try_attach(runtime::get) {
            runtime.spawn(session.close());
        }
    }
}

/// The seed key of a worker; see `rfork.seed_key`.
#[pyfunction]
pub(crate) fn seed_key(config: &str, identity: &str, engine: &str) -> PyResult<String> {
    let config = settings(config)?;
    let engine = Wanted::named(engine)?;
    let key = self::identity(identity)?.seed_key(&config, engine.name()).map_err(as_error(errors::config))?;
    Ok(key.text().into_owned())
}

/// The settings, with the environment behind them; what is odd about them is logged.
fn settings(json: &str) -> PyResult<Config> {
    let value: Value = serde_json::from_str(json).map_err(as_error(errors::config))?;
    let (config, warnings) =
        Config::from_json(&value, |name| std::env::var_os(name)).map_err(as_error(errors::config))?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(config)
}

fn identity(json: &str) -> PyResult<Identity> {
    serde_json::from_str(json).map_err(|error| errors::config(format!("identity: {error}")))
}

/// The model in storage, which must have the caller's tensors.
fn checkpoint(
    py: Python<'_>,
    path: &Path,
    manifest: &Manifest,
    tolerance: &Tolerance,
) -> PyResult<Arc<Checkpoint>> {
    let opened = py.detach(|| Checkpoint::open(path)).map_err(as_error(errors::load))?;
    agree(manifest, opened.manifest(), tolerance).map_err(|error| {
        let text = error.to_string().replace("at the seed", "in storage").replace("the seed's", "storage's");
        errors::load(format!("{}: {text}", path.display()))
    })?;
    Ok(Arc::new(opened))
}

/// What `rfork.Progress` is made of.
#[derive(IntoPyObject)]
struct Seen {
    phase: &'static str,
    source: Option<String>,
    held_bytes: u64,
    total_bytes: u64,
    held_chunks: u32,
    total_chunks: u32,
    bytes_per_sec: f64,
}

impl Seen {
    fn of(progress: &Progress) -> Self {
        let (phase, source) = match &progress.phase {
            Phase::Idle => ("idle", None),
            Phase::Asking => ("asking", None),
            Phase::Checking(seed) => ("checking", Some(seed.to_string())),
            Phase::Loading(source) => ("loading", seed_of(source)),
            Phase::Loaded => ("loaded", None),
            Phase::Failed => ("failed", None),
        };
        Self {
            phase,
            source,
            held_bytes: progress.held_bytes,
            total_bytes: progress.total_bytes,
            held_chunks: progress.held_chunks,
            total_chunks: progress.total_chunks,
            bytes_per_sec: progress.bytes_per_sec,
        }
    }
}

/// What `rfork.LoadReport` is made of.
#[derive(IntoPyObject)]
pub(crate) struct Report {
    total_bytes: u64,
    seconds: f64,
    seed: Option<String>,
    bytes_from_seeds: u64,
    shares: Vec<(Option<String>, u64, f64)>,
    content_id: Option<String>,
}

impl Report {
    fn of(report: &LoadReport) -> Self {
        let shares = report.shares.iter();
        Self {
            total_bytes: report.bytes,
            seconds: report.duration.as_secs_f64(),
            seed: seed_of(report.main_source()),
            bytes_from_seeds: report.bytes_from_seeds(),
            shares: shares
                .map(|share| (seed_of(&share.source), share.bytes, share.duration.as_secs_f64()))
                .collect(),
            content_id: report.content.map(|content| content.to_string()),
        }
    }
}

fn seed_of(source: &Source) -> Option<String> {
    match source {
        Source::Seed(identity) => Some(identity.to_string()),
        Source::Storage => None,
    }
}

/// What `rfork.Serving` is made of.
#[derive(IntoPyObject)]
pub(crate) struct Served {
    identity: String,
    url: String,
}
