//! Which instance serves the ranks of another one.
//!
//! The first rank of an instance that is served decides; the others then prefer seeds of the same source. It is
//! a preference: two planners that decide at the same moment cost nothing but that, and the first stays.
//!
//! Rows are written last in a transaction, in their order, so that nobody waits for anything while holding one.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;

use super::super::INSTANCE_MEMORY_MS;
use super::Database;
use super::session::Connection;
use super::transaction::{Stopped, Work};
#[cfg(test)]
use crate::store::simulation::sqlx;

/// The most rows that one call of [`Forget`] ends.
const STEP_ROWS: i64 = 500;

/// Sources, by the instance that they serve.
#[derive(Debug, Default)]
pub(super) struct Sources {
    known: BTreeMap<String, String>,
    /// Those that are to be written: new, or last used long ago.
    to_write: BTreeSet<String>,
}

impl Sources {
    /// Reads those of these instances that are not known yet.
    pub(super) async fn load(
        &mut self,
        connection: &mut Connection,
        now: i64,
        instances: impl Iterator<Item = &str>,
    ) -> Result<(), Stopped> {
        let unknown = instances.filter(|instance| !self.known.contains_key(*instance));
        let wanted: Vec<&str> = unknown.collect::<BTreeSet<_>>().into_iter().collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let rows: Vec<(String, String, i64)> = sqlx::query_as(
            "SELECT instance_id, source_instance, used_ms FROM instances WHERE instance_id = ANY($1)",
        )
        .bind(&wanted)
        .fetch_all(connection)
        .await?;
        for (instance, source, used_ms) in rows {
            if used_ms <= now.saturating_sub(INSTANCE_MEMORY_MS / 8) {
                self.to_write.insert(instance.clone());
            }
            self.known.insert(instance, source);
        }
        Ok(())
    }

    pub(super) fn get(&self, instance: &str) -> Option<&String> {
        self.known.get(instance)
    }

    pub(super) fn settle(&mut self, instance: &str, source: &str) {
        self.known.insert(instance.to_owned(), source.to_owned());
        self.to_write.insert(instance.to_owned());
    }

    /// Writes what is new.
    pub(super) async fn write(&self, connection: &mut Connection, now: i64) -> Result<(), Stopped> {
        if self.to_write.is_empty() {
            return Ok(());
        }
        let rows: (Vec<&str>, Vec<&str>) = self
            .to_write
            .iter()
            .filter_map(|instance| Some((instance.as_str(), self.known.get(instance)?.as_str())))
            .unzip();
        sqlx::query(
            "INSERT INTO instances (instance_id, source_instance, used_ms)
             SELECT t.*, $3 FROM unnest($1::text[], $2::text[]) AS t (instance_id, source_instance)
             ORDER BY t.instance_id COLLATE \"C\"
             ON CONFLICT (instance_id) DO UPDATE SET used_ms = excluded.used_ms",
        )
        .bind(rows.0)
        .bind(rows.1)
        .bind(now)
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// The work of [`super::super::Store::source_instance`].
pub(super) struct Source<'a> {
    pub(super) store: &'a Database,
    pub(super) instance: &'a str,
}

#[async_trait]
impl Work for Source<'_> {
    type Done = Option<String>;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<Option<String>, Stopped> {
        let now = self.store.now_to_read(connection).await?;
        let mut sources = Sources::default();
        sources.load(connection, now, std::iter::once(self.instance)).await?;
        Ok(sources.get(self.instance).cloned())
    }
}

/// Forgets a bounded number of those that were not used for long; gives how many.
pub(super) struct Forget<'a>(pub(super) &'a Database);

#[async_trait]
impl Work for Forget<'_> {
    type Done = u64;

    async fn attempt(&mut self, connection: &mut Connection) -> Result<u64, Stopped> {
        let now = self.0.now(connection).await?;
        let forgotten = sqlx::query(
            "DELETE FROM instances WHERE instance_id IN (
                 SELECT instance_id FROM instances WHERE used_ms <= $1
                 ORDER BY instance_id COLLATE \"C\" LIMIT $2 FOR UPDATE)",
        )
        .bind(now.saturating_sub(INSTANCE_MEMORY_MS))
        .bind(STEP_ROWS)
        .execute(connection)
        .await?;
        Ok(forgotten.rows_affected())
    }
}
