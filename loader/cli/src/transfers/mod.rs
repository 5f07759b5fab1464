//! `rfork inspect transfers`: who gave what to whom when, from a planner's history, as a table, as JSON or as a drawing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use reqwest::Url;
use rfork_loader::http;
use rfork_protocol::v2::{
    ENDED_LEASES, EVENTS, EndedLease, EndedLeaseList, Event, EventKind, EventList, EventQuery, LeaseEnd,
    LeaseQuery, MAX_PAGE, Query, TransferOutcome,
};
use rfork_protocol::{SeedIdentity, SeedKey};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::access::AccessArgs;
use crate::inspect::{self, parse_url};
use crate::show;

mod drawing;

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// Transfers that are told at most, the last ones.
const MAX_TRANSFERS: usize = 10_000;

/// Which transfers, and how they are told.
#[derive(Debug, Args)]
pub(crate) struct TransfersArgs {
    /// The planner's URL, as `http://planner:1223`
    url: String,
    /// Those of this key alone
    #[arg(long, value_name = "KEY")]
    seed_key: Option<String>,
    /// Those that began within the last so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3_600)]
    since_sec: u64,
    #[command(flatten)]
    access: AccessArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Draw them into this file, as SVG
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    svg: Option<PathBuf>,
}

/// Bytes that went, or were to go, from a source to a reader. Times count from when the first of all began.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Transfer {
    /// `host:port:rank`, or `storage`.
    source: String,
    /// The same of the reader; else who that was, as far as it is known.
    reader: String,
    from_seconds: f64,
    to_seconds: f64,
    /// As the reader says; null when it has not said.
    bytes: Option<u64>,
    /// How it ended, in a word.
    ended: &'static str,
}

const STORAGE: &str = "storage";

/// Asks and prints, or draws.
pub(crate) async fn run(args: TransfersArgs) -> Result<()> {
    let key = args.seed_key.as_deref().map(SeedKey::from_text).transpose()?;
    let since_ms = args.since_sec.saturating_mul(1_000);
    let leases = ended(&args, key.as_ref(), since_ms).await?;
    let events = events(&args, key.as_ref(), since_ms).await?;
    let transfers = transfers(&leases, &events);
    if args.json {
        println!("{}", serde_json::to_string(&transfers)?);
    } else if let Some(path) = &args.svg {
        let drawing = drawing::draw(&transfers);
        tokio::fs::write(path, drawing)
            .await
            .with_context(|| format!("{} cannot be written", path.display()))?;
        println!("{} transfer(s) drawn into {}", transfers.len(), path.display());
    } else {
        println!("{} transfer(s) that ended", transfers.len());
        if !transfers.is_empty() {
            println!("{}", table(&transfers));
        }
    }
    Ok(())
}

fn table(transfers: &[Transfer]) -> impl std::fmt::Display {
    let rows = transfers.iter().map(|transfer| {
        let Transfer { source, reader, from_seconds, to_seconds, bytes, ended } = transfer;
        [
            source.clone(),
            reader.clone(),
            format!("{from_seconds:.2}"),
            format!("{to_seconds:.2}"),
            bytes.map(show::bytes).unwrap_or_default(),
            (*ended).to_owned(),
        ]
    });
    show::table(["source", "reader", "from (s)", "to (s)", "bytes", "ended"], rows)
}

/// Leases that were granted since then, the last one first.
async fn ended(args: &TransfersArgs, key: Option<&SeedKey>, since_ms: u64) -> Result<Vec<EndedLease>> {
    let mut query = LeaseQuery { seed_key: key.cloned(), limit: MAX_PAGE, ..LeaseQuery::default() };
    let mut found = Vec::new();
    loop {
        let page: EndedLeaseList = ask(args, ENDED_LEASES, &query).await?;
        // Those that ended before then were granted before.
        let is_last = page.leases.last().is_none_or(|lease| lease.ended_age_ms > since_ms);
        found.extend(page.leases.into_iter().filter(|lease| lease.granted_age_ms <= since_ms));
        query.after = page.next;
        if is_last || query.after.is_none() || found.len() >= MAX_TRANSFERS {
            found.truncate(MAX_TRANSFERS);
            return Ok(found);
        }
    }
}

/// Who began to read storage since then, and who had everything; the last one first.
async fn events(args: &TransfersArgs, key: Option<&SeedKey>, since_ms: u64) -> Result<Vec<Event>> {
    let mut found = Vec::new();
    for kind in [EventKind::Leads, EventKind::Completed] {
        let mut query = EventQuery { limit: MAX_PAGE, ..EventQuery::default() };
        (query.seed_key, query.kind, query.since_ms) = (key.cloned(), Some(kind), Some(since_ms));
        loop {
            let page: EventList = ask(args, EVENTS, &query).await?;
            found.extend(page.events);
            query.after = page.next;
            if query.after.is_none() || found.len() >= 2 * MAX_TRANSFERS {
                break;
            }
        }
    }
    Ok(found)
}

async fn ask<T: DeserializeOwned>(args: &TransfersArgs, path: &str, query: &impl Query) -> Result<T> {
    let mut asked: Url = parse_url(&args.url)?;
    let base = asked.clone();
    asked.set_path(&format!("{}{path}", base.path().trim_end_matches('/')));
    asked.set_query(Some(&query.encode()));
    let request = args.access.show(&base, args.access.client(&base, DEADLINE)?.get(asked)).await?;
    inspect::answered(&http::shown(&args.url), request).await
}

