//! How many seeds and requests each client has, and their bytes. Shares of clients bind only once a quota is nearly used up, and need not be exact: so
//! clients are counted by a sweep, and only while more than half of the quota is used; what this planner adds until the
//! next is added here. What other planners add is not seen before it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;

use super::Database;
use super::session::Connection;
use super::transaction::{Stopped, Work};
use super::view::Used;
use crate::decide::quota::OfClient;
use crate::decide::rows::{ROW_BYTES, RequestRow, SeedRow};
use crate::decide::{Changes, Tables, Wants};
#[cfg(test)]
use crate::store::simulation::sqlx;

/// Seeds, requests, and their bytes that came, less those that went, by client.
pub(super) type Difference = HashMap<IpAddr, (i64, i64, i64)>;

/// How many seeds and requests each client has, about. Locked for moments, never across an await.
#[derive(Debug, Default)]
pub(super) struct Clients(Mutex<Difference>);

impl Clients {
    /// Answers what is wanted of clients.
    pub(super) fn put(&self, wants: &Wants, tables: &mut Tables) {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for client in &wants.clients {
            let (seeds, requests, stored) = known.get(client).copied().unwrap_or_default();
            let [seeds, requests, stored] =
                [seeds, requests, stored].map(|count| usize::try_from(count).unwrap_or_default());
            tables.put_client(*client, OfClient { seeds, requests, stored });
        }
    }

    /// Notes what a batch has changed that was committed.
    pub(super) fn note(&self, difference: Difference) {
        if difference.is_empty() {
            return;
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (client, (seeds, requests, stored)) in difference {
            let theirs = known.entry(client).or_default();
            *theirs = (theirs.0 + seeds, theirs.1 + requests, theirs.2 + stored);
            // Else clients that come and go are all kept until the next sweep, which may be long to come.
            if (theirs.0, theirs.1) == (0, 0) {
                known.remove(&client);
            }
        }
    }

    /// They were counted.
    pub(super) fn are(&self, counted: Difference) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = counted;
    }
}

/// What a batch changes.
pub(super) fn difference(changes: &Changes) -> Difference {
    let mut difference = Difference::new();
    let bytes = |stored: usize| i64::try_from(stored).unwrap_or(i64::MAX);
    for changed in &changes.seeds {
        for (row, seeds) in [(&changed.before, -1), (&changed.after, 1)] {
            if let Some((row, client)) = row.as_ref().and_then(|row| Some((row, row.client?))) {
                let theirs = difference.entry(client).or_default();
                theirs.0 += seeds;
                theirs.2 += seeds * bytes(SeedRow::stored(&row.key));
            }
        }
    }
    for changed in &changes.requests {
        for (row, requests) in [(&changed.before, -1), (&changed.after, 1)] {
            if let Some((row, client)) = row.as_ref().and_then(|row| Some((row, row.wish.client?))) {
                let theirs = difference.entry(client).or_default();
                theirs.1 += requests;
                theirs.2 += requests * bytes(RequestRow::stored(&row.key, &row.wish));
            }
        }
    }
    difference.retain(|_, theirs| *theirs != (0, 0, 0));
    difference
}

/// Counts the seeds and requests of each client, if shares may bind before they are counted again.
pub(super) struct Counted<'a>(pub(super) &'a Database);

#[async_trait]
impl Work for Counted<'_> {
    type Done = Difference;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Difference, Stopped> {
        let usage = Used(self.0).attempt(&mut *connection).await?;
        if !usage.iter().any(|usage| usage.used > usage.most / 2) {
            return Ok(Difference::new());
        }
        let counted: Vec<(String, i64, i64, i64)> = sqlx::query_as(
            "/* count clients */
             SELECT client, sum(seeds)::bigint, sum(requests)::bigint, sum(texts)::bigint FROM (
                 SELECT client, count(*) AS seeds, 0 AS requests, sum(octet_length(seed_key)) AS texts
                 FROM seeds WHERE client IS NOT NULL GROUP BY client
                 UNION ALL
                 SELECT client, 0, count(*), sum(octet_length(seed_key) + octet_length(wish))
                 FROM requests WHERE client IS NOT NULL GROUP BY client) AS c
             GROUP BY client",
        )
        .fetch_all(connection)
        .await?;
        let row_bytes = i64::try_from(ROW_BYTES).unwrap_or(i64::MAX);
        let of_client = |(client, seeds, requests, texts): (String, i64, i64, i64)| {
            Some((client.parse().ok()?, (seeds, requests, (seeds + requests) * row_bytes + texts)))
        };
        Ok(counted.into_iter().filter_map(of_client).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_of_whom_nothing_is_left_are_forgotten() {
        let clients = Clients::default();
        let client = IpAddr::from([10, 0, 0, 7]);
        clients.note(Difference::from([(client, (2, 1, 9))]));
        clients.note(Difference::from([(client, (-2, 0, -6))]));
        assert_eq!(*clients.0.lock().unwrap(), Difference::from([(client, (0, 1, 3))]));
        clients.note(Difference::from([(client, (0, -1, -3))]));
        assert_eq!(*clients.0.lock().unwrap(), Difference::new());
    }
}
