//! What a decision has to see, read without locks. What it changes of that is compared when it is written
//! ([`super::write`]), so a row that another planner changes meanwhile is decided upon anew.
//!
//! A look is at most a statement a table, and each statement sees one moment: a look that shows no free point is a moment at
//! which there was none. Seeds come before requests. If another planner grants a request between the two, its row shows
//! that, and nobody is refused for a point that his own repetition has.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rfork_protocol::SeedKey;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::super::clock::Look;
use super::super::{LeaseHash, MAX_CALLED};
use super::Database;
use super::places::{key_hash, page};
use super::rows::{self, of_seeds};
use super::session::Connection;
use super::time::clock_ms;
use super::transaction::Stopped;
use crate::decide::rows::{RequestRow, SeedRow};
use crate::decide::{Near, Tables, Wants};
use crate::domain::policy::Policy;
#[cfg(test)]
use crate::store::simulation::sqlx;

/// More seeds than are asked for whose place has grown old that a page has.
const MORE_DUE: usize = 64;

/// What a transaction has loaded of seeds: what each was like, and the version of its row.
pub(super) type Seen = BTreeMap<i64, (Arc<SeedRow>, i64)>;

/// The looks of one decision.
pub(super) struct Load<'a> {
    store: &'a Database,
    /// What time it is for the decision; asked for by the first look.
    pub(super) now: Option<i64>,
    /// Whether it may add rows, and the first of their numbers.
    pub(super) adds_rows: bool,
    pub(super) first_number: i64,
    pub(super) seen: Seen,
    /// Keys of which the first look has shown whether somebody waits.
    waited_for: HashMap<SeedKey, bool>,
}

/// What a look has shown.
#[derive(Default)]
pub(super) struct Shown {
    seeds: Vec<Arc<SeedRow>>,
    offers: Vec<Offer>,
    requests: Vec<Arc<RequestRow>>,
    planners: Vec<(Arc<str>, i64)>,
    waiting: Vec<(SeedKey, Vec<Arc<RequestRow>>, bool)>,
    sources: Vec<(String, Option<String>)>,
    moves: Vec<(SeedKey, i64)>,
    hosts: Vec<String>,
    witnesses: Vec<SeedKey>,
}

#[derive(Clone)]
struct Offer {
    key: SeedKey,
    near: Near,
    limit: usize,
    seeds: Vec<Arc<SeedRow>>,
    due: Vec<Arc<SeedRow>>,
}

impl Shown {
    /// Answers what was wanted.
    pub(super) fn put(self, tables: &mut Tables) {
        self.seeds.into_iter().for_each(|row| tables.put_seed(row));
        for Offer { key, near, limit, seeds, due } in self.offers {
            let complete = seeds.len() < limit && due.len() <= limit + MORE_DUE;
            // Beside the page: what is on it comes before all that is not, and these may come after.
            for row in due {
                tables.put_seed(row);
            }
            tables.put_offer(&key, &near, limit, seeds, complete);
        }
        self.planners.iter().for_each(|(planner, until_ms)| tables.put_planner(planner, *until_ms));
        self.requests.into_iter().for_each(|row| tables.put_request(row));
        self.waiting.into_iter().for_each(|(key, rows, more)| tables.put_waiting(&key, rows, more));
        self.sources.into_iter().for_each(|(served, source)| tables.put_source(&served, source));
        self.moves.iter().for_each(|(key, moved_ms)| tables.put_move(key, *moved_ms));
        self.hosts.iter().for_each(|host| tables.put_host(host));
        self.witnesses.iter().for_each(|key| tables.put_witness(key));
    }
}

impl<'a> Load<'a> {
    /// Nothing was looked at yet.
    pub(super) fn new(store: &'a Database) -> Self {
        Self {
            store,
            now: None,
            adds_rows: false,
            first_number: 0,
            seen: Seen::new(),
            waited_for: HashMap::new(),
        }
    }

    /// What time it is for the decision.
    pub(super) fn now(&self) -> Result<i64, Stopped> {
        self.now.ok_or_else(|| Stopped::Broken("nothing was looked at".into()))
    }

