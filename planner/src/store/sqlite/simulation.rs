//! The simulation on SQLite: one planner, as the file allows no other, that crashes and starts again.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, ConnectOptions, SqliteConnection};

use super::tests::Directory;
use super::*;
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
             WHERE type = 'table' AND name NOT LIKE 'sqlite%' AND name NOT LIKE '_sqlx%' AND name <> 'clock'",
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
    an_allocation_skips_the_expiry_of_leases {
        "WHERE p.seed_id = s.id AND p.busy_until_ms > ?1) AS busy" => "WHERE p.seed_id = s.id) AS busy",
    }
    an_allocation_skips_the_expiry_of_heartbeats {
        "AND b.last_ms > ?2" => "",
    }
    a_lease_lives_one_millisecond_too_long {
        "p.busy_until_ms > ?1" => "p.busy_until_ms >= ?1",
    }
    releases_and_renewals_act_on_ended_leases {
        "WHERE p.busy_until_ms > ?1 AND s.identity" => "WHERE s.identity",
    }
    releases_and_renewals_lack_the_fence_of_the_seed {
        "AND s.identity = named.value ->> 1" => "",
    }
    a_release_gives_back_every_point_of_the_seed {
        "DELETE FROM points WHERE (seed_id, n) IN (SELECT value ->> 0, value ->> 1"
            => "DELETE FROM points WHERE seed_id IN (SELECT value ->> 0",
    }
    the_capacity_is_one_too_large {
        "s.rank, s.capacity," => "s.rank, s.capacity + 1 AS capacity,",
        "count(*) < seeds.capacity" => "count(*) < seeds.capacity + 1",
        "p.n < seeds.capacity" => "p.n < seeds.capacity + 1",
    }
    the_capacity_is_one_too_small {
        "count(*) < seeds.capacity" => "count(*) < seeds.capacity - 1",
    }
    a_sweep_frees_points_that_it_has_freed_before {
        "FROM points WHERE busy_until_ms <= ?1 LIMIT ?2 + 0"
            => "FROM points WHERE busy_until_ms <= ?1 + 5 LIMIT ?2 + 0",
    }
    a_sweep_forgets_silent_seeds_that_have_leases {
        "OR h.last_ms <= ?3) AND NOT EXISTS (SELECT 1 FROM points p WHERE p.seed_id = h.seed_id)"
            => "OR h.last_ms <= ?3)",
    }
    a_sweep_forgets_that_silent_seeds_were_drained {
        "(s.drained = 0 OR h.last_ms <= ?3)" => "(1 OR h.last_ms <= ?3)",
    }
    heartbeats_renew_leases {
        "UPDATE heartbeats SET last_ms = max(last_ms, beat.value ->> 1)"
            => "UPDATE points SET busy_until_ms = busy_until_ms + 10
             WHERE seed_id IN (SELECT value ->> 0 FROM json_each(?1));
             UPDATE heartbeats SET last_ms = max(last_ms, beat.value ->> 1)",
    }
    an_older_heartbeat_counts_more_than_a_later_one {
        "last_ms = max(last_ms, ?2)" => "last_ms = ?2",
    }
    a_removed_seed_is_offered_on {
        "SET removed = 1, offer_rank = NULL" => "SET removed = 1",
        "seeds.removed = 0 AND" => "",
    }
    a_removed_seed_stays_after_its_last_lease {
        "SELECT id FROM seeds WHERE removed = 1 AND id IN"
            => "SELECT id FROM seeds WHERE removed = 2 AND id IN",
    }
    a_renewal_is_one_millisecond_short {
        "SET busy_until_ms = ?1 + (t.value ->> 2)" => "SET busy_until_ms = ?1 + (t.value ->> 2) - 1",
    }
    a_drained_seed_is_offered_on {
        "SET drained = 1, offer_rank = NULL" => "SET drained = 1",
        "seeds.drained = 0 AND" => "",
    }
    a_suspect_seed_is_offered_on {
        "AND seeds.suspect_until_ms <= ?1 AND count(*)" => "AND count(*)",
        "AND c.suspect_until_ms <= ?1" => "",
    }
    a_host_lends_one_lease_more_than_it_may {
        "(SELECT min(s.host_capacity)" => "(SELECT 1 + min(s.host_capacity)",
        "< seeds.host_capacity" => "< seeds.host_capacity + 1",
    }
    who_came_last_is_called_up_first {
        "AND p.alive_until_ms > ?2 ORDER BY r.id" => "AND p.alive_until_ms > ?2 ORDER BY r.id DESC",
    }
    who_waited_for_long_enough_is_called_up {
        "AND r.waits_until_ms > ?2" => "",
    }
    a_waiter_is_served_twice {
        "SET waits_until_ms = NULL, changed_ms = ?1" => "SET changed_ms = ?1",
    }
    a_waiter_that_was_served_is_named_once {
        "SELECT lease_hash, attempt FROM requests INDEXED BY requests_to_answer WHERE planner = ?1 AND waits_until_ms IS NULL"
            => "UPDATE requests SET planner = NULL WHERE planner = ?1 AND waits_until_ms IS NULL RETURNING lease_hash, attempt",
    }
    an_attempt_ends_a_later_one {
        "attempt = ?2 AND (planner" => "(?2 IS NOT NULL) AND (planner",
    }
    a_repetition_leaves_its_place_to_the_attempt_before {
        "attempt = ?3, waits_until_ms" => "attempt = min(attempt, ?3), waits_until_ms",
    }
    what_is_asked_for_under_a_key_does_not_count {
        "SELECT id, request_hash, lease_hash," => "SELECT id, zeroblob(32) AS request_hash, lease_hash,",
    }
    a_lease_whose_client_is_gone_is_not_given_back {
        "SELECT seed_id, n FROM points WHERE lease_hash = ?1"
            => "SELECT seed_id, n FROM points WHERE lease_hash = ?1 AND 0",
    }
    a_planner_that_starts_takes_the_clock_for_the_time {
        "SELECT offset_ms, seen_ms FROM clock" => "SELECT 0, 0 FROM clock",
    }
    time_goes_back_where_the_clock_was_set_back {
        "SELECT offset_ms, seen_ms FROM clock" => "SELECT offset_ms, 0 FROM clock",
    }
    it_is_not_noted_that_the_clock_was_set {
        "SET offset_ms = ?1, seen_ms" => "SET offset_ms = offset_ms + 0 * ?1, seen_ms",
    }
    it_is_not_noted_what_time_it_is {
        "offset_ms = ?1, seen_ms = ?2" => "offset_ms = ?1, seen_ms = seen_ms + 0 * ?2",
    }
}
