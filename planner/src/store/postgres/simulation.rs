//! The simulation on Postgres: several planners over one database.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection};

use super::tests::{Database, few};
use super::*;
use crate::store::conformance::Home;
use crate::store::simulation::{Ground, loading, simulation_suite};

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
             WHERE schemaname = current_schema() AND NOT starts_with(tablename, '_sqlx') AND tablename NOT IN ('clock', 'secrets')",
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
    a_planner_overwrites_what_another_has_changed {
        "WHERE s.version = t.version" => "WHERE TRUE",
    }
    what_is_written_gives_a_seed_no_other_version {
        "SET version = s.version + 1," => "SET version = s.version,",
    }
    a_place_that_has_grown_old_is_not_looked_at {
        "p.due_ms <= t.now_ms" => "FALSE",
    }
    it_is_not_known_when_a_place_grows_old {
        ", due_ms = excluded.due_ms" => "",
    }
    a_lease_lives_one_millisecond_too_long {
        "array_agg(p.ends_ms)" => "array_agg(p.ends_ms + 1)",
    }
    a_renewal_is_one_millisecond_short {
        "ends_ms = excluded.ends_ms" => "ends_ms = excluded.ends_ms - 1",
    }
    a_release_gives_back_every_point_of_the_seed {
        "WHERE p.seed_id = t.seed_id AND p.n = t.n" => "WHERE p.seed_id = t.seed_id",
    }
    a_released_point_is_not_freed {
        "WHERE p.seed_id = t.seed_id AND p.n = t.n" => "WHERE FALSE",
    }
    the_capacity_is_one_too_large {
        "s.seed_key, s.capacity," => "s.seed_key, s.capacity + 1 AS capacity,",
    }
    the_capacity_is_one_too_small {
        "s.seed_key, s.capacity," => "s.seed_key, s.capacity - 1 AS capacity,",
    }
    heartbeats_renew_leases {
        "WHERE h.seed_id = beat.seed_id AND h.last_ms < beat.last_ms)"
            => "WHERE h.seed_id = beat.seed_id AND h.last_ms < beat.last_ms),
             renewed AS (UPDATE points p SET ends_ms = p.ends_ms + 10 FROM beat WHERE p.seed_id = beat.seed_id)",
    }
    an_older_heartbeat_counts_more_than_a_later_one {
        "AND h.last_ms < beat.last_ms" => "",
    }
    it_is_not_written_whose_a_seed_comes_to_be {
        "owner = t.owner, " => "",
    }
    a_removed_seed_is_offered_on {
        "removed = t.removed," => "",
    }
    a_drained_seed_is_offered_on {
        ", drained = t.drained" => "",
    }
    a_suspect_seed_is_offered_on {
        "suspect_until_ms = t.suspect_until_ms," => "",
    }
    when_a_seed_was_used_is_forgotten {
        "used_ms = t.used_ms, answered_ms" => "answered_ms",
    }
    that_a_seed_answered_is_forgotten {
        "answered_ms = t.answered_ms," => "",
    }
    what_others_lend_on_a_host_is_not_seen {
        "s.capped_host = ANY($6)" => "FALSE",
    }
    who_waits_at_a_silent_planner_is_called_up {
        "SELECT p.alive_until_ms, r.id" => "SELECT p.alive_until_ms + 1000000 AS alive_until_ms, r.id",
    }
    a_waiter_is_served_twice {
        "waits_until_ms = excluded.waits_until_ms, changed_ms" => "changed_ms",
    }
    whose_answer_a_request_waits_for_is_not_written {
        "planner = excluded.planner, waits_until_ms" => "waits_until_ms",
    }
    a_repetition_leaves_its_place_to_the_attempt_before {
        "SET attempt = excluded.attempt, planner" => "SET planner",
    }
    what_is_asked_for_under_a_key_does_not_count {
        "r.idempotency, r.request_hash," => "r.idempotency, decode(repeat('00', 32), 'hex') AS request_hash,",
    }
    the_offset_of_time_does_not_count {
        "+ offset_ms, offset_ms, seen_ms FROM clock" => "+ 0, offset_ms, seen_ms FROM clock",
        "+ offset_ms) AS now_ms" => "+ 0) AS now_ms",
    }
    a_clock_that_was_set_is_made_up_for_twice {
        "SET offset_ms = offset_ms + $2" => "SET offset_ms = offset_ms + 2 * $2",
    }
    a_planner_takes_no_notice_of_what_others_have_seen {
        "offset_ms, seen_ms FROM clock" => "offset_ms, 0::bigint AS seen_ms FROM clock",
        "offset_ms, seen_ms, CASE" => "offset_ms, 0::bigint AS seen_ms, CASE",
    }
    it_is_not_noted_what_time_it_is {
        "UPDATE clock SET seen_ms = $1" => "UPDATE clock SET seen_ms = seen_ms + 0 * $1",
    }
}

#[test]
fn workers_that_serve_while_they_load_are_granted_by_the_rules() {
    loading::histories_keep_the_rules::<Database>(50);
}

#[test]
fn places_behind_slow_links_are_given_by_the_rules() {
    loading::overtaking::slow_links_are_passed_over_by_the_rules::<Database>(4);
}
