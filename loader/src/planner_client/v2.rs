//! API v2: JSON there and back.
//!
//! An answer that is no answer of this API (404 or 405 without a problem document, or for a route that is not
//! there) comes from a planner that does not speak it: another maker's, which took the place of ours or stands beside
//! it. Such a request is sent again over v1.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use http::{StatusCode, header};
use reqwest::RequestBuilder;
use rfork_protocol::SeedKey;
use rfork_protocol::problem::{Code, MEDIA_TYPE, Problem};
use rfork_protocol::v1::LeaseRef;
use rfork_protocol::v2::{
    self, Acquire, Beat, BeatStatus, Claimed, Deregister, Deregistered, Granted, HeartbeatBatch,
    HeartbeatResults, Label, LoadProgress, LoadingSeed, Reason, Register, Registered, Release, Released,
    Renew, Renewed, Service, TransferOutcome,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{
    Acquired, Advert, Claim, Grant, Heard, MAX_ANSWER_BYTES, PlannerClient, PlannerError, Renewal,
    TransferReport, Wish,
};
use crate::retry::Backoff;

/// How long it is believed that a planner does not speak this API: it may be replaced by one that does.
const V1_BELIEVED: Duration = Duration::from_secs(600);
/// The part of a request's deadline that the first question may take. Its failure costs no more than this.
const PROBE_PART: u32 = 4;
/// How often an acquisition is sent, under one idempotency key, while no answer comes or one that tells to come back:
/// a seed may be leased all the same, which only a repetition under that key finds again.
const ACQUIRE_ATTEMPTS: u32 = 4;
/// About how long before the first repetition, and before the last.
const RETRY_PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];

/// What a planner speaks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Spoken {
    /// v1 only, as far as is known until then.
    V1(Instant),
    /// v2: how long it lets a request wait, and whether it knows loading seeds and gives the right to lead.
    V2 { max_wait: Duration, loading_seeds: bool, right_to_lead: bool },
}

/// What is known of a planner. Shared by all clones of its client; no guard is held across an await, so that two
/// which ask at the same time both do.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<Option<Spoken>>);

impl Known {
    fn get(&self) -> Option<Spoken> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, spoken: Spoken) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(spoken);
    }

    fn only_v1(&self) {
        self.set(Spoken::V1(Instant::now() + V1_BELIEVED));
    }
}

/// Why a request over this API has no answer.
#[derive(Debug)]
pub(super) enum Failed {
    /// The planner does not speak it.
    NotSpoken,
    /// It refused, with a problem.
    Problem(StatusCode, Box<Problem>),
    /// Anything else.
    Other(PlannerError),
}

impl Failed {
    /// Whether the same request may succeed later.
    fn is_passing(&self) -> bool {
        match self {
            Self::NotSpoken => false,
            Self::Problem(status, _) => super::is_passing(*status),
            Self::Other(error) => error.is_passing(),
        }
    }
}

impl PlannerClient {
    /// How long the planner lets a request wait, if it speaks this API. It is asked once; a planner that does not
    /// answer, or not for the moment, is spoken to over v1 this time.
    pub(super) async fn v2_max_wait(&self) -> Option<Duration> {
        match self.known.get() {
            Some(Spoken::V2 { max_wait, .. }) => return Some(max_wait),
            Some(Spoken::V1(until)) if Instant::now() < until => return None,
            Some(Spoken::V1(_)) | None => {}
        }
        let request = self.http.get(self.url(v2::SERVICE)).timeout(self.timeout / PROBE_PART);
        let answer = self.send(request).await.ok()?;
        let status = answer.status();
        if super::is_passing(status) {
            return None;
        }
        // A body that breaks off, or has no end, says nothing.
        let body = crate::http::body(answer, MAX_ANSWER_BYTES).await.ok()?;
        let service = serde_json::from_slice::<Service>(&body).ok().filter(Service::speaks_v2);
        match service {
            Some(service) if status == StatusCode::OK => {
                tracing::debug!(
                    planner = self.name(),
                    version = service.version,
                    "the planner speaks API v2"
                );
                let max_wait = Duration::from_millis(service.max_wait_ms);
                let (loading_seeds, right_to_lead) =
                    (service.knows_loading_seeds(), service.gives_right_to_lead());
                self.known.set(Spoken::V2 { max_wait, loading_seeds, right_to_lead });
                Some(max_wait)
            }
            _ => {
                self.known.only_v1();
                None
            }
        }
    }

    /// Whether the planner knows loading seeds, as it said when it was asked what it speaks.
    pub(super) fn v2_knows_loading_seeds(&self) -> bool {
        matches!(self.known.get(), Some(Spoken::V2 { loading_seeds: true, .. }))
    }

    /// Whether it gives the right to lead, as it said then.
    pub(super) fn v2_gives_right_to_lead(&self) -> bool {
        matches!(self.known.get(), Some(Spoken::V2 { right_to_lead: true, .. }))
    }

