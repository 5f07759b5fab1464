//! Rows of the database as those over which is decided.

use std::net::IpAddr;
use std::sync::Arc;

use rfork_protocol::v1::Labels;
use rfork_protocol::{SeedIdentity, SeedKey};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::super::{Idempotency, wish};
use super::transaction::Stopped;
use crate::decide::rows::{LeaseRow, RequestRow, SeedRow};
use crate::domain::chain::{Lead, Loading};
use crate::domain::health::Health;
use crate::domain::location::Location;
use crate::domain::owner::Owner;
use crate::domain::pace::{Pace, Sending};
use crate::domain::seed::Profile;
use crate::domain::terms::Terms;

/// What is read of a seed from [`of_seeds`]. By name: a statement that was prepared for `*` fails once a planner of the
/// next version has added a column.
macro_rules! seed_columns {
    () => {
        "s.id, s.version, s.host, s.port, s.rank, s.identity, s.seed_key, s.capacity, s.lease_ttl_ms, s.host_capacity,
         s.removed, s.drained, s.failures, s.suspect_until_ms, s.answered_ms, s.used_ms, s.model_url, s.deploy_strategy,
         s.is_draft, s.zone, s.rack, s.node, s.instance_id, s.incarnation, s.content_id, s.origin, s.client, s.owner,
         s.owner_address, h.last_ms, l.points, l.leases, l.granted_ms, l.ends_ms, l.requesters, l.readers, g.source_id,
         g.depth, g.root, g.held_bytes, g.total_bytes, g.arrived_bytes, g.period_ms, g.told_ms, g.rate, g.lags, g.sends, g.was_moved, g.yields_to,
         g.yielded_ms, g.lead_until_ms, g.lead_moved_ms, g.lead_since_ms"
    };
}

/// Seeds `s` with their heartbeats `h`, their leases `l`, and what there is of them while they load, `g`.
macro_rules! of_seeds {
    () => {
        "seeds s JOIN heartbeats h ON h.seed_id = s.id LEFT JOIN loading_seeds g ON g.seed_id = s.id CROSS JOIN LATERAL (
             SELECT array_agg(p.n) AS points, array_agg(p.lease_hash) AS leases, array_agg(p.granted_ms) AS granted_ms,
                    array_agg(p.ends_ms) AS ends_ms, array_agg(p.requester) AS requesters,
                    array_agg(p.reader) AS readers
             FROM points p WHERE p.seed_id = s.id) AS l"
    };
}

/// What is read of a row of `requests r`.
macro_rules! request_columns {
    () => {
        "r.id, r.seed_key, r.lease_hash, r.idempotency, r.request_hash, r.attempt, r.wish, r.planner, r.waits_until_ms,
         r.changed_ms"
    };
}
pub(super) use {of_seeds, request_columns, seed_columns};

/// A seed, with its leases.
pub(super) fn seed(row: &PgRow) -> Result<SeedRow, Stopped> {
    let identity = identity(row)?;
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
    let host_capacity: Option<i32> = row.try_get("host_capacity")?;
    Ok(SeedRow {
        id: row.try_get("id")?,
        name: row.try_get::<&str, _>("identity")?.into(),
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
            capacity: small(row.try_get::<i32, _>("capacity")?.into())?,
            lease_ttl_ms: row.try_get("lease_ttl_ms")?,
            host_capacity: host_capacity.map(|capacity| small(capacity.into())).transpose()?,
        },
        removed: row.try_get("removed")?,
        drained: row.try_get("drained")?,
        loading: loading(row)?.map(Box::new),
        health: Health {
            failures: small(row.try_get::<i32, _>("failures")?.into())?,
            suspect_until_ms: row.try_get("suspect_until_ms")?,
        },
        answered_ms: row.try_get("answered_ms")?,
        used_ms: row.try_get("used_ms")?,
        heard_ms: row.try_get("last_ms")?,
        leases: leases(row)?,
    })
}

/// Of an address that cannot be read it is not known whose the seed is, which is not as if it were nobody's.
fn address(text: Option<&str>) -> Result<Option<IpAddr>, Stopped> {
    let parsed = text.map(str::parse).transpose();
    parsed.map_err(|error| Stopped::Broken(format!("the address of an owner: {error}")))
}

