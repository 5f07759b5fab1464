//! The simulation on Postgres: several planners over one database.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, ConnectOptions};

use super::tests::{Database, few};
use super::*;
use crate::store::conformance::Home;
use crate::store::simulation::mutants::Mutant;
use crate::store::simulation::{Ground, simulation_suite};

/// A database, and a way to it beside the planners'.
struct Scene {
    database: Database,
    beside: tokio::sync::Mutex<PgConnection>,
}

#[async_trait]
impl Home for Scene {
    async fn make() -> Self {
        let database = Database::make().await;
        let beside = database.0.options().connect().await.unwrap();
        Self { database, beside: tokio::sync::Mutex::new(beside) }
    }

    async fn open(&self, rules: Rules, clock: Clock) -> Arc<dyn Store> {
        let store = PostgresStore::open(&self.database.0, few(), rules, clock).await.unwrap();
        // It looks for those who wait at a moment that no history knows.
        store.looking.abort();
        Arc::new(store)
    }
}

#[async_trait]
impl Ground for Scene {
    const NAME: &'static str = "Postgres";
    const PLANNERS: usize = 3;
    const HISTORIES: u64 = 450;

    async fn empty(&self) {
        let connection = &mut *self.beside.lock().await;
        let tables: Vec<String> = sqlx::query_scalar(
            "SELECT tablename::text FROM pg_tables
             WHERE schemaname = current_schema() AND NOT starts_with(tablename, '_sqlx')",
        )
        .fetch_all(&mut *connection)
        .await
        .unwrap();
        // Without the triggers of foreign keys no order of tables matters.
        let deletes: Vec<String> = tables.iter().map(|table| format!("DELETE FROM {table};")).collect();
        let empty = format!("SET session_replication_role = replica; {}", deletes.concat());
        sqlx::raw_sql(AssertSqlSafe(empty)).execute(connection).await.unwrap();
    }

    async fn settle(&self, _: &Arc<dyn Store>) {
        let connection = &mut *self.beside.lock().await;
        let busy = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'";
        while sqlx::query_scalar::<_, i64>(busy).fetch_one(&mut *connection).await.unwrap() > 0 {
            tokio::task::yield_now().await;
        }
    }
}

