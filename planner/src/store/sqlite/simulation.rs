//! The simulation on SQLite: one planner, as the file allows no other, that crashes and starts again.

use ::sqlx::{AssertSqlSafe, ConnectOptions, SqliteConnection};

use super::tests::Directory;
use super::*;
use crate::store::Store;
use crate::store::conformance::Home;
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
             WHERE type = 'table' AND name NOT LIKE 'sqlite%' AND name NOT LIKE '_sqlx%' AND name <> 'planner'",
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

simulation_suite! {
    Scene,
    a_lease_is_written_with_another_end {
        "ends_ms = excluded.ends_ms" => "ends_ms = ends_ms",
    }
    a_release_frees_every_point_of_the_seed_in_the_file {
        "DELETE FROM points WHERE (seed_id, n) IN (SELECT value ->> 0, value ->> 1"
            => "DELETE FROM points WHERE seed_id IN (SELECT value ->> 0",
    }
    a_lease_that_ended_stays_in_the_file {
        "DELETE FROM points WHERE (seed_id, n) IN" => "DELETE FROM points WHERE 0 AND (seed_id, n) IN",
    }
    a_seed_that_is_gone_stays_in_the_file {
        "DELETE FROM seeds WHERE id IN" => "DELETE FROM seeds WHERE 0 AND id IN",
    }
    it_is_not_written_that_a_seed_was_removed {
        "removed = excluded.removed" => "removed = removed",
    }
    it_is_not_written_that_a_seed_was_drained {
        "drained = excluded.drained" => "drained = drained",
    }
    it_is_not_written_that_a_seed_failed {
        "failures = excluded.failures" => "failures = failures",
    }
    it_is_not_written_whose_a_seed_comes_to_be {
        "owner = excluded.owner, " => "",
    }
    heartbeats_are_not_written {
        "heard_ms = excluded.heard_ms" => "heard_ms = heard_ms",
    }
    it_is_not_written_when_a_seed_was_used {
        "used_ms = excluded.used_ms, answered" => "used_ms = used_ms, answered",
    }
    who_waits_is_not_written {
        "waits_until_ms = excluded.waits_until_ms" => "waits_until_ms = waits_until_ms",
    }
    a_repetition_leaves_its_place_to_the_attempt_before {
        "attempt = excluded.attempt" => "attempt = attempt",
    }
    requests_are_never_forgotten_in_the_file {
        "DELETE FROM requests WHERE id IN" => "DELETE FROM requests WHERE 0 AND id IN",
    }
    a_batch_writes_no_number {
        "SET batch = ?1," => "SET batch = batch + 0 * ?1,",
    }
    a_foreign_writer_is_not_noticed {
        "SELECT batch, data_version FROM planner, pragma_data_version" => "SELECT batch, 0 FROM planner",
    }
    a_planner_that_starts_takes_the_clock_for_the_time {
        "SELECT offset_ms, seen_ms FROM planner" => "SELECT 0, 0 FROM planner",
    }
    time_goes_back_where_the_clock_was_set_back {
        "SELECT offset_ms, seen_ms FROM planner" => "SELECT offset_ms, 0 FROM planner",
    }
    it_is_not_noted_that_the_clock_was_set {
        "offset_ms = coalesce(?3, offset_ms)" => "offset_ms = offset_ms + 0 * coalesce(?3, 0)",
    }
    it_is_not_noted_what_time_it_is {
        "seen_ms = coalesce(?4, seen_ms)" => "seen_ms = seen_ms + 0 * coalesce(?4, 0)",
    }
}
