//! Reading chunks from the fallback.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rfork_protocol::manifest::content::{Growing, Origin, Root};

use super::error::LoadError;
use super::load::Load;
use super::progress::{Phase, Source};
use super::state::{Event, Filling};
use crate::engine::memory::WeightMemory;
use crate::fallback::{FallbackError, FillRequest, Fills};

/// For how long storage is tried that is read though there is a seed, before it is compared with what that brought.
const BESIDE_TRIED: Duration = Duration::from_secs(5);
/// How long a read of storage may take to end that is told to.
const END_GRACE: Duration = Duration::from_secs(2);

impl Load<'_> {
    /// Reads what `filling` says. What it filled before it failed stays held.
    pub(super) async fn fill(&mut self, filling: Filling) -> Result<Event, LoadError> {
        self.reporter.phase(Phase::Loading(Source::Storage));
        let (begun, held_before) = (Instant::now(), self.memory.held_bytes());
        let named = filling != Filling::All;
        if !named {
            self.begin_origin();
        }
        let expected = self.memory.content().filter(|_| named).map(|content| content.chunks.clone());
        let cancel = self.cancel.child_token();
        let request = FillRequest {
            memory: self.memory.clone(),
            chunks: self.memory.missing(),
            checks_held: named && expected.is_none(),
            expected: expected.clone(),
            touched: self.touched,
            filled_bytes: Arc::default(),
            cancel: cancel.clone(),
        };
        // What is held is served on meanwhile, so the planner has to hear of it.
        let _beating = self.loading.as_ref().filter(|_| named).and_then(|loading| loading.beat(self.memory));
        self.memory.arrivals().source(true);
        let mut filled = self.fallback.fill(request);
        let is_beside = matches!(filling, Filling::Beside(_));
        let result = tokio::select! {
            result = &mut filled => result,
            () = brings_less(self.memory, self.left_bytes_per_sec), if is_beside => {
                cancel.cancel();
                // What hangs ends when it can; nobody waits for it.
                let _ = tokio::time::timeout(END_GRACE, &mut filled).await;
                Err(FallbackError::Slow)
            }
        };
        drop(filled);
        self.memory.arrivals().source(false);
        self.share(Source::Storage, held_before, begun);
        match result {
            Ok(()) => {
                self.name_content();
                if self.memory.all_held() && self.memory.content().is_some() {
                    return Ok(Event::AllHeld);
                }
                let missing = self.memory.missing().len();
                let reason = format!("the fallback left {missing} chunk(s) empty");
                Err(FallbackError::Crashed(reason).into())
            }
            Err(FallbackError::Cancelled) => Err(LoadError::Cancelled),
            Err(error) if is_beside => {
                tracing::warn!(%error, "storage is left; a seed is asked for again");
                self.storage_failed = true;
                // Each chunk was compared before it was held, unless nobody knows the content yet.
                let is_sound = expected.is_some() || self.memory.held_bytes() == held_before;
                Ok(if is_sound { Event::StorageFailed } else { Event::OtherBytes })
            }
            Err(error @ FallbackError::OtherBytes(_)) if named => {
                tracing::warn!(%error, "storage holds other weights than what is held");
                Ok(Event::OtherBytes)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whoever reads storage while others wait lets them read what it has read. The content has no id until everything was
    /// read, and the files were seen not to have changed meanwhile.
    ///
    /// Excluded: somebody is granted this worker before it knows the origin. The planner hears of it afterwards.
    fn begin_origin(&self) {
        let is_read =
            self.leads() && self.fallback.fills() == Fills::Chunks && self.memory.growing().is_none();
        let Some(loading) = self.loading.as_ref().filter(|_| is_read) else { return };
        let growing = Growing {
            origin: random_origin(),
            algorithm: self.memory.algorithm(),
            chunk_bytes: self.memory.plan().chunk_size(),
        };
        self.memory.set_growing(growing.clone());
        loading.publish(self.manifest, self.memory, (Root::Growing(growing), None));
        loading.tell_at_once();
    }

    /// Everything is there, from files that have not changed: its digests make the content id, which readers are told.
    fn name_content(&self) {
        if self.memory.content().is_none()
            && self.memory.all_held()
            && let Some(content) = self.memory.content_by_digests(self.manifest)
        {
            self.memory.set_content(content);
        }
    }
}

/// Ends when storage brings less than the source did that was left for it, or nothing.
async fn brings_less(memory: &WeightMemory, bytes_per_sec: f64) {
    loop {
        let before = memory.arrivals().bytes();
        tokio::time::sleep(BESIDE_TRIED).await;
        let came = memory.arrivals().bytes() - before;
        if came == 0 || (came as f64) < bytes_per_sec * BESIDE_TRIED.as_secs_f64() {
            return;
        }
    }
}

/// A name that nobody else makes: 244 random bits.
fn random_origin() -> Origin {
    let mut name = [0; 32];
    let (one, other) = name.split_at_mut(16);
    one.copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    other.copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    Origin(name)
}
