//! How fast bytes come to loading seeds, and whose place should be its reader's: PURE.
//!
//! Everybody behind a slow link is as slow as it is. Loading seeds tell how many bytes have come, so it is seen who gets
//! less than its source does. Whether its own link is slow or the sending of its source cannot be seen: so its reader
//! gets its place first. If that gets as little, the source sends slowly, and its place goes to this reader.
//!
//! Where the source reads storage, and the next one that reads from it gets as little, links bring less than storage does:
//! that one reads storage as well.
//!
//! Nobody is judged by what its source has not got either, and nobody who reads from a seed that holds everything: such a
//! one tells nothing. Whoever was moved stands behind, and no place is given to it by these rules. So two workers never
//! change places twice.

use super::chain::Loading;

/// Reports in a row by which somebody is judged.
pub const REPORTS: u32 = 3;

/// The least time between two moves of one key, in milliseconds.
pub const MOVE_PAUSE_MS: i64 = 1_000;

/// Of reports that come sooner after another one the rate says nothing, in milliseconds.
const SHORTEST_MS: i64 = 500;

/// For how long a place is kept for the reader to which it was promised, in milliseconds.
const PROMISE_MS: i64 = 10_000;

/// Whoever gets less than this part of what its source gets, per reader of that, falls behind.
const SLOW: u64 = 2;

/// With so many workers that read storage instead of one, each gets this part of what that one got, at worst: storage gives
/// all of them together no less than it gave before. Of more of them each had this part of what they had each.
pub(super) const SHARED: u64 = 2;

/// What is thought of how a seed sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Sending {
    /// As fast as it gets.
    #[default]
    Well = 0,
    /// A reader of it was moved because it fell behind.
    Doubtful = 1,
    /// The next one fell behind as well: it is granted to nobody while it loads.
    Slow = 2,
}

impl Sending {
    /// The one of a number, as stores spell it. One that is not known says nothing.
    pub fn of(number: i64) -> Self {
        [Self::Doubtful, Self::Slow].into_iter().find(|sends| *sends as i64 == number).unwrap_or_default()
    }
}

/// How fast bytes come to a loading seed, and what follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pace {
    /// When it told how many bytes had come, Unix milliseconds; 0 if it has not since it reads from its source.
    pub told_ms: i64,
    /// Bytes a second between its last two reports.
    pub rate: u64,
    /// Its last reports in a row by which it falls behind its source, up to [`REPORTS`].
    pub lags: u32,
    /// How it sends.
    pub sends: Sending,
    /// Whether its place was given to a reader of it.
    pub was_moved: bool,
    /// The number of the reader that is to have its place.
    pub yields_to: Option<i64>,
    /// When that was decided, or was the last time; of one that reads storage, when somebody was last let read it beside. Unix
    /// milliseconds.
    pub yielded_ms: i64,
}

/// A source with which its reader is compared: one that loads, from another one or from storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// Bytes a second that come to it.
    pub rate: u64,
    /// What it holds.
    pub held_bytes: u64,
    /// How many read from it.
    pub readers: u32,
}

impl Pace {
    /// Of a worker that begins with nothing.
    pub fn begun(now: i64) -> Self {
        Self { told_ms: now, ..Self::default() }
    }

    /// Of one that reads from another source now: nothing is known of that yet.
    #[must_use]
    pub fn elsewhere(self) -> Self {
        Self { told_ms: 0, rate: 0, lags: 0, yields_to: None, ..self }
    }

    /// Whether a report of this moment says how fast bytes come.
    pub(super) fn is_due(&self, now: i64) -> bool {
        now.saturating_sub(self.told_ms) >= SHORTEST_MS
    }

