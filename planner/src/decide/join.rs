//! How a grant registers its asker as a loading seed, and who an asker is when it is chosen for.

use rfork_protocol::SeedKey;

use super::inherit::{Heritage, Why};
use super::tables::Tables;
use super::{end, remember};
use crate::domain::chain::{self, Asker, Loading, Reader};
use crate::domain::pace::{Pace, Slow};
use crate::domain::policy::Wish;
use crate::domain::seed::{self, Joining, Known, Profile};
use crate::store::Rules;
use crate::store::commands::Move;
use crate::store::history::{EventKind, Happened};

/// What an asker would tell of itself as a seed.
fn profile(wish: &Wish, asker: &Asker) -> Profile {
    Profile {
        labels: asker.labels.clone(),
        location: wish.location.clone(),
        instance_id: wish.instance_id.clone(),
        incarnation: Some(asker.incarnation.clone()),
        content_id: None,
        origin: None,
    }
}

fn joining(known: Option<&Known>, key: &SeedKey, wish: &Wish, asker: &Asker) -> Joining {
    seed::join(known, key, &profile(wish, asker), &asker.owner)
}

/// An asker as it stands now. `None`: it cannot be registered, so it is granted what anybody would be.
pub(super) fn reader(
    tables: &Tables,
    now: i64,
    rules: &Rules,
    key: &SeedKey,
    wish: &Wish,
) -> Option<Box<Reader>> {
    let asker = wish.loading.as_deref()?;
    let row = tables.seed_at(&asker.identity);
    let known = row.map(|row| row.known(now, rules));
    let own = match joining(known.as_ref(), key, wish, asker) {
        Joining::New if tables.room_for_seed(key, wish.client, rules).is_err() => return None,
        Joining::Refused => return None,
        Joining::New | Joining::NewHolding if !tables.may_join() => return None,
        Joining::New | Joining::NewHolding => None,
        Joining::Repeated => row,
    };
    let stalled = asker.stalled.as_ref();
    let is_believed = stalled.is_some_and(|stalled| {
        let lease = tables.seed_at(&stalled.identity).and_then(|seed| seed.lease(&stalled.lease));
        lease.is_some_and(|lease| lease.lives(now))
    });
    let loading = own.and_then(|row| row.loading.as_ref());
    Some(Box::new(Reader {
        id: own.map(|row| row.id),
        identity: asker.identity.clone(),
        depth: loading.map(|loading| loading.depth),
        held: asker.held.clone(),
        starts_over: asker.starts_over,
        stalled: stalled.map(|stalled| stalled.identity.clone()),
        is_believed,
        was_moved: loading.is_some_and(|loading| loading.pace.was_moved),
    }))
}

/// Registers who was chosen a source for, as a loading seed that reads from it; gives its number. Its row stays if its
/// memory is the same, and so do the leases on it.
pub(super) fn join(
    tables: &mut Tables,
    now: i64,
    rules: &Rules,
    key: &SeedKey,
    wish: &Wish,
    (source, heritage): (i64, Option<&Heritage>),
) -> Option<i64> {
    let asker = wish.loading.as_deref().filter(|_| wish.reader.is_some())?;
    let row = tables.seed_at(&asker.identity).cloned();
    let known = row.as_ref().map(|row| row.known(now, rules));
    let source = tables.seed(source)?.clone();
    let before = row.as_ref().and_then(|row| row.loading.as_deref().cloned());
    let joining = joining(known.as_ref(), key, wish, asker);
    let of_same_memory = before.as_ref().filter(|_| joining == Joining::Repeated);
    let pace = match of_same_memory {
        Some(before) => before.pace.elsewhere(),
        // Whoever holds something has told elsewhere how many bytes came to it.
        None if asker.held.is_some() => Pace::default(),
        None => Pace::begun(now),
    };
    let mut loading = Loading {
        source: Some(source.id),
        depth: chain::depth_behind(source.loading.as_deref()),
        root: source.root().map(str::to_owned),
        held_bytes: 0,
        total_bytes: asker.total_bytes,
        arrived_bytes: of_same_memory.map_or(0, |before| before.arrived_bytes),
        period_ms: chain::PERIOD_MS,
        pace,
        lead: None,
    };
    loading.holds(asker.held.as_ref());
    let happened = Happened::to(&asker.identity, key, EventKind::Registered).by(wish.by.as_ref());
    let from = format!("loads from {}, depth {}", source.identity, loading.depth);
    let id = match (joining, row) {
        (Joining::Refused, _) => return None,
        (Joining::Repeated, Some(row)) => {
            let moved = before.is_some_and(|before| before.source != loading.source);
            if moved {
                let why = why_moved(wish, heritage);
                let moved = Happened { kind: EventKind::Moved, ..happened };
                remember::event(tables, now, rules, moved.with(format!("{from}{}", told(why))));
                tables.moved.push(why);
            }
            tables.change(row.id, |row| {
                row.heard_ms = row.heard_ms.max(now);
                row.loading = Some(Box::new(loading));
            });
            tables.own(row.id, &asker.owner);
            return Some(row.id);
        }
        (_, row) => {
            if let Some(row) = row {
                // Other memory: nothing of what it was remains, its leases included.
                end::seed(tables, now, rules, row.id);
            }
            let whose = (wish.client, &asker.owner);
            tables.insert_seed((&asker.identity, key), profile(wish, asker), now, whose, rules)
        }
    };
    let kind = if joining == Joining::New { EventKind::Registered } else { EventKind::NewHolding };
    remember::event(tables, now, rules, Happened { kind, ..happened }.with(from));
    tables.change(id, |row| row.loading = Some(Box::new(loading)));
    Some(id)
}

/// Why a loading seed gets another source.
fn why_moved(wish: &Wish, heritage: Option<&Heritage>) -> Move {
    let reader = wish.reader.as_deref();
    match heritage.map(|heritage| heritage.why) {
        Some(Why::Gone) => Move::Gone,
        Some(Why::Promised(Slow::FallsBehind)) => Move::FallsBehind,
        Some(Why::Promised(Slow::SendsSlowly)) => Move::SendsSlowly,
        None if reader.is_some_and(|reader| reader.was_moved && !reader.is_believed) => Move::Overtaken,
        None if reader.is_some_and(|reader| reader.stalled.is_some()) => Move::Stalled,
        None => Move::Other,
    }
}

/// The same for people, after what it reads from.
fn told(why: Move) -> &'static str {
    match why {
        Move::Gone => ": in the place of its source, which is lost or leaves",
        Move::FallsBehind => ": in the place of its source, which falls behind",
        Move::SendsSlowly => ": in the place of its source, which sends slowly",
        Move::Overtaken => ": behind those who have overtaken it",
        Move::Stalled => ": its source brought no byte",
        Move::Other => "",
    }
}

/// In which order workers of a key are chosen for that ask together: those who hold bytes before clients that cannot read
/// from loading seeds, and these before new ones that can; the latter by zone, so that a chain enters a zone once.
pub(super) fn order(wish: &Wish) -> (u8, Option<&str>) {
    match wish.loading.as_deref() {
        Some(asker) if asker.held.is_some() => (0, None),
        None => (1, None),
        Some(_) => (2, wish.location.zone.as_deref()),
    }
}