    /// Looks at what is wanted, and at the seeds and requests of these numbers.
    pub(super) async fn look(
        &mut self,
        connection: &mut Connection,
        wants: &Wants,
        (seeds, requests): (&[i64], &[i64]),
    ) -> Result<Shown, Stopped> {
        let mut shown = Shown::default();
        let ids: Vec<i64> = wants.numbers.iter().chain(seeds).copied().collect();
        let sees_seeds = !(wants.identities.is_empty()
            && wants.leases.is_empty()
            && wants.readers.is_empty()
            && wants.leaders.is_empty()
            && wants.offers.is_empty()
            && wants.hosts.is_empty()
            && ids.is_empty());
        if sees_seeds || self.now.is_none() {
            self.seeds(connection, wants, &ids, &mut shown).await?;
        }
        if !(wants.leases.is_empty() && wants.names.is_empty() && requests.is_empty()) {
            self.requests(connection, wants, requests, &mut shown).await?;
            self.seeds_of_requests(connection, &mut shown).await?;
        } else if !wants.waiting.is_empty() {
            let is_unknown =
                |(key, after): (&SeedKey, &i64)| *after > 0 || self.waited_for.get(key) != Some(&false);
            if wants.waiting.iter().any(is_unknown) {
                self.requests(connection, wants, &[], &mut shown).await?;
            } else {
                shown.waiting = wants.waiting.keys().map(|key| (key.clone(), Vec::new(), false)).collect();
            }
        }
        self.sources(connection, wants, &mut shown).await?;
        shown.moves = moves(connection, wants).await?;
        self.witnesses(connection, wants, &mut shown).await?;
        Ok(shown)
    }

    /// Seeds, by what is wanted of them, and the time if it is not known yet.
    async fn seeds(
        &mut self,
        connection: &mut Connection,
        wants: &Wants,
        ids: &[i64],
        shown: &mut Shown,
    ) -> Result<(), Stopped> {
        let statement = match self.store.rules.policy {
            Policy::Balanced => BY_SHARE,
            Policy::Lru => BY_USE,
            Policy::Fifo => BY_HEARTBEAT,
        };
        let offers = wants.offers.iter().map(|((key, near), limit)| Offer {
            key: key.clone(),
            near: near.clone(),
            limit: *limit,
            seeds: Vec::new(),
            due: Vec::new(),
        });
        let mut offers: Vec<Offer> = offers.collect();
        let keys: Vec<&SeedKey> = wants.waiting.keys().collect();
        let clock = &self.store.time.clock;
        let from_ms = clock.passed_ms();
        let rows = sqlx::query(statement)
            .bind(self.now)
            .bind(clock.set_ms())
            .bind(self.store.rules.heartbeat_ttl_ms)
            .bind(wants.identities.iter().map(ToString::to_string).collect::<Vec<_>>())
            .bind(wants.leases.iter().map(|lease| lease.to_vec()).collect::<Vec<_>>())
            .bind(wants.hosts.iter().cloned().collect::<Vec<_>>())
            .bind(ids)
            .bind(offers.iter().map(|offer| page(&offer.key, &offer.near)).collect::<Vec<_>>())
            .bind(offers.iter().map(|offer| signed(offer.limit)).collect::<Vec<_>>())
            .bind(signed(MORE_DUE + 1))
            .bind(self.adds_rows && self.now.is_none())
            .bind(keys.iter().map(|key| key_hash(key)).collect::<Vec<_>>())
            .bind(offers.iter().map(|offer| offer.near == Near::Anywhere).collect::<Vec<_>>())
            .bind(wants.readers.iter().map(|lease| lease.to_vec()).collect::<Vec<_>>())
            .bind(offers.iter().map(|offer| key_hash(&offer.key)).collect::<Vec<_>>())
            .bind(wants.leaders.iter().map(key_hash).collect::<Vec<_>>())
            .fetch_all(&mut *connection)
            .await?;
        let until_ms = clock.passed_ms();
        for row in &rows {
            let Some(kind) = row.try_get::<Option<i32>, _>("kind")? else { continue };
            let seed = self.see(row)?.ok_or(Stopped::Again)?;
            // Counted from 1; 0 for what no page shows.
            let at: usize = rows::small(row.try_get("at")?)?;
            match (offers.get_mut(at.wrapping_sub(1)), kind) {
                (Some(offer), 1) => offer.seeds.push(seed),
                (Some(offer), 2) => offer.due.push(seed),
                _ => {
                    let waited_for = row.try_get("waited_for")?;
                    self.waited_for.entry(SeedKey::clone(&seed.key)).or_insert(waited_for);
                    shown.seeds.push(seed);
                }
            }
        }
        shown.offers.extend(offers);
        shown.hosts.extend(wants.hosts.iter().cloned());
        if self.now.is_none() {
            let first = rows.first().ok_or_else(|| Stopped::Broken("there is no time".into()))?;
            let waited_for: Vec<bool> = first.try_get("keys_waited_for")?;
            self.waited_for.extend(keys.into_iter().cloned().zip(waited_for));
            self.first_number = first.try_get::<Option<i64>, _>("first_number")?.unwrap_or_default();
            let look = Look { now_ms: first.try_get("now_ms")?, from_ms, until_ms };
            let asked = (look, first.try_get("offset_ms")?, first.try_get("seen_ms")?);
            self.now = Some(self.store.time.now_of(connection, asked).await?);
        }
        Ok(())
    }

