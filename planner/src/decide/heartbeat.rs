//! What a heartbeat does that registers nothing.

use std::collections::HashSet;

use super::progress;
use super::tables::Tables;
use crate::domain::seed::{self, Heard};
use crate::store::commands::Heartbeat;
use crate::store::{Beat, Rules};

/// Notes when a seed was heard of, if it is known; gives its number if it is offered.
pub(super) fn hear(
    tables: &mut Tables,
    now: i64,
    rules: &Rules,
    command: &Heartbeat,
    period_ms: i64,
) -> (Heard, Option<i64>) {
    let Heartbeat { identity, key, incarnation, age_ms, owner, progress } = command;
    let row = tables.seed_at(identity);
    let known = row.map(|row| row.known(now, rules));
    let id = row.map(|row| row.id);
    let heard = seed::hear(known.as_ref(), key, incarnation.as_deref(), owner);
    let is_its = matches!(heard, Heard::Known | Heard::Draining);
    let Some(id) = id.filter(|_| is_its) else { return (heard, None) };
    tables.own(id, owner);
    note(tables, now, Beat { seed_id: id, age_ms: *age_ms });
    // What has waited for so long says nothing of now.
    let is_of_now = *age_ms < period_ms;
    if let Some(told) = progress.as_deref().filter(|_| heard == Heard::Known && is_of_now) {
        progress::of_itself(tables, now, id, told, period_ms);
    }
    (heard, (heard == Heard::Known).then_some(id))
}

/// Notes gathered heartbeats; gives the seeds of which no more are to be gathered: those that are gone or are to be
/// told that they are offered no more.
pub fn flush(tables: &mut Tables, now: i64, beats: &[Beat]) -> HashSet<i64> {
    let mut gone = HashSet::new();
    for beat in beats {
        note(tables, now, *beat);
        if tables.seed(beat.seed_id).is_none_or(|row| !is_gathered(row.removed, row.drained)) {
            gone.insert(beat.seed_id);
        }
    }
    gone
}

/// Whether heartbeats of a seed may be gathered: its worker need not be told anything.
pub fn is_gathered(removed: bool, drained: bool) -> bool {
    !removed && !drained
}

/// Heartbeats may arrive out of order: the latest counts.
fn note(tables: &mut Tables, now: i64, beat: Beat) {
    let heard_ms = now.saturating_sub(beat.age_ms);
    if tables.seed(beat.seed_id).is_some_and(|row| row.heard_ms < heard_ms) {
        tables.change(beat.seed_id, |row| row.heard_ms = heard_ms);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{NOW, any_seeds, tables};
    use super::*;

    proptest! {
        #[test]
        fn a_flush_makes_no_seed_younger_or_older_than_it_is_and_changes_nothing_else(
            seeds in any_seeds(), beats in prop::collection::vec((0i64..7, 0i64..100_000), 0..6),
        ) {
            let beats: Vec<Beat> = beats.into_iter().map(|(seed_id, age_ms)| Beat { seed_id, age_ms }).collect();
            let mut tables = tables(&seeds);
            let gone = flush(&mut tables, NOW, &beats);
            for before in &seeds {
                let told = beats.iter().filter(|beat| beat.seed_id == before.id).map(|beat| NOW - beat.age_ms);
                let heard_ms = told.max().unwrap_or(i64::MIN).max(before.heard_ms);
                let after = tables.seed(before.id).unwrap();
                prop_assert_eq!(after.as_ref(), &super::super::rows::SeedRow { heard_ms, ..before.clone() });
            }
            for beat in &beats {
                let is_offered = |row: &&super::super::rows::SeedRow| row.id == beat.seed_id && !row.removed && !row.drained;
                prop_assert_eq!(gone.contains(&beat.seed_id), !seeds.iter().any(|row| is_offered(&row)));
            }
        }
    }
}
