//! `rfork selftest`: whether a planner does what workers ask of it.

use std::process;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use clap::Args;
use rfork_loader::planner_ca::PlannerCa;
use rfork_loader::planner_client::{
    Advert, Grant, PlannerClient, PlannerError, Renewal, Topology, TransferReport, Wish,
};
use rfork_loader::token::TokenFile;
use rfork_protocol::v1::Labels;
use rfork_protocol::{SeedIdentity, SeedKey};
use tokio::time::{Instant, sleep};

use crate::access::AccessArgs;
use crate::inspect::parse_url;

/// How long a request may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long until a planner that is not there yet is asked again.
const PAUSE: Duration = Duration::from_millis(200);
/// The port of the seed that is registered: nobody serves there, and nobody but this process is told of it.
const PORT: u16 = 9;

/// Which planner.
#[derive(Debug, Args)]
pub(crate) struct SelftestArgs {
    /// The planner's URL, as `http://planner:1223`
    #[arg(long, value_name = "URL")]
    planner: String,
    /// How long to ask a planner that does not serve yet, in seconds; 0 asks once
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=3600))]
    wait_sec: u64,
    #[command(flatten)]
    access: AccessArgs,
}

/// Registers a seed of its own under a key that nobody else has, and goes with it through all that workers ask. Only the
/// first request is repeated: a planner that just started is not there, or answers 503, until its database is open.
/// Whatever fails, what it left at the planner is taken back, or ends by its time to live.
pub(crate) async fn run(args: SelftestArgs) -> Result<()> {
    let url = parse_url(&args.planner)?;
    let (ca, token) = (args.access.ca(&url)?, args.access.token(&url)?);
    if let Some(token) = &token {
        token.header().await?;
    }
    let key = key()?;
    let until = Instant::now() + Duration::from_secs(args.wait_sec);
    let mut told = false;
    let (planner, seed) = loop {
        match begin(&args.planner, (ca.clone(), token.clone()), &key).await {
            Err(error) if is_passing(&error) && Instant::now() < until => {
                if !told {
                    eprintln!("waiting for the planner, up to {} s: {error:#}", args.wait_sec);
                    told = true;
                }
                sleep(PAUSE).await;
            }
            begun => break begun?,
        }
    };
    println!("a seed is registered");
    let mut leased = None;
    let result = steps(&planner, &seed, &mut leased).await;
    if result.is_err() {
        // The first failure is what is told.
        if let Some(grant) = leased {
            let _ = planner.release(&grant.reference, &TransferReport::Aborted).await;
        }
        let _ = planner.withdraw(&seed).await;
    }
    result?;
    println!("the planner works");
    Ok(())
}

/// A key that no other process has, nor this one at another time.
fn key() -> Result<SeedKey> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(SeedKey::from_text(&format!("rfork-selftest-{}-{}", now.as_nanos(), process::id()))?)
}

/// Registers the seed, with a client that knows nothing of earlier attempts.
async fn begin(
    url: &str,
    (ca, token): (Option<PlannerCa>, Option<TokenFile>),
    key: &SeedKey,
) -> Result<(PlannerClient, Advert)> {
    let planner = PlannerClient::new(url, DEADLINE, Labels::default(), Topology::default())?;
    let planner = planner.showing(token).trusting(ca)?;
    if planner.local_address().await.is_none() {
        // Whatever is asked says why.
        planner.acquire(key, &Wish::default()).await.context("asking the planner failed")?;
    }
    let host = planner.local_address().await.context("the planner was reached from no address")?;
    let identity = SeedIdentity::new(host.to_string(), PORT, 0)?;
    let seed = Advert { key: key.clone(), identity, incarnation: None, content_id: None, origin: None };
    planner.register(&seed).await.context("registering a seed failed")?;
    Ok((planner, seed))
}

/// Whether the same request may succeed later.
fn is_passing(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(PlannerError::is_passing)
}

async fn steps(planner: &PlannerClient, seed: &Advert, leased: &mut Option<Grant>) -> Result<()> {
    let wish = Wish::default();
    let lease = planner.acquire(&seed.key, &wish).await.context("asking for the seed failed")?.grant();
    let lease = lease.context("the planner does not lease the seed that was just registered")?;
    *leased = Some(lease.clone());
    ensure!(
        lease.reference.identity == seed.identity,
        "the planner leases {} under a key of {} alone",
        lease.reference.identity,
        seed.identity
    );
    println!("it is leased");

    let renewal = planner.renew(&lease.reference, None).await.context("renewing the lease failed")?;
    ensure!(
        matches!(renewal, Renewal::Lives { .. }),
        "the planner does not know the lease that it just granted"
    );
    println!("the lease is renewed");

    planner
        .release(&lease.reference, &TransferReport::Aborted)
        .await
        .context("releasing the lease failed")?;
    *leased = None;
    let renewal = planner.renew(&lease.reference, None).await.context("renewing a released lease failed")?;
    ensure!(matches!(renewal, Renewal::Gone), "the planner renews a lease that was released");
    println!("the lease is released");

    planner.withdraw(seed).await.context("removing the seed failed")?;
    let gone = planner.acquire(&seed.key, &wish).await.context("asking for the removed seed failed")?.grant();
    leased.clone_from(&gone);
    ensure!(gone.is_none(), "the planner leases a seed that was removed");
    println!("the seed is removed");
    Ok(())
}
