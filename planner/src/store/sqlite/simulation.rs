//! The simulation on SQLite: one planner, as the file allows no other, that crashes and starts again.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, ConnectOptions, SqliteConnection};

use super::tests::Directory;
use super::*;
use crate::store::conformance::Home;
use crate::store::simulation::mutants::Mutant;
use crate::store::simulation::{Ground, simulation_suite};

/// A file, and a way to it beside the planner's.
struct Scene {
    directory: Directory,
    /// With the statements that make the database empty.
    beside: tokio::sync::Mutex<Option<(SqliteConnection, String)>>,
}

#[async_trait]
impl Home for Scene {
    async fn make() -> Self {
        Self { directory: Directory::make().await, beside: tokio::sync::Mutex::new(None) }
    }

    async fn open(&self, rules: Rules, clock: Clock) -> Arc<dyn Store> {
        self.directory.open(rules, clock).await
    }
}

impl Scene {
    async fn connect(&self) -> (SqliteConnection, String) {
        let options = SqliteConnectOptions::new().filename(self.directory.file()).foreign_keys(false);
        let options = options.busy_timeout(BUSY_TIMEOUT).synchronous(SqliteSynchronous::Off);
        let mut connection = options.connect().await.unwrap();
        let tables: Vec<String> = sqlx::query_scalar(
            "SELECT name FROM sqlite_schema
             WHERE type = 'table' AND name NOT LIKE 'sqlite%' AND name NOT LIKE '_sqlx%'",
        )
        .fetch_all(&mut connection)
        .await
        .unwrap();
        let deletes: Vec<String> = tables.iter().map(|table| format!("DELETE FROM {table};")).collect();
        (connection, format!("BEGIN IMMEDIATE; {} COMMIT", deletes.concat()))
    }
}

#[async_trait]
impl Ground for Scene {
    const NAME: &'static str = "SQLite";
    const PLANNERS: usize = 1;
    const HISTORIES: u64 = 10_000;

    async fn empty(&self) {
        let mut beside = self.beside.lock().await;
        if beside.is_none() {
            *beside = Some(self.connect().await);
        }
        let (connection, empty) = beside.as_mut().unwrap();
        sqlx::raw_sql(AssertSqlSafe(empty.as_str())).execute(connection).await.unwrap();
    }

    async fn settle(&self, store: &Arc<dyn Store>) {
        // It has one connection that writes: whoever comes after the dropped call has waited for its end.
        store.check().await.unwrap();
    }
}

