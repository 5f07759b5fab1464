//! Seeds that change, go or come, and their heartbeats.

use std::sync::Arc;

use super::super::load::Seen;
use super::super::places::key_hash;
use super::super::session::Connection;
use super::super::transaction::{Stopped, is_locked};
use super::{Held, kept, known, number};
use crate::decide::Changed;
use crate::decide::rows::SeedRow;
#[cfg(test)]
use crate::store::simulation::sqlx;

/// The statement that locks seeds whose version is as it was seen, in the order of their numbers, and changes them. It
/// sees the last version of a row that it has waited for.
macro_rules! write_seeds {
    ($wait:literal) => {
        concat!(
            "/* write seeds */
             WITH same AS MATERIALIZED (
                 SELECT s.id FROM seeds s JOIN unnest($1::bigint[], $2::bigint[]) AS t (id, version) ON t.id = s.id
                 WHERE s.version = t.version ORDER BY s.id FOR UPDATE OF s ",
            $wait,
            ")
             UPDATE seeds s SET version = s.version + 1, used_ms = t.used_ms, answered_ms = t.answered_ms,
                 failures = t.failures, suspect_until_ms = t.suspect_until_ms, removed = t.removed, drained = t.drained
             FROM unnest($1::bigint[], $3::bigint[], $4::bigint[], $5::int[], $6::bigint[], $7::bool[], $8::bool[])
                 AS t (id, used_ms, answered_ms, failures, suspect_until_ms, removed, drained)
             JOIN same ON same.id = t.id
             WHERE s.id = t.id"
        )
    };
}

/// A seed of which only a heartbeat was heard is not locked, nor given a version: what claims of other planners saw of it
/// is as it was, and its heartbeat is locked and compared by itself.
pub(super) async fn seeds(
    connection: &mut Connection,
    seen: &Seen,
    held: &mut Held,
    changed: &[Changed<SeedRow>],
) -> Result<(), Stopped> {
    let is_heard_of_alone =
        |before: &SeedRow, after: &SeedRow| SeedRow { heard_ms: after.heard_ms, ..before.clone() } == *after;
    let changed =
        known(changed).filter(|(before, after)| after.is_none_or(|after| !is_heard_of_alone(before, after)));
    let rows: Vec<&SeedRow> = changed.map(|(before, after)| after.unwrap_or(before).as_ref()).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    let version = |id: &i64| seen.get(id).map_or(-1, |(_, version)| *version);
    // Whoever holds some already waits for no others: those come first then.
    let statement = if held.seeds.is_empty() { write_seeds!("") } else { write_seeds!("NOWAIT") };
    let written = sqlx::query(statement)
        .bind(&ids)
        .bind(ids.iter().map(version).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.used_ms).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.answered_ms).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| number(row.health.failures)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.health.suspect_until_ms).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.removed).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.drained).collect::<Vec<_>>())
        .execute(connection)
        .await;
    match written {
        Ok(written) if written.rows_affected() == ids.len() as u64 => return Ok(()),
        Ok(_) => {}
        Err(error) if !held.seeds.is_empty() && is_locked(&error) => {}
        Err(error) => return Err(error.into()),
    }
    held.seeds.extend(ids);
    Err(Stopped::Again)
}

