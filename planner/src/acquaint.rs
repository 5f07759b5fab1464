//! Learning which seeds answer, while they are well.
//!
//! A seed that is doubted and does not answer is blamed only if it has answered before: what lies between may be a
//! network policy. One that sends its heartbeats in time is never doubted, so it is asked beside a grant, and nobody
//! waits for that.
//!
//! Each question is a task, and they are bounded; all end when the planner does, and on `kill -9` no more is lost than
//! what the next grant asks for again.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rfork_protocol::{SeedIdentity, SeedKey};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::probe::{Prober, Verdict};
use crate::store::Grant;
use crate::store::commands::Answered;
use crate::writer::Writer;

/// Seeds that are asked at once; beyond them a seed is asked beside a later grant. It leaves the prober room for those
/// that are doubted, for which somebody waits.
const MAX_AT_ONCE: usize = 32;
/// How long a seed that does not answer is left alone, at least.
const LEFT_ALONE: Duration = Duration::from_secs(300);
/// Seeds that are remembered for that, twice; of more the first are forgotten sooner.
const MAX_REMEMBERED: usize = 65_536;

/// Asks seeds in the background.
#[derive(Debug)]
pub struct Acquaintance {
    prober: Arc<Prober>,
    writer: Writer,
    asked: Mutex<Asked>,
    at_once: Arc<Semaphore>,
    /// When it is cancelled all questions end.
    stop: CancellationToken,
}

impl Acquaintance {
    /// One that asks nobody any more after `stop`.
    pub fn new(prober: Arc<Prober>, writer: Writer, stop: CancellationToken) -> Self {
        let asked = Mutex::new(Asked::new(Instant::now()));
        Self { prober, writer, asked, at_once: Arc::new(Semaphore::new(MAX_AT_ONCE)), stop }
    }

    /// Asks a seed that has just been leased and has not answered yet, unless it was asked lately. Returns at once.
    pub fn make(self: &Arc<Self>, key: &SeedKey, grant: &Grant) {
        let Ok(permit) = self.at_once.clone().try_acquire_owned() else { return };
        if !self.asked().ask(grant.seed_id, Instant::now()) {
            return;
        }
        let (this, key, identity, seed_id) =
            (self.clone(), key.clone(), grant.identity.clone(), grant.seed_id);
        tokio::spawn(async move {
            let _permit = permit;
            this.stop.run_until_cancelled(this.ask(key, identity, seed_id)).await;
        });
    }

    async fn ask(&self, key: SeedKey, identity: SeedIdentity, seed_id: i64) {
        if self.prober.ask(&identity, &key).await == Verdict::Well {
            // Whatever becomes of it: where it is not noted the next grant asks again.
            let _ = self.writer.submit(Answered { identity, seed_id }).await;
            self.asked().forget(seed_id);
        }
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        // Whoever panicked left whole entries behind.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seeds that were asked lately: those since some moment, and those of the time before it.
#[derive(Debug)]
struct Asked {
    since: Instant,
    /// By the numbers of holdings: what comes to an address later is another one.
    lately: HashSet<i64>,
    before: HashSet<i64>,
}

impl Asked {
    fn new(now: Instant) -> Self {
        Self { since: now, lately: HashSet::new(), before: HashSet::new() }
    }

    /// Whether the seed may be asked; it then counts as asked.
    fn ask(&mut self, seed: i64, now: Instant) -> bool {
        if now.duration_since(self.since) >= LEFT_ALONE || self.lately.len() >= MAX_REMEMBERED {
            (self.since, self.before) = (now, std::mem::take(&mut self.lately));
        }
        !self.before.contains(&seed) && self.lately.insert(seed)
    }

    fn forget(&mut self, seed: i64) {
        self.lately.remove(&seed);
        self.before.remove(&seed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_left_alone_for_a_while_and_then_asked_again() {
        let begun = Instant::now();
        let mut asked = Asked::new(begun);
        assert!(asked.ask(0, begun));
        assert!(!asked.ask(0, begun));
        assert!(asked.ask(1, begun), "another one");
        let later = begun + LEFT_ALONE;
        assert!(!asked.ask(0, later));
        asked.forget(1);
        assert!(asked.ask(1, later), "it has answered");
        assert!(asked.ask(0, later + LEFT_ALONE));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let begun = Instant::now();
        let mut asked = Asked::new(begun);
        for seed in 0..3 * i64::try_from(MAX_REMEMBERED).unwrap() {
            assert!(asked.ask(seed, begun));
            assert!(asked.lately.len() <= MAX_REMEMBERED && asked.before.len() <= MAX_REMEMBERED);
        }
    }
}
