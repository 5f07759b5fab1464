//! The suite on Postgres, and what only this store promises.

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use sqlx::{ConnectOptions, Row};

use super::*;
use crate::config::DatabaseUrl;
use crate::domain::location::Location;
use crate::domain::owner::Owner;
use crate::domain::seed::{Heard, Profile, Registration, Removal};
use crate::domain::terms::Overrides;
use crate::store::conformance::waiting::{attempt, leave_attempt};
use crate::store::conformance::{
    self, Home, RULES, acquire, identity, key, register, registering, release, remove, renew,
};
use crate::store::{ApplyList, Command, Leaving, Left, Outcome};
use cluster::Cluster;

#[path = "../../../../tests/src/cluster.rs"]
mod cluster;
mod leads;
#[path = "../../../../tests/src/pooler.rs"]
mod pooler;
mod poolers;
mod quotas;

/// A database of a test's own.
pub(super) struct Database(pub(super) PostgresUrl);

fn url(text: &str) -> PostgresUrl {
    match text.parse().unwrap() {
        DatabaseUrl::Postgres(url) => url,
        sqlite @ DatabaseUrl::Sqlite(_) => panic!("{sqlite}"),
    }
}

/// Few connections: many tests run side by side.
pub(super) fn few() -> ConnectSettings {
    let defaults = crate::config::Settings::of(crate::config::DatabaseUrl::Sqlite("nowhere".into()));
    ConnectSettings { pool_size: 3, ..defaults.connect }
}

#[async_trait]
impl Home for Database {
    async fn make() -> Self {
        Self(url(&Cluster::shared().database()))
    }

    async fn open(&self, rules: Rules, clock: Clock) -> std::sync::Arc<dyn Store> {
        std::sync::Arc::new(PostgresStore::open(&self.0, few(), rules, clock).await.unwrap())
    }
}

conformance::conformance_suite!(Database);
conformance::loading::loading_suite!(Database);
conformance::conformance_suite!(Database: overtaking: planners_promise_one_place_of_a_key_a_second,);

/// Seeds, keys and workers of the storm: few, so that every transaction is in some other's way.
const SEEDS: u8 = 6;
const KEYS: [&str; 2] = ["k", "l"];
const CAPACITY: u32 = 2;

/// Random operations of one planner; gives how many leases it was granted. An error is not expected: all races are
/// resolved by beginning again.
async fn storm(store: &PostgresStore, planner: u32, rounds: u32) -> i64 {
    let mut granted = 0;
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[u8::try_from(planner).unwrap(); 32]);
    let mut pick = |below: u32| random.next_u32() % below;
    let mut held: Vec<(u8, u32)> = Vec::new();
    let mut next = planner * 1_000_000;
    let mut numbers: Vec<i64> = Vec::new();
    for _ in 0..rounds {
        let mut commands = Vec::new();
        for _ in 0..=pick(6) {
            let seed = u8::try_from(pick(SEEDS.into())).unwrap();
            let key = KEYS[usize::from(seed % 2)];
            commands.push(match pick(16) {
                0..=1 => register(seed, key),
                // Now and then a seed comes to hold something else.
                2 if pick(4) == 0 => register(seed, KEYS[usize::from((seed + 1) % 2)]),
                3 if pick(4) == 0 => remove(seed, key),
                4..=6 if !held.is_empty() => {
                    let (seed, lease) = held[pick(u32::try_from(held.len()).unwrap()) as usize];
                    renew(seed, lease)
                }
                7..=10 if !held.is_empty() => {
                    let at = pick(u32::try_from(held.len()).unwrap()) as usize;
                    let (seed, lease) = held.swap_remove(at);
                    release(seed, lease)
                }
                _ => {
                    next += 1;
                    acquire(key, next)
                }
            });
        }
        let outcomes = store.apply_list(&commands).await.unwrap();
        for (command, outcome) in commands.iter().zip(outcomes) {
            match (command, outcome) {
                (Command::Acquire { lease, .. }, Outcome::Acquired(Ok(grant))) => {
                    let number = u32::from_be_bytes(lease[..4].try_into().unwrap());
                    let seed =
                        (0..SEEDS).find(|known| conformance::identity(*known) == grant.identity).unwrap();
                    held.push((seed, number));
                    granted += 1;
                }
                (Command::Register { .. }, Outcome::Registered(_, id)) => numbers.push(id),
                _ => {}
            }
        }
        match pick(8) {
            0 => drop(store.sweep().await.unwrap()),
            1 => {
                numbers.sort_unstable();
                numbers.dedup();
                let beats: Vec<Beat> =
                    numbers.iter().rev().map(|seed_id| Beat { seed_id: *seed_id, age_ms: 0 }).collect();
                store.flush(&beats).await.unwrap();
            }
            _ => {}
        }
    }
    granted
}

