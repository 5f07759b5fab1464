//! Sessions that are lent, and what is left in them.

use sqlx::AssertSqlSafe;

use super::pooler::Pooler as Bouncer;
use super::*;
use crate::store::postgres::connect::Pooler;
use crate::store::{ApplyList, ManualClock};

async fn are_shared(url: &str) -> bool {
    session::are_shared(url_of(url).servers()[0].options(true)).await.unwrap()
}

fn url_of(text: &str) -> PostgresUrl {
    super::url(text)
}

/// What is left in the session of the store's only connection.
async fn left_behind(store: &PostgresStore) -> (i64, String) {
    let mut connection = store.database.pool.connections().acquire().await.unwrap();
    let asked = "SELECT (SELECT count(*) FROM pg_prepared_statements), current_setting('lock_timeout')";
    let row = sqlx::raw_sql(asked).fetch_one(&mut *connection).await.unwrap();
    (row.get(0), row.get(1))
}

#[tokio::test]
async fn a_pooler_is_seen_however_it_lends_its_sessions() {
    let cluster = Cluster::shared();
    let direct = cluster.database();
    assert!(!are_shared(&direct).await);
    for (settings, expected) in [
        ("", true),
        ("default_pool_size = 1", true),
        ("server_round_robin = 1\ndefault_pool_size = 2", true),
        ("server_round_robin = 1\ndefault_pool_size = 3", true),
        ("pool_mode = session", false),
    ] {
        let bouncer = Bouncer::before(&cluster, settings);
        let url = bouncer.url(&direct);
        assert_eq!(are_shared(&url).await, expected, "{settings}");
        if expected {
            continue;
        }
        // Others who come and go change nothing.
        let (one, other, third) = tokio::join!(are_shared(&url), are_shared(&url), are_shared(&url));
        assert!(!one && !other && !third, "{settings}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_planners_that_start_at_once_all_see_the_pooler() {
    let cluster = Cluster::shared();
    let direct = cluster.database();
    for settings in ["default_pool_size = 8", "server_round_robin = 1\ndefault_pool_size = 8"] {
        let bouncer = Bouncer::before(&cluster, settings);
        let url = bouncer.url(&direct);
        let looks = (0..12).map(|_| {
            let url = url.clone();
            tokio::spawn(async move { are_shared(&url).await })
        });
        let seen = futures_util::future::join_all(looks).await;
        assert!(seen.into_iter().all(|seen| seen.unwrap()), "{settings}");
    }
}

#[tokio::test]
async fn nothing_outlives_a_transaction_in_a_session_that_is_lent() {
    let url = Database::make().await.0;
    for (pooler, names, lock_timeout) in [(Pooler::Yes, 0..1, "0"), (Pooler::Auto, 1..1000, "1500ms")] {
        // As if it were lent by a pooler: what is left shows better with only one.
        let settings = ConnectSettings { pool_size: 1, pooler, ..few() };
        let store = PostgresStore::open(&url, settings, RULES, Clock::System).await.unwrap();
        assert_eq!(store.database.pool.is_shared(), pooler == Pooler::Yes);
        store.apply_list(&[register(1, "k"), acquire("k", 1)]).await.unwrap();
        assert_eq!(store.apply_list(&[release(1, 1)]).await.unwrap(), [Outcome::Released(true)]);
        store.apply_list(&[acquire("none", 1)]).await.unwrap();
        store.sweep().await.unwrap();
        store.check().await.unwrap();
        store.snapshot().await.unwrap();
        store.database.serve(&[key("k")].into()).await.unwrap();
        let (statements, timeout) = left_behind(&store).await;
        assert!(names.contains(&statements), "{pooler:?}: {statements} statements");
        assert_eq!(timeout, lock_timeout, "{pooler:?}");
        store.close().await;
    }
}

/// Another client of the pooler's, who keeps a session to itself by a transaction.
struct Holder(sqlx::postgres::PgConnection);

impl Holder {
    async fn take(url: &str) -> Self {
        let mut connection = url_of(url).options().connect().await.unwrap();
        sqlx::raw_sql("BEGIN; SELECT 1").execute(&mut connection).await.unwrap();
        Self(connection)
    }

    async fn give_back(mut self) {
        sqlx::raw_sql("COMMIT").execute(&mut self.0).await.unwrap();
    }
}

#[tokio::test]
async fn a_session_that_turns_out_to_be_lent_is_used_as_such() {
    let cluster = Cluster::shared();
    let direct = cluster.database();
    let bouncer = Bouncer::before(&cluster, "default_pool_size = 2");
    let through = bouncer.url(&direct);
    // Somebody says that there is none. With more connections one could meet what another one has prepared.
    let settings = ConnectSettings { pool_size: 1, pooler: Pooler::No, ..few() };
    let store = PostgresStore::open(&url_of(&through), settings, RULES, Clock::System).await.unwrap();
    // Of two sessions it can only have the one that nobody holds: first one, then the other.
    let first = Holder::take(&through).await;
    store.apply_list(&[register(1, "k"), acquire("k", 1)]).await.unwrap();
    let _second = Holder::take(&through).await;
    first.give_back().await;
    assert_eq!(store.apply_list(&[release(1, 1)]).await.unwrap(), [Outcome::Released(true)]);
    store.apply_list(&[register(1, "k"), acquire("k", 2)]).await.unwrap();
    assert!(store.database.pool.is_shared());
}

/// A question to the database itself.
async fn direct<T>(url: &str, question: &str) -> T
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
{
    let mut connection = url_of(url).options().connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(question.to_owned())).fetch_one(&mut connection).await.unwrap().get(0)
}

#[tokio::test]
async fn a_planner_that_starts_in_a_session_from_before_heeds_who_set_it_read_only() {
    let cluster = Cluster::shared();
    let settings = ConnectSettings { patience: Duration::ZERO, pooler: Pooler::Yes, ..few() };
    for has_tables in [false, true] {
        let url = cluster.database();
        let bouncer = Bouncer::before(&cluster, "default_pool_size = 1");
        let through = url_of(&bouncer.url(&url));
        // The pooler has its one session from now on.
        if has_tables {
            let store = PostgresStore::open(&through, settings, RULES, Clock::System).await.unwrap();
            store.apply_list(&[register(1, "k")]).await.unwrap();
            store.close().await;
        } else {
            Holder::take(&bouncer.url(&url)).await.give_back().await;
        }
        let name: String = direct(&url, "SELECT current_database()::text").await;
        let mut owner = url_of(&url).options().connect().await.unwrap();
        let set = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut owner).await.unwrap();

        // Under other rules it would change the seed.
        let rules = Rules { capacity: RULES.capacity + 1, ..RULES };
        let refused = PostgresStore::open(&through, settings, rules, Clock::System).await.unwrap_err();
        assert!(refused.to_string().contains("default_transaction_read_only"), "{refused}");
        assert_eq!(direct::<bool>(&url, "SELECT to_regclass('seeds') IS NOT NULL").await, has_tables);
        if has_tables {
            let capacity: i32 = direct(&url, "SELECT capacity FROM seeds").await;
            assert_eq!(u32::try_from(capacity).unwrap(), RULES.capacity);
        }
    }
}

