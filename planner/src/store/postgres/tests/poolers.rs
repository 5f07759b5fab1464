//! Sessions that are lent, and what is left in them.

use super::pooler::Pooler as Bouncer;
use super::*;
use crate::store::postgres::connect::Pooler;

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
        store.apply(&[register(1, "k"), acquire("k", 1)]).await.unwrap();
        assert_eq!(store.apply(&[release(1, 1)]).await.unwrap(), [Outcome::Released(true)]);
        store.apply(&[acquire("none", 1)]).await.unwrap();
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
    store.apply(&[register(1, "k"), acquire("k", 1)]).await.unwrap();
    let _second = Holder::take(&through).await;
    first.give_back().await;
    assert_eq!(store.apply(&[release(1, 1)]).await.unwrap(), [Outcome::Released(true)]);
    store.apply(&[register(1, "k"), acquire("k", 2)]).await.unwrap();
    assert!(store.database.pool.is_shared());
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
        store.apply(&[register(1, "k")]).await.unwrap();
        assert_eq!(store.snapshot().await.unwrap().seed_count, 1);
        let count = "SELECT count(*) FROM elsewhere.seeds";
        let count: i64 = sqlx::query_scalar(count).fetch_one(&mut connection).await.unwrap();
        assert_eq!(count, 1);
    }
    let nowhere = "SELECT to_regclass('public.seeds') IS NULL";
    assert!(sqlx::query_scalar::<_, bool>(nowhere).fetch_one(&mut connection).await.unwrap());
}
