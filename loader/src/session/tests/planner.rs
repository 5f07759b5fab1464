//! A planner that knows loading seeds, as simple as it can be: it grants seeds without readers, complete ones first, in the
//! order of their registration.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use rfork_protocol::SeedIdentity;
use rfork_protocol::v2::{
    Acquire, Advice, Claim, Claimed, Deregister, Granted, HeartbeatBatch, LOADING_SEEDS, LeasedPoint,
    LoadProgress, LoadingSeed, Name, RIGHT_TO_LEAD, Register, Release, Renew, Role, SeedPhase, Source,
    TransferOutcome, decode,
};
use serde::Serialize;
use serde_json::json;
use tokio::sync::watch;

const CAPACITY: usize = 1;

/// What it knows, and what it was told.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) seeds: Vec<Seed>,
    /// By the lease's id: on whom, and whose.
    leases: BTreeMap<String, (SeedIdentity, Option<SeedIdentity>)>,
    granted: usize,
    pub(super) acquisitions: Vec<Acquire>,
    /// How many of them wait, and did at once at most.
    waiting: usize,
    pub(super) most_waiting: usize,
    pub(super) renewals: Vec<LoadProgress>,
    pub(super) beats: Vec<LoadProgress>,
    pub(super) completed: Vec<SeedIdentity>,
    pub(super) deregistered: Vec<SeedIdentity>,
    pub(super) outcomes: Vec<TransferOutcome>,
    /// What renewals are answered.
    pub(super) advice: Option<Advice>,
    /// Whether nobody is answered, and how many were not.
    pub(super) is_silent: bool,
    pub(super) unanswered: usize,
    /// What each grant says that the key is pinned to.
    pub(super) pinned: Option<Vec<Name>>,
    /// Whether a reader may be granted who reads from it.
    pub(super) makes_circles: bool,
    /// Who reads storage while others wait, if it gives that right: the last who asked when nobody had it.
    pub(super) leader: Option<SeedIdentity>,
    pub(super) claims: Vec<Claim>,
    pub(super) right: Right,
}

/// What becomes of the right to read storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Right {
    /// Who has it keeps it.
    #[default]
    Kept,
    /// Nobody who asks for it is answered.
    Hidden,
    /// Whoever asks last has it.
    TakenAway,
}

#[derive(Debug)]
pub(super) struct Seed {
    pub(super) identity: SeedIdentity,
    incarnation: Option<Name>,
    pub(super) phase: SeedPhase,
}

impl State {
    fn readers(&self, seed: &SeedIdentity) -> usize {
        self.leases.values().filter(|(source, _)| source == seed).count()
    }

    fn source_of(&self, reader: &SeedIdentity) -> Option<&SeedIdentity> {
        let mut leases = self.leases.values().rev();
        leases.find(|(_, who)| who.as_ref() == Some(reader)).map(|(source, _)| source)
    }

    /// Whether `seed` gets its bytes from `other`, through however many.
    pub(super) fn reads_from(&self, seed: &SeedIdentity, other: &SeedIdentity) -> bool {
        let mut at = Some(seed);
        for _ in 0..=self.seeds.len() {
            if at == Some(other) {
                return true;
            }
            at = at.and_then(|seed| self.source_of(seed));
        }
        false
    }

    fn choose(&self, request: &Acquire) -> Option<(SeedIdentity, SeedPhase)> {
        let asker = request.loading.as_ref().map(|loading| &loading.seed);
        let stalled = request.stalled.as_ref().map(|stalled| &stalled.seed);
        let fits = |seed: &&Seed| {
            let is_asked_for = !request.exclude.contains(&seed.identity) && Some(&seed.identity) != stalled;
            let is_source = match (asker, seed.phase) {
                (None, phase) => phase == SeedPhase::Complete,
                (Some(asker), _) => {
                    seed.identity != *asker && (self.makes_circles || !self.reads_from(&seed.identity, asker))
                }
            };
            is_asked_for && is_source && self.readers(&seed.identity) < CAPACITY
        };
        let best = self.seeds.iter().filter(fits).min_by_key(|seed| seed.phase == SeedPhase::Loading)?;
        Some((best.identity.clone(), best.phase))
    }

