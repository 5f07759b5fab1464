//! A lease that a worker holds: renewed while it lives, released when it is dropped, whatever dropped it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rfork_protocol::SeedIdentity;
use rfork_protocol::manifest::content::ContentId;
use rfork_protocol::manifest::digest::DigestAlgorithm;
use rfork_protocol::v1::LeaseRef;
use rfork_protocol::v2::{Advice, Source};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::planner_client::{Grant, PlannerClient, Renewal, TransferReport};
use crate::reporting::Reporting;
use crate::retry::{Backoff, apart};

/// A lease is renewed when this part of its time has passed, which leaves two more tries.
const RENEW_AFTER: f64 = 1.0 / 3.0;
/// But no sooner, whatever a planner tells, so that it is not flooded.
const RENEW_SOONEST: Duration = Duration::from_millis(100);
/// And no later: over v1 a renewal is not told that the time to live is another now.
const RENEW_LATEST: Duration = Duration::from_secs(30);

/// A seed that this worker may read from. Dropping it releases it in the background.
#[derive(Debug)]
pub(crate) struct Lease {
    reference: LeaseRef,
    report: TransferReport,
    lost: CancellationToken,
    /// Cancelled when the planner advises to ask for another source.
    advised_to_move: CancellationToken,
    /// Cancelled when the planner advises to read storage.
    advised_to_read: CancellationToken,
    /// What the seed is as a source, if this worker is a loading seed.
    source: Option<Source>,
    /// The contents that may be read under it; `None`: any.
    pinned: Option<Vec<ContentId>>,
    /// Whether the planner has said that it does not know the lease.
    gone: Arc<AtomicBool>,
    releases: Releases,
    _renewal: Option<AbortOnDropHandle<()>>,
}

impl Lease {
    /// Takes a grant over and begins to renew it. Planners of the first generations do not tell a time to
    /// live and have no renewal: their leases are held as they are. Renewals carry what `reporting` says, if the grant
    /// made this worker a loading seed.
    ///
    /// Must be called within a tokio runtime.
    pub(crate) fn hold(
        grant: Grant,
        client: PlannerClient,
        releases: Releases,
        reporting: Option<Reporting>,
    ) -> Self {
        let Grant { reference, ttl, since, source, pinned } = grant;
        let (lost, gone) = (CancellationToken::new(), Arc::<AtomicBool>::default());
        let [advised_to_move, advised_to_read] = [CancellationToken::new(), CancellationToken::new()];
        let told = source.clone().zip(reporting).map(|(source, reporting)| Told {
            reporting,
            advised_to_move: advised_to_move.clone(),
            advised_to_read: advised_to_read.clone(),
            first: Duration::from_millis(source.renew_after_ms),
        });
        let renewal = ttl.map(|ttl| {
            let (reference, lost, gone) = (reference.clone(), lost.clone(), gone.clone());
            AbortOnDropHandle::new(tokio::spawn(async move {
                let end = renew(client, reference, ttl, Instant::from_std(since), told).await;
                gone.store(matches!(end, End::Gone), Ordering::SeqCst);
                lost.cancel();
            }))
        });
        let report = TransferReport::Aborted;
        Self {
            reference,
            report,
            lost,
            advised_to_move,
            advised_to_read,
            source,
            pinned,
            gone,
            releases,
            _renewal: renewal,
        }
    }

    /// Notes how reading from the seed went, which the release tells.
    pub(crate) fn report(&mut self, report: TransferReport) {
        self.report = report;
    }

    /// The seed.
    pub(crate) fn seed(&self) -> &SeedIdentity {
        &self.reference.identity
    }

    /// What the seed is as a source, if the grant made this worker a loading seed.
    pub(crate) fn source(&self) -> Option<&Source> {
        self.source.as_ref()
    }

    /// Whether bytes of this content may be read under it, and others not.
    pub(crate) fn allows(&self, content: Option<ContentId>) -> bool {
        let among = |pinned: &Vec<ContentId>| content.is_some_and(|content| pinned.contains(&content));
        self.pinned.as_ref().is_none_or(among)
    }

    /// Whether some content may be read under it whose digests are of this kind.
    pub(crate) fn allows_one_of(&self, algorithm: DigestAlgorithm) -> bool {
        let among = |pinned: &Vec<ContentId>| pinned.iter().any(|content| content.algorithm == algorithm);
        self.pinned.as_ref().is_none_or(among)
    }

    /// The lease itself, for requests.
    pub(crate) fn reference(&self) -> &LeaseRef {
        &self.reference
    }

    /// Cancelled when the planner advises to ask for another source.
    pub(crate) fn advised_to_move(&self) -> &CancellationToken {
        &self.advised_to_move
    }

    /// Cancelled when the planner advises to read storage: that gives more than the seed.
    pub(crate) fn advised_to_read(&self) -> &CancellationToken {
        &self.advised_to_read
    }

    /// Asks the planner whether it knows the lease; if not, it is lost from here on.
    pub(crate) async fn confirm(&self) {
        if let Ok(Renewal::Gone) = self.releases.client.renew(&self.reference, None).await {
            self.gone.store(true, Ordering::SeqCst);
            self.lost.cancel();
        }
    }

    /// Cancelled when the planner says that the lease is gone, or refuses to renew it: reading must stop.
    pub(crate) fn lost(&self) -> &CancellationToken {
        &self.lost
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A lease that is gone at the planner has nothing to release. One that it does not renew holds its point.
        if !self.gone.load(Ordering::SeqCst) {
            self.releases.begin(self.reference.clone(), self.report);
        }
    }
}