    /// A seed as it was seen first; `None` when it is not so any more. A decision that mixed the two could refuse somebody
    /// for whom a seed was free at either moment: another one at the first, this one since.
    fn see(&mut self, row: &PgRow) -> Result<Option<Arc<SeedRow>>, Stopped> {
        let (id, version) = (row.try_get("id")?, row.try_get::<i64, _>("version")?);
        if let Some((seed, seen)) = self.seen.get(&id) {
            return Ok((*seen == version).then(|| seed.clone()));
        }
        let seed = Arc::new(rows::seed(row)?);
        self.seen.insert(id, (seed.clone(), version));
        Ok(Some(seed))
    }

    /// The seeds that leases of granted requests are on. A request may have been granted since seeds were looked at: one of
    /// them that shows the lease only now was seen as it is no more, and all is looked at anew.
    async fn seeds_of_requests(
        &mut self,
        connection: &mut Connection,
        shown: &mut Shown,
    ) -> Result<(), Stopped> {
        let granted = shown.requests.iter().filter(|row| row.waits_until_ms.is_none()).map(|row| row.lease);
        let mut leases: BTreeSet<LeaseHash> = granted.collect();
        for lease in self.seen.values().flat_map(|(seed, _)| &seed.leases) {
            leases.remove(&lease.lease);
        }
        if leases.is_empty() {
            return Ok(());
        }
        self.seeds(connection, &Wants { leases, ..Wants::default() }, &[], shown).await
    }

    /// Requests that are named, and pages of those that wait.
    async fn requests(
        &mut self,
        connection: &mut Connection,
        wants: &Wants,
        ids: &[i64],
        shown: &mut Shown,
    ) -> Result<(), Stopped> {
        let mut waiting: Vec<(SeedKey, Vec<Arc<RequestRow>>, bool)> =
            wants.waiting.keys().map(|key| (key.clone(), Vec::new(), false)).collect();
        let rows = sqlx::query(REQUESTS)
            .bind(wants.leases.iter().map(|lease| lease.to_vec()).collect::<Vec<_>>())
            .bind(wants.names.iter().map(|name| name.to_vec()).collect::<Vec<_>>())
            .bind(ids)
            .bind(waiting.iter().map(|(key, ..)| key_hash(key)).collect::<Vec<_>>())
            .bind(wants.waiting.values().copied().collect::<Vec<_>>())
            .bind(signed(MAX_CALLED + 1))
            .fetch_all(connection)
            .await?;
        for row in rows {
            let request = Arc::new(rows::request(&row)?);
            if let Some(planner) = &request.planner {
                let alive_until_ms = match row.try_get("alive_until_ms")? {
                    // This one knows that it answers.
                    _ if *planner == self.store.planner => i64::MAX,
                    until_ms => Option::unwrap_or_default(until_ms),
                };
                shown.planners.push((planner.clone(), alive_until_ms));
            }
            let at: usize = rows::small(row.try_get("at")?)?;
            match waiting.get_mut(at.wrapping_sub(1)) {
                Some((_, page, more)) if page.len() == MAX_CALLED => *more = true,
                Some((_, page, _)) => page.push(request),
                None => shown.requests.push(request),
            }
        }
        shown.waiting = waiting;
        Ok(())
    }

    async fn sources(
        &self,
        connection: &mut Connection,
        wants: &Wants,
        shown: &mut Shown,
    ) -> Result<(), Stopped> {
        if wants.sources.is_empty() {
            return Ok(());
        }
        let served: Vec<&String> = wants.sources.iter().collect();
        let known = sources(connection, &served).await?;
        let source = |served: &String| (served.clone(), known.get(served).cloned());
        shown.sources = wants.sources.iter().map(source).collect();
        Ok(())
    }

    async fn witnesses(
        &mut self,
        connection: &mut Connection,
        wants: &Wants,
        shown: &mut Shown,
    ) -> Result<(), Stopped> {
        if wants.witnesses.is_empty() {
            return Ok(());
        }
        let rows = sqlx::query(WITNESSES)
            .bind(self.now)
            .bind(self.store.rules.heartbeat_ttl_ms)
            .bind(wants.witnesses.iter().map(key_hash).collect::<Vec<_>>())
            .bind(self.seen.keys().copied().collect::<Vec<_>>())
            .fetch_all(connection)
            .await?;
        for row in &rows {
            shown.seeds.push(self.see(row)?.ok_or(Stopped::Again)?);
        }
        shown.witnesses = wants.witnesses.iter().cloned().collect();
        Ok(())
    }
}

