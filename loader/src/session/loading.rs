//! This worker as a loading seed: its services listen before it asks, and what it holds is served while the rest loads.
//!
//! The load owns it, and hands it to the seed that the worker becomes. Dropped, its metadata is told no more; the
//! planner forgets it when it is not heard of.

use std::sync::Arc;
use std::time::Duration;

use rfork_protocol::SeedKey;
use rfork_protocol::manifest::Manifest;
use rfork_protocol::manifest::content::{Origin, Root};
use rfork_protocol::manifest::metadata::EntryFields;
use rfork_protocol::v2::{LoadingSeed, Name, Role};
use tokio_util::task::AbortOnDropHandle;

use super::serve::{incarnation, metadata};
use super::{PassesOn, Session};
use crate::engine::memory::WeightMemory;
use crate::engine::{EngineError, TransferEngine};
use crate::lead::{Claiming, Lead};
use crate::planner_client::{Advert, Heard, PlannerClient};
use crate::reporting::{Reporting, held};
use crate::seed_service::SeedService;

/// How often a loading seed that has no lease to renew is heard of.
const BEAT_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Loading {
    planner: PlannerClient,
    engine: Arc<dyn TransferEngine>,
    service: SeedService,
    fields: EntryFields,
    /// Where peers reach the engine.
    session: String,
    /// As what it registers. Its incarnation tells this memory's bytes from those before, and from other processes'.
    advert: Advert,
    /// Whether the planner may know this loading seed.
    registered: bool,
    /// Its right to read storage while others wait, if it has that.
    lead: Option<Lead>,
    /// Whether nobody may read here until it serves.
    rests: bool,
}

impl Session {
    /// Makes this worker ready to serve while it loads, if it may, its engine can, and its planner knows of it.
    pub(super) async fn open_loading(&mut self) -> Option<Loading> {
        let can = self.engine.capabilities();
        // Nobody has tried it on an NPU: there it has to be wished for.
        let is_wished = self.config.fork_while_loading.unwrap_or(!can.by_address);
        if self.passes_on == PassesOn::Never || !is_wished || !can.serves_while_loading {
            return None;
        }
        if !self.planner.knows_loading_seeds().await {
            return None;
        }
        self.look_again_for_an_address().await;
        match self.loading().await {
            Ok(loading) => Some(loading),
            Err(error) => {
                tracing::warn!(%error, "this worker does not serve while it loads");
                None
            }
        }
    }

    async fn loading(&self) -> Result<Loading, super::ServeError> {
        let service = self.start_service().await?;
        let identity = self.identity(&service)?;
        self.reach(&service, identity.clone()).check().await?;
        tracing::info!(%identity, "this worker serves what it holds while it loads");
        Ok(Loading {
            planner: self.planner.clone(),
            engine: self.engine.clone(),
            fields: self.fields(),
            session: self.engine.session(&self.advertised.host),
            advert: self.advert(identity, incarnation(), None),
            service,
            registered: false,
            lead: None,
            rests: false,
        })
    }
}

impl Loading {
    /// What the planner is told with a question for a source.
    pub(super) fn wish(&self, memory: &WeightMemory) -> Option<LoadingSeed> {
        Some(LoadingSeed {
            seed: self.advert.identity.clone(),
            incarnation: self.advert.incarnation.clone()?,
            total_bytes: memory.plan().total_bytes(),
            held: held(memory),
            starts_over: false,
            model_url: None,
            deploy_strategy: None,
            is_draft: None,
        })
    }

    /// What it tells the planner while it loads.
    pub(super) fn reporting(&self, memory: &Arc<WeightMemory>) -> Option<Reporting> {
        Some(Reporting { memory: memory.clone(), incarnation: self.advert.incarnation.clone()? })
    }

    /// A grant has registered it. Who reads from a seed has no right to read storage.
    pub(super) fn registered(&mut self) {
        self.registered = true;
        self.lead = None;
    }

    /// What it asks for the right to read storage with. The planner may know it from then on.
    pub(super) fn claiming(
        &mut self,
        key: &SeedKey,
        memory: &Arc<WeightMemory>,
        (patience, whole): (Duration, bool),
    ) -> Option<Claiming> {
        let (loading, reporting) = (self.wish(memory)?, self.reporting(memory)?);
        self.registered = true;
        let (planner, key) = (self.planner.clone(), key.clone());
        Some(Claiming { planner, key, loading, reporting, patience, whole, rests: false })
    }

    /// It has the right to read storage.
    pub(super) fn lead(&mut self, lead: Lead) {
        tracing::info!(identity = %self.advert.identity, "this worker reads storage, and others wait for what it reads");
        self.lead = Some(lead);
    }

    /// The planner is told at once that others may read here.
    pub(super) fn tell_at_once(&self) {
        if let Some(lead) = &self.lead {
            lead.renew_at_once();
        }
    }