    /// So many bytes have come since the last report, and so many are held. Gives whether it falls behind its source, if
    /// that can be said.
    pub(super) fn hear(
        &mut self,
        now: i64,
        bytes: u64,
        held_bytes: u64,
        ahead: Option<Ahead>,
    ) -> Option<bool> {
        let since_ms = std::mem::replace(&mut self.told_ms, now);
        if since_ms == 0 {
            return None;
        }
        let ms = u128::try_from(now.saturating_sub(since_ms)).unwrap_or(1).max(1);
        self.rate = u64::try_from(u128::from(bytes) * 1_000 / ms).unwrap_or(u64::MAX);
        let Some(ahead) = ahead.filter(|ahead| ahead.rate > 0) else {
            self.lags = 0;
            return None;
        };
        // What its source told a moment before is compared with what it has now.
        let share = ahead.rate / u64::from(ahead.readers.max(1));
        let is_behind = held_bytes < ahead.held_bytes && self.rate.saturating_mul(SLOW) < share;
        self.lags = if is_behind { self.lags.saturating_add(1).min(REPORTS) } else { 0 };
        Some(is_behind)
    }

    fn falls_behind(&self) -> bool {
        self.lags >= REPORTS
    }

    /// Whether its place is promised to another one than this, just now.
    fn is_promised(&self, reader: i64, now: i64) -> bool {
        self.yields_to.is_some_and(|to| to != reader) && now.saturating_sub(self.yielded_ms) < PROMISE_MS
    }
}

/// Why a place goes to a reader of who has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slow {
    /// Who has it falls behind its source, and its readers starve.
    FallsBehind,
    /// Readers of who has it fall behind, one after the other.
    SendsSlowly,
}

/// Somebody who reads from a loading seed, when it tells how far it is.
#[derive(Debug, Clone, Copy)]
pub struct Telling<'a> {
    /// Its number.
    pub id: i64,
    /// What is known of it.
    pub reader: &'a Loading,
    /// The same of its source.
    pub source: &'a Loading,
    /// The same of the source's source; `None` when that holds everything, or is not known.
    pub before: Option<&'a Loading>,
    /// Whether it reads from another zone: that the way between two is slow is no fault of who sends.
    pub crosses_zones: bool,
}

/// Whether a reader of one that reads storage would be loaded sooner if it read that as well, though each of them then gets
/// half as much. Has it a reader that could have its place, its own link may be the slow one: the first such has been
/// overtaken, and this is the next.
pub fn is_sooner_alone(telling: Telling<'_>, has_readers: bool) -> bool {
    let Telling { reader, source, .. } = telling;
    let may_be_its_link = source.pace.sends == Sending::Well && has_readers;
    if source.source.is_some() || !reader.pace.falls_behind() || reader.pace.was_moved || may_be_its_link {
        return false;
    }
    let left = reader.total_bytes.saturating_sub(reader.held_bytes);
    // Bytes of an origin are compared with storage.
    let to_read = if reader.has_origin() { reader.total_bytes } else { left };
    let [to_read, left] = [to_read.saturating_mul(SHARED), left].map(u128::from);
    to_read * u128::from(reader.pace.rate) <= left * u128::from(source.pace.rate)
}

/// Whether somebody falls behind, so that it may have to be judged, whatever the source's source is.
pub fn may_be_judged(telling: Telling<'_>, now: i64) -> bool {
    let Telling { id, reader, source, .. } = telling;
    let has_place = source.source.is_some() && !source.pace.is_promised(id, now);
    has_place && !reader.pace.was_moved && (reader.pace.falls_behind() || source.pace.falls_behind())
}

/// Whether the place of a source is to be its reader's.
pub fn judge(telling: Telling<'_>, now: i64) -> Option<Slow> {
    let Telling { reader, source, before, crosses_zones, .. } = telling;
    if !may_be_judged(telling, now) {
        return None;
    }
    if reader.pace.falls_behind() && source.pace.sends != Sending::Well && !crosses_zones {
        return Some(Slow::SendsSlowly);
    }
    let sends = before?.pace.sends;
    // Where a reader was moved already, the next one shows whether their source sends slowly.
    let says_nothing_of_before = sends == Sending::Doubtful && source.pace.was_moved;
    let has_what_came =
        reader.held_bytes.saturating_add(source.pace.rate.saturating_mul(2)) >= source.held_bytes;
    let is_slow = source.pace.falls_behind() && (sends == Sending::Well || says_nothing_of_before);
    (is_slow && has_what_came).then_some(Slow::FallsBehind)
}

#[cfg(test)]
mod tests;
