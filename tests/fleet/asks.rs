//! What workers ask of their planner, and when: as `loader/src/session` does.

use std::time::Duration;

use rfork_protocol::v2::{
    Acquire, Advice, Beat, Claim, DEREGISTER, Deregister, HEARTBEAT, HeartbeatBatch, LEADS, LEASES,
    MAX_EXCLUDED, Name, RELEASE, RENEW, Register, Release, Renew, Role, SEEDS, Stalled, TransferOutcome,
};
use serde::Serialize;
use tokio::time::Instant;

use crate::answers::Kind;
use crate::fleet::Fleet;
use crate::plan::Fate;
use crate::wire::Question;
use crate::worker::{Due, Lease, Life, State};

/// How long one question waits for another source, at most.
const QUESTION: Duration = Duration::from_secs(5);
/// How long a worker waits for who reads storage while that makes no progress.
const PATIENCE_MS: u64 = 30_000;
/// As long as workers wait for an answer, and for one about the right to lead.
const ANSWER: Duration = Duration::from_secs(10);
const WITHOUT_PLANNER: Duration = Duration::from_secs(5);
/// How often who has no lease tells how far it is.
const BEAT: Duration = Duration::from_secs(1);
/// Seeds that may fail a load before storage is read.
const FAILURES: u32 = 4;

impl Fleet {
    /// One look of a worker at what it should do now.
    pub(crate) fn act(&mut self, number: usize) {
        let tick = self.tick;
        if let Life::Stopped(until) = self.all[number].life
            && tick >= until
        {
            self.all[number].life = Life::Lives;
            for (kind, told) in std::mem::take(&mut self.all[number].inbox) {
                self.hear(number, kind, told.as_ref());
            }
        }
        if self.all[number].fate.0 != Fate::Lives {
            self.strike(number);
        }
        if self.all[number].life != Life::Lives {
            return;
        }
        let scale = self.scale;
        if self.all[number].is_loading() && self.all[number].has_all(&scale) {
            self.is_loaded(number);
        }
        match self.all[number].state {
            State::NotYet if tick >= self.all[number].starts => self.all[number].state = State::Asking,
            State::NotYet | State::Seed => {}
            State::Asking => self.ask(number),
            State::Reading => self.read(number),
            State::Seeking => self.seek(number),
            State::Claiming => self.claim(number),
            State::Filling => self.tell_of_storage(number),
            State::Registering => self.register(number),
        }
        self.renew(number);
    }

    /// It has everything: its lease ends, and it becomes a seed.
    fn is_loaded(&mut self, number: usize) {
        self.release(number, TransferOutcome::Ok);
        let worker = &mut self.all[number];
        (worker.state, worker.link, worker.lead, worker.beat) = (State::Registering, None, None, None);
        (worker.asked, worker.pause, worker.loaded) = (false, 0, Some(self.tick));
        worker.question += 1;
    }

    fn ask(&mut self, number: usize) {
        let worker = &mut self.all[number];
        if worker.asked || self.tick < worker.pause {
            return;
        }
        if worker.failures >= FAILURES {
            worker.state = State::Claiming;
            return;
        }
        let wait = std::mem::take(&mut worker.led);
        let starts_over = std::mem::take(&mut worker.starts_over);
        self.acquire(number, (wait, starts_over), None);
    }

    fn acquire(&mut self, number: usize, (wait, starts_over): (Duration, bool), stalled: Option<Stalled>) {
        let (tick, scale) = (self.tick, self.scale);
        let root = self.name_of(self.all[number].root);
        let worker = &mut self.all[number];
        worker.asked = true;
        worker.left.retain(|(_, until)| *until > tick);
        let mut exclude: Vec<_> = worker.left.iter().map(|(seed, _)| seed.clone()).collect();
        exclude.extend(stalled.as_ref().map(|stalled| stalled.seed.clone()));
        exclude.truncate(MAX_EXCLUDED);
        let kind = Kind::Acquire { stalls: stalled.is_some(), starts_over };
        let acquire = Acquire {
            wait_ms: u64::try_from(wait.as_millis()).unwrap(),
            exclude,
            loading: Some(worker.loading(&scale, root, starts_over)),
            stalled,
            ..Acquire::of(worker.seed_key.clone())
        };
        let key = format!("{:032x}", self.random.u128(..));
        self.send(number, kind, LEASES, &acquire, (wait, ANSWER), Some(key));
    }