    fn acquire(&mut self, request: &Acquire) -> Option<Granted> {
        let (seed, phase) = self.choose(request)?;
        self.granted += 1;
        let lease = format!("lease-{:04}", self.granted);
        let asker = request.loading.as_ref().map(|loading| loading.seed.clone());
        self.leases.insert(lease.clone(), (seed.clone(), asker));
        if let Some(LoadingSeed { seed, incarnation, .. }) = &request.loading {
            self.leads_no_more(seed);
            self.seeds.retain(|known| known.identity != *seed);
            let incarnation = Some(incarnation.clone());
            self.seeds.push(Seed { identity: seed.clone(), incarnation, phase: SeedPhase::Loading });
        }
        let point = LeasedPoint { number: 0, since_ms: self.granted as u64 };
        let source = request.loading.as_ref().map(|_| Source {
            phase,
            depth: 0,
            root: None,
            renew_after_ms: 50,
            point,
        });
        let lease_id = rfork_protocol::LeaseId::new(lease).unwrap();
        let pinned = self.pinned.clone();
        Some(Granted { lease_id, seed, ttl_ms: 60_000, waited_ms: 0, source, pinned })
    }

    fn claim(&mut self, claim: Claim) -> Claimed {
        let asks = claim.loading.seed.clone();
        if self.right == Right::TakenAway {
            self.leader = None;
        }
        // Other memory at the address: the one before has ended.
        let incarnation = &claim.loading.incarnation;
        self.seeds.retain(|seed| {
            let is_same = seed.incarnation.as_ref() == Some(incarnation);
            seed.identity != asks || seed.phase == SeedPhase::Complete || is_same
        });
        self.claims.push(claim);
        let is_complete = |seed: &Seed| seed.identity == asks && seed.phase == SeedPhase::Complete;
        if self.seeds.iter().any(is_complete) {
            return Claimed { role: Role::Alone, renew_after_ms: 50, leader: None, root: None };
        }
        let leader = self.leader.get_or_insert(asks.clone()).clone();
        let role = if leader == asks { Role::Leads } else { Role::Waits };
        let last = self.claims.last().filter(|claim| role == Role::Leads && claim.origin.is_some());
        if let Some(Claim { loading: LoadingSeed { seed, incarnation, .. }, .. }) = last
            && self.seeds.iter().all(|known| known.identity != *seed)
        {
            let (identity, incarnation) = (seed.clone(), Some(incarnation.clone()));
            self.seeds.push(Seed { identity, incarnation, phase: SeedPhase::Loading });
        }
        // By its last question.
        let of_leader = self.claims.iter().rev().find(|claim| claim.loading.seed == leader);
        let root = of_leader.and_then(|claim| claim.origin.clone()).filter(|_| leader != asks);
        Claimed { role, renew_after_ms: 50, leader: (leader != asks).then_some(leader), root }
    }

    /// It reads from a seed, has everything, or leaves.
    fn leads_no_more(&mut self, seed: &SeedIdentity) {
        self.leader.take_if(|leader| leader == seed);
    }

    fn register(&mut self, request: Register) -> &'static str {
        self.leads_no_more(&request.seed);
        let known = self.seeds.iter_mut().find(|known| known.identity == request.seed);
        match known {
            Some(known) if known.incarnation == request.incarnation && known.phase == SeedPhase::Loading => {
                known.phase = SeedPhase::Complete;
                self.completed.push(request.seed);
                "completed"
            }
            Some(_) => "repeated",
            None => {
                let (identity, incarnation) = (request.seed, request.incarnation);
                self.seeds.push(Seed { identity, incarnation, phase: SeedPhase::Complete });
                "new"
            }
        }
    }
}

impl State {
    /// Ends the leases on a seed, as a planner does that gives its point to another.
    pub(super) fn end_leases_on(&mut self, seed: &SeedIdentity) {
        self.leases.retain(|_, (source, _)| source != seed);
    }
}

/// A running planner.
pub(super) struct Planner {
    pub(super) url: String,
    state: Arc<Mutex<State>>,
    changes: watch::Sender<u64>,
}

impl Planner {
    pub(super) async fn start(knows_loading_seeds: bool) -> Arc<Self> {
        Self::with(if knows_loading_seeds { &[LOADING_SEEDS] } else { &[] }).await
    }

    /// One that says who reads storage while others wait.
    pub(super) async fn that_gives_the_right_to_lead() -> Arc<Self> {
        Self::with(&[LOADING_SEEDS, RIGHT_TO_LEAD]).await
    }

