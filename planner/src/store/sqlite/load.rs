//! Reading all rows, as the mirror begins with them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::TryStreamExt;
use rfork_protocol::v1::Labels;
use rfork_protocol::{SeedIdentity, SeedKey};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection, SqlitePool};

use super::super::clock::{Clock, Own};
use super::super::memory::Loaded;
use super::super::{Idempotency, LeaseSecret, StoreError, wish};
use crate::decide::rows::{LeaseRow, RequestRow, SeedRow};
use crate::domain::chain::{Lead, Loading};
use crate::domain::health::Health;
use crate::domain::location::Location;
use crate::domain::owner::Owner;
use crate::domain::pace::{Pace, Sending};
use crate::domain::seed::Profile;
use crate::domain::terms::Terms;
#[cfg(test)]
use crate::store::simulation::sqlx;

/// Goes on with the time where the process before ended. See [`super::super::clock`].
pub(super) async fn time(writer: &SqlitePool, clock: Clock) -> Result<Own, StoreError> {
    let (offset_ms, seen_ms) =
        sqlx::query_as("SELECT offset_ms, seen_ms FROM planner").fetch_one(writer).await?;
    Ok(Own::resume(clock, offset_ms, seen_ms))
}

/// What names the leases of idempotency keys.
pub(super) async fn lease_secret(writer: &SqlitePool) -> Result<LeaseSecret, StoreError> {
    let bytes: Vec<u8> = sqlx::query_scalar("SELECT lease_secret FROM planner").fetch_one(writer).await?;
    LeaseSecret::new(&bytes)
}

/// All rows but those of history.
pub(super) async fn rows(connection: &mut SqliteConnection) -> Result<Loaded, StoreError> {
    let new_seed = sqlx::query_scalar("SELECT next_seed FROM planner").fetch_one(&mut *connection).await?;
    let seeds = seeds(connection).await?;
    let requests = requests(connection).await?;
    let sources = sqlx::query_as("SELECT instance_id, source_instance, used_ms FROM instances")
        .fetch_all(&mut *connection)
        .await?;
    let rows = sqlx::query("SELECT seed_key, moved_ms FROM moves").fetch_all(connection).await?;
    let of_key = |row: &SqliteRow| Ok((seed_key(row.try_get("seed_key")?)?, row.try_get("moved_ms")?));
    let moves = rows.iter().map(of_key).collect::<Result<_, StoreError>>()?;
    Ok(Loaded { seeds, requests, sources, moves, new_seed })
}

async fn seeds(connection: &mut SqliteConnection) -> Result<Vec<SeedRow>, StoreError> {
    let mut seeds = Vec::new();
    let mut places = HashMap::new();
    let mut rows = sqlx::query("SELECT * FROM seeds JOIN seed_states ON seed_id = id ORDER BY id")
        .fetch(&mut *connection);
    while let Some(row) = rows.try_next().await? {
        let seed = seed(&row)?;
        places.insert(seed.id, seeds.len());
        seeds.push(seed);
    }
    drop(rows);
    // Few load at a time: a column of theirs in every row would take longer than the rows.
    let mut rows = sqlx::query("SELECT * FROM loading_seeds").fetch(&mut *connection);
    while let Some(row) = rows.try_next().await? {
        let Some(at) = places.get(&row.try_get("seed_id")?) else { continue };
        seeds[*at].loading = Some(Box::new(loading(&row)?));
    }
    drop(rows);
    let mut rows = sqlx::query("SELECT * FROM points ORDER BY seed_id, n").fetch(connection);
    while let Some(row) = rows.try_next().await? {
        let Some(at) = places.get(&row.try_get("seed_id")?) else { continue };
        seeds[*at].leases.push(LeaseRow {
            point: row.try_get("n")?,
            lease: hash(row.try_get("lease_hash")?)?,
            granted_ms: row.try_get("granted_ms")?,
            ends_ms: row.try_get("ends_ms")?,
            requester: row.try_get::<Option<&str>, _>("requester")?.map(Into::into),
            reader: row.try_get("reader")?,
        });
    }
    Ok(seeds)
}

