//! The simulation on Postgres: several planners over one database.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection};

use super::tests::{Database, few};
use super::*;
use crate::store::conformance::Home;
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
             WHERE schemaname = current_schema() AND NOT starts_with(tablename, '_sqlx') AND tablename <> 'clock'",
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

simulation_suite! {
    Scene,
    an_allocation_skips_the_expiry_of_leases {
        "WHERE p.seed_id = s.id AND p.busy_until_ms > $1) AS busy" => "WHERE p.seed_id = s.id) AS busy",
    }
    an_allocation_skips_the_expiry_of_heartbeats {
        "AND b.last_ms > $2" => "AND b.last_ms > $2 - 1000",
    }
    a_lease_lives_one_millisecond_too_long {
        "p.busy_until_ms > $1" => "p.busy_until_ms >= $1",
    }
    a_claim_takes_points_that_another_planner_has_leased {
        "WHERE points.busy_until_ms <= $1" => "",
    }
    releases_and_renewals_act_on_ended_leases {
        "seed_id, n, lease_hash, busy_until_ms FROM"
            => "seed_id, n, lease_hash, busy_until_ms + 1000 AS busy_until_ms FROM",
    }
    releases_and_renewals_lack_the_fence_of_the_seed {
        "requester, seed_id, n, lease_hash, busy_until_ms FROM points WHERE seed_id = ANY($1)"
            => "requester, ($1::bigint[])[1] AS seed_id, n, lease_hash, busy_until_ms FROM points",
    }
    a_release_gives_back_every_point_of_the_seed {
        "AS t (seed_id, n) WHERE p.seed_id = t.seed_id AND p.n = t.n"
            => "AS t (seed_id, n) WHERE p.seed_id = t.seed_id",
    }
    the_capacity_is_one_too_large {
        "s.rank, s.capacity," => "s.rank, s.capacity + 1 AS capacity,",
        "count(*) < s.capacity" => "count(*) < s.capacity + 1",
        "p.n < s.capacity" => "p.n < s.capacity + 1",
        "t.n < locked.capacity" => "t.n < locked.capacity + 1",
    }
    the_capacity_is_one_too_small {
        "count(*) < s.capacity" => "count(*) < s.capacity - 1",
    }
    a_sweep_frees_points_that_were_leased_anew_meanwhile {
        "AND p.n = t.n AND p.busy_until_ms <= $3" => "AND p.n = t.n",
    }
    a_sweep_forgets_seeds_that_were_heard_of_meanwhile {
        "AND (s.removed OR h.last_ms <= CASE WHEN s.drained THEN $3 ELSE $2 END)" => "",
    }
    a_sweep_forgets_that_silent_seeds_were_drained {
        "(NOT s.drained OR h.last_ms <= $3)" => "(TRUE OR h.last_ms <= $3)",
        "CASE WHEN s.drained THEN $3" => "CASE WHEN s.drained THEN greatest($2, $3)",
    }
    heartbeats_renew_leases {
        "WHERE h.seed_id = beat.seed_id AND h.last_ms < beat.last_ms)"
            => "WHERE h.seed_id = beat.seed_id AND h.last_ms < beat.last_ms),
             renewed AS (UPDATE points p SET busy_until_ms = p.busy_until_ms + 10
                         FROM beat WHERE p.seed_id = beat.seed_id)",
    }
    an_older_heartbeat_counts_more_than_a_later_one {
        "AND h.last_ms < t.last_ms" => "",
    }
    a_removed_seed_is_offered_on {
        "WHEN NOT s.removed AND NOT s.drained AND" => "WHEN NOT s.drained AND",
        "s.removed OR s.drained OR" => "s.drained OR",
    }
    a_renewal_is_one_millisecond_short {
        "SET busy_until_ms = t.ends_ms" => "SET busy_until_ms = t.ends_ms - 1",
    }
    a_drained_seed_is_offered_on {
        "WHEN NOT s.removed AND NOT s.drained AND" => "WHEN NOT s.removed AND",
        "s.removed OR s.drained OR" => "s.removed OR",
    }
    a_suspect_seed_is_offered_on {
        "AND s.suspect_until_ms <= $1 AND count(*)" => "AND count(*)",
        "OR s.suspect_until_ms > $1 AS out" => "AS out",
        "AND c.suspect_until_ms <= $1" => "",
    }
    a_host_lends_one_lease_more_than_it_may {
        "s.host_capacity - (" => "s.host_capacity + 1 - (",
        "< s.host_capacity" => "< s.host_capacity + 1",
        "< c.host_capacity" => "< c.host_capacity + 1",
    }
    who_came_last_is_called_up_first {
        "AND planner IS NOT NULL ORDER BY id" => "AND planner IS NOT NULL ORDER BY id DESC",
    }
    who_waits_at_a_silent_planner_is_called_up {
        "OR p.alive_until_ms > $3)" => "OR r.planner IS NOT NULL)",
    }
    who_waited_for_long_enough_is_called_up {
        "AND r.waits_until_ms > $3" => "",
    }
    a_waiter_is_served_twice {
        "SET waits_until_ms = NULL, changed_ms = $1" => "SET changed_ms = $1",
    }
    a_waiter_that_was_served_is_named_once {
        "SELECT lease_hash, attempt FROM requests WHERE planner = $1 AND waits_until_ms IS NULL ORDER BY id"
            => "UPDATE requests SET planner = NULL WHERE planner = $1 AND waits_until_ms IS NULL RETURNING lease_hash, attempt",
    }
    a_planner_ends_what_waits_at_another {
        "attempt, planner, idempotency IS NOT NULL" => "attempt, NULL AS planner, idempotency IS NOT NULL",
    }
    a_repetition_leaves_its_place_to_the_attempt_before {
        "attempt = $3, waits_until_ms" => "attempt = least(attempt, $3), waits_until_ms",
    }
    what_is_asked_for_under_a_key_does_not_count {
        "SELECT id, idempotency, request_hash,"
            => "SELECT id, idempotency, decode(repeat('00', 32), 'hex') AS request_hash,",
    }
    a_lease_whose_client_is_gone_is_not_given_back {
        "SELECT seed_id FROM points WHERE lease_hash = $1"
            => "SELECT seed_id FROM points WHERE lease_hash = $1 AND FALSE",
    }
    the_offset_of_time_does_not_count {
        "+ offset_ms, offset_ms, seen_ms FROM clock" => "+ 0, offset_ms, seen_ms FROM clock",
    }
    a_clock_that_was_set_is_made_up_for_twice {
        "SET offset_ms = offset_ms + $2" => "SET offset_ms = offset_ms + 2 * $2",
    }
    a_planner_takes_no_notice_of_what_others_have_seen {
        "offset_ms, seen_ms FROM clock" => "offset_ms, 0::bigint AS seen_ms FROM clock",
    }
    it_is_not_noted_what_time_it_is {
        "UPDATE clock SET seen_ms = $1" => "UPDATE clock SET seen_ms = seen_ms + 0 * $1",
    }
}