    fn read(&mut self, number: usize) {
        let own = self.of_source(number);
        let worker = &mut self.all[number];
        let lease = worker.lease.as_ref();
        let advice = lease.and_then(|lease| lease.advice);
        if advice == Some(Advice::ReadStorage) && worker.held > 0 {
            self.release(number, TransferOutcome::Aborted);
            self.fill_from_storage(number, Role::Alone);
            return;
        }
        let is_left = worker.link.is_none()
            || lease.is_none_or(|lease| lease.lost)
            || (advice == Some(Advice::Move) && worker.heeds)
            || worker.has_stalled(&self.patience, own);
        if is_left {
            (worker.state, worker.pause) = (State::Seeking, 0);
        }
    }

    fn seek(&mut self, number: usize) {
        let (tick, own) = (self.tick, self.of_source(number));
        let worker = &mut self.all[number];
        let lease = worker.lease.as_ref().filter(|lease| !lease.lost);
        let is_advised = lease.is_some_and(|lease| lease.advice == Some(Advice::Move)) && worker.heeds;
        if worker.link.is_some() && lease.is_some() && worker.silent == 0 && !is_advised {
            worker.state = State::Reading;
            return;
        }
        let since = *worker.seeks.get_or_insert(tick);
        if tick - since >= self.patience.seek {
            self.release(number, TransferOutcome::Aborted);
            let worker = &mut self.all[number];
            (worker.state, worker.link, worker.asked, worker.pause) = (State::Claiming, None, false, 0);
            worker.question += 1;
            return;
        }
        if worker.asked || tick < worker.pause {
            return;
        }
        let has_stalled = worker.has_stalled(&self.patience, own);
        if is_advised && worker.pause > 0 && worker.link.is_some() && !has_stalled {
            // Nobody else has what its source brings.
            (worker.state, worker.heeds) = (State::Reading, false);
            return;
        }
        let silent_ms = worker.silent * u64::try_from(self.scale.tick.as_millis()).unwrap();
        let lost = worker.has_lost(&self.patience);
        let stalled = lease.map(|lease| Stalled {
            seed: lease.seed.clone(),
            lease_id: lease.id.clone(),
            silent_ms,
            lost,
        });
        self.acquire(number, (QUESTION, false), stalled);
    }

    fn claim(&mut self, number: usize) {
        let worker = &mut self.all[number];
        if worker.lead.is_some() {
            self.fill_from_storage(number, Role::Leads);
            self.tell_of_storage(number);
        } else if !worker.asked && Instant::now() >= worker.next_claim {
            worker.asked = true;
            self.send_claim(number, Kind::Claim);
        }
    }

    fn send_claim(&mut self, number: usize, kind: Kind) {
        let root = self.all[number].root;
        let (name, grown) = (self.name_of(root), root.is_some_and(|root| self.roots[root].grown));
        let worker = &self.all[number];
        let claim = Claim {
            seed_key: worker.seed_key.clone(),
            loading: worker.loading(&self.scale, name.clone(), false),
            arrived_bytes: worker.progress(None).arrived_bytes,
            patience_ms: PATIENCE_MS,
            origin: name.filter(|_| grown),
            whole: false,
            location: None,
            instance_id: None,
        };
        self.send(number, kind, LEADS, &claim, (Duration::ZERO, WITHOUT_PLANNER), None);
    }

    /// Who reads storage renews its right, or tells how far it is.
    fn tell_of_storage(&mut self, number: usize) {
        let worker = &mut self.all[number];
        let now = Instant::now();
        if let Some(lead) = &mut worker.lead {
            if !lead.asked && now >= lead.due {
                lead.asked = true;
                self.send_claim(number, Kind::Lead);
            }
            return;
        }
        let beat = worker.beat.get_or_insert(Due { due: now, asked: false });
        if !beat.asked && now >= beat.due && worker.held > 0 {
            (beat.asked, beat.due) = (true, now + BEAT);
            let root = self.name_of(self.all[number].root);
            let worker = &self.all[number];
            let beat = Beat {
                seed: worker.identity.clone(),
                seed_key: worker.seed_key.clone(),
                incarnation: Some(worker.incarnation()),
                loading: Some(worker.progress(root)),
            };
            let batch = HeartbeatBatch { seeds: vec![beat] };
            self.send(number, Kind::Beat, HEARTBEAT, &batch, (Duration::ZERO, ANSWER), None);
        }
    }