/// How long after a grant or a renewal the next one is sent.
fn renew_after(ttl: Duration) -> Duration {
    ttl.mul_f64(RENEW_AFTER).clamp(RENEW_SOONEST, RENEW_LATEST)
}

/// The same for a loading seed, which the planner tells when it wants to hear of it.
fn due(ttl: Duration, told: Option<Duration>) -> Duration {
    told.map_or(renew_after(ttl), |told| told.clamp(RENEW_SOONEST, renew_after(ttl)))
}

/// What a loading seed tells with its renewals, and is told.
struct Told {
    reporting: Reporting,
    advised_to_move: CancellationToken,
    advised_to_read: CancellationToken,
    /// When the first one is due.
    first: Duration,
}

/// Why a lease is renewed no more.
enum End {
    /// The planner does not know it.
    Gone,
    /// The planner refuses to renew it.
    Refused,
}

/// Renews until dropped or lost. A planner that cannot be reached loses nothing here: bytes go on flowing,
/// and the seed's point is at worst granted once more.
async fn renew(
    client: PlannerClient,
    reference: LeaseRef,
    mut ttl: Duration,
    since: Instant,
    told: Option<Told>,
) -> End {
    let retries = |ttl: Duration| Backoff::new(renew_after(ttl) / 8, renew_after(ttl));
    let mut backoff = retries(ttl);
    // Workers that were granted together would come together, each time.
    let mut next = since + apart(due(ttl, told.as_ref().map(|told| told.first)));
    let mut lives_until = since + ttl;
    let mut is_registered = true;
    loop {
        tokio::time::sleep_until(next).await;
        let sent = Instant::now();
        let progress = told.as_ref().map(|told| told.reporting.progress());
        match client.renew(&reference, progress).await {
            Ok(Renewal::Lives { ttl: lives, next: asked, advice }) => {
                // A planner that was restarted may have another time than the one that granted the lease.
                ttl = lives.unwrap_or(ttl);
                lives_until = sent + ttl;
                backoff = retries(ttl);
                // The time counts from when the renewal was sent.
                // Excluded: the answer was slow, and the lease ends at the planner before the next renewal. The planner
                // counts from no earlier.
                next = sent + apart(due(ttl, asked));
                match (advice, &told) {
                    (Some(Advice::Move), Some(told)) => told.advised_to_move.cancel(),
                    (Some(Advice::ReadStorage), Some(told)) => told.advised_to_read.cancel(),
                    // Each renewal is answered so.
                    (Some(Advice::RegistrationEnded), _) if is_registered => {
                        is_registered = false;
                        tracing::info!("the planner does not know this loading seed any more");
                    }
                    _ => {}
                }
            }
            Ok(Renewal::Gone) => {
                tracing::warn!(seed = %reference.identity, lease = %reference.lease, "the lease is gone");
                return End::Gone;
            }
            // A token that is not taken may be replaced while the lease lives; then its point may be another one's.
            Err(error) if error.is_passing() || error.is_borne() && Instant::now() < lives_until => {
                tracing::warn!(lease = %reference.lease, %error, "a renewal failed; reading goes on");
                next = Instant::now() + backoff.pause();
            }
            Err(error) => {
                tracing::warn!(lease = %reference.lease, %error, "the planner refuses to renew the lease");
                return End::Refused;
            }
        }
    }
}

/// Releases leases in the background, so that no release delays or fails a load.
///
/// Each is tried a bounded number of times; one that never succeeds ends by its time to live. Their number is
/// bounded by the leases that a load is granted, which is as often as its seeds may fail and it may change its source.
#[derive(Debug, Clone)]
pub(crate) struct Releases {
    client: PlannerClient,
    attempts: u32,
    interval: Duration,
    tasks: TaskTracker,
    runtime: Handle,
}

impl Releases {
    /// Tries each release up to `attempts` times, about `interval` apart. Must be called within a tokio
    /// runtime, on which the releases then run.
    pub(crate) fn new(client: PlannerClient, attempts: u32, interval: Duration) -> Self {
        Self { client, attempts, interval, tasks: TaskTracker::new(), runtime: Handle::current() }
    }

    fn begin(&self, reference: LeaseRef, report: TransferReport) {
        let (client, attempts) = (self.client.clone(), self.attempts);
        let mut backoff = Backoff::new(self.interval, self.interval);
        let releasing = async move {
            for attempt in 1..=attempts {
                match client.release(&reference, &report).await {
                    Ok(()) => return,
                    Err(error) if error.is_borne() && attempt < attempts => {
                        tracing::warn!(lease = %reference.lease, %error, attempt, "a release failed; it is tried again");
                        tokio::time::sleep(backoff.pause()).await;
                    }
                    Err(error) => {
                        tracing::warn!(lease = %reference.lease, %error, "the lease was not released; it ends by itself");
                        return;
                    }
                }
            }
        };
        self.tasks.spawn_on(releasing, &self.runtime);
    }

    /// Waits until all releases are done, at most `timeout`.
    pub(crate) async fn finish(&self, timeout: Duration) {
        self.tasks.close();
        if tokio::time::timeout(timeout, self.tasks.wait()).await.is_err() {
            tracing::warn!("a lease was not released in time; it ends by itself");
        }
        self.tasks.reopen();
    }
}