/// A seed, but for its leases, and how far it is if it loads.
fn seed(row: &SqliteRow) -> Result<SeedRow, StoreError> {
    let identity = identity(row.try_get("host")?, row.try_get("port")?, row.try_get("rank")?)?;
    let profile = Profile {
        labels: Labels {
            model_url: row.try_get("model_url")?,
            deploy_strategy: row.try_get("deploy_strategy")?,
            is_draft: row.try_get("is_draft")?,
        },
        location: Location {
            zone: row.try_get("zone")?,
            rack: row.try_get("rack")?,
            host: row.try_get("node")?,
        },
        instance_id: row.try_get("instance_id")?,
        incarnation: row.try_get("incarnation")?,
        content_id: row.try_get("content_id")?,
        origin: row.try_get("origin")?,
    };
    Ok(SeedRow {
        id: row.try_get("id")?,
        name: identity.to_string().into(),
        identity,
        key: Arc::new(seed_key(row.try_get("seed_key")?)?),
        profile: Arc::new(profile),
        // One that cannot be read is nobody's.
        client: row.try_get::<Option<&str>, _>("client")?.and_then(|client| client.parse().ok()),
        owner: Owner {
            principal: row.try_get::<Option<&str>, _>("owner")?.map(Into::into),
            address: address(row.try_get("owner_address")?)?,
        },
        terms: Terms {
            capacity: row.try_get("capacity")?,
            lease_ttl_ms: row.try_get("lease_ttl_ms")?,
            host_capacity: row.try_get("host_capacity")?,
        },
        removed: row.try_get("removed")?,
        drained: row.try_get("drained")?,
        loading: None,
        health: Health {
            failures: row.try_get("failures")?,
            suspect_until_ms: row.try_get("suspect_until_ms")?,
        },
        answered_ms: row.try_get("answered_ms")?,
        used_ms: row.try_get("used_ms")?,
        heard_ms: row.try_get("heard_ms")?,
        leases: Vec::new(),
    })
}

/// Of an address that cannot be read it is not known whose the seed is, which is not as if it were nobody's.
fn address(text: Option<&str>) -> Result<Option<IpAddr>, StoreError> {
    let parsed = text.map(str::parse).transpose();
    parsed.map_err(|error| StoreError::Broken(format!("the address of an owner: {error}")))
}

fn loading(row: &SqliteRow) -> Result<Loading, StoreError> {
    let bytes = |name| Ok::<_, sqlx::Error>(row.try_get::<i64, _>(name)?.unsigned_abs());
    Ok(Loading {
        source: row.try_get("source_id")?,
        depth: row.try_get("depth")?,
        root: row.try_get("root")?,
        held_bytes: bytes("held_bytes")?,
        total_bytes: bytes("total_bytes")?,
        arrived_bytes: bytes("arrived_bytes")?,
        period_ms: row.try_get("period_ms")?,
        pace: Pace {
            told_ms: row.try_get("told_ms")?,
            rate: bytes("rate")?,
            lags: row.try_get("lags")?,
            sends: Sending::of(row.try_get("sends")?),
            was_moved: row.try_get("was_moved")?,
            yields_to: row.try_get("yields_to")?,
            yielded_ms: row.try_get("yielded_ms")?,
        },
        lead: row
            .try_get::<Option<i64>, _>("lead_until_ms")?
            .zip(row.try_get("lead_moved_ms")?)
            .zip(row.try_get("lead_since_ms")?)
            .map(|((until_ms, moved_ms), since_ms)| Lead { until_ms, moved_ms, since_ms }),
    })
}

async fn requests(connection: &mut SqliteConnection) -> Result<Vec<RequestRow>, StoreError> {
    let rows = sqlx::query("SELECT * FROM requests ORDER BY id").fetch_all(connection).await?;
    rows.iter().map(request).collect()
}

fn request(row: &SqliteRow) -> Result<RequestRow, StoreError> {
    let asked: Option<Vec<u8>> = row.try_get("idempotency")?;
    let idempotency = match asked {
        Some(asked) => Some(Idempotency { key: hash(asked)?, request: hash(row.try_get("request_hash")?)? }),
        None => None,
    };
    Ok(RequestRow {
        id: row.try_get("id")?,
        key: Arc::new(seed_key(row.try_get("seed_key")?)?),
        lease: hash(row.try_get("lease_hash")?)?,
        idempotency,
        attempt: row.try_get("attempt")?,
        wish: Arc::new(wish::decode(row.try_get("wish")?).map_err(StoreError::Broken)?),
        planner: row.try_get::<Option<&str>, _>("planner")?.map(Into::into),
        waits_until_ms: row.try_get("waits_until_ms")?,
        changed_ms: row.try_get("changed_ms")?,
    })
}

/// The identity that a row spells; rows hold only what was checked when it came in.
pub(super) fn identity(host: String, port: u16, rank: u32) -> Result<SeedIdentity, StoreError> {
    SeedIdentity::new(host, port, rank).map_err(|error| StoreError::Broken(error.to_string()))
}

pub(super) fn hash(bytes: Vec<u8>) -> Result<[u8; 32], StoreError> {
    bytes.try_into().map_err(|_| StoreError::Broken("a hash is not 32 bytes".into()))
}

pub(super) fn seed_key(bytes: Vec<u8>) -> Result<SeedKey, StoreError> {
    SeedKey::new(bytes).map_err(|error| StoreError::Broken(error.to_string()))
}