/// Heartbeats that were heard, and those by whose age a seed goes: none may have come meanwhile. They are locked in the
/// order in which a flush does.
pub(super) async fn heartbeats(
    connection: &mut Connection,
    changed: &[Changed<SeedRow>],
) -> Result<(), Stopped> {
    let matters = |(before, after): &(&Arc<SeedRow>, Option<&Arc<SeedRow>>)| {
        after.is_none_or(|after| after.heard_ms != before.heard_ms || after.removed != before.removed)
    };
    let heard: Vec<_> = known(changed).filter(matters).collect();
    if heard.is_empty() {
        return Ok(());
    }
    let same: i64 = sqlx::query_scalar(
        "/* write heartbeats */
         WITH same AS MATERIALIZED (
                  SELECT h.seed_id FROM heartbeats h
                  JOIN unnest($1::bigint[], $2::bigint[]) AS t (seed_id, last_ms) ON t.seed_id = h.seed_id
                  WHERE h.last_ms = t.last_ms ORDER BY h.seed_id FOR UPDATE OF h),
              written AS (
                  UPDATE heartbeats h SET last_ms = t.last_ms
                  FROM unnest($1::bigint[], $3::bigint[]) AS t (seed_id, last_ms) JOIN same ON same.seed_id = t.seed_id
                  WHERE h.seed_id = t.seed_id AND h.last_ms <> t.last_ms)
         SELECT count(*) FROM same",
    )
    .bind(heard.iter().map(|(before, _)| before.id).collect::<Vec<_>>())
    .bind(heard.iter().map(|(before, _)| before.heard_ms).collect::<Vec<_>>())
    .bind(heard.iter().map(|(before, after)| after.unwrap_or(before).heard_ms).collect::<Vec<_>>())
    .fetch_one(connection)
    .await?;
    if usize::try_from(same) == Ok(heard.len()) { Ok(()) } else { Err(Stopped::Again) }
}

/// What seeds tell of themselves, and their terms. Their places are made anew, and so are those of seeds that have loaded.
pub(super) async fn told(connection: &mut Connection, changed: &[Changed<SeedRow>]) -> Result<(), Stopped> {
    let is_other = |(before, after): &(Option<&Arc<SeedRow>>, &Arc<SeedRow>)| {
        before.is_some_and(|before| !before.is_told_as(after))
    };
    let rows: Vec<&SeedRow> = kept(changed).filter(is_other).map(|(_, row)| row.as_ref()).collect();
    let elsewhere = |(before, after): &(Option<&Arc<SeedRow>>, &Arc<SeedRow>)| {
        is_other(&(*before, *after))
            || before.is_some_and(|before| before.loading.is_some() && after.loading.is_none())
    };
    let moved: Vec<i64> = kept(changed).filter(elsewhere).map(|(_, row)| row.id).collect();
    if !moved.is_empty() {
        sqlx::query("/* delete places */ DELETE FROM places WHERE seed_id = ANY($1)")
            .bind(moved)
            .execute(&mut *connection)
            .await?;
    }
    if rows.is_empty() {
        return Ok(());
    }
    let update = sqlx::query(
        "/* write what seeds tell */
         UPDATE seeds s SET capacity = t.capacity, lease_ttl_ms = t.lease_ttl_ms, capped_host = t.capped_host,
             host_capacity = t.host_capacity, model_url = t.model_url, deploy_strategy = t.deploy_strategy,
             is_draft = t.is_draft, zone = t.zone, rack = t.rack, node = t.node, instance_id = t.instance_id,
             incarnation = t.incarnation, content_id = t.content_id, origin = t.origin,
             owner = t.owner, owner_address = t.owner_address
         FROM unnest($1::bigint[], $2::int[], $3::bigint[], $4::text[], $5::int[], $6::text[], $7::text[], $8::bool[],
                     $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[],
                     $17::text[])
             AS t (id, capacity, lease_ttl_ms, capped_host, host_capacity, model_url, deploy_strategy, is_draft, zone,
                   rack, node, instance_id, incarnation, content_id, origin, owner, owner_address)
         WHERE s.id = t.id",
    );
    bind_told(update, &rows).execute(connection).await?;
    Ok(())
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

/// The numbers of seeds, their terms, what they tell, and whose they are.
fn bind_told<'q>(query: Query<'q>, rows: &[&SeedRow]) -> Query<'q> {
    let texts = |of: fn(&SeedRow) -> &Option<String>| -> Vec<Option<String>> {
        rows.iter().map(|row| of(row).clone()).collect()
    };
    query
        .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| number(row.terms.capacity)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.terms.lease_ttl_ms).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.capped_host().map(str::to_owned)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.terms.host_capacity.map(number)).collect::<Vec<_>>())
        .bind(texts(|row| &row.profile.labels.model_url))
        .bind(texts(|row| &row.profile.labels.deploy_strategy))
        .bind(rows.iter().map(|row| row.profile.labels.is_draft).collect::<Vec<_>>())
        .bind(texts(|row| &row.profile.location.zone))
        .bind(texts(|row| &row.profile.location.rack))
        .bind(texts(|row| &row.profile.location.host))
        .bind(texts(|row| &row.profile.instance_id))
        .bind(texts(|row| &row.profile.incarnation))
        .bind(texts(|row| &row.profile.content_id))
        .bind(texts(|row| &row.profile.origin))
        .bind(rows.iter().map(|row| row.owner.principal.as_deref().map(str::to_owned)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.owner.address.map(|address| address.to_string())).collect::<Vec<_>>())
}

