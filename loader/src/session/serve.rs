//! Serving: what makes a loaded worker a seed.

use std::sync::Arc;

use rfork_protocol::manifest::Manifest;
use rfork_protocol::manifest::content::{Origin, Root, content_id};
use rfork_protocol::manifest::metadata::{EntryFields, Extension, Metadata, session_host};
use rfork_protocol::v2::Name;
use rfork_protocol::{Host, SeedIdentity};

use super::error::ServeError;
use super::{Model, Session, Stage};
use crate::advertise::{Advertised, By};
use crate::engine::TransferEngine;
use crate::engine::memory::Content;
use crate::heartbeat::Heartbeat;
use crate::planner_client::Advert;
use crate::reach::Reach;
use crate::reporting::origin;
use crate::seed_service::SeedService;

/// What a worker serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// As the planner knows it.
    pub identity: SeedIdentity,
    /// The metadata service.
    pub url: String,
}

/// A worker that serves, or goes on trying to be reached. Dropped, it ends both: its heartbeat first.
pub(super) struct Seed {
    heartbeat: Heartbeat,
    service: SeedService,
}

impl Seed {
    /// Takes the advertisement back, so that nobody is sent here any more, and stops the metadata service.
    pub(super) async fn stop(self) {
        self.heartbeat.stop().await;
        self.service.stop().await;
    }
}

impl Model {
    /// What the bytes are. Weights that came without digests get them here, at the first time that anybody needs them:
    /// when their worker becomes a seed. `None` if a chunk is not held.
    ///
    /// The digests are made on a thread of their own, which holds the memory until it ends.
    async fn content(&self) -> Option<Arc<Content>> {
        if let Some(content) = self.memory.content() {
            return Some(content);
        }
        let memory = self.memory.clone();
        let digesting = tokio::task::spawn_blocking(move || memory.chunk_digests(memory.algorithm()));
        let chunks = digesting.await.ok()??;
        let id = content_id(&self.manifest, &chunks);
        tracing::info!(content_id = %id, "weights that came without digests have them now");
        self.memory.set_content(Content { id, chunks });
        self.memory.content()
    }
}

impl Session {
    fn model(&self) -> Result<Arc<Model>, ServeError> {
        match &self.stage {
            Stage::Loaded(model) => Ok(model.clone()),
            Stage::Idle | Stage::Spent | Stage::Hung => Err(ServeError::NotLoaded),
        }
    }

    /// Makes sure that nobody has written to the weights since they were loaded. An inference engine that transforms
    /// them in place must not serve what it made of them under the name of what it loaded.
    ///
    /// # Errors
    /// [`ServeError::Changed`], and [`ServeError::NotLoaded`]. Nobody waits any more for this worker to serve then.
    pub async fn verify(&mut self) -> Result<(), ServeError> {
        let model = self.model()?;
        let Some(known) = model.memory.content() else { return Ok(()) };
        let (memory, algorithm) = (model.memory.clone(), known.chunks.algorithm);
        let digesting = tokio::task::spawn_blocking(move || memory.chunk_digests(algorithm));
        match digesting.await {
            Ok(Some(now)) if now == known.chunks => Ok(()),
            _ => {
                if let Some(loading) = self.loading.take() {
                    loading.close().await;
                }
                Err(ServeError::Changed)
            }
        }
    }

    /// Serves what was loaded: other workers may fork from this one until it is closed. Returns once the planner
    /// knows of it, or could not be told; it is then told again and again.
    ///
    /// # Errors
    /// [`ServeError`]; the worker stays loaded. After [`ServeError::Unreachable`] it still becomes a seed when others come
    /// to reach it.
    pub async fn serve(&mut self) -> Result<Serving, ServeError> {
        let model = self.model()?;
        if self.seed.is_some() {
            return Err(ServeError::NotLoaded);
        }
        if let Some(error) = &model.unregistered {
            return Err(ServeError::Unregistered(error.clone()));
        }
        let content = model.content().await.ok_or(ServeError::NotLoaded)?;
        // Excluded: somebody else is given the right to read storage before this one is known as a seed.
        let (service, incarnation, _lead) = if let Some(loading) = self.loading.take() {
            if loading.rests() {
                let registered = self.engine.register(model.memory.clone()).await;
                registered.map_err(|error| ServeError::Unregistered(Arc::new(error)))?;
            }
            loading.into_seed()
        } else {
            self.look_again_for_an_address().await;
            // This memory, served from now on: a worker that serves again, in whatever process, has another.
            (self.start_service().await?, incarnation(), None)
        };
        let session = self.engine.session(&self.advertised.host);
        let root = Root::Content(content.as_ref().clone());
        let was = model.memory.growing().map(|growing| growing.origin);
        service
            .publish(&metadata(self.engine.as_ref(), session, &model.manifest, (root, was)), self.fields());
        let identity = self.identity(&service)?;
        let reach = Reach { content: Some(content.id), ..self.reach(&service, identity.clone()) };
        let advert = Advert {
            origin: origin(&model.memory),
            ..self.advert(identity, incarnation, Name::cut(&content.id.to_string()))
        };
        let serving = Serving {
            identity: reach.identity.clone(),
            url: format!("http://{}", reach.identity.authority()),
        };
        let (planner, interval) = (self.planner.clone(), self.config.heartbeat_interval);
        let heartbeat = Heartbeat::start(planner, advert, interval, reach, service.readiness());
        // Kept before it is waited for: a caller that gives up here can still close everything.
        self.seed.insert(Seed { heartbeat, service }).heartbeat.first().await?;
        Ok(serving)
    }

