//! Which seeds were offered, for certain and possibly, and whether grants and refusals fit that.

use std::collections::BTreeMap;

use super::leases::Life;
use super::{Answer, Asked, Exchange, History, Seed, Span, Violation};

/// A granted seed holds what was asked for, was heard of in time, and was not removed.
pub(super) fn check_grants(history: &History, lives: &[Life], found: &mut Vec<Violation>) {
    let terms = &history.terms;
    let mut spoken: BTreeMap<&str, Vec<&Exchange>> = BTreeMap::new();
    for exchange in &history.exchanges {
        if let Asked::Heartbeat(seed) | Asked::Remove(seed) = &exchange.asked {
            spoken.entry(seed).or_default().push(exchange);
        }
    }
    // Until when a request may have had its effect.
    let effect_us = |exchange: &Exchange| match exchange.answer {
        Answer::Unclear(_) => exchange.span.until_us + terms.settle_us,
        _ => exchange.span.until_us,
    };
    for grant in &history.exchanges {
        let (Asked::Acquire(key), Answer::Granted { seed, .. }) = (&grant.asked, &grant.answer) else {
            continue;
        };
        let spoken = spoken.get(seed.as_str()).map_or(&[][..], |spoken| spoken);
        // A heartbeat that may have come between `after_us` and the grant.
        let heard_since = |after_us: u64| {
            spoken.iter().any(|exchange| {
                matches!(exchange.asked, Asked::Heartbeat(_))
                    && exchange.span.from_us <= grant.span.until_us
                    && effect_us(exchange) >= after_us
            })
        };
        let silent_since = grant.span.from_us.saturating_sub(terms.heartbeat_ttl_us + terms.slack_us);
        let holds_it = history.seed(seed).is_some_and(|known| known.key == *key);
        let removed = spoken.iter().any(|removal| {
            let before = removal.span.until_us < grant.span.from_us;
            let drains = lives.iter().any(|life| {
                life.seed == *seed
                    && life.certain.contains(removal.span.from_us)
                    && life.certain.contains(grant.span.until_us)
            });
            match removal.answer {
                Answer::Draining => before && (drains || !heard_since(removal.span.from_us)),
                Answer::Done if matches!(removal.asked, Asked::Remove(_)) => {
                    before && !heard_since(removal.span.from_us)
                }
                _ => false,
            }
        });
        if !holds_it || !heard_since(silent_since) || removed {
            found.push(Violation::NotOffered(grant.clone()));
        }
    }
}

/// Nobody is refused while a point is certainly free.
pub(super) fn check_refusals(history: &History, lives: &[Life], found: &mut Vec<Violation>) {
    let mut keys: BTreeMap<&str, Key<'_>> = BTreeMap::new();
    for refusal in refusals(history) {
        let Asked::Acquire(key) = &refusal.asked else { continue };
        let key = keys.entry(key).or_insert_with(|| Key::of(history, key, lives));
        if key.moments(refusal.span).all(|at_us| key.certainly_free(at_us) > 0) {
            found.push(Violation::FalseRefusal(refusal.clone()));
        }
    }
}

/// How many refusals there are while nothing about their key was unclear.
pub(super) fn clear_refusals(history: &History) -> usize {
    let clear = |refusal: &&Exchange| {
        let Asked::Acquire(key) = &refusal.asked else { return false };
        !unclear_acquires(history, key).iter().any(|span| span.meets(refusal.span))
    };
    refusals(history).filter(clear).count()
}

fn refusals(history: &History) -> impl Iterator<Item = &Exchange> {
    history.exchanges.iter().filter(|exchange| exchange.answer == Answer::NoSeed)
}

/// While a request for this key that got no clear answer may hold a point of any of its seeds.
fn unclear_acquires(history: &History, key: &str) -> Vec<Span> {
    let terms = &history.terms;
    let of_key = history.exchanges.iter().filter(|exchange| {
        exchange.asked == Asked::Acquire(key.to_owned()) && matches!(exchange.answer, Answer::Unclear(_))
    });
    of_key
        .map(|exchange| Span {
            from_us: exchange.span.from_us,
            until_us: exchange.span.until_us + terms.settle_us + terms.lease_ttl_us + terms.slack_us,
        })
        .collect()
}

