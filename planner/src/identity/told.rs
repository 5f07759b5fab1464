//! What was told of lately, so that a log says once who is denied what, however often that one asks.

use std::collections::HashSet;
use std::time::{Duration, Instant};

/// For so long nothing is told twice.
const WINDOW: Duration = Duration::from_secs(600);
/// What is told in one window at most.
const MOST: usize = 100;

/// Reasons, each with who was denied something for it.
#[derive(Debug, Default)]
pub(super) struct Told {
    known: HashSet<(&'static str, String)>,
    began: Option<Instant>,
}

impl Told {
    /// Whether it is to be told: it was not lately, and not too much else was.
    pub(super) fn is_news(&mut self, what: (&'static str, String), at: Instant) -> bool {
        if self.began.is_none_or(|began| at.saturating_duration_since(began) >= WINDOW) {
            self.known.clear();
            self.began = Some(at);
        }
        self.known.len() < MOST && self.known.insert(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_once_and_not_too_many_are() {
        let (begin, mut told) = (Instant::now(), Told::default());
        let mut tell = |reason, who: usize, after| {
            told.is_news((reason, who.to_string()), begin + Duration::from_secs(after))
        };
        assert!(tell("role", 0, 0) && tell("key", 0, 0) && !tell("role", 0, 599) && tell("role", 0, 600));
        assert_eq!((0..2 * MOST).filter(|who| tell("unknown", *who, 601)).count(), MOST - 1);
        assert!(tell("unknown", MOST, 1_200));
    }
}
