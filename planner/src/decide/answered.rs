//! What it means that a seed answered when it was asked for its health.

use super::tables::Tables;
use crate::store::commands::Answered;

/// Notes it for the holding that was asked, not for a later one; gives whether that is still there.
pub(super) fn answered(tables: &mut Tables, now: i64, command: &Answered) -> bool {
    let Some(row) = tables.seed_at(&command.identity).filter(|row| row.id == command.seed_id) else {
        return false;
    };
    tables.change(row.id, |row| row.answered_ms = now).is_some()
}
