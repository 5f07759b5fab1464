//! Whose place a reader gets when its source is lost, leaves, or was overtaken by it ([`super::overtake`]): the point that the source had passes to its reader in one
//! decision, and nobody finds it free in between. Sources before it that are gone as well are passed over at once.
//!
//! A reader's word alone moves nobody: the planner must not have heard of the source for three periods, or have asked it in
//! vain. Should the source live all the same, it reads on until the seed closes its connections, learns that its lease has
//! ended, and asks for another source.

use rfork_protocol::SeedKey;

use super::end;
use super::rows::{LeaseRow, SeedRow};
use super::tables::Tables;
use crate::domain::chain::{self, Offer, Reader, Stalled};
use crate::domain::pace::{Sending, Slow};
use crate::domain::policy::Wish;
use crate::store::Rules;
use crate::store::history::End;

/// A place that passes to a reader.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Heritage {
    /// The seed, and the number of its point.
    pub(super) chosen: (i64, u32),
    /// The sources that are passed over, by number: the reader's own first.
    pub(super) passed_over: Vec<i64>,
    /// Why.
    pub(super) why: Why,
}

/// Why a place passes to a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Its source is lost, or leaves.
    Gone,
    /// It was promised, as a link of its source is slow.
    Promised(Slow),
}

/// What is known of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The reader's source is there, or had no place that the reader may have.
    Nothing,
    /// The seed of this number has to be seen first.
    Unseen(i64),
    /// This one.
    Place(Heritage),
}

/// Looks for the place of the source that a worker names, if that is gone.
pub(super) fn find(tables: &Tables, now: i64, rules: &Rules, key: &SeedKey, wish: &Wish) -> Found {
    let Some((reader, stalled)) = believed(wish) else { return Found::Nothing };
    let own = tables.seed_at(&stalled.identity).filter(|row| row.key.as_ref() == key);
    let Some(mut at) = own else { return Found::Nothing };
    let why = match promise(at, reader) {
        Some(slow) => Why::Promised(slow),
        None if leaves(at) || is_lost(at, stalled, now, rules) => Why::Gone,
        None => return Found::Nothing,
    };
    let mut passed_over = Vec::new();
    // A depth is not always as it was told; a circle ends at the first that is seen twice.
    while !passed_over.contains(&at.id) && passed_over.len() <= rules.max_chain_depth as usize {
        passed_over.push(at.id);
        let Some(before) = at.loading.as_ref().and_then(|loading| loading.source) else { break };
        let Some(seed) = tables.seed(before) else {
            return if tables.has_seen(before) { Found::Nothing } else { Found::Unseen(before) };
        };
        let Some(lease) = seed.leases.iter().find(|lease| is_of(lease, at.id) && lease.lives(now)) else {
            break;
        };
        if seed.loading.is_some() && (leaves(seed) || seed.is_silent(now, rules)) {
            at = seed;
            continue;
        }
        let is_there = !seed.removed && !seed.is_silent(now, rules) && !wish.exclude.contains(&seed.identity);
        if is_there && may_read(reader, seed) {
            return Found::Place(Heritage { chosen: (seed.id, lease.point), passed_over, why });
        }
        break;
    }
    Found::Nothing
}

/// Ends the leases by which the place was held, and by which the reader read. The point is to be claimed at once.
pub(super) fn pass_on(tables: &mut Tables, now: i64, rules: &Rules, heritage: &Heritage, wish: &Wish) {
    let Some((_, stalled)) = believed(wish) else { return };
    let passed_on = End::PassedOn.into();
    for id in &heritage.passed_over {
        let Some(row) = tables.seed(*id).cloned() else { continue };
        if let Some(before) = row.loading.as_ref().and_then(|loading| loading.source) {
            end::leases(tables, now, rules, before, |lease| is_of(lease, *id), &passed_on);
        }
        end::leases(tables, now, rules, *id, |lease| lease.lease == stalled.lease, &passed_on);
        // It is no source until it is heard of.
        let silent_since = now.saturating_sub(row.silent_after_ms(rules));
        tables.change(*id, |row| row.heard_ms = row.heard_ms.min(silent_since));
        end::removed_seed(tables, now, rules, *id);
    }
}

/// The worker as a reader, and the source that it names, on which it has a live lease.
fn believed(wish: &Wish) -> Option<(&Reader, &Stalled)> {
    let reader = wish.reader.as_deref().filter(|reader| reader.is_believed)?;
    Some((reader, wish.loading.as_ref()?.stalled.as_ref()?))
}

fn is_of(lease: &LeaseRow, holder: i64) -> bool {
    lease.reader == Some(holder)
}

/// Whether a seed was taken out while it loads: by itself, or by an operator.
fn leaves(row: &SeedRow) -> bool {
    row.loading.is_some() && (row.removed || row.drained)
}

/// Why the place of a seed is promised to a reader, if it is.
fn promise(row: &SeedRow, reader: &Reader) -> Option<Slow> {
    let pace = row.loading.as_ref()?.pace;
    let is_slow = if pace.sends == Sending::Slow { Slow::SendsSlowly } else { Slow::FallsBehind };
    (reader.id.is_some() && pace.yields_to == reader.id).then_some(is_slow)
}

/// Whether a reader calls its source lost, and the planner hears nothing of it either. That it does not answer counts only
/// if it has answered before: what lies between may be a network policy.
fn is_lost(row: &SeedRow, stalled: &Stalled, now: i64, rules: &Rules) -> bool {
    let is_unanswered = stalled.unanswered && row.answered_ms > 0;
    row.loading.is_some() && stalled.lost && (is_unanswered || row.is_silent(now, rules))
}

fn may_read(reader: &Reader, seed: &SeedRow) -> bool {
    let loading = seed.loading.as_deref();
    let (identity, origin) = (&seed.identity, seed.profile.origin.as_deref());
    chain::may_read(reader, Offer { identity, root: seed.root(), origin, loading })
}