#[tokio::test]
async fn a_session_that_is_lent_may_be_older_than_who_set_it_read_only_and_than_its_end() {
    let cluster = Cluster::shared();
    let url = cluster.database();
    let bouncer = Bouncer::before(&cluster, "default_pool_size = 1");
    let settings = ConnectSettings { pooler: Pooler::Yes, ..few() };
    let through = bouncer.url(&url);
    let store = PostgresStore::open(&url_of(&through), settings, RULES, Clock::System).await.unwrap();
    let name: String = direct(&url, "SELECT current_database()::text").await;
    let mut owner = url_of(&url).options().connect().await.unwrap();

    // Nobody asks the store for a check meanwhile.
    assert_eq!(lent(&through).await.1, "off");
    let set = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
    sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut owner).await.unwrap();
    store.apply_list(&[register(1, "k")]).await.unwrap_err();
    assert_eq!(direct::<i64>(&url, "SELECT count(*) FROM seeds").await, 0);

    // With the transaction that failed the session ended: the pooler's next one only reads.
    let session = lent(&through).await;
    assert_eq!(session.1, "on");
    store.check().await.unwrap_err();
    let reset = format!("ALTER DATABASE {name} RESET default_transaction_read_only");
    sqlx::raw_sql(AssertSqlSafe(reset)).execute(&mut owner).await.unwrap();
    store.check().await.unwrap();
    store.apply_list(&[register(1, "k")]).await.unwrap();
    assert_eq!(lent(&through).await, session);
}

