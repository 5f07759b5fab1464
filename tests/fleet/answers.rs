//! What workers make of their planner's answers, and what is wrong with them.

use std::time::Duration;

use rfork_protocol::v2::{
    BeatStatus, Claimed, Granted, HeartbeatResults, Renewed, Role, SeedPhase, TransferOutcome,
};
use rfork_protocol::{LeaseId, SeedIdentity};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::fleet::Fleet;
use crate::wire::Told;
use crate::worker::{Due, Lease, Life, State, Worker};

/// What was asked.
#[derive(Debug)]
pub(crate) enum Kind {
    Acquire {
        stalls: bool,
        starts_over: bool,
    },
    Renew {
        lease: LeaseId,
        seed: SeedIdentity,
        point: u32,
    },
    Claim,
    /// The right to lead is renewed.
    Lead,
    Register,
    /// Of a worker that reads storage for itself.
    Beat,
    /// Of all seeds of a key.
    Beats,
    Release,
    Deregister,
    /// A question whose answer nobody wants any more.
    Outdated,
}

impl Kind {
    /// The same, asked by a worker that has ceased to look for a source since.
    fn outdated(self) -> Self {
        if matches!(self, Self::Acquire { .. }) { Self::Outdated } else { self }
    }
}

/// No sooner, and no later, whatever a planner tells.
fn after(told_ms: u64) -> Duration {
    Duration::from_millis(told_ms).clamp(Duration::from_millis(100), Duration::from_secs(20))
}

fn read<T: DeserializeOwned>(told: Option<&Told>) -> Option<T> {
    let told = told.filter(|told| told.status == 200)?;
    Some(serde_json::from_slice(&told.body).unwrap())
}

impl Fleet {
    /// An answer came: whatever becomes of it, what it says of points counts.
    pub(crate) fn take_in(&mut self, number: usize, (asked, kind, told): (u32, Kind, Option<Told>)) {
        if let Kind::Acquire { stalls, .. } = kind
            && let (Some(granted), Some(told)) = (read::<Granted>(told.as_ref()), &told)
        {
            let loaded_here = !self.all[Worker::at(&granted.seed)].first;
            if granted.seed == self.all[number].identity {
                self.faults.push(format!("{} reads from itself", granted.seed));
            }
            let said = self.points.granted(&granted, told.heard, (stalls, loaded_here));
            self.faults.extend(said.err());
        }
        if let (Kind::Renew { lease, seed, point }, Some(told)) = (&kind, &told)
            && told.status == 200
        {
            self.faults.extend(self.points.lives((seed, *point), lease, told.sent).err());
        }
        let refused = told.as_ref().filter(|told| told.status >= 400 && ![404, 409].contains(&told.status));
        if let Some(told) = refused {
            self.faults.push(format!("{kind:?}: {} {}", told.status, String::from_utf8_lossy(&told.body)));
        }
        if matches!(kind, Kind::Beats) {
            return self.heard_beats(told.as_ref());
        }
        let is_old = asked != self.all[number].question;
        let kind = if is_old { kind.outdated() } else { kind };
        match self.all[number].life {
            Life::Gone => {}
            Life::Stopped(_) => self.all[number].inbox.push((kind, told)),
            Life::Lives => self.hear(number, kind, told.as_ref()),
        }
    }

    pub(crate) fn hear(&mut self, number: usize, kind: Kind, told: Option<&Told>) {
        if matches!(kind, Kind::Acquire { .. } | Kind::Claim | Kind::Outdated)
            || told.is_none_or(|told| told.status != 200)
        {
            let text = told.map_or("no answer".into(), |told| String::from_utf8_lossy(&told.body));
            let what = format!("{kind:?}: {}", &text[..text.len().min(120)]);
            self.all[number].note(self.tick, what);
        }
        match kind {
            Kind::Acquire { starts_over, .. } => {
                self.all[number].asked = false;
                match read::<Granted>(told) {
                    Some(granted) => self.granted(number, granted, starts_over),
                    None => self.refused(number),
                }
            }
            Kind::Outdated => {
                if let Some(granted) = read::<Granted>(told) {
                    self.give_back(number, &lease(granted), TransferOutcome::Aborted);
                }
            }
            Kind::Renew { lease, .. } => self.renewed(number, &lease, told),
            Kind::Claim => {
                self.all[number].asked = false;
                self.claimed(number, read(told));
            }
            Kind::Lead => {
                let (claimed, worker) = (read::<Claimed>(told), &mut self.all[number]);
                let Some(lead) = &mut worker.lead else { return };
                lead.asked = false;
                match claimed {
                    Some(claimed) if claimed.role == Role::Leads => {
                        lead.due = Instant::now() + after(claimed.renew_after_ms);
                    }
                    Some(_) => worker.lead = None,
                    None => lead.due = Instant::now() + Duration::from_secs(1),
                }
            }
            Kind::Register => {
                let worker = &mut self.all[number];
                worker.asked = false;
                if told.is_some_and(|told| told.status == 200) {
                    worker.state = State::Seed;
                } else {
                    worker.pause = self.tick + self.patience.pause / 2;
                }
            }
            Kind::Beat => {
                self.all[number].beat.iter_mut().for_each(|beat| beat.asked = false);
            }
            Kind::Beats | Kind::Release | Kind::Deregister => {}
        }
    }