    /// Lets nobody read here until it serves: its owner may change the bytes meanwhile. Who has the right to read storage keeps
    /// it under another incarnation, with nothing to read: those who wait go on waiting for the seed that it will be, as long
    /// as they wait for one that makes no progress.
    pub(super) async fn rest(&mut self, key: &SeedKey, memory: &Arc<WeightMemory>) {
        self.service.withdraw();
        if let Err(error) = self.engine.unregister().await {
            tracing::warn!(%error, "peers still read this worker's memory; they compare what they get, or drop it");
        }
        self.rests = true;
        let led = self.lead.take().filter(Lead::is_held);
        if let Some(lead) = led {
            // Excluded: a renewal under the incarnation of before ends the registration of the new one.
            lead.end().await;
            self.advert.incarnation = incarnation();
            // As patient as can be. Excluded: it takes the right back from who has got it meanwhile.
            let claiming = self.claiming(key, memory, (Duration::MAX, false));
            if let Some(claiming) = claiming.map(|claiming| Claiming { rests: true, ..claiming })
                && let Some(claimed) = claiming.ask().await
                && claimed.role == Role::Leads
            {
                self.lead = Some(claiming.hold(&claimed));
                return;
            }
        }
        self.withdraw().await;
        self.advert.incarnation = incarnation();
    }

    /// Whether nobody may read here until it serves.
    pub(super) fn rests(&self) -> bool {
        self.rests
    }

    /// Whether it has that right.
    pub(super) fn leads(&self) -> bool {
        self.lead.as_ref().is_some_and(Lead::is_held)
    }

    /// Tells what names its bytes, from before the first of them is held; and to those who read by address what is held.
    pub(super) fn publish(
        &self,
        manifest: &Manifest,
        memory: &Arc<WeightMemory>,
        names: (Root, Option<Origin>),
    ) {
        if self.engine.capabilities().by_address {
            self.service.offer(memory);
        }
        let metadata = metadata(self.engine.as_ref(), self.session.clone(), manifest, names);
        self.service.publish(&metadata, self.fields);
    }

    /// How many are told here what it holds, because its engine does not see them, and lack something.
    pub(super) fn readers(&self) -> usize {
        self.service.readers()
    }

    /// Lets the planner hear of it while it has neither a lease nor a right to renew, until this is dropped.
    pub(super) fn beat(&self, memory: &Arc<WeightMemory>) -> Option<AbortOnDropHandle<()>> {
        let reporting = self.reporting(memory).filter(|_| self.registered && self.lead.is_none())?;
        let (planner, advert) = (self.planner.clone(), self.advert.clone());
        let beating = async move {
            loop {
                match planner.beat_loading(&advert, reporting.progress()).await {
                    Ok(Heard::Known) => {}
                    Ok(Heard::Unknown | Heard::Draining) => return,
                    Err(error) if error.is_borne() => {
                        tracing::debug!(%error, "a heartbeat failed");
                    }
                    Err(_) => return,
                }
                tokio::time::sleep(BEAT_PAUSE).await;
            }
        };
        Some(AbortOnDropHandle::new(tokio::spawn(beating)))
    }

    /// Lets nobody read here any more, and returns when nobody does: the bytes are about to change. It comes back under
    /// another incarnation.
    ///
    /// Excluded: a peer that reads by address holds bytes of what is written next. What is told is withdrawn first, so what it
    /// reads from then on does not count, whatever its library still reads.
    ///
    /// # Errors
    /// [`EngineError`]: somebody may still read, so that no byte may be changed.
    pub(super) async fn take_away(&mut self) -> Result<(), EngineError> {
        self.service.withdraw();
        self.engine.unregister().await?;
        self.withdraw().await;
        self.advert.incarnation = incarnation();
        Ok(())
    }

    /// Sends nobody here any more, and lets go who reads by address. The engine is left alone.
    pub(super) async fn leave(&mut self) {
        self.service.withdraw();
        self.withdraw().await;
    }

    async fn withdraw(&mut self) {
        if let Some(lead) = self.lead.take() {
            lead.end().await;
        }
        if std::mem::take(&mut self.registered)
            && let Err(error) = self.planner.withdraw(&self.advert).await
        {
            // Excluded: it takes back what is registered later. Nothing is, until this has ended.
            tracing::warn!(%error, "the planner does not hear that this loading seed is gone; it forgets it by itself");
        }
    }

    /// It becomes a seed that holds everything: what listens, under which incarnation it is known, and its right to lead,
    /// which is to be kept until it is registered.
    pub(super) fn into_seed(self) -> (SeedService, Option<Name>, Option<Lead>) {
        (self.service, self.advert.incarnation, self.lead)
    }

    /// Ends it: its planner is told, and its service stops. The engine is its owner's.
    pub(super) async fn close(mut self) {
        self.withdraw().await;
        self.service.stop().await;
    }
}