/// Which session the pooler lends at the moment, and whether it only reads unless told otherwise.
async fn lent(through: &str) -> (i32, String) {
    let mut connection = url_of(through).options().connect().await.unwrap();
    let question = "SELECT pg_backend_pid(), current_setting('default_transaction_read_only')";
    let row = sqlx::raw_sql(question).fetch_one(&mut connection).await.unwrap();
    (row.get(0), row.get(1))
}

#[tokio::test]
async fn a_migration_that_fails_leaves_nothing_in_a_session_that_is_lent() {
    let cluster = Cluster::shared();
    let url = cluster.database();
    let bouncer = Bouncer::before(&cluster, "default_pool_size = 1");
    // In the way of a table of ours.
    let mut owner = url_of(&url).options().connect().await.unwrap();
    sqlx::raw_sql("CREATE TABLE seeds (other integer)").execute(&mut owner).await.unwrap();
    let settings = ConnectSettings { pooler: Pooler::Yes, ..few() };
    let opened = PostgresStore::open(&url_of(&bouncer.url(&url)), settings, RULES, Clock::System).await;
    assert!(opened.unwrap_err().to_string().contains("already exists"));
    for question in [
        "SELECT count(*) FROM pg_prepared_statements",
        "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'",
    ] {
        assert_eq!(direct::<i64>(&bouncer.url(&url), question).await, 0, "{question}");
    }
}

#[tokio::test]
async fn a_clock_is_put_right_behind_a_pooler() {
    let cluster = Cluster::shared();
    let url = cluster.database();
    let bouncer = Bouncer::before(&cluster, "server_round_robin = 1\ndefault_pool_size = 2");
    let settings = ConnectSettings { pooler: Pooler::Yes, ..few() };
    let clock = std::sync::Arc::new(ManualClock::new(1_000_000));
    let through = url_of(&bouncer.url(&url));
    let store = PostgresStore::open(&through, settings, RULES, Clock::Manual(clock.clone())).await.unwrap();
    store.apply_list(&[register(1, "k"), acquire("k", 1)]).await.unwrap();
    for (step, ahead) in [(3_600_000, -3_600_000), (-7_200_000, 3_600_000)] {
        clock.step(step);
        store.apply_list(&[renew(1, 1)]).await.unwrap();
        assert_eq!(store.snapshot().await.unwrap().ahead_ms, ahead);
    }
    assert_eq!(store.apply_list(&[release(1, 1)]).await.unwrap(), [Outcome::Released(true)]);
    let left = "SELECT count(*) FROM pg_prepared_statements";
    assert_eq!(direct::<i64>(&bouncer.url(&url), left).await, 0);
}

#[tokio::test]
async fn settings_of_the_url_hold_in_every_session() {
    let cluster = Cluster::shared();
    let direct = cluster.database();
    let bouncer = Bouncer::before(&cluster, "");
    let mut connection = url_of(&direct).options().connect().await.unwrap();
    sqlx::raw_sql("CREATE SCHEMA elsewhere").execute(&mut connection).await.unwrap();
    let options = "options=-c%20search_path%3Delsewhere%2C%5C%20public";
    for url in [format!("{direct}&{options}"), format!("{}?{options}", bouncer.url(&direct))] {
        let store = PostgresStore::open(&url_of(&url), few(), RULES, Clock::System).await.unwrap();
        store.apply_list(&[register(1, "k")]).await.unwrap();
        assert_eq!(store.snapshot().await.unwrap().seed_count, 1);
        let count = "SELECT count(*) FROM elsewhere.seeds";
        let count: i64 = sqlx::query_scalar(count).fetch_one(&mut connection).await.unwrap();
        assert_eq!(count, 1);
    }
    let nowhere = "SELECT to_regclass('public.seeds') IS NULL";
    assert!(sqlx::query_scalar::<_, bool>(nowhere).fetch_one(&mut connection).await.unwrap());
}
