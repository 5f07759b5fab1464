//! Where seeds stand: pages of those that are offered together, each in the order of [`crate::decide::place`].
//!
//! A place is written with what it follows from, by whoever changes that. It is the same for every policy, so that
//! planners with different ones can run side by side, and whether a seed is silent is not in it, so that a flush changes
//! none. A lease or a suspicion that ends by itself changes no place; when the first does stands in the place, and such
//! seeds are offered beside those that it ranks until a sweep puts it right.

use rfork_protocol::SeedKey;
use sha2::{Digest, Sha256};

use super::super::Rules;
use super::session::Connection;
use super::transaction::Stopped;
use crate::decide::Near;
use crate::decide::place::{HostUse, place};
use crate::decide::rows::SeedRow;
use crate::domain::policy::Policy;
#[cfg(test)]
use crate::store::simulation::sqlx;

/// By what a key is found, and the page of all its seeds.
pub(super) fn key_hash(key: &SeedKey) -> Vec<u8> {
    Sha256::digest(key.as_bytes()).to_vec()
}

/// By what a page is found.
pub(super) fn page(key: &SeedKey, near: &Near) -> Vec<u8> {
    let (zone, rack);
    let (kind, names): (u8, [Option<&str>; 2]) = match near {
        Near::Anywhere => return key_hash(key),
        Near::Instance(instance) => (1, [Some(instance), None]),
        Near::Node(node) => (2, [Some(node), None]),
        Near::Rack(of, name) => {
            (zone, rack) = (of.as_deref(), name.as_str());
            (3, [zone, Some(rack)])
        }
        Near::Zone(zone) => (4, [Some(zone), None]),
        Near::Idle => (5, [None, None]),
        Near::Reserve => (6, [None, None]),
        Near::Loading(near) => {
            return Sha256::new_with_prefix(page(key, near)).chain_update([7]).finalize().to_vec();
        }
    };
    let mut hash = Sha256::new_with_prefix(key_hash(key));
    hash.update([kind]);
    for name in names {
        // No two lists of names give the same bytes.
        hash.update([u8::from(name.is_some())]);
        hash.update(name.map_or(0, str::len).to_le_bytes());
        hash.update(name.unwrap_or_default());
    }
    hash.finalize().to_vec()
}

/// Places to be written, a column each.
#[derive(Debug, Default)]
pub(super) struct Places {
    seeds: Vec<i64>,
    pages: Vec<Vec<u8>>,
    shares: Vec<Option<i64>>,
    used_ms: Vec<i64>,
    due_ms: Vec<Option<i64>>,
    names: Vec<String>,
}

impl Places {
    /// Adds those of a seed at `now`; `host` where its host's leases are bounded.
    pub(super) fn add(&mut self, row: &SeedRow, now: i64, rules: &Rules, host: Option<HostUse>) {
        let heard = SeedRow { heard_ms: i64::MAX, ..row.clone() };
        let balanced = Rules { policy: Policy::Balanced, ..rules.clone() };
        let at = place(&heard, now, &balanced, host);
        let share = at.rank.map(|(share, _)| i64::try_from(share).unwrap_or(i64::MAX));
        for near in std::iter::once(Near::Anywhere).chain(Near::of(&row.profile)) {
            self.seeds.push(row.id);
            self.pages.push(page(&row.key, &near));
            self.shares.push(share);
            self.used_ms.push(row.used_ms);
            self.due_ms.push(at.due_ms.filter(|_| near == Near::Anywhere));
            self.names.push(row.name.to_string());
        }
    }

    /// Writes them. Whoever does has the seeds' locks, or those of their hosts.
    pub(super) async fn write(self, connection: &mut Connection) -> Result<(), Stopped> {
        if self.seeds.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "/* write places */
             INSERT INTO places (seed_id, page, busy_share, used_ms, due_ms, identity)
             SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[])
             ON CONFLICT (seed_id, page) DO UPDATE SET busy_share = excluded.busy_share, used_ms = excluded.used_ms,
                 due_ms = excluded.due_ms",
        )
        .bind(self.seeds)
        .bind(self.pages)
        .bind(self.shares)
        .bind(self.used_ms)
        .bind(self.due_ms)
        .bind(self.names)
        .execute(connection)
        .await?;
        Ok(())
    }
}