/// Seeds that go, with all that is theirs.
pub(super) async fn delete(connection: &mut Connection, changed: &[Changed<SeedRow>]) -> Result<(), Stopped> {
    let gone: Vec<i64> =
        known(changed).filter(|(_, after)| after.is_none()).map(|(before, _)| before.id).collect();
    if !gone.is_empty() {
        sqlx::query("/* delete seeds */ DELETE FROM seeds WHERE id = ANY($1)")
            .bind(gone)
            .execute(connection)
            .await?;
    }
    Ok(())
}

/// Inserts new seeds, in the order of their identities. Another planner that inserts the same ones is waited for; if its
/// seed stays, all is decided anew and meets it.
pub(super) async fn insert(connection: &mut Connection, changed: &[Changed<SeedRow>]) -> Result<(), Stopped> {
    let rows: Vec<&SeedRow> =
        kept(changed).filter(|(before, _)| before.is_none()).map(|(_, row)| row.as_ref()).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let hashes: Vec<Vec<u8>> = rows.iter().map(|row| key_hash(&row.key)).collect();
    let insert = sqlx::query(
        "/* insert seeds */
         INSERT INTO seeds (id, capacity, lease_ttl_ms, capped_host, host_capacity, model_url, deploy_strategy, is_draft,
                            zone, rack, node, instance_id, incarnation, content_id, origin, owner, owner_address, identity, host,
                            port, rank, seed_key, key_hash, used_ms, answered_ms, failures, suspect_until_ms, removed, drained, client)
         SELECT t.* FROM unnest($1::bigint[], $2::int[], $3::bigint[], $4::text[], $5::int[], $6::text[], $7::text[],
                                $8::bool[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[],
                                $15::text[], $16::text[], $17::text[], $18::text[], $19::text[], $20::int[],
                                $21::bigint[], $22::bytea[], $23::bytea[], $24::bigint[], $25::bigint[], $26::int[],
                                $27::bigint[], $28::bool[], $29::bool[], $30::text[])
             AS t (id, capacity, lease_ttl_ms, capped_host, host_capacity, model_url, deploy_strategy, is_draft, zone,
                   rack, node, instance_id, incarnation, content_id, origin, owner, owner_address, identity)
         ORDER BY t.identity COLLATE \"C\"
         ON CONFLICT (identity) DO NOTHING",
    );
    let inserted = bind_told(insert, &rows)
        .bind(rows.iter().map(|row| row.name.to_string()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.identity.host().to_owned()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| i32::from(row.identity.port())).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| i64::from(row.identity.rank())).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.key.as_bytes().to_vec()).collect::<Vec<_>>())
        .bind(&hashes)
        .bind(rows.iter().map(|row| row.used_ms).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.answered_ms).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| number(row.health.failures)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.health.suspect_until_ms).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.removed).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.drained).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.client.map(|client| client.to_string())).collect::<Vec<_>>())
        .execute(&mut *connection)
        .await?;
    if inserted.rows_affected() != rows.len() as u64 {
        return Err(Stopped::Again);
    }
    sqlx::query(
        "/* insert heartbeats */
         INSERT INTO heartbeats (seed_id, key_hash, last_ms)
         SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::bigint[])",
    )
    .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
    .bind(hashes)
    .bind(rows.iter().map(|row| row.heard_ms).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}
