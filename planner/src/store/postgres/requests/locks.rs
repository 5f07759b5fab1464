//! Which rows of requests a transaction holds, and so what it may wait for.

use sqlx::postgres::PgRow;

use super::super::super::Command;
use super::super::batch::Chosen;
use super::super::session::Connection;
use super::super::transaction::{Stopped, is_locked};
use super::alive;
#[cfg(test)]
use crate::store::simulation::sqlx;

/// What a transaction has of requests.
#[derive(Default)]
pub(in super::super) struct Locks {
    /// Whether it holds a row, so that it waits for no lock any more.
    pub(in super::super) held: bool,
    /// Whether somebody waits for this planner's answer because of it.
    pub(super) answers: bool,
}

/// Locks, in their order, all rows that these commands name, and those that an earlier attempt of the transaction found
/// in other hands.
pub(in super::super) async fn lock(
    connection: &mut Connection,
    commands: &[Command],
    chosen: &Chosen,
) -> Result<Locks, Stopped> {
    let mut locks = Locks::default();
    let (mut leases, mut keys): (Vec<Vec<u8>>, Vec<Vec<u8>>) = (Vec::new(), Vec::new());
    for command in commands {
        match command {
            Command::Leave { lease, .. } => leases.push(lease.to_vec()),
            Command::Acquire { lease, queue: Some(queue), .. } => {
                leases.extend(queue.again.map(|_| lease.to_vec()));
                keys.extend(queue.idempotency.as_ref().map(|known| known.key.to_vec()));
            }
            _ => {}
        }
    }
    if leases.is_empty() && keys.is_empty() && chosen.requests.is_empty() {
        return Ok(locks);
    }
    let rows = sqlx::query(
        "SELECT id FROM requests WHERE lease_hash = ANY($1) OR idempotency = ANY($2) OR id = ANY($3)
         ORDER BY id FOR UPDATE",
    )
    .bind(leases)
    .bind(keys)
    .bind(chosen.requests.iter().copied().collect::<Vec<_>>())
    .fetch_all(connection)
    .await;
    locks.took(rows)?;
    Ok(locks)
}

impl Locks {
    /// The statement to lock with: the one that waits, once.
    pub(super) fn pick(&self, [wait, no_wait]: [&'static str; 2]) -> &'static str {
        if self.held { no_wait } else { wait }
    }

    /// Rows that such a statement has locked.
    pub(super) fn took(&mut self, rows: Result<Vec<PgRow>, sqlx::Error>) -> Result<Vec<PgRow>, Stopped> {
        match rows {
            Err(error) if self.held && is_locked(&error) => Err(Stopped::Again),
            rows => {
                let rows = rows?;
                self.held |= !rows.is_empty();
                Ok(rows)
            }
        }
    }

    /// Says that this planner answers, if somebody waits for it. Nothing is locked after that.
    pub(in super::super) async fn finish(
        &self,
        connection: &mut Connection,
        now: i64,
        planner: &str,
    ) -> Result<(), Stopped> {
        if self.answers { alive(connection, now, planner).await } else { Ok(()) }
    }
}