/// Every lease that was granted, and has ended, is told once, whichever planner ended it and how.
async fn check_history(url: &PostgresUrl, granted: i64) {
    let mut connection = url.options().connect().await.unwrap();
    let told = "SELECT count(*), count(DISTINCT lease_hash), count(DISTINCT end_kind) FROM ended_leases";
    let (rows, leases, ways): (i64, i64, i64) =
        sqlx::query_as(told).fetch_one(&mut connection).await.unwrap();
    assert_eq!((rows, leases), (granted, granted));
    assert!(ways >= 3, "they were released, expired, and ended with what their seed held: {ways}");
}

/// What is counted is what is there.
async fn check_counts(url: &PostgresUrl) {
    let mut connection = url.options().connect().await.unwrap();
    let counted =
        "SELECT table_name, sum(n)::bigint, sum(bytes)::bigint FROM row_counts GROUP BY 1 ORDER BY 1";
    let counted: Vec<(String, i64, i64)> = sqlx::query_as(counted).fetch_all(&mut connection).await.unwrap();
    assert!(counted.iter().any(|(table, ..)| table == "seeds"));
    for (table, rows, bytes) in counted {
        let texts = match table.as_str() {
            "seeds" => "octet_length(seed_key)",
            "requests" => "octet_length(seed_key) + octet_length(wish)",
            _ => "octet_length(instance_id) + octet_length(source_instance)",
        };
        let there = format!("SELECT count(*), coalesce(sum({texts}), 0)::bigint FROM {table}");
        let there: (i64, i64) =
            sqlx::query_as(sqlx::AssertSqlSafe(there)).fetch_one(&mut connection).await.unwrap();
        assert_eq!((rows, bytes), there, "{table}");
    }
}