/// Which instances serve the ranks of these.
pub(super) async fn sources(
    connection: &mut Connection,
    served: &[&String],
) -> Result<HashMap<String, String>, Stopped> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "/* load sources */ SELECT instance_id, source_instance FROM instances WHERE instance_id = ANY($1)",
    )
    .bind(served)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().collect())
}

/// When a place of these keys was last promised to a reader.
async fn moves(connection: &mut Connection, wants: &Wants) -> Result<Vec<(SeedKey, i64)>, Stopped> {
    if wants.moves.is_empty() {
        return Ok(Vec::new());
    }
    let moved: Vec<i64> = sqlx::query_scalar(
        "/* load moves */ SELECT coalesce(m.moved_ms, 0) FROM unnest($1::bytea[]) WITH ORDINALITY AS k (key_hash, at)
         LEFT JOIN moves m ON m.key_hash = k.key_hash ORDER BY k.at",
    )
    .bind(wants.moves.iter().map(key_hash).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    Ok(wants.moves.iter().cloned().zip(moved).collect())
}

/// A count as the database spells it.
fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

// A row is looked up in a subquery that ends in `OFFSET 0`: the database plans such a one by itself, and so by an index,
// where it would else read and hash whole tables, as it expects more rows than there are.

/// Seeds: those that are named (kind 0), those of each page in `$ordered`'s order (1), and those of each key whose place has
/// grown old (2). Silent ones are on no page. What is the same in every row is there without any seed, too.
macro_rules! seeds {
    ($ordered:literal) => {
        concat!(
            "/* load seeds */
             WITH t AS MATERIALIZED (
                 SELECT coalesce($1, ",
            clock_ms!("$2"),
            " + offset_ms) AS now_ms, offset_ms, seen_ms, CASE WHEN $11 THEN nextval('numbers') END AS first_number,
                     ARRAY(SELECT (SELECT r.id FROM requests r
                                   WHERE r.key_hash = k.key_hash AND r.waits_until_ms IS NOT NULL
                                   ORDER BY r.key_hash, r.id LIMIT 1) IS NOT NULL
                           FROM unnest($12::bytea[]) WITH ORDINALITY AS k (key_hash, at) ORDER BY k.at) AS keys_waited_for
                 FROM clock),
             wanted AS MATERIALIZED (
                 SELECT 0 AS kind, 0::bigint AS at, s.id AS seed_id FROM seeds s WHERE s.identity = ANY($4)
                 UNION ALL SELECT 0, 0, p.seed_id FROM points p WHERE p.lease_hash = ANY($5)
                 UNION ALL SELECT 0, 0, p.reader FROM points p WHERE p.lease_hash = ANY($14) AND p.reader IS NOT NULL
                 UNION ALL SELECT 0, 0, g.seed_id FROM loading_seeds g WHERE g.lead_key = ANY($16)
                 UNION ALL SELECT 0, 0, s.id FROM seeds s WHERE s.capped_host = ANY($6)
                 UNION ALL SELECT 0, 0, u.id FROM unnest($7::bigint[]) AS u (id)
                 UNION ALL SELECT 1, w.at, o.seed_id
                 FROM t CROSS JOIN unnest($8::bytea[], $9::bigint[], $15::bytea[]) WITH ORDINALITY AS w (page, most, key_hash, at)
                 CROSS JOIN LATERAL (",
            $ordered,
            " LIMIT w.most) AS o
                 UNION ALL SELECT 2, w.at, d.seed_id
                 FROM t CROSS JOIN unnest($8::bytea[], $9::bigint[], $13::bool[]) WITH ORDINALITY AS w (page, most, of_key, at)
                 CROSS JOIN LATERAL (
                     SELECT p.seed_id FROM places p JOIN heartbeats b ON b.seed_id = p.seed_id
                     WHERE w.of_key AND p.page = w.page AND p.due_ms <= t.now_ms AND b.last_ms > t.now_ms - $3
                     ORDER BY p.due_ms LIMIT w.most + $10) AS d)
             SELECT t.now_ms, t.offset_ms, t.seen_ms, t.first_number, t.keys_waited_for, f.*
             FROM t LEFT JOIN (
                 SELECT w.kind, w.at, one.* FROM wanted w CROSS JOIN LATERAL (
                     SELECT ",
            rows::seed_columns!(),
            ", w.kind = 0 AND (SELECT r.id FROM requests r
                                WHERE r.key_hash = s.key_hash AND r.waits_until_ms IS NOT NULL
                                ORDER BY r.key_hash, r.id LIMIT 1) IS NOT NULL AS waited_for
                     FROM ",
            of_seeds!(),
            " WHERE s.id = w.seed_id OFFSET 0) AS one) AS f ON TRUE"
        )
    };
}

const BY_SHARE: &str = seeds!(
    "SELECT p.seed_id FROM places p JOIN heartbeats b ON b.seed_id = p.seed_id
     WHERE p.page = w.page AND p.busy_share IS NOT NULL AND b.last_ms > t.now_ms - $3
     ORDER BY p.busy_share, p.used_ms, p.identity"
);
const BY_USE: &str = seeds!(
    "SELECT p.seed_id FROM places p JOIN heartbeats b ON b.seed_id = p.seed_id
     WHERE p.page = w.page AND p.busy_share IS NOT NULL AND b.last_ms > t.now_ms - $3
     ORDER BY p.used_ms, p.identity"
);
const BY_HEARTBEAT: &str = seeds!(
    "SELECT p.seed_id FROM heartbeats b JOIN places p ON p.seed_id = b.seed_id AND p.page = w.page
     WHERE b.key_hash = w.key_hash AND p.busy_share IS NOT NULL AND b.last_ms > t.now_ms - $3
     ORDER BY b.last_ms, p.identity"
);

const REQUESTS: &str = concat!(
    "/* load requests */
     SELECT w.at, one.* FROM (
         SELECT 0::bigint AS at, r.id FROM requests r WHERE r.lease_hash = ANY($1)
         UNION SELECT 0, r.id FROM requests r WHERE r.idempotency = ANY($2)
         UNION SELECT 0, u.id FROM unnest($3::bigint[]) AS u (id)
         UNION ALL SELECT k.at, page.id FROM unnest($4::bytea[], $5::bigint[]) WITH ORDINALITY AS k (key_hash, after, at)
         CROSS JOIN LATERAL (
             SELECT r.id FROM requests r
             WHERE r.key_hash = k.key_hash AND r.id > k.after AND r.waits_until_ms IS NOT NULL
             ORDER BY r.key_hash, r.id LIMIT $6) AS page) AS w
     CROSS JOIN LATERAL (SELECT p.alive_until_ms, ",
    rows::request_columns!(),
    " FROM requests r LEFT JOIN planners p ON p.id = r.planner WHERE r.id = w.id OFFSET 0) AS one ORDER BY w.at, w.id"
);

/// Of each key one that may be live, else one that may be suspect: all of its seeds are read for that alone.
const WITNESSES: &str = concat!(
    "/* load witnesses */
     SELECT one.* FROM unnest($3::bytea[]) AS k (key_hash) CROSS JOIN LATERAL (SELECT coalesce(
         (SELECT b.seed_id FROM heartbeats b JOIN seeds o ON o.id = b.seed_id
          WHERE b.key_hash = k.key_hash AND b.last_ms > coalesce($1::bigint - 3 * (
              SELECT g.period_ms FROM loading_seeds g WHERE g.seed_id = o.id), $1 - $2) AND NOT o.removed AND NOT o.drained
            AND o.suspect_until_ms <= $1 AND o.id <> ALL($4::bigint[])
            AND NOT EXISTS (SELECT 1 FROM loading_seeds g WHERE g.seed_id = o.id AND g.source_id IS NULL AND g.root IS NULL) LIMIT 1),
         (SELECT b.seed_id FROM heartbeats b JOIN seeds o ON o.id = b.seed_id
          WHERE b.key_hash = k.key_hash AND b.last_ms > coalesce($1::bigint - 3 * (
              SELECT g.period_ms FROM loading_seeds g WHERE g.seed_id = o.id), $1 - $2) AND NOT o.removed AND NOT o.drained
            AND o.suspect_until_ms > $1 AND o.id <> ALL($4::bigint[])
            AND NOT EXISTS (SELECT 1 FROM loading_seeds g WHERE g.seed_id = o.id AND g.source_id IS NULL AND g.root IS NULL) LIMIT 1)) AS seed_id) AS w
     CROSS JOIN LATERAL (SELECT ",
    rows::seed_columns!(),
    " FROM ",
    of_seeds!(),
    " WHERE s.id = w.seed_id OFFSET 0) AS one"
);