    /// Finds the address that others are told, if the planner was not there when the session began.
    pub(super) async fn look_again_for_an_address(&mut self) {
        if self.advertised.by == By::Guess
            && let Some(address) = self.planner.local_address().await
        {
            let host = Host::from(address);
            // Readers refuse a seed whose engine is elsewhere.
            if session_host(&self.engine.session(&host)).is_none_or(|engine| engine == host) {
                self.advertised = Advertised { host, by: By::Connection };
            } else {
                tracing::warn!(
                    planner_reached_from = %host,
                    "the transfer engine was told {} before the planner was reached, and keeps it: if others do not reach this \
                     worker there, set rfork_seed_advertise_host",
                    self.advertised.host
                );
            }
        }
        if let Some(warning) = self.advertised.only_here(self.planner.local_address().await) {
            tracing::warn!("{warning}");
        }
    }

    /// How many fields the metadata has a tensor.
    pub(super) fn fields(&self) -> EntryFields {
        self.config.seed_metadata_fields.unwrap_or_else(|| EntryFields::for_key(&self.worker.key))
    }

    /// Where others are told to come.
    pub(super) fn identity(&self, service: &SeedService) -> Result<SeedIdentity, ServeError> {
        let port = service.address().port();
        Ok(SeedIdentity::at(self.advertised.host.clone(), port, self.worker.rank)?)
    }

    /// The metadata service, with nothing to tell yet.
    pub(super) async fn start_service(&self) -> Result<SeedService, ServeError> {
        let key = &self.worker.key;
        let port = self.config.seed_port(self.worker.global_rank, self.worker.draft).unwrap_or_else(|| {
            tracing::warn!(
                base = self.config.seed_port_base,
                global_rank = self.worker.global_rank,
                "rfork_seed_port_base leads beyond the last port: a free one is taken"
            );
            0
        });
        let bind = self.config.seed_bind_host.as_deref();
        let start = async |port| SeedService::start(bind, port, key).await;
        match start(port).await {
            Err(error) if port != 0 => {
                tracing::warn!(%error, "a free port is taken instead of the one of rfork_seed_port_base");
                Ok(start(0).await?)
            }
            started => Ok(started?),
        }
    }

    /// The check that others reach the metadata service.
    pub(super) fn reach(&self, service: &SeedService, identity: SeedIdentity) -> Reach {
        Reach {
            service: service.id().to_owned(),
            engine: self.engine.clone(),
            session: self.engine.session(&self.advertised.host),
            content: None,
            http: self.planner.http().clone(),
            identity,
            key: self.worker.key.clone(),
            timeout: self.config.seed_timeout,
            bind: self.config.seed_bind_host.clone(),
            listening: service.address(),
        }
    }

    /// What the planner is told of this worker.
    pub(super) fn advert(
        &self,
        identity: SeedIdentity,
        incarnation: Option<Name>,
        content_id: Option<Name>,
    ) -> Advert {
        Advert { key: self.worker.key.clone(), identity, incarnation, content_id, origin: None }
    }
}

/// A name for memory that is served from now on.
pub(super) fn incarnation() -> Option<Name> {
    Name::cut(&uuid::Uuid::new_v4().simple().to_string())
}

/// What a worker tells of itself whose engine peers reach at `session`: what names its bytes, and what did before.
pub(super) fn metadata(
    engine: &dyn TransferEngine,
    session: String,
    manifest: &Manifest,
    (root, origin): (Root, Option<Origin>),
) -> Metadata {
    let manifest = manifest.clone();
    Metadata {
        session,
        manifest: if engine.capabilities().by_address { manifest } else { manifest.without_addresses() },
        extension: Some(Extension {
            engine: engine.name().to_owned(),
            engine_version: engine.version().map(str::to_owned),
            origin: origin.filter(|_| root.content().is_some()),
            root,
        }),
    }
}