    async fn with(features: &'static [&'static str]) -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let planner = Arc::new(Self { url, state: Arc::default(), changes: watch::Sender::new(0) });
        let serving = planner.clone();
        let router =
            Router::new().fallback(async move |request: Request| serving.answer(request, features).await);
        tokio::spawn(async move { axum::serve(listener, router).await });
        planner
    }

    /// What it knows.
    pub(super) fn look<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap())
    }

    /// Waits until what it knows is so.
    pub(super) async fn until(&self, mut reached: impl FnMut(&State) -> bool) {
        let mut changes = self.changes.subscribe();
        let waiting = async {
            while !self.look(|state| reached(state)) {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(super::HANGS, waiting).await.expect("the planner is told what is waited for");
    }

    async fn answer(&self, request: Request, features: &[&str]) -> Response {
        let path = request.uri().path().to_owned();
        let body = to_bytes(request.into_body(), 1 << 20).await.unwrap();
        if self.look(|state| state.is_silent) {
            self.look(|state| state.unanswered += 1);
            self.changes.send_modify(|changes| *changes += 1);
            return std::future::pending().await;
        }
        let answer = match path.as_str() {
            "/v2" => json(
                &json!({"service": "rfork-planner", "version": "9", "api": ["v2"], "heartbeat_interval_ms": 1_000,
                    "max_wait_ms": 60_000, "features": features}),
            ),
            "/v2/leads" => {
                let claim: Claim = decode(&body).unwrap();
                let claimed = self.look(|state| {
                    let is_told = state.right != Right::Hidden;
                    is_told.then(|| state.claim(claim))
                });
                claimed.map_or(StatusCode::SERVICE_UNAVAILABLE.into_response(), |claimed| json(&claimed))
            }
            "/v2/leases" => return self.acquire(decode(&body).unwrap()).await,
            "/v2/leases/renew" => {
                let renew: Renew = decode(&body).unwrap();
                let (lives, advice) = self.look(|state| {
                    state.renewals.extend(renew.loading);
                    (state.leases.contains_key(renew.lease_id.expose()), state.advice)
                });
                let renewed = json!({"ttl_ms": 60_000, "renew_after_ms": 50, "advice": advice});
                if lives { json(&renewed) } else { missing() }
            }
            "/v2/leases/release" => {
                let release: Release = decode(&body).unwrap();
                self.look(|state| {
                    state.outcomes.push(release.outcome);
                    state.leases.remove(release.lease_id.expose());
                });
                json(&json!({}))
            }
            "/v2/seeds" => {
                let register = decode(&body).unwrap();
                let registration = self.look(|state| state.register(register));
                json(
                    &json!({"registration": registration, "heartbeat_interval_ms": 1_000, "heartbeat_ttl_ms": 9_000}),
                )
            }
            "/v2/seeds/heartbeat" => {
                let beats: HeartbeatBatch = decode(&body).unwrap();
                let seed = beats.seeds[0].seed.clone();
                let known = self.look(|state| {
                    state.beats.extend(beats.seeds[0].loading.clone());
                    state.seeds.iter().any(|known| known.identity == seed)
                });
                json(&json!({"results": [{"seed": seed, "status": if known { "ok" } else { "unknown" }}]}))
            }
            "/v2/seeds/deregister" => {
                let gone: Deregister = decode(&body).unwrap();
                self.look(|state| {
                    state.seeds.retain(|known| known.identity != gone.seed);
                    state.leads_no_more(&gone.seed);
                    state.deregistered.push(gone.seed);
                });
                json(&json!({"state": "removed"}))
            }
            _ => StatusCode::NOT_FOUND.into_response(),
        };
        self.changes.send_modify(|changes| *changes += 1);
        answer
    }

    async fn acquire(&self, request: Acquire) -> Response {
        let mut changes = self.changes.subscribe();
        self.look(|state| {
            state.acquisitions.push(request.clone());
            state.waiting += 1;
            state.most_waiting = state.most_waiting.max(state.waiting);
        });
        self.changes.send_modify(|changes| *changes += 1);
        let wait = Duration::from_millis(request.wait_ms);
        let granting = async {
            loop {
                if let Some(granted) = self.look(|state| state.acquire(&request)) {
                    self.changes.send_modify(|changes| *changes += 1);
                    return granted;
                }
                changes.changed().await.unwrap();
            }
        };
        let granted = tokio::time::timeout(wait, granting).await;
        self.look(|state| state.waiting -= 1);
        match granted {
            Ok(granted) => json(&granted),
            Err(_) => missing(),
        }
    }
}

fn json(body: &impl Serialize) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], serde_json::to_string(body).unwrap()).into_response()
}

fn missing() -> Response {
    let problem =
        json!({"status": 404, "code": "all-busy", "type": "x", "title": "x", "detail": "x"}).to_string();
    (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, "application/problem+json")], problem).into_response()
}