/// The database's own word, at any moment: no seed has more leases than points, and none on a point that it
/// does not offer.
async fn check_capacity(store: &PostgresStore) {
    for seed in store.snapshot().await.unwrap().seeds {
        assert!(seed.used <= seed.capacity && seed.capacity == CAPACITY, "{seed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planners_that_storm_one_database_keep_every_invariant() {
    let Database(url) = Database::make().await;
    let rules = Rules { capacity: CAPACITY, lease_ttl_ms: 1_000, ..RULES };
    let mut stores = Vec::new();
    for _ in 0..3 {
        stores.push(std::sync::Arc::new(
            PostgresStore::open(&url, few(), rules.clone(), Clock::System).await.unwrap(),
        ));
    }
    let mut planners = tokio::task::JoinSet::new();
    for (store, planner) in stores.clone().into_iter().zip(1..) {
        planners.spawn(async move { storm(&store, planner, 150).await });
    }
    let (mut over, mut all_granted) = (0, 0);
    while over < stores.len() {
        check_capacity(&stores[0]).await;
        if let Some(done) = planners.try_join_next() {
            all_granted += done.unwrap();
            over += 1;
        }
    }
    // Nobody acts now. What is free by the points is granted, to the last one, and then no more.
    let registrations: Vec<Command> = (0..SEEDS).map(|seed| register(seed, KEYS[0])).collect();
    let gone: Vec<Command> = (0..SEEDS).flat_map(|seed| KEYS.map(|key| remove(seed, key))).collect();
    let mut tried = 0;
    let all_new = async {
        // Seeds that drain return once their leases have ended, of themselves.
        loop {
            stores[0].apply_list(&gone).await.unwrap();
            let outcomes = stores[1].apply_list(&registrations).await.unwrap();
            let new = |outcome: &Outcome| !matches!(outcome, Outcome::Registered(Registration::Draining, _));
            tried += 1;
            if outcomes.iter().all(new) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(300), all_new).await.unwrap();
    check_history(&url, all_granted).await;
    check_counts(&url).await;
    let all = u32::from(SEEDS) * CAPACITY;
    let wanted: Vec<Command> = (0..all + 5).map(|number| acquire(KEYS[0], 9_000_000 + number)).collect();
    let outcomes = stores[2].apply_list(&wanted).await.unwrap();
    let granted = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Acquired(Ok(_)))).count();
    assert_eq!(granted, all as usize, "after {tried} tries");
    check_capacity(&stores[0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_seed_that_two_planners_register_at_once_is_one() {
    let Database(url) = Database::make().await;
    let first = PostgresStore::open(&url, few(), RULES, Clock::System).await.unwrap();
    let second = PostgresStore::open(&url, few(), RULES, Clock::System).await.unwrap();
    for round in 0..20u8 {
        let some = [register(round * 2, "k"), register(round * 2 + 1, "k")];
        let reversed = [some[1].clone(), some[0].clone()];
        let (one, other) = tokio::join!(first.apply_list(&some), second.apply_list(&reversed));
        let new = one.unwrap().into_iter().chain(other.unwrap());
        let new = new.filter(|outcome| matches!(outcome, Outcome::Registered(Registration::New, _)));
        assert_eq!(new.count(), 2);
    }
    assert_eq!(first.snapshot().await.unwrap().seed_count, 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_that_two_planners_are_asked_at_once_has_one_lease() {
    let Database(url) = Database::make().await;
    let first = PostgresStore::open(&url, few(), RULES, Clock::System).await.unwrap();
    let second = PostgresStore::open(&url, few(), RULES, Clock::System).await.unwrap();
    for number in 0..20u8 {
        first.apply_list(&[register(number * 2, "k"), register(number * 2 + 1, "k")]).await.unwrap();
        let (one, other) = (attempt(number, 1, 0, 1), attempt(number, 1, 0, 2));
        // Beside others, of which none may fail with it.
        let beside = |at: u32| acquire("k", 1_000 + 10 * u32::from(number) + at);
        let (one, other) = ([one, beside(1)], [other, beside(2)]);
        let (one, other) = tokio::join!(first.apply_list(&one), second.apply_list(&other));
        let (one, other) = (one.unwrap(), other.unwrap());
        let seed = |outcomes: &[Outcome]| conformance::granted(&outcomes[0]);
        assert!(seed(&one).is_some() && seed(&one) == seed(&other), "{one:?} {other:?}");
    }
}

#[tokio::test]
async fn the_end_of_a_wait_at_one_planner_leaves_its_repetition_at_another() {
    let Database(url) = Database::make().await;
    let first = PostgresStore::open(&url, few(), RULES, Clock::System).await.unwrap();
    let second = PostgresStore::open(&url, few(), RULES, Clock::System).await.unwrap();
    for (number, why) in [(1, Leaving::Gone), (2, Leaving::TimedOut)] {
        let text = "k";
        let lease = conformance::lease(number.into());
        for (store, at) in [(&first, 1), (&second, 2)] {
            let outcomes = store.apply_list(&[attempt(number, 1, 60_000, at)]).await.unwrap();
            assert!(matches!(outcomes[0], Outcome::Queued(_)), "{outcomes:?}");
        }
        // What the first says of its own attempt, and what it would say of the other's.
        for at in [1, 2] {
            let outcomes = first.apply_list(&[leave_attempt(number.into(), at, why)]).await.unwrap();
            assert_eq!(outcomes, [Outcome::Left(Left::Superseded)]);
        }
        first.apply_list(&[register(number, text)]).await.unwrap();
        assert_eq!(first.collect(&[]).await.unwrap(), []);
        let woken = second.collect(&[]).await.unwrap();
        assert_eq!(woken.iter().map(|woken| (woken.lease, woken.attempt)).collect::<Vec<_>>(), [(lease, 2)]);
        assert_eq!(second.collect(&[(lease, 2)]).await.unwrap(), []);
    }
}

#[tokio::test]
async fn planners_that_start_together_migrate_once() {
    let Database(url) = Database::make().await;
    let open = || PostgresStore::open(&url, few(), RULES, Clock::System);
    let (a, b, c, d) = tokio::join!(open(), open(), open(), open());
    for store in [a, b, c, d] {
        store.unwrap().check().await.unwrap();
    }
    let mut connection = url.options().connect().await.unwrap();
    let applied: i64 =
        sqlx::query_scalar("SELECT count(*) FROM _sqlx_migrations").fetch_one(&mut connection).await.unwrap();
    let known = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations/postgres")).unwrap();
    assert_eq!(applied, i64::try_from(known.count()).unwrap());
}

#[tokio::test]
async fn a_column_that_the_next_version_adds_is_not_noticed() {
    let url = Database::make().await.0;
    // One connection, which has prepared its statements for the schema as it was.
    let one = ConnectSettings { pool_size: 1, ..few() };
    let store = PostgresStore::open(&url, one, RULES, Clock::System).await.unwrap();
    let everything = async |number: u32| {
        store.apply_list(&[register(1, "k"), acquire("k", number)]).await.unwrap();
        assert_eq!(store.apply_list(&[release(1, number)]).await.unwrap(), [Outcome::Released(true)]);
        assert_eq!(store.snapshot().await.unwrap().seed_count, 1);
        let part = Part { after: None, limit: 10 };
        assert_eq!(store.list_seeds(&SeedFilter::default(), &part).await.unwrap().entries.len(), 1);
        store.list_ended_leases(&LeaseFilter::default(), &part).await.unwrap();
        store.list_events(&EventFilter::default(), &part).await.unwrap();
    };
    everything(1).await;
    let mut connection = url.options().connect().await.unwrap();
    for table in [
        "seeds",
        "places",
        "heartbeats",
        "points",
        "requests",
        "ended_leases",
        "events",
        "instances",
        "planners",
    ] {
        let add = format!("ALTER TABLE {table} ADD COLUMN of_the_next_version TEXT");
        sqlx::query(sqlx::AssertSqlSafe(add)).execute(&mut connection).await.unwrap();
    }
    everything(2).await;
}

#[tokio::test]
async fn a_planner_is_ready_for_its_own_schema_and_for_newer_ones() {
    let url = Database::make().await.0;
    let store = PostgresStore::open(&url, few(), RULES, Clock::System).await.unwrap();
    let mut connection = url.options().connect().await.unwrap();
    store.check().await.unwrap();
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES (9999, 'of the next version', TRUE, '', 0)";
    sqlx::query(newer).execute(&mut connection).await.unwrap();
    store.check().await.unwrap();
    let older = "DELETE FROM _sqlx_migrations WHERE version = (SELECT min(version) FROM _sqlx_migrations)";
    sqlx::query(older).execute(&mut connection).await.unwrap();
    let error = store.check().await.unwrap_err();
    assert!(matches!(&error, StoreError::Broken(why) if why.contains("rfork planner migrate")), "{error}");
}

#[tokio::test]
async fn a_database_of_an_unreleased_planner_is_refused_by_name_and_says_what_to_do() {
    let url = Database::make().await.0;
    let store = PostgresStore::open(&url, few(), RULES, Clock::System).await.unwrap();
    let mut connection = url.options().connect().await.unwrap();
    sqlx::query("UPDATE _sqlx_migrations SET checksum = ''").execute(&mut connection).await.unwrap();
    let error = store.check().await.unwrap_err();
    assert!(matches!(&error, StoreError::Broken(why) if why.contains("never released")), "{error}");
    store.close().await;
    let opened = PostgresStore::open(&url, few(), RULES, Clock::System).await.map(|_| ());
    for refused in [opened, migrate(&url, few()).await] {
        let error = refused.unwrap_err();
        assert!(matches!(error, ConnectError::Unreleased { version: 1, .. }), "{error}");
        let text = error.to_string();
        assert!(text.starts_with(&url.to_string()) && text.contains("drop the database"), "{text}");
    }
}

#[tokio::test]
async fn a_lock_that_is_held_is_an_outage_that_passes() {
    let Database(url) = Database::make().await;
    let quick = ConnectSettings { statement_timeout: std::time::Duration::from_millis(200), ..few() };
    let store = PostgresStore::open(&url, quick, RULES, Clock::System).await.unwrap();
    let outcomes = store.apply_list(&[register(1, "k")]).await.unwrap();
    let Outcome::Registered(_, id) = outcomes[0] else { panic!("{outcomes:?}") };
    let mut foreign = url.options().connect().await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT 1 FROM seeds FOR UPDATE").execute(&mut foreign).await.unwrap();
    for command in [acquire("k", 1), register(1, "l")] {
        let error = store.apply_list(&[command]).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    }
    // Heartbeats need no lock of a seed, be they gathered or not.
    assert!(store.flush(&[Beat { seed_id: id, age_ms: 0 }]).await.unwrap().is_empty());
    let outcomes = store.apply_list(&[register(1, "k")]).await.unwrap();
    assert_eq!(outcomes, [Outcome::Registered(Registration::Repeated, id)]);
    sqlx::raw_sql("ROLLBACK").execute(&mut foreign).await.unwrap();
    let outcomes = store.apply_list(&[acquire("k", 1)]).await.unwrap();
    assert!(matches!(outcomes[0], Outcome::Acquired(Ok(_))), "{outcomes:?}");
}

#[tokio::test]
async fn a_flush_under_way_hides_no_seed_and_holds_up_no_claim() {
    let Database(url) = Database::make().await;
    let store = PostgresStore::open(&url, few(), RULES, Clock::System).await.unwrap();
    store.apply_list(&[register(1, "k")]).await.unwrap();
    let mut flushing = url.options().connect().await.unwrap();
    sqlx::raw_sql("BEGIN; UPDATE heartbeats SET last_ms = last_ms").execute(&mut flushing).await.unwrap();
    let outcomes = store.apply_list(&[acquire("k", 1)]).await.unwrap();
    assert!(matches!(outcomes[0], Outcome::Acquired(Ok(_))), "{outcomes:?}");
    assert_eq!(store.apply_list(&[release(1, 1)]).await.unwrap(), [Outcome::Released(true)]);
}

/// Few connections that wait for a lock longer than any test takes to see them waiting.
fn patient() -> ConnectSettings {
    ConnectSettings { statement_timeout: std::time::Duration::from_mins(2), ..few() }
}

/// Waits until `sessions` of this database wait for a lock. It asks outside of a transaction: within one, the server
/// shows the sessions that were there when it was first asked, and none that came later.
async fn until_blocked(url: &PostgresUrl, sessions: i64, mut meanwhile: impl FnMut()) {
    let mut asking = url.options().connect().await.unwrap();
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut asking).await.unwrap() < sessions {
        meanwhile();
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planners_that_claim_on_one_host_at_once_keep_its_bound() {
    let Database(url) = Database::make().await;
    let host_capacity = vec![("10.0.0.*".parse().unwrap(), 1)];
    let overrides = Some(std::sync::Arc::new(Overrides { host_capacity, ..Overrides::default() }));
    let rules = Rules { overrides, ..RULES };
    let on_host = |seed, text| {
        let location = Location { host: Some("h".into()), ..Location::default() };
        let profile = Profile { location, ..Profile::default() };
        registering(seed, text, profile)
    };
    let open = async || PostgresStore::open(&url, patient(), rules.clone(), Clock::System).await.unwrap();
    let stores = [open().await, open().await];
    stores[0].apply_list(&[on_host(1, "k"), on_host(2, "l")]).await.unwrap();
    // Whoever has seen room on the host, and would take it, is held up before it does.
    let mut foreign = url.options().connect().await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT 1 FROM seeds FOR UPDATE").execute(&mut foreign).await.unwrap();
    let mut claims = tokio::task::JoinSet::new();
    for (store, (text, lease)) in stores.into_iter().zip([("k", 1), ("l", 2)]) {
        claims.spawn(async move { store.apply_list(&[acquire(text, lease)]).await.unwrap() });
    }
    until_blocked(&url, 2, || {
        assert!(claims.try_join_next().is_none(), "nobody claims a seed that another holds");
    })
    .await;
    sqlx::raw_sql("COMMIT").execute(&mut foreign).await.unwrap();
    let outcomes = claims.join_all().await.concat();
    let granted = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Acquired(Ok(_)))).count();
    assert_eq!(granted, 1, "{outcomes:?}");
}

/// What a batch is told, and what is there after it, when another planner gives seed 1 a new holding, of `key`, while
/// the batch waits for the old one.
async fn beside_a_new_holding(key: &'static str, batch: &[Command]) -> (Vec<Outcome>, Snapshot) {
    let Database(url) = Database::make().await;
    let store =
        std::sync::Arc::new(PostgresStore::open(&url, patient(), RULES, Clock::System).await.unwrap());
    store.apply_list(&[register(1, "k")]).await.unwrap();
    let mut other = url.options().connect().await.unwrap();
    let renewed = format!(
        "BEGIN;
         CREATE TEMP TABLE held AS SELECT * FROM seeds;
         DELETE FROM seeds;
         UPDATE held SET id = nextval('numbers'), seed_key = '{key}', key_hash = sha256('{key}');
         INSERT INTO seeds SELECT * FROM held;
         INSERT INTO heartbeats SELECT id, key_hash, extract(epoch FROM clock_timestamp()) * 1000 FROM held"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(renewed)).execute(&mut other).await.unwrap();
    let batch = tokio::spawn({
        let (store, batch) = (store.clone(), batch.to_vec());
        async move { store.apply_list(&batch).await }
    });
    until_blocked(&url, 1, || assert!(!batch.is_finished(), "a seed that another changes is waited for"))
        .await;
    sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    (batch.await.unwrap().unwrap(), store.snapshot().await.unwrap())
}

#[tokio::test]
async fn a_seed_that_comes_and_goes_in_a_batch_meets_the_one_that_another_planner_registers() {
    let (outcomes, left) = beside_a_new_holding("l", &[register(1, "k"), remove(1, "k")]).await;
    assert!(matches!(outcomes[0], Outcome::Registered(Registration::NewHolding, _)), "{outcomes:?}");
    assert_eq!(left, Snapshot::default(), "what was registered last is removed");
}

#[tokio::test]
async fn a_seed_that_another_planner_renews_is_never_said_to_be_unknown() {
    let beat = Command::Beat {
        identity: conformance::identity(1),
        key: conformance::key("k"),
        incarnation: None,
        age_ms: 0,
        owner: Owner::default(),
        progress: None,
    };
    let (outcomes, left) = beside_a_new_holding("k", &[beat]).await;
    assert!(matches!(outcomes[0], Outcome::Heard(Heard::Known, Some(_))), "{outcomes:?}");
    assert_eq!(left.seed_count, 1);
    let (outcomes, left) = beside_a_new_holding("k", &[remove(1, "k")]).await;
    assert_eq!(outcomes, [Outcome::Removed(Removal::Gone)]);
    assert_eq!(left, Snapshot::default());
}

#[tokio::test]
async fn a_database_that_cannot_be_used_is_named_without_its_password() {
    let impatient = ConnectSettings { patience: std::time::Duration::ZERO, ..few() };
    let refusal = async |text: &str| {
        PostgresStore::open(&url(text), impatient, RULES, Clock::System).await.unwrap_err().to_string()
    };
    // A port that nobody listens on: it was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = refusal(&format!("postgres://me:SECRET@127.0.0.1:{port}/planner")).await;
    assert!(text.contains(&format!("postgres://me@127.0.0.1:{port}/planner cannot be reached")), "{text}");
    assert!(!text.contains("SECRET"), "{text}");
    let text = refusal(&Cluster::shared().url("missing")).await;
    assert!(text.contains("does not exist") && text.contains("cannot be used"), "{text}");
}