const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "an allocation skips the expiry of leases",
        edits: &[(
            "WHERE p.seed_id = s.id AND p.busy_until_ms > ?1) AS busy",
            "WHERE p.seed_id = s.id) AS busy",
        )],
    },
    Mutant { name: "an allocation skips the expiry of heartbeats", edits: &[("AND b.last_ms > ?2", "")] },
    Mutant {
        name: "a lease lives one millisecond too long",
        edits: &[("p.busy_until_ms > ?1", "p.busy_until_ms >= ?1")],
    },
    Mutant {
        name: "releases and renewals act on ended leases",
        edits: &[("WHERE p.busy_until_ms > ?1 AND s.identity", "WHERE s.identity")],
    },
    Mutant {
        name: "releases and renewals lack the fence of the seed",
        edits: &[("AND s.identity = named.value ->> 1", "")],
    },
    Mutant {
        name: "a release gives back every point of the seed",
        edits: &[(
            "DELETE FROM points WHERE (seed_id, n) IN (SELECT value ->> 0, value ->> 1",
            "DELETE FROM points WHERE seed_id IN (SELECT value ->> 0",
        )],
    },
    Mutant {
        name: "the capacity is one too large",
        edits: &[
            ("s.rank, s.capacity,", "s.rank, s.capacity + 1 AS capacity,"),
            ("count(*) < seeds.capacity", "count(*) < seeds.capacity + 1"),
            ("p.n < seeds.capacity", "p.n < seeds.capacity + 1"),
        ],
    },
    Mutant {
        name: "the capacity is one too small",
        edits: &[("count(*) < seeds.capacity", "count(*) < seeds.capacity - 1")],
    },
    Mutant {
        name: "a sweep frees points that it has freed before",
        edits: &[(
            "FROM points WHERE busy_until_ms <= ?1 LIMIT ?2 + 0",
            "FROM points WHERE busy_until_ms <= ?1 + 5 LIMIT ?2 + 0",
        )],
    },
    Mutant {
        name: "a sweep forgets silent seeds that have leases",
        edits: &[(
            "OR h.last_ms <= ?3) AND NOT EXISTS (SELECT 1 FROM points p WHERE p.seed_id = h.seed_id)",
            "OR h.last_ms <= ?3)",
        )],
    },
    Mutant {
        name: "a sweep forgets that silent seeds were drained",
        edits: &[("(s.drained = 0 OR h.last_ms <= ?3)", "(1 OR h.last_ms <= ?3)")],
    },
    Mutant {
        name: "heartbeats renew leases",
        edits: &[(
            "UPDATE heartbeats SET last_ms = max(last_ms, beat.value ->> 1)",
            "UPDATE points SET busy_until_ms = busy_until_ms + 10
             WHERE seed_id IN (SELECT value ->> 0 FROM json_each(?1));
             UPDATE heartbeats SET last_ms = max(last_ms, beat.value ->> 1)",
        )],
    },
    Mutant {
        name: "an older heartbeat counts more than a later one",
        edits: &[("last_ms = max(last_ms, ?2)", "last_ms = ?2")],
    },
    Mutant {
        name: "a removed seed is offered on",
        edits: &[("SET removed = 1, offer_rank = NULL", "SET removed = 1"), ("seeds.removed = 0 AND", "")],
    },
    Mutant {
        name: "a removed seed stays after its last lease",
        edits: &[(
            "SELECT id FROM seeds WHERE removed = 1 AND id IN",
            "SELECT id FROM seeds WHERE removed = 2 AND id IN",
        )],
    },
    Mutant {
        name: "a renewal is one millisecond short",
        edits: &[(
            "SET busy_until_ms = ?1 + (t.value ->> 2)",
            "SET busy_until_ms = ?1 + (t.value ->> 2) - 1",
        )],
    },
    Mutant {
        name: "a drained seed is offered on",
        edits: &[("SET drained = 1, offer_rank = NULL", "SET drained = 1"), ("seeds.drained = 0 AND", "")],
    },
    Mutant {
        name: "a suspect seed is offered on",
        edits: &[
            ("AND seeds.suspect_until_ms <= ?1 AND count(*)", "AND count(*)"),
            ("AND c.suspect_until_ms <= ?1", ""),
        ],
    },
    Mutant {
        name: "a host lends one lease more than it may",
        edits: &[
            ("(SELECT min(s.host_capacity)", "(SELECT 1 + min(s.host_capacity)"),
            ("< seeds.host_capacity", "< seeds.host_capacity + 1"),
        ],
    },
    Mutant {
        name: "who came last is called up first",
        edits: &[("AND p.alive_until_ms > ?2 ORDER BY r.id", "AND p.alive_until_ms > ?2 ORDER BY r.id DESC")],
    },
    Mutant { name: "who waited for long enough is called up", edits: &[("AND r.waits_until_ms > ?2", "")] },
    Mutant {
        name: "a waiter is served twice",
        edits: &[("SET waits_until_ms = NULL, changed_ms = ?1", "SET changed_ms = ?1")],
    },
    Mutant {
        name: "a waiter that was served is named once",
        edits: &[(
            "SELECT lease_hash, attempt FROM requests INDEXED BY requests_to_answer WHERE planner = ?1 AND waits_until_ms IS NULL",
            "UPDATE requests SET planner = NULL WHERE planner = ?1 AND waits_until_ms IS NULL RETURNING lease_hash, attempt",
        )],
    },
    Mutant {
        name: "an attempt ends a later one",
        edits: &[("attempt = ?2 AND (planner", "(?2 IS NOT NULL) AND (planner")],
    },
    Mutant {
        name: "a repetition leaves its place to the attempt before",
        edits: &[("attempt = ?3, waits_until_ms", "attempt = min(attempt, ?3), waits_until_ms")],
    },
    Mutant {
        name: "what is asked for under a key does not count",
        edits: &[(
            "SELECT id, request_hash, lease_hash,",
            "SELECT id, zeroblob(32) AS request_hash, lease_hash,",
        )],
    },
    Mutant {
        name: "a lease whose client is gone is not given back",
        edits: &[(
            "SELECT seed_id, n FROM points WHERE lease_hash = ?1",
            "SELECT seed_id, n FROM points WHERE lease_hash = ?1 AND 0",
        )],
    },
];

simulation_suite!(Scene, MUTANTS);