/// What was, the first that began first.
fn transfers(leases: &[EndedLease], events: &[Event]) -> Vec<Transfer> {
    let age = |age_ms: u64| -(age_ms as f64) / 1_000.0;
    let of_leases = leases.iter().map(|lease| Transfer {
        source: lease.seed.to_string(),
        reader: lease.reader.as_ref().map_or_else(|| unnamed(lease), SeedIdentity::to_string),
        from_seconds: age(lease.granted_age_ms),
        to_seconds: age(lease.ended_age_ms),
        bytes: lease.bytes,
        ended: how(lease),
    });
    // When each worker, that reads storage, was said to have everything, or had a lease after that.
    let mut later: BTreeMap<&SeedIdentity, Vec<u64>> = BTreeMap::new();
    let completed = events.iter().filter(|event| event.kind == Some(EventKind::Completed));
    for (seed, age_ms) in completed.filter_map(|event| Some((event.seed.as_ref()?, event.age_ms))) {
        later.entry(seed).or_default().push(age_ms);
    }
    for (seed, age_ms) in
        leases.iter().filter_map(|lease| Some((lease.reader.as_ref()?, lease.granted_age_ms)))
    {
        later.entry(seed).or_default().push(age_ms);
    }
    let leads = events.iter().filter(|event| event.kind == Some(EventKind::Leads));
    let of_storage = leads.filter_map(|event| {
        let seed = event.seed.as_ref()?;
        let until = later.get(seed).into_iter().flatten().filter(|age_ms| **age_ms <= event.age_ms).max();
        Some(Transfer {
            source: STORAGE.to_owned(),
            reader: seed.to_string(),
            from_seconds: age(event.age_ms),
            to_seconds: age(until.copied().unwrap_or_default()),
            bytes: None,
            ended: if until.is_some() { "well" } else { "not known" },
        })
    });
    let mut all: Vec<Transfer> = of_leases.chain(of_storage).collect();
    all.sort_by(|one, other| one.from_seconds.total_cmp(&other.from_seconds));
    let first = all.first().map_or(0.0, |transfer| transfer.from_seconds);
    for transfer in &mut all {
        transfer.from_seconds -= first;
        transfer.to_seconds = (transfer.to_seconds - first).max(transfer.from_seconds);
    }
    all
}

/// Who read that is no seed while it loads.
fn unnamed(lease: &EndedLease) -> String {
    let who = lease.requester.as_deref().unwrap_or("somebody");
    format!("{who} (lease {})", lease.lease)
}

fn how(lease: &EndedLease) -> &'static str {
    match (lease.outcome, lease.ended) {
        (Some(TransferOutcome::Ok), _) => "well",
        (Some(TransferOutcome::Failed), _) => "failed",
        (_, Some(LeaseEnd::PassedOn)) => "passed on",
        (_, Some(LeaseEnd::Expired)) => "expired",
        (_, Some(LeaseEnd::Revoked)) => "revoked",
        (_, Some(LeaseEnd::GivenBack)) => "given back",
        (Some(TransferOutcome::Aborted), _) => "moved or stopped",
        (None, _) => "not said",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed(port: u16) -> SeedIdentity {
        SeedIdentity::new("h", port, 0).unwrap()
    }

    fn lease(source: u16, reader: Option<u16>, granted_age_ms: u64, ended_age_ms: u64) -> EndedLease {
        EndedLease {
            lease: "0123456789ab".into(),
            seed: seed(source),
            seed_key: SeedKey::from_text("k").unwrap(),
            requester: Some("i@10.0.0.1".into()),
            reader: reader.map(seed),
            granted_age_ms,
            ended_age_ms,
            ended: Some(LeaseEnd::Released),
            outcome: Some(TransferOutcome::Ok),
            reason: None,
            bytes: Some(7),
            duration_ms: None,
        }
    }

    fn event(kind: EventKind, port: u16, age_ms: u64) -> Event {
        let seed_key = SeedKey::from_text("k").unwrap();
        Event { kind: Some(kind), age_ms, seed_key, seed: Some(seed(port)), by: None, detail: None }
    }

    #[test]
    fn times_count_from_the_first_and_storage_is_a_source_until_its_reader_has_everything() {
        let leases = [lease(1, Some(2), 8_000, 3_000), lease(2, None, 7_000, 6_000)];
        let events = [
            event(EventKind::Completed, 1, 2_000),
            event(EventKind::Leads, 1, 10_000),
            event(EventKind::Completed, 1, 99_000),
        ];
        let all = transfers(&leases, &events);
        let told: Vec<_> = all
            .iter()
            .map(|one| (one.source.as_str(), one.reader.as_str(), one.from_seconds, one.to_seconds))
            .collect();
        let nameless = "i@10.0.0.1 (lease 0123456789ab)";
        assert_eq!(
            told,
            [("storage", "h:1:0", 0.0, 8.0), ("h:1:0", "h:2:0", 2.0, 7.0), ("h:2:0", nameless, 3.0, 4.0)]
        );
    }

    #[test]
    fn who_reads_storage_until_it_has_a_seed_is_drawn_until_then() {
        let all = transfers(&[lease(1, Some(2), 4_000, 1_000)], &[event(EventKind::Leads, 2, 10_000)]);
        assert_eq!((all[0].from_seconds, all[0].to_seconds, all[0].ended), (0.0, 6.0, "well"));
    }
}