const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "an allocation skips the expiry of leases",
        edits: &[(
            "WHERE p.seed_id = s.id AND p.busy_until_ms > $1) AS busy",
            "WHERE p.seed_id = s.id) AS busy",
        )],
    },
    Mutant {
        name: "an allocation skips the expiry of heartbeats",
        edits: &[("AND b.last_ms > $2", "AND b.last_ms > $2 - 1000")],
    },
    Mutant {
        name: "a lease lives one millisecond too long",
        edits: &[("p.busy_until_ms > $1", "p.busy_until_ms >= $1")],
    },
    Mutant {
        name: "a claim takes points that another planner has leased",
        edits: &[("WHERE points.busy_until_ms <= $1", "")],
    },
    Mutant {
        name: "releases and renewals act on ended leases",
        edits: &[(
            "seed_id, n, lease_hash, busy_until_ms FROM",
            "seed_id, n, lease_hash, busy_until_ms + 1000 AS busy_until_ms FROM",
        )],
    },
    Mutant {
        name: "releases and renewals lack the fence of the seed",
        edits: &[(
            "requester, seed_id, n, lease_hash, busy_until_ms FROM points WHERE seed_id = ANY($1)",
            "requester, ($1::bigint[])[1] AS seed_id, n, lease_hash, busy_until_ms FROM points",
        )],
    },
    Mutant {
        name: "a release gives back every point of the seed",
        edits: &[(
            "AS t (seed_id, n) WHERE p.seed_id = t.seed_id AND p.n = t.n",
            "AS t (seed_id, n) WHERE p.seed_id = t.seed_id",
        )],
    },
    Mutant {
        name: "the capacity is one too large",
        edits: &[
            ("s.rank, s.capacity,", "s.rank, s.capacity + 1 AS capacity,"),
            ("count(*) < s.capacity", "count(*) < s.capacity + 1"),
            ("p.n < s.capacity", "p.n < s.capacity + 1"),
            ("t.n < locked.capacity", "t.n < locked.capacity + 1"),
        ],
    },
    Mutant {
        name: "the capacity is one too small",
        edits: &[("count(*) < s.capacity", "count(*) < s.capacity - 1")],
    },
    Mutant {
        name: "a sweep frees points that were leased anew meanwhile",
        edits: &[("AND p.n = t.n AND p.busy_until_ms <= $3", "AND p.n = t.n")],
    },
    Mutant {
        name: "a sweep forgets seeds that were heard of meanwhile",
        edits: &[("AND (s.removed OR h.last_ms <= CASE WHEN s.drained THEN $3 ELSE $2 END)", "")],
    },
    Mutant {
        name: "a sweep forgets that silent seeds were drained",
        edits: &[
            ("(NOT s.drained OR h.last_ms <= $3)", "(TRUE OR h.last_ms <= $3)"),
            ("CASE WHEN s.drained THEN $3", "CASE WHEN s.drained THEN greatest($2, $3)"),
        ],
    },
    Mutant {
        name: "heartbeats renew leases",
        edits: &[(
            "WHERE h.seed_id = beat.seed_id AND h.last_ms < beat.last_ms)",
            "WHERE h.seed_id = beat.seed_id AND h.last_ms < beat.last_ms),
             renewed AS (UPDATE points p SET busy_until_ms = p.busy_until_ms + 10
                         FROM beat WHERE p.seed_id = beat.seed_id)",
        )],
    },
    Mutant {
        name: "an older heartbeat counts more than a later one",
        edits: &[("AND h.last_ms < t.last_ms", "")],
    },
    Mutant {
        name: "a removed seed is offered on",
        edits: &[
            ("WHEN NOT s.removed AND NOT s.drained AND", "WHEN NOT s.drained AND"),
            ("s.removed OR s.drained OR", "s.drained OR"),
        ],
    },
    Mutant {
        name: "a renewal is one millisecond short",
        edits: &[("SET busy_until_ms = t.ends_ms", "SET busy_until_ms = t.ends_ms - 1")],
    },
    Mutant {
        name: "a drained seed is offered on",
        edits: &[
            ("WHEN NOT s.removed AND NOT s.drained AND", "WHEN NOT s.removed AND"),
            ("s.removed OR s.drained OR", "s.removed OR"),
        ],
    },
    Mutant {
        name: "a suspect seed is offered on",
        edits: &[
            ("AND s.suspect_until_ms <= $1 AND count(*)", "AND count(*)"),
            ("OR s.suspect_until_ms > $1 AS out", "AS out"),
            ("AND c.suspect_until_ms <= $1", ""),
        ],
    },
    Mutant {
        name: "a host lends one lease more than it may",
        edits: &[
            ("s.host_capacity - (", "s.host_capacity + 1 - ("),
            ("< s.host_capacity", "< s.host_capacity + 1"),
            ("< c.host_capacity", "< c.host_capacity + 1"),
        ],
    },
    Mutant {
        name: "who came last is called up first",
        edits: &[("AND planner IS NOT NULL ORDER BY id", "AND planner IS NOT NULL ORDER BY id DESC")],
    },
    Mutant {
        name: "who waits at a silent planner is called up",
        edits: &[("OR p.alive_until_ms > $3)", "OR r.planner IS NOT NULL)")],
    },
    Mutant { name: "who waited for long enough is called up", edits: &[("AND r.waits_until_ms > $3", "")] },
    Mutant {
        name: "a waiter is served twice",
        edits: &[("SET waits_until_ms = NULL, changed_ms = $1", "SET changed_ms = $1")],
    },
    Mutant {
        name: "a waiter that was served is named once",
        edits: &[(
            "SELECT lease_hash, attempt FROM requests WHERE planner = $1 AND waits_until_ms IS NULL ORDER BY id",
            "UPDATE requests SET planner = NULL WHERE planner = $1 AND waits_until_ms IS NULL RETURNING lease_hash, attempt",
        )],
    },
    Mutant {
        name: "a planner ends what waits at another",
        edits: &[(
            "attempt, planner, idempotency IS NOT NULL",
            "attempt, NULL AS planner, idempotency IS NOT NULL",
        )],
    },
    Mutant {
        name: "a repetition leaves its place to the attempt before",
        edits: &[("attempt = $3, waits_until_ms", "attempt = least(attempt, $3), waits_until_ms")],
    },
    Mutant {
        name: "what is asked for under a key does not count",
        edits: &[(
            "SELECT id, idempotency, request_hash,",
            "SELECT id, idempotency, decode(repeat('00', 32), 'hex') AS request_hash,",
        )],
    },
    Mutant {
        name: "a lease whose client is gone is not given back",
        edits: &[(
            "SELECT seed_id FROM points WHERE lease_hash = $1",
            "SELECT seed_id FROM points WHERE lease_hash = $1 AND FALSE",
        )],
    },
];

simulation_suite!(Scene, MUTANTS);
