//! Who is overtaken by its reader: the place of a loading seed with a slow link is promised to a reader, which is advised
//! to ask for it ([`super::inherit`]). It is decided when that one renews its lease, by the reports of loading seeds alone
//! ([`pace`]). Of a key one place is promised a second, whichever planner does it. Where links bring less than storage does,
//! a reader of who reads that is advised to read it as well.

use std::sync::Arc;

use rfork_protocol::SeedKey;
use rfork_protocol::v2::Advice;

use super::remember;
use super::rows::SeedRow;
use super::tables::Tables;
use super::wants::Wants;
use crate::domain::chain::Loading;
use crate::domain::pace::{self, Sending, Slow, Telling};
use crate::store::Rules;
use crate::store::commands::{Renew, Renewed};
use crate::store::history::{EventKind, Happened};

/// A loading seed that has told how far it is, and its source, which loads as well.
struct Pair {
    reader: Arc<SeedRow>,
    source: Arc<SeedRow>,
}

/// What has to be seen to judge those of whom renewals tell.
pub(super) fn wants(
    tables: &Tables,
    now: i64,
    rules: &Rules,
    renewals: &[Renew],
    renewed: &[Option<Renewed>],
) -> Wants {
    let mut wants = Wants::default();
    for pair in renewals.iter().zip(renewed).filter_map(|told| pair(tables, told)) {
        let is_sooner_alone = pair.is_sooner_alone(now, rules);
        if !is_sooner_alone && !pair.telling(None).is_some_and(|telling| pace::may_be_judged(telling, now)) {
            continue;
        }
        wants.numbers.extend(pair.before().filter(|before| !tables.has_seen(*before)));
        if !tables.moves.contains_key(&*pair.source.key) {
            wants.moves.insert(SeedKey::clone(&pair.source.key));
        }
    }
    wants
}

/// Judges, and advises those to move to whom a place is promised.
pub(super) fn overtake(
    tables: &mut Tables,
    now: i64,
    rules: &Rules,
    renewals: &[Renew],
    renewed: &mut [Option<Renewed>],
) {
    for (renewal, renewed) in renewals.iter().zip(renewed) {
        let Some(pair) = pair(tables, (renewal, renewed)) else { continue };
        let advice = if pair.is_promised() || promise(tables, now, rules, &pair) {
            Advice::Move
        } else if reads_storage(tables, now, rules, &pair) {
            Advice::ReadStorage
        } else {
            continue;
        };
        if let Some(guidance) = renewed.as_mut().and_then(|renewed| renewed.loading.as_mut()) {
            guidance.advice = Some(advice);
        }
    }
}

/// Gives whether the place of the source is the reader's from now on.
fn promise(tables: &mut Tables, now: i64, rules: &Rules, pair: &Pair) -> bool {
    let Pair { reader, source } = pair;
    let before = pair.before().and_then(|before| tables.seed(before)).cloned();
    let is_there = before.as_ref().is_some_and(|row| !row.removed && !row.is_silent(now, rules));
    let before = before.filter(|_| is_there);
    let of_before = before.as_ref().and_then(|row| row.loading.as_deref());
    let slow = pair.telling(of_before).and_then(|telling| pace::judge(telling, now));
    let Some(slow) = slow.filter(|_| is_there && tables.may_move(&source.key, now)) else { return false };
    let was_moved = source.loading.as_ref().is_some_and(|loading| loading.pace.was_moved);
    change(tables, source.id, |loading| {
        let pace = &mut loading.pace;
        (pace.was_moved, pace.yields_to, pace.yielded_ms) = (true, Some(reader.id), now);
        if slow == Slow::SendsSlowly {
            pace.sends = Sending::Slow;
        }
    });
    if let Some(before) = before.filter(|_| slow == Slow::FallsBehind && !was_moved) {
        change(tables, before.id, |loading| loading.pace.sends = Sending::Doubtful);
    }
    tables.note_move(&source.key, now);
    true
}

/// Gives whether the reader is to read storage as well as its source. What they then get is seen before the next one does.
fn reads_storage(tables: &mut Tables, now: i64, rules: &Rules, pair: &Pair) -> bool {
    let Pair { reader, source } = pair;
    if !pair.is_sooner_alone(now, rules) || !tables.may_move(&source.key, now) {
        return false;
    }
    change(tables, source.id, |loading| loading.pace.sends = Sending::Well);
    // Once: whoever cannot do it would be told with each renewal.
    change(tables, reader.id, |loading| loading.pace.was_moved = true);
    tables.note_move(&source.key, now);
    let why = format!("reads storage beside {}, which gets more from it than it sends", source.identity);
    let happened = Happened::to(&reader.identity, &reader.key, EventKind::Leads);
    remember::event(tables, now, rules, happened.with(why));
    true
}

fn change(tables: &mut Tables, id: i64, change: impl FnOnce(&mut Loading)) {
    tables.change(id, |row| row.loading.as_deref_mut().map(change));
}

fn pair(tables: &Tables, (renewal, renewed): (&Renew, &Option<Renewed>)) -> Option<Pair> {
    // Whoever is told something else is no reader that could move, or is advised to move anyway.
    renewed.as_ref()?.loading.as_ref().filter(|guidance| guidance.advice.is_none())?;
    let source = tables.seed_at(&renewal.identity)?;
    let reader = tables.seed(source.lease(&renewal.lease)?.reader?)?;
    Some(Pair { reader: reader.clone(), source: source.clone() })
}

impl Pair {
    /// The source's source.
    fn before(&self) -> Option<i64> {
        self.source.loading.as_ref()?.source
    }

    fn is_promised(&self) -> bool {
        let loading = self.source.loading.as_ref();
        loading.is_some_and(|loading| loading.pace.yields_to == Some(self.reader.id))
    }

    /// Excluded: the source has just been lost, and its last rate is compared with nothing.
    fn is_sooner_alone(&self, now: i64, rules: &Rules) -> bool {
        let Self { source, .. } = self;
        let period_ms = source.loading.as_ref().map_or(0, |loading| loading.period_ms);
        let is_heard = source.heard_ms > now.saturating_sub(period_ms.saturating_mul(2));
        if source.removed || source.drained || source.is_silent(now, rules) || !is_heard {
            return false;
        }
        let has_readers = self.reader.live_leases(now) > 0;
        self.telling(None).is_some_and(|telling| pace::is_sooner_alone(telling, has_readers))
    }

    fn telling<'a>(&'a self, before: Option<&'a Loading>) -> Option<Telling<'a>> {
        let zones = [&self.reader, &self.source].map(|row| row.profile.location.zone.as_ref());
        Some(Telling {
            id: self.reader.id,
            reader: self.reader.loading.as_deref()?,
            source: self.source.loading.as_deref()?,
            before,
            crosses_zones: zones[0] != zones[1],
        })
    }
}