/// What is known of the seeds of one key.
struct Key<'a> {
    seeds: Vec<Known<'a>>,
    /// Requests that may hold a point of any of them.
    unclear: Vec<Span>,
}

struct Known<'a> {
    seed: &'a Seed,
    /// While it was certainly offered.
    offered: Vec<Span>,
    /// While each of its leases may have lived.
    busy: Vec<Span>,
}

impl<'a> Key<'a> {
    fn of(history: &'a History, key: &str, lives: &[Life]) -> Self {
        let seeds = history.seeds.iter().filter(|seed| seed.key == key).map(|seed| Known {
            seed,
            offered: offered(history, &seed.identity),
            busy: lives.iter().filter(|life| life.seed == seed.identity).map(|life| life.possible).collect(),
        });
        Self { seeds: seeds.collect(), unclear: unclear_acquires(history, key) }
    }

    /// Points that were free for certain, whatever requests without a clear answer took; below 0 when these
    /// may have taken more.
    fn certainly_free(&self, at_us: u64) -> i64 {
        let count = |spans: &[Span]| {
            i64::try_from(spans.iter().filter(|span| span.contains(at_us)).count()).unwrap_or(i64::MAX)
        };
        let free = self.seeds.iter().filter(|known| count(&known.offered) > 0).map(|known| {
            let capacity = i64::try_from(known.seed.capacity).unwrap_or(i64::MAX);
            (capacity - count(&known.busy)).max(0)
        });
        free.sum::<i64>() - count(&self.unclear)
    }

    /// The moments of a span at which the fewest points may be free: its beginning, and whenever a lease may
    /// begin or an offer ends.
    fn moments(&self, span: Span) -> impl Iterator<Item = u64> {
        let begins =
            self.seeds.iter().flat_map(|known| &known.busy).chain(&self.unclear).map(|span| span.from_us);
        let ends = self.seeds.iter().flat_map(|known| &known.offered).map(|span| span.until_us);
        let within = move |at_us: &u64| (span.from_us..=span.until_us).contains(at_us);
        std::iter::once(span.from_us).chain(begins.chain(ends).filter(within))
    }
}

/// While a seed was certainly offered, its points aside: its first registration is in the database when it is
/// answered, and repeats are soon after, unless a planner dies. One that was once removed may be gone, draining, or
/// remembered by a planner that has not heard of it, so nothing is certain of it any more.
fn offered(history: &History, identity: &str) -> Vec<Span> {
    let terms = &history.terms;
    let mut spoken: Vec<&Exchange> = history
        .exchanges
        .iter()
        .filter(|exchange| match &exchange.asked {
            Asked::Heartbeat(seed) | Asked::Remove(seed) => seed == identity,
            _ => false,
        })
        .collect();
    spoken.sort_by_key(|exchange| exchange.span.from_us);
    let still_there = spoken.iter().take_while(|exchange| matches!(exchange.asked, Asked::Heartbeat(_)));
    let removed_us = spoken
        .iter()
        .find(|exchange| matches!(exchange.asked, Asked::Remove(_)))
        .map_or(u64::MAX, |removal| removal.span.from_us);
    let mut offered = Vec::new();
    for (at, heartbeat) in still_there.enumerate() {
        if heartbeat.answer != Answer::Done {
            continue;
        }
        let span = heartbeat.span;
        let flush_us = if at == 0 { 0 } else { terms.flush_us };
        let written = Span { from_us: span.from_us, until_us: span.until_us + flush_us };
        if at == 0 || !history.faults.iter().any(|fault| fault.meets(written)) {
            let until_us = (span.from_us + terms.heartbeat_ttl_us).saturating_sub(terms.slack_us);
            offered.push(Span { from_us: written.until_us, until_us: until_us.min(removed_us) });
        }
    }
    offered
}