    fn renew(&mut self, number: usize) {
        let root = self.name_of(self.all[number].root);
        let worker = &mut self.all[number];
        let progress = worker.progress(root);
        let Some(lease) = worker.lease.as_mut().filter(|lease| !lease.lost && !lease.asked) else { return };
        if Instant::now() < lease.due {
            return;
        }
        lease.asked = true;
        let renew = Renew { lease_id: lease.id.clone(), seed: lease.seed.clone(), loading: Some(progress) };
        let kind =
            Kind::Renew { lease: lease.id.clone(), seed: lease.seed.clone(), point: lease.point.number };
        self.send(number, kind, RENEW, &renew, (Duration::ZERO, ANSWER), None);
    }

    fn register(&mut self, number: usize) {
        if self.all[number].asked || self.tick < self.all[number].pause {
            return;
        }
        self.all[number].asked = true;
        let worker = &self.all[number];
        let root = worker.root.map(|root| (root, &self.roots[root]));
        let content = root.and_then(|(number, _)| Name::cut(&format!("content {number}")));
        let origin = root.filter(|(_, root)| root.grown).map(|(_, root)| root.name.clone());
        let register = Register {
            seed: worker.identity.clone(),
            seed_key: worker.seed_key.clone(),
            model_url: None,
            deploy_strategy: None,
            is_draft: None,
            incarnation: Some(worker.incarnation()),
            instance_id: None,
            content_id: content,
            origin,
            location: None,
        };
        self.send(number, Kind::Register, SEEDS, &register, (Duration::ZERO, ANSWER), None);
    }

    /// Gives its lease back, if the planner knows it. Its connection is not touched.
    pub(crate) fn release(&mut self, number: usize, outcome: TransferOutcome) {
        let lease = self.all[number].lease.take();
        if let Some(lease) = lease.filter(|lease| !lease.lost) {
            self.give_back(number, &lease, outcome);
        }
    }

    pub(crate) fn give_back(&mut self, number: usize, lease: &Lease, outcome: TransferOutcome) {
        let release = Release {
            lease_id: lease.id.clone(),
            seed: lease.seed.clone(),
            outcome,
            reason: None,
            bytes: None,
            duration_ms: None,
        };
        self.send(number, Kind::Release, RELEASE, &release, (Duration::ZERO, ANSWER), None);
    }

    pub(crate) fn deregister(&mut self, number: usize) {
        let worker = &self.all[number];
        let deregister = Deregister { seed: worker.identity.clone(), seed_key: worker.seed_key.clone() };
        self.send(number, Kind::Deregister, DEREGISTER, &deregister, (Duration::ZERO, ANSWER), None);
    }

    /// Seeds that have everything say so, those of a key together.
    pub(crate) fn beat(&mut self, key: usize) {
        let seeds = self
            .all
            .iter()
            .filter(|worker| worker.key == key && worker.state == State::Seed && worker.life == Life::Lives);
        let beats: Vec<Beat> = seeds
            .map(|worker| Beat {
                seed: worker.identity.clone(),
                seed_key: worker.seed_key.clone(),
                incarnation: Some(worker.incarnation()),
                loading: None,
            })
            .collect();
        if !beats.is_empty() {
            let batch = HeartbeatBatch { seeds: beats };
            self.send(key, Kind::Beats, HEARTBEAT, &batch, (Duration::ZERO, ANSWER), None);
        }
    }

    fn send(
        &mut self,
        number: usize,
        kind: Kind,
        path: &'static str,
        body: &impl Serialize,
        (wait, patience): (Duration, Duration),
        idempotency: Option<String>,
    ) {
        let body = serde_json::to_string(body).unwrap();
        let question = Question {
            from: number,
            method: "POST",
            path: path.to_owned(),
            body,
            wait,
            patience,
            idempotency,
        };
        let (wire, answers) = (self.wire.clone(), self.answers.clone());
        let asked = self.all.get(number).map_or(0, |worker| worker.question);
        tokio::spawn(async move {
            let told = wire.ask(&question).await;
            // The fleet may have ended.
            let _ = answers.send((number, asked, kind, told));
        });
    }
}