    pub(super) async fn v2_claim(&self, key: &SeedKey, claim: &Claim) -> Result<Claimed, Failed> {
        let Claim { loading, arrived_bytes, patience, origin, whole } = claim;
        let request = v2::Claim {
            seed_key: key.clone(),
            loading: self.labelled(loading.clone()),
            arrived_bytes: *arrived_bytes,
            patience_ms: millis(*patience).min(v2::MAX_WAIT_MS),
            origin: origin.clone(),
            whole: *whole,
            location: self.topology.location.clone(),
            instance_id: self.topology.instance_id.clone(),
        };
        self.v2_send(v2::LEADS, self.post(v2::LEADS, &request)).await
    }

    /// Remembers that the planner does not speak this API after all.
    pub(super) fn v2_not_spoken(&self) {
        tracing::info!(planner = self.name(), "the planner does not speak API v2 any more; v1 is used");
        self.known.only_v1();
    }

    pub(super) async fn v2_acquire(
        &self,
        key: &SeedKey,
        wish: &Wish,
        max_wait: Duration,
    ) -> Result<Acquired, Failed> {
        let begun = Instant::now();
        let wait = wish.wait.min(max_wait).min(Duration::from_millis(v2::MAX_WAIT_MS));
        let mut exclude = wish.exclude.clone();
        exclude.truncate(v2::MAX_EXCLUDED);
        let mut request = Acquire {
            seed_key: key.clone(),
            wait_ms: 0,
            location: self.topology.location.clone(),
            instance_id: self.topology.instance_id.clone(),
            exclude,
            loading: None,
            stalled: None,
        };
        if self.v2_knows_loading_seeds() {
            request.loading = wish.loading.clone().map(|loading| self.labelled(loading));
            request.stalled = wish.stalled.clone().filter(|_| request.loading.is_some());
        }
        // Unguessable, as it must be: who knows it gets the lease.
        let idempotency_key = uuid::Uuid::new_v4().simple().to_string();
        // All attempts together: a planner that hangs costs no more than one that answers late.
        let patience = wait + self.timeout;
        let [first, longest] = RETRY_PAUSES;
        let mut backoff = Backoff::new(first, longest);
        let mut attempt = 1;
        loop {
            let asked_at = Instant::now();
            let left = patience.saturating_sub(begun.elapsed());
            // What is left of it: a repetition keeps its place in the queue.
            let wait = wait.saturating_sub(begun.elapsed());
            request.wait_ms = millis(wait);
            let post = self.post(v2::LEASES, &request).header(v2::IDEMPOTENCY_KEY, &idempotency_key);
            match self.v2_send::<Granted>(v2::LEASES, post.timeout(left)).await {
                Ok(granted) => {
                    let reference = LeaseRef { identity: granted.seed, lease: granted.lease_id };
                    // Granted after the wait, so no earlier than this.
                    let since = asked_at + Duration::from_millis(granted.waited_ms.min(v2::MAX_WAIT_MS));
                    let ttl = Some(Duration::from_millis(granted.ttl_ms));
                    // What cannot be read is nothing that this worker could hold.
                    let known = |pinned: Vec<v2::Name>| {
                        pinned.iter().filter_map(|id| id.as_str().parse().ok()).collect()
                    };
                    let (source, pinned) = (granted.source, granted.pinned.map(known));
                    return Ok(Acquired::Granted(Grant { reference, ttl, since, source, pinned }));
                }
                Err(Failed::Problem(StatusCode::NOT_FOUND | StatusCode::CONFLICT, problem)) => {
                    tracing::debug!(code = problem.code, "no seed was granted");
                    let is_unknown = problem.code() == Some(Code::UnknownKey);
                    return Ok(if is_unknown { Acquired::Unknown } else { Acquired::Busy });
                }
                Err(failed) => {
                    let pause = backoff.pause();
                    // What is left must do for an answer, too.
                    let again = attempt < ACQUIRE_ATTEMPTS && begun.elapsed() + 2 * pause < patience;
                    if !again || !failed.is_passing() {
                        return Err(failed);
                    }
                    tracing::debug!(?failed, attempt, "the same seed is asked for again");
                    attempt += 1;
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// With the labels that go with every request that names a key.
    fn labelled(&self, loading: LoadingSeed) -> LoadingSeed {
        let labels = &self.labels;
        LoadingSeed {
            model_url: labels.model_url.as_deref().and_then(Label::cut),
            deploy_strategy: labels.deploy_strategy.as_deref().and_then(Label::cut),
            is_draft: labels.is_draft,
            ..loading
        }
    }

    pub(super) async fn v2_renew(
        &self,
        lease: &LeaseRef,
        progress: Option<LoadProgress>,
    ) -> Result<Renewal, Failed> {
        let loading = progress.filter(|_| self.v2_knows_loading_seeds());
        let request = Renew { lease_id: lease.lease.clone(), seed: lease.identity.clone(), loading };
        let answer = self.v2_send::<Renewed>(v2::RENEW, self.post(v2::RENEW, &request)).await;
        let lives = |renewed: Renewed| Renewal::Lives {
            ttl: Some(Duration::from_millis(renewed.ttl_ms)),
            next: renewed.renew_after_ms.map(Duration::from_millis),
            advice: renewed.advice,
        };
        found(answer.map(lives), Renewal::Gone)
    }

    pub(super) async fn v2_release(&self, lease: &LeaseRef, report: &TransferReport) -> Result<(), Failed> {
        let outcome = match report {
            TransferReport::Done { .. } => TransferOutcome::Ok,
            TransferReport::Failed { .. } => TransferOutcome::Failed,
            TransferReport::Aborted => TransferOutcome::Aborted,
        };
        let (bytes, duration) = match *report {
            TransferReport::Done { bytes, duration } | TransferReport::Failed { bytes, duration, .. } => {
                (Some(bytes), Some(duration))
            }
            TransferReport::Aborted => (None, None),
        };
        let reason = match report {
            TransferReport::Failed { reason, .. } => Reason::try_from((*reason).to_owned()).ok(),
            TransferReport::Done { .. } | TransferReport::Aborted => None,
        };
        let request = Release {
            lease_id: lease.lease.clone(),
            seed: lease.identity.clone(),
            outcome,
            reason,
            bytes,
            duration_ms: duration.map(millis),
        };
        let answer = self.v2_send::<Released>(v2::RELEASE, self.post(v2::RELEASE, &request)).await;
        found(answer.map(drop), ())
    }

    pub(super) async fn v2_register(&self, advert: &Advert) -> Result<(), Failed> {
        let labels = &self.labels;
        let request = Register {
            seed: advert.identity.clone(),
            seed_key: advert.key.clone(),
            model_url: labels.model_url.as_deref().and_then(Label::cut),
            deploy_strategy: labels.deploy_strategy.as_deref().and_then(Label::cut),
            is_draft: labels.is_draft,
            incarnation: advert.incarnation.clone(),
            instance_id: self.topology.instance_id.clone(),
            content_id: advert.content_id.clone(),
            origin: advert.origin.clone(),
            location: self.topology.location.clone(),
        };
        self.v2_send::<Registered>(v2::SEEDS, self.post(v2::SEEDS, &request)).await.map(drop)
    }

    pub(super) async fn v2_beat(
        &self,
        advert: &Advert,
        loading: Option<LoadProgress>,
    ) -> Result<Heard, Failed> {
        let beat = Beat {
            seed: advert.identity.clone(),
            seed_key: advert.key.clone(),
            incarnation: advert.incarnation.clone(),
            loading,
        };
        let request = HeartbeatBatch { seeds: vec![beat] };
        let answer =
            self.v2_send::<HeartbeatResults>(v2::HEARTBEAT, self.post(v2::HEARTBEAT, &request)).await?;
        match answer.results.first().map(|result| result.status) {
            Some(BeatStatus::Ok) => Ok(Heard::Known),
            Some(BeatStatus::Draining) => Ok(Heard::Draining),
            Some(BeatStatus::Unknown) | None => Ok(Heard::Unknown),
        }
    }

    pub(super) async fn v2_withdraw(&self, advert: &Advert) -> Result<(), Failed> {
        let request = Deregister { seed: advert.identity.clone(), seed_key: advert.key.clone() };
        let answer = self.v2_send::<Deregistered>(v2::DEREGISTER, self.post(v2::DEREGISTER, &request)).await;
        found(answer.map(drop), ())
    }

    fn post(&self, path: &'static str, body: &impl Serialize) -> RequestBuilder {
        self.http.post(self.url(path)).json(body)
    }

    async fn v2_send<T: DeserializeOwned>(
        &self,
        path: &'static str,
        request: RequestBuilder,
    ) -> Result<T, Failed> {
        let answer =
            self.send(request).await.map_err(|error| Failed::Other(self.unreachable(path, error)))?;
        let status = answer.status();
        let is_problem = answer.headers().get(header::CONTENT_TYPE).is_some_and(|value| value == MEDIA_TYPE);
        if status != StatusCode::OK && !is_problem {
            return Err(match status {
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Failed::NotSpoken,
                _ => Failed::Other(self.refused(path, answer).await),
            });
        }
        let body = crate::http::body(answer, MAX_ANSWER_BYTES)
            .await
            .map_err(|error| Failed::Other(self.unread(path, error)))?;
        if status == StatusCode::OK {
            return serde_json::from_slice(&body)
                .map_err(|error| Failed::Other(self.malformed(path, &error)));
        }
        Err(match Problem::from_json(&body) {
            Some(problem) if matches!(problem.code(), Some(Code::NotFound | Code::MethodNotAllowed)) => {
                Failed::NotSpoken
            }
            Some(problem) => Failed::Problem(status, Box::new(problem)),
            None => Failed::Other(self.refused_with(path, status, "")),
        })
    }

    /// The error that a problem means for a caller to whom its code means nothing.
    pub(super) fn v2_error(&self, path: &'static str, status: StatusCode, problem: &Problem) -> PlannerError {
        self.refused_with(path, status, &format!("{}: {}", problem.code, problem.detail))
    }
}

/// The answer, or `missing` when the planner says that there is no such thing.
fn found<T>(answer: Result<T, Failed>, missing: T) -> Result<T, Failed> {
    match answer {
        Err(Failed::Problem(StatusCode::NOT_FOUND, _)) => Ok(missing),
        answer => answer,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