    fn granted(&mut self, number: usize, granted: Granted, starts_over: bool) {
        let (tick, patience) = (self.tick, self.patience);
        let source = Worker::at(&granted.seed);
        let (loads, told_root) = granted
            .source
            .as_ref()
            .map_or((false, None), |told| (told.phase == SeedPhase::Loading, told.root.clone()));
        let lease = lease(granted);
        let worker = &mut self.all[number];
        if !matches!(worker.state, State::Asking | State::Seeking) {
            // Bytes have come again meanwhile, or it has everything.
            self.give_back(number, &lease, TransferOutcome::Aborted);
            return;
        }
        worker.sources += 1;
        self.counts.moves += u32::from(worker.state == State::Seeking && worker.sources > 1);
        self.counts.grants += 1;
        if let Some(before) = worker.lease.as_ref().filter(|before| before.seed != lease.seed) {
            worker.left.push((before.seed.clone(), tick + patience.exclude));
        }
        (worker.lead, worker.link, worker.heeds) = (None, None, true);
        self.release(number, TransferOutcome::Aborted);
        let point = (lease.point.number, lease.point.since_ms);
        let seed = lease.seed.clone();
        self.all[number].lease = Some(lease);
        if self.all[source].life == Life::Gone {
            self.found_gone(number, (seed, loads));
            return;
        }
        let (own, theirs) = (self.all[number].root, self.all[source].root);
        let own = own.filter(|_| self.all[number].held > 0);
        if let (Some(own), Some(theirs)) = (own, theirs)
            && own != theirs
        {
            if starts_over {
                self.start_over(number);
            } else {
                let told = told_root.filter(|told| !self.roots[own].is_called(told));
                if let Some(told) = told {
                    let who = &self.all[number].identity;
                    self.faults
                        .push(format!("{who} holds root {own}, and was granted {seed}, of root {told:?}"));
                }
                self.counts.stale += 1;
                self.all[number].left.push((seed, tick + patience.exclude));
                self.release(number, TransferOutcome::Aborted);
                (self.all[number].state, self.all[number].pause) = (State::Asking, 0);
                return;
            }
        }
        self.all[number].state = State::Reading;
        if !self.greet(number, source, point) {
            self.all[number].state = State::Seeking;
        }
    }

    /// Nobody is where it was sent.
    fn found_gone(&mut self, number: usize, (seed, loads): (SeedIdentity, bool)) {
        let worker = &mut self.all[number];
        if loads {
            (worker.state, worker.pause) = (State::Seeking, self.tick + 1);
            return;
        }
        worker.failures += 1;
        worker.left.push((seed, u64::MAX));
        (worker.state, worker.pause) = (State::Asking, 0);
        self.release(number, TransferOutcome::Failed);
    }

    /// Drops what it holds: nobody reads it any more, and its planner hears that.
    fn start_over(&mut self, number: usize) {
        self.deregister(number);
        self.cut_readers(number);
        self.counts.starts_over += 1;
        let worker = &mut self.all[number];
        worker.memory += 1;
        (worker.root, worker.held, worker.known) = (None, 0, false);
    }

    fn refused(&mut self, number: usize) {
        let worker = &mut self.all[number];
        match worker.state {
            // Nobody has set how long it waits for one that is busy.
            State::Asking => worker.state = State::Claiming,
            State::Seeking => worker.pause = self.tick + self.random.u64(1..=self.patience.pause),
            _ => {}
        }
    }

    fn renewed(&mut self, number: usize, of: &LeaseId, told: Option<&Told>) {
        let renewed = read::<Renewed>(told);
        let Some(lease) = self.all[number].lease.as_mut().filter(|lease| lease.id == *of) else { return };
        lease.asked = false;
        match (renewed, told) {
            (Some(renewed), _) => {
                lease.due = Instant::now() + after(renewed.renew_after_ms.unwrap_or(1_000));
                lease.advice = renewed.advice.or(lease.advice);
            }
            (None, Some(_)) => lease.lost = true,
            (None, None) => lease.due = Instant::now() + Duration::from_secs(1),
        }
    }

    fn claimed(&mut self, number: usize, claimed: Option<Claimed>) {
        let worker = &mut self.all[number];
        if worker.state != State::Claiming {
            return;
        }
        let Some(claimed) = claimed else {
            return self.fill_from_storage(number, Role::Alone);
        };
        let next = Instant::now() + after(claimed.renew_after_ms);
        match claimed.role {
            Role::Leads => {
                worker.lead = Some(Due { due: Instant::now(), asked: false });
                if !std::mem::replace(&mut worker.claimed, true) {
                    // There may be a seed by now.
                    worker.state = State::Asking;
                }
            }
            Role::Waits => {
                (worker.led, worker.next_claim) = (after(claimed.renew_after_ms), next);
                worker.state = State::Asking;
                let own =
                    worker.root.filter(|root| worker.held > 0 && self.roots[*root].grown && !worker.known);
                worker.starts_over =
                    own.zip(claimed.root).is_some_and(|(own, theirs)| !self.roots[own].is_called(&theirs));
            }
            Role::Alone => self.fill_from_storage(number, Role::Alone),
        }
    }

    fn heard_beats(&mut self, told: Option<&Told>) {
        let Some(heard) = read::<HeartbeatResults>(told) else { return };
        for result in heard.results.iter().filter(|result| result.status == BeatStatus::Unknown) {
            let worker = &mut self.all[Worker::at(&result.seed)];
            if worker.state == State::Seed && worker.life == Life::Lives {
                (worker.state, worker.asked, worker.pause) = (State::Registering, false, 0);
            }
        }
    }
}

fn lease(granted: Granted) -> Lease {
    let told = granted.source.as_ref().unwrap();
    let due = Instant::now() + after(told.renew_after_ms);
    let point = told.point;
    Lease { id: granted.lease_id, seed: granted.seed, point, due, asked: false, lost: false, advice: None }
}
