//! `rfork inspect`: what a planner or a seed says, for people or as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use reqwest::{RequestBuilder, StatusCode};
use rfork_loader::{http, seed_client};
use rfork_protocol::SeedKey;
use rfork_protocol::manifest::NO_ADDRESS;
use rfork_protocol::manifest::content::Root;
use rfork_protocol::problem::Problem;
use rfork_protocol::shown::Shown;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::access::AccessArgs;
use crate::show;
use crate::transfers::{self, TransfersArgs};

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// The largest answer of a planner that is read.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// What to inspect.
#[derive(Debug, Subcommand)]
pub(crate) enum InspectCommand {
    /// The seeds and leases that a planner knows
    Planner {
        /// The planner's URL, as `http://planner:1223`
        url: String,
        #[command(flatten)]
        access: AccessArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Who gave weights to whom, and when, from a planner's history
    Transfers(TransfersArgs),
    /// The tensors that a seed serves
    Seed {
        /// The seed's metadata URL, as `http://10.0.0.7:40123`
        url: String,
        /// The key that it serves
        #[arg(long, value_name = "KEY")]
        seed_key: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Asks and prints.
pub(crate) async fn run(command: InspectCommand) -> Result<()> {
    match command {
        InspectCommand::Planner { url, access, json } => planner(&url, &access, json).await,
        InspectCommand::Transfers(args) => transfers::run(args).await,
        InspectCommand::Seed { url, seed_key, json } => seed(&url, &seed_key, json).await,
    }
}

/// The planner's `/debug/snapshot`.
#[derive(Debug, Serialize, Deserialize)]
struct Snapshot {
    seed_count: u64,
    lease_count: u64,
    seeds: BTreeMap<String, SeedRow>,
    leases: BTreeMap<String, LeaseRow>,
}

#[derive(Debug, Serialize, Deserialize)]
#[allow(clippy::struct_field_names)] // The planner's names.
struct SeedRow {
    seed_key: String,
    resource_total: u64,
    resource_used: u64,
    last_heartbeat_ts: f64,
    // The known example planner has neither of these.
    #[serde(default)]
    last_used_ts: f64,
    #[serde(default)]
    draining: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct LeaseRow {
    seed_identity: String,
    seed_key: String,
    allocated_points: u64,
}

async fn planner(given: &str, access: &AccessArgs, as_json: bool) -> Result<()> {
    let base = parse_url(given)?;
    let url = http::shown(given);
    let asked = format!("{}/debug/snapshot", base.as_str().trim_end_matches('/'));
    let request = access.show(&base, access.client(&base, DEADLINE)?.get(&asked)).await?;
    let answer = request.send().await.with_context(|| format!("{url} cannot be asked"))?;
    if matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        let status = answer.status();
        let said = body(&url, answer).await?;
        bail!(
            "{url} answered with {status}: {} (--token-file)",
            Shown::within(String::from_utf8_lossy(&said), 200)
        );
    }
    if !answer.status().is_success() {
        bail!("{url} answered with {}: is it a planner?", answer.status());
    }
    let body = body(&url, answer).await?;
    if as_json {
        let value: Value =
            serde_json::from_slice(&body).with_context(|| format!("{url} did not answer with JSON"))?;
        println!("{value}");
        return Ok(());
    }
    let snapshot: Snapshot =
        serde_json::from_slice(&body).with_context(|| format!("{url} did not answer like a planner"))?;
    print!("{}", text(&snapshot));
    Ok(())
}

/// A snapshot for people.
fn text(snapshot: &Snapshot) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let ago =
        |then: f64| if then > 0.0 { format!("{:.0} s ago", (now - then).max(0.0)) } else { "never".into() };
    // A planner lists no more than some thousand of each.
    let counted = |count: u64, what: &str, listed: usize| match count.saturating_sub(listed as u64) {
        0 => format!("{count} {what}(s)\n"),
        more => format!("{count} {what}(s), {more} of them not listed\n"),
    };
    let mut text = counted(snapshot.seed_count, "seed", snapshot.seeds.len());
    let rows = snapshot.seeds.iter().map(|(identity, seed)| {
        [
            identity.clone(),
            seed.seed_key.clone(),
            format!("{}/{}", seed.resource_used, seed.resource_total),
            ago(seed.last_heartbeat_ts),
            ago(seed.last_used_ts),
            if seed.draining { "draining".into() } else { "offered".into() },
        ]
    });
    if !snapshot.seeds.is_empty() {
        let _ = writeln!(text, "{}", show::table(["seed", "key", "leased", "heard", "used", "state"], rows));
    }
    text += &counted(snapshot.lease_count, "lease", snapshot.leases.len());
    let rows = snapshot
        .leases
        .iter()
        .map(|(lease, on)| [lease.clone(), on.seed_identity.clone(), on.seed_key.clone()]);
    if !snapshot.leases.is_empty() {
        let _ = writeln!(text, "{}", show::table(["lease (hashed)", "seed", "key"], rows));
    }
    text
}

async fn seed(url: &str, key: &str, as_json: bool) -> Result<()> {
    let mut base = parse_url(url)?;
    // A seed asks for none, and its address is shown.
    let _ = (base.set_username(""), base.set_password(None));
    let key = SeedKey::from_text(key)?;
    let metadata = seed_client::fetch_at(&http::client(DEADLINE, false)?, base.authority(), &key).await?;
    let manifest = &metadata.manifest;
    let extension = metadata.extension.as_ref();
    let content = extension.and_then(|extension| extension.root.content());
    if as_json {
        let tensors = manifest.tensors().iter().map(|tensor| {
            let address = Some(tensor.address).filter(|address| *address != NO_ADDRESS);
            json!({"name": tensor.name, "address": address, "count": tensor.count,
                "element_bytes": tensor.element_bytes, "shape": tensor.shape, "dtype": tensor.dtype,
                "format": tensor.format})
        });
        let value = json!({
            "seed_key": key.text(),
            "session": metadata.session,
            "engine": extension.map(|extension| &extension.engine),
            "content_id": content.map(|content| content.id.to_string()),
            "chunks": content.map(|content| content.chunks.digests.len()),
            "bytes": manifest.total_bytes(),
            "tensors": tensors.collect::<Vec<_>>(),
        });
        println!("{value}");
        return Ok(());
    }
    let engine = extension.map_or("not named", |extension| &extension.engine);
    println!("transfer engine: {} at {}", Shown::new(engine), metadata.session);
    if let Some(Root::Growing(growing)) = extension.map(|extension| &extension.root) {
        println!("content id:      not known yet: read from storage under {}", growing.origin);
    }
    if let Some(content) = content {
        println!("content id:      {}", content.id);
        println!(
            "chunks:          {} of {}, {} digests",
            content.chunks.digests.len(),
            show::bytes(content.chunks.chunk_bytes),
            content.chunks.algorithm
        );
    }
    println!("tensors:         {}, {}", manifest.tensors().len(), show::bytes(manifest.total_bytes()));
    let rows = manifest.tensors().iter().map(|tensor| {
        [
            tensor.name.clone(),
            tensor.dtype.clone().unwrap_or_default(),
            tensor.shape.as_ref().map(|shape| format!("{shape:?}")).unwrap_or_default(),
            show::bytes(tensor.bytes()),
        ]
    });
    println!("{}", show::table(["tensor", "dtype", "shape", "bytes"], rows));
    Ok(())
}

/// The whole of an answer, unless it is too long.
pub(crate) async fn body(url: &str, mut answer: reqwest::Response) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await? {
        body.extend_from_slice(&piece);
        if body.len() > MAX_ANSWER_BYTES {
            bail!("{url} answers with more than {}", show::bytes(MAX_ANSWER_BYTES as u64));
        }
    }
    Ok(body)
}

/// What a planner answers by its API v2.
///
/// # Errors
/// With what it says, when it refuses; and when it does not answer like a planner.
pub(crate) async fn answered<T: DeserializeOwned>(url: &str, request: RequestBuilder) -> Result<T> {
    let answer = request.send().await.with_context(|| format!("{url} cannot be asked"))?;
    let status = answer.status();
    let body = body(url, answer).await?;
    if !status.is_success() {
        match Problem::from_json(&body) {
            Some(problem) => bail!("{url}: {} ({})", problem.detail, problem.code),
            None => bail!("{url} answered with {status}: is it a planner that speaks API v2?"),
        }
    }
    serde_json::from_slice(&body).with_context(|| format!("{url} did not answer like a planner"))
}

pub(crate) fn parse_url(url: &str) -> Result<reqwest::Url> {
    let parsed = reqwest::Url::parse(url)
        .with_context(|| format!("'{}' is not a URL; give one like http://host:port", http::shown(url)))?;
    if parsed.scheme() != "http" && parsed.scheme() != "https" || parsed.host_str().is_none() {
        bail!("'{}' is not a URL of a service; give one like http://host:port", http::shown(url));
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_listed_is_told() {
        let seed =
            json!({"seed_key": "k", "resource_total": 1, "resource_used": 1, "last_heartbeat_ts": 1.0});
        let lease = json!({"seed_identity": "h:1:0", "seed_key": "k", "allocated_points": 1});
        let snapshot = |seeds: u64, leases: u64| {
            let body = json!({"seed_count": seeds, "lease_count": leases, "seeds": {"h:1:0": seed},
                "leases": {"0123456789ab": lease}});
            text(&serde_json::from_value(body).unwrap())
        };
        let all = snapshot(1, 1);
        assert!(all.starts_with("1 seed(s)\n") && all.contains("\n1 lease(s)\n"), "{all}");
        let part = snapshot(3, 2);
        assert!(part.starts_with("3 seed(s), 2 of them not listed\n"), "{part}");
        assert!(part.contains("\n2 lease(s), 1 of them not listed\n"), "{part}");
    }

    #[test]
    fn a_url_that_cannot_be_used_shows_no_password() {
        for url in ["http://u:SECRET@h:99999", "u:SECRET@h:1223", "ftp://u:SECRET@h"] {
            let refusal = format!("{:#}", parse_url(url).unwrap_err());
            assert!(!refusal.contains("SECRET"), "{refusal}");
        }
    }
}
