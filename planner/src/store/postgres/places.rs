//! Where seeds stand: pages of those that are offered together, each in the order of [`crate::decide::place`].
//!
//! A place is written with what it follows from, by whoever changes that. It is the same for every policy, so that
//! planners with different ones can run side by side (but for seeds that nobody reads from: where `balanced` has them first
//! others have pages of their own, which only they keep), and whether a seed is silent is not in it, so that a flush changes
//! none. A lease or a suspicion that ends by itself changes no place; when the first does stands in the place, and such
//! seeds are offered beside those that it ranks until a sweep puts it right.

use rfork_protocol::SeedKey;
use sha2::{Digest, Sha256};

use super::super::Rules;
use super::session::Connection;
use super::transaction::Stopped;
use crate::decide::Near;
use crate::decide::place::{Among, HostUse, place};
use crate::decide::rows::SeedRow;
use crate::domain::policy::Policy;
#[cfg(test)]
use crate::store::simulation::sqlx;

/// By what a key is found, and the page of all its seeds.
pub(super) fn key_hash(key: &SeedKey) -> Vec<u8> {
    Sha256::digest(key.as_bytes()).to_vec()
}

/// What the seeds of a page have in common. A seed is on one page of each kind at most.
fn kind(near: &Near) -> u8 {
    match near {
        Near::Anywhere => 0,
        Near::Instance(_) => 1,
        Near::Node(_) => 2,
        Near::Rack(..) => 3,
        Near::Zone(_) => 4,
        Near::Idle => 5,
        Near::Reserve => 6,
        Near::Loading(of) => 7 + kind(of),
    }
}

/// By what a page is found.
pub(super) fn page(key: &SeedKey, near: &Near) -> Vec<u8> {
    let names: [Option<&str>; 2] = match near {
        Near::Anywhere => return key_hash(key),
        Near::Instance(name) | Near::Node(name) | Near::Zone(name) => [Some(name), None],
        Near::Rack(zone, rack) => [zone.as_deref(), Some(rack)],
        Near::Idle | Near::Reserve => [None, None],
        Near::Loading(of) => {
            return Sha256::new_with_prefix(page(key, of)).chain_update([kind(near)]).finalize().to_vec();
        }
    };
    let mut hash = Sha256::new_with_prefix(key_hash(key));
    hash.update([kind(near)]);
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
    kinds: Vec<i16>,
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
        let loads = row.loading.is_some();
        for near in std::iter::once(Near::Anywhere).chain(Near::of(&row.profile)) {
            let due_ms = at.due_ms.filter(|_| near == Near::Anywhere);
            if !loads {
                self.push(row, &near, share, due_ms);
                continue;
            }
            // When it is due stands on the page of its key, as for every seed.
            if near == Near::Anywhere {
                self.push(row, &near, None, due_ms);
            }
            self.push(row, &near.loading(), share.filter(|_| at.among == Among::Loading), None);
        }
        if loads {
            self.push(row, &Near::Reserve, share.filter(|_| at.among == Among::Reserve), None);
        }
        if rules.policy != Policy::Balanced {
            let idle = if loads { Near::Idle.loading() } else { Near::Idle };
            let is_idle = matches!(place(&heard, now, rules, host).among, Among::Idle | Among::LoadingIdle);
            self.push(row, &idle, share.filter(|_| is_idle), None);
        }
    }

    fn push(&mut self, row: &SeedRow, near: &Near, share: Option<i64>, due_ms: Option<i64>) {
        self.seeds.push(row.id);
        self.kinds.push(kind(near).into());
        self.pages.push(page(&row.key, near));
        self.shares.push(share);
        self.used_ms.push(row.used_ms);
        self.due_ms.push(due_ms);
        self.names.push(row.name.to_string());
    }

    /// Writes those that are not there as they are to be. Whoever does has the seeds' locks, or those of their hosts, since
    /// before this statement: nobody changes them between its look and its writing.
    pub(super) async fn write(self, connection: &mut Connection) -> Result<(), Stopped> {
        if self.seeds.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "/* write places */
             INSERT INTO places (seed_id, kind, page, busy_share, used_ms, due_ms, identity)
             SELECT t.* FROM unnest($1::bigint[], $2::smallint[], $3::bytea[], $4::bigint[], $5::bigint[], $6::bigint[],
                                    $7::text[]) AS t (seed_id, kind, page, busy_share, used_ms, due_ms, identity)
             WHERE NOT EXISTS (
                 SELECT FROM places p WHERE p.seed_id = t.seed_id AND p.kind = t.kind
                    AND (p.busy_share, p.used_ms, p.due_ms) IS NOT DISTINCT FROM (t.busy_share, t.used_ms, t.due_ms)
                 OFFSET 0)
             ON CONFLICT (seed_id, kind) DO UPDATE SET busy_share = excluded.busy_share, used_ms = excluded.used_ms,
                 due_ms = excluded.due_ms",
        )
        .bind(self.seeds)
        .bind(self.kinds)
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