fn loading(row: &PgRow) -> Result<Option<Loading>, Stopped> {
    let Some(depth) = row.try_get::<Option<i32>, _>("depth")? else { return Ok(None) };
    let bytes = |name| Ok::<_, Stopped>(row.try_get::<i64, _>(name)?.unsigned_abs());
    Ok(Some(Loading {
        source: row.try_get("source_id")?,
        depth: small(depth.into())?,
        root: row.try_get("root")?,
        held_bytes: bytes("held_bytes")?,
        total_bytes: bytes("total_bytes")?,
        arrived_bytes: bytes("arrived_bytes")?,
        period_ms: row.try_get("period_ms")?,
        pace: Pace {
            told_ms: row.try_get("told_ms")?,
            rate: bytes("rate")?,
            lags: small(row.try_get::<i16, _>("lags")?.into())?,
            sends: Sending::of(row.try_get::<i16, _>("sends")?.into()),
            was_moved: row.try_get("was_moved")?,
            yields_to: row.try_get("yields_to")?,
            yielded_ms: row.try_get("yielded_ms")?,
        },
        lead: row
            .try_get::<Option<i64>, _>("lead_until_ms")?
            .zip(row.try_get("lead_moved_ms")?)
            .zip(row.try_get("lead_since_ms")?)
            .map(|((until_ms, moved_ms), since_ms)| Lead { until_ms, moved_ms, since_ms }),
    }))
}

fn leases(row: &PgRow) -> Result<Vec<LeaseRow>, Stopped> {
    let Some(points) = row.try_get::<Option<Vec<i32>>, _>("points")? else { return Ok(Vec::new()) };
    let hashes: Vec<Vec<u8>> = row.try_get("leases")?;
    let times =
        row.try_get::<Vec<i64>, _>("granted_ms")?.into_iter().zip(row.try_get::<Vec<i64>, _>("ends_ms")?);
    let requesters: Vec<Option<String>> = row.try_get("requesters")?;
    let readers: Vec<Option<i64>> = row.try_get("readers")?;
    let each = points.into_iter().zip(hashes).zip(times).zip(requesters).zip(readers);
    let leases = each.map(|((((point, lease), (granted_ms, ends_ms)), requester), reader)| {
        let requester = requester.map(Into::into);
        Ok(LeaseRow {
            point: small(point.into())?,
            lease: hash(lease)?,
            granted_ms,
            ends_ms,
            requester,
            reader,
        })
    });
    let mut leases = leases.collect::<Result<Vec<_>, Stopped>>()?;
    leases.sort_unstable_by_key(|lease| lease.point);
    Ok(leases)
}

/// A request.
pub(super) fn request(row: &PgRow) -> Result<RequestRow, Stopped> {
    let idempotency = match row.try_get::<Option<Vec<u8>>, _>("idempotency")? {
        Some(key) => Some(Idempotency { key: hash(key)?, request: hash(row.try_get("request_hash")?)? }),
        None => None,
    };
    Ok(RequestRow {
        id: row.try_get("id")?,
        key: Arc::new(seed_key(row.try_get("seed_key")?)?),
        lease: hash(row.try_get("lease_hash")?)?,
        idempotency,
        attempt: row.try_get("attempt")?,
        wish: Arc::new(wish::decode(row.try_get("wish")?).map_err(Stopped::Broken)?),
        planner: row.try_get::<Option<&str>, _>("planner")?.map(Into::into),
        waits_until_ms: row.try_get("waits_until_ms")?,
        changed_ms: row.try_get("changed_ms")?,
    })
}

/// The identity that a row spells; rows hold only what was checked when it came in.
pub(super) fn identity(row: &PgRow) -> Result<SeedIdentity, Stopped> {
    let port = small(row.try_get::<i32, _>("port")?.into())?;
    SeedIdentity::new(row.try_get::<String, _>("host")?, port, small(row.try_get("rank")?)?)
        .map_err(|error| Stopped::Broken(error.to_string()))
}

pub(super) fn seed_key(bytes: Vec<u8>) -> Result<SeedKey, Stopped> {
    SeedKey::new(bytes).map_err(|error| Stopped::Broken(error.to_string()))
}

pub(super) fn hash(bytes: Vec<u8>) -> Result<[u8; 32], Stopped> {
    bytes.try_into().map_err(|_| Stopped::Broken("a hash is not 32 bytes".into()))
}

/// A number that the schema keeps within bounds.
pub(super) fn small<T: TryFrom<i64>>(number: i64) -> Result<T, Stopped> {
    T::try_from(number).map_err(|_| Stopped::Broken(format!("{number} is out of bounds")))
}
