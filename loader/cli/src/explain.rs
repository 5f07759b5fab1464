//! `rfork explain`: why a worker would be given a seed now, or not.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use rfork_loader::http;
use rfork_protocol::v2::{EXPLAIN, Explain, Explained, Location, Name, Verdict};
use rfork_protocol::{SeedIdentity, SeedKey};

use crate::access::AccessArgs;
use crate::inspect::{self, parse_url};
use crate::show;

/// How long the planner may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// What a worker would ask for.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The planner's URL, as `http://planner:1223`
    #[arg(long, value_name = "URL")]
    planner: String,
    /// What the worker wants
    #[arg(long, value_name = "KEY")]
    seed_key: String,
    /// The zone that it stands in
    #[arg(long)]
    zone: Option<String>,
    /// Its rack
    #[arg(long)]
    rack: Option<String>,
    /// Its host
    #[arg(long)]
    host: Option<String>,
    /// The inference instance that it is a rank of
    #[arg(long, value_name = "INSTANCE")]
    instance_id: Option<String>,
    /// A seed that it does not want, as `host:port:rank`; may be given several times
    #[arg(long, value_name = "SEED")]
    exclude: Vec<SeedIdentity>,
    #[command(flatten)]
    access: AccessArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Asks and prints.
pub(crate) async fn run(args: ExplainArgs) -> Result<()> {
    let name = |flag: &str, text: Option<String>| {
        text.map(Name::try_from).transpose().with_context(|| format!("--{flag}"))
    };
    let location = Location {
        zone: name("zone", args.zone)?,
        rack: name("rack", args.rack)?,
        host: name("host", args.host)?,
    };
    let request = Explain {
        seed_key: SeedKey::from_text(&args.seed_key)?,
        location: Some(location),
        instance_id: name("instance-id", args.instance_id)?,
        exclude: args.exclude,
    };
    let base = parse_url(&args.planner)?;
    let asked = format!("{}{EXPLAIN}", base.as_str().trim_end_matches('/'));
    let asking = args.access.client(&base, DEADLINE)?.post(&asked).json(&request);
    let request = args.access.show(&base, asking).await?;
    let explained: Explained = inspect::answered(&http::shown(&args.planner), request).await?;
    if args.json {
        println!("{}", serde_json::to_string(&explained)?);
    } else {
        print(&explained);
    }
    Ok(())
}

fn print(explained: &Explained) {
    match &explained.grant {
        Some(seed) => println!("a worker would be given {seed}"),
        None if explained.seeds.is_empty() => println!("the planner knows no seed of this key"),
        None if explained.truncated => {
            println!("the key has more seeds than are listed: which one a worker would be given is not told");
        }
        None => println!("a worker would be given no seed now"),
    }
    if explained.seeds.is_empty() {
        return;
    }
    let rows = explained.seeds.iter().map(|entry| {
        let seed = &entry.seed;
        let place = [&seed.location.zone, &seed.location.rack, &seed.location.host];
        [
            entry.rank.map_or_else(String::new, |rank| rank.to_string()),
            seed.seed.to_string(),
            why(entry.verdict, seed.suspect_for_ms),
            format!("{}/{}", seed.used, seed.capacity),
            format!("{:.1} s ago", seed.heartbeat_age_ms as f64 / 1_000.0),
            place.into_iter().flatten().cloned().collect::<Vec<_>>().join("/"),
        ]
    });
    println!("{}", show::table(["rank", "seed", "why", "leased", "heard", "location"], rows));
    if explained.truncated {
        println!("and more, which are not listed");
    }
}

fn why(verdict: Verdict, suspect_for_ms: Option<u64>) -> String {
    match verdict {
        Verdict::WouldBeGranted => "would be granted".into(),
        Verdict::Ranked => "could be granted".into(),
        Verdict::Full => "all its leases are taken".into(),
        Verdict::HostFull => "all leases of its host are taken".into(),
        Verdict::Suspect => {
            format!("failed lately; back in {:.0} s", suspect_for_ms.unwrap_or(0) as f64 / 1_000.0)
        }
        Verdict::Silent => "not heard of for too long".into(),
        Verdict::Draining => "offered no more".into(),
        Verdict::Excluded => "excluded by the request".into(),
        Verdict::NotPinned => "its weights are none that the key is pinned to".into(),
        Verdict::Loading => "still loads; for workers that can read from such a seed".into(),
    }
}
