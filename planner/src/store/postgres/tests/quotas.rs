//! Quotas that planners of one database share, and what long keys cost there.

use rfork_protocol::{SeedIdentity, SeedKey};
use sqlx::ConnectOptions;

use super::{Database, few};
use crate::decide::quota::Quota;
use crate::domain::owner::Owner;
use crate::store::commands::{Commands, NoRoom, Register};
use crate::store::conformance::{Home, RULES};
use crate::store::history::Keep;
use crate::store::postgres::PostgresStore;
use crate::store::{Clock, MAX_BATCH, Room, Rules, Store};

/// Planners of one database.
const PLANNERS: usize = 3;

fn registers(first: usize, count: usize, key: impl Fn(usize) -> SeedKey) -> Commands {
    let register = |number: usize| Register {
        by: None,
        identity: SeedIdentity::new("h", 1, u32::try_from(number).unwrap()).unwrap(),
        key: key(number),
        profile: Box::default(),
        age_ms: 0,
        client: None,
        owner: Owner::default(),
    };
    Commands { registers: (first..first + count).map(register).collect(), ..Commands::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planners_go_beyond_a_quota_by_no_more_than_what_they_have_under_way() {
    let Database(url) = Database::make().await;
    let most = MAX_BATCH + MAX_BATCH / 4;
    let rules = Rules { room: Room { seeds: most, ..Room::AMPLE }, ..RULES };
    let mut planners = tokio::task::JoinSet::new();
    for planner in 0..PLANNERS {
        let store = PostgresStore::open(&url, few(), rules.clone(), Clock::System).await.unwrap();
        planners.spawn(async move {
            // More than there is room for, each for itself.
            for batch in 0..3 {
                let first = (3 * planner + batch) * MAX_BATCH;
                let commands = registers(first, MAX_BATCH, |_| SeedKey::new(*b"k").unwrap());
                store.apply(&commands).await.unwrap();
            }
            let commands = registers(1_000_000 + planner, 1, |_| SeedKey::new(*b"k").unwrap());
            (store.apply(&commands).await.unwrap().registers, store)
        });
    }
    let done = planners.join_all().await;
    for (last, _) in &done {
        assert_eq!(last[..], [Err(NoRoom(Quota::Seeds).into())]);
    }
    let seeds = usize::try_from(done[0].1.snapshot().await.unwrap().seed_count).unwrap();
    assert!((most..=most + (PLANNERS - 1) * MAX_BATCH).contains(&seeds), "{seeds} of {most}");
}

/// Bytes that nothing makes shorter: the database would store them so.
fn noise(number: usize) -> SeedKey {
    let mut random = fastrand::Rng::with_seed(number as u64);
    SeedKey::new((0..8_192).map(|_| random.u8(..)).collect::<Vec<u8>>()).unwrap()
}

#[tokio::test]
async fn a_long_key_costs_its_bytes_once() {
    const SEEDS: u16 = 200;
    let Database(url) = Database::make().await;
    let rules = Rules { history: Keep { ms: 0, ..RULES.history }, ..RULES };
    let store = PostgresStore::open(&url, few(), rules, Clock::System).await.unwrap();
    let mut connection = url.options().connect().await.unwrap();
    let mut size = async || {
        let size = "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class
                    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'";
        sqlx::query_scalar::<_, i64>(size).fetch_one(&mut connection).await.unwrap()
    };
    let before = size().await;
    store.apply(&registers(0, SEEDS.into(), noise)).await.unwrap();
    let each = (size().await - before) / i64::from(SEEDS);
    println!("{each} bytes a seed with a key of 8,192");
    assert!((8_192..2 * 8_192).contains(&each), "{each} bytes a seed");
}

/// What of a row may be long is in no index: those have hashes, numbers, and names that are short.
#[tokio::test]
async fn no_index_has_a_text_that_may_be_long() {
    let Database(url) = Database::make().await;
    drop(PostgresStore::open(&url, few(), RULES, Clock::System).await.unwrap());
    let mut connection = url.options().connect().await.unwrap();
    let indexed = "SELECT DISTINCT c.relname || '.' || a.attname FROM pg_index i
                   JOIN pg_class c ON c.oid = i.indrelid AND c.relnamespace = 'public'::regnamespace
                   JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)
                   WHERE a.atttypid IN ('text'::regtype, 'bytea'::regtype) AND a.attname NOT LIKE '%hash' ORDER BY 1";
    let indexed: Vec<String> = sqlx::query_scalar(indexed).fetch_all(&mut connection).await.unwrap();
    let short = [
        "_sqlx_migrations.version",
        // Hashes by other names.
        "loading_seeds.lead_key",
        "places.page",
        "requests.idempotency",
        // host:port:rank and hosts, 277 bytes at most; names of instances, 512; ours.
        "instances.instance_id",
        "places.identity",
        "planners.id",
        "requests.planner",
        "row_counts.table_name",
        "secrets.name",
        "seeds.capped_host",
        "seeds.identity",
    ];
    let unknown: Vec<_> = indexed.iter().filter(|column| !short.contains(&column.as_str())).collect();
    assert!(!indexed.is_empty() && unknown.is_empty(), "{unknown:?}");
}
