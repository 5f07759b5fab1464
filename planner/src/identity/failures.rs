//! Wrong credentials, counted by where they come from: who shows many in a minute is told to come back later, whatever it
//! shows that is wrong. Whatever is right is let in all the same, for others may be behind the same address, and a credential
//! is too long to be guessed: this bounds what guessing costs the planner, and shows who tries.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::shares::network;

/// Wrong credentials of one client in [`WINDOW`] to two of them, from which on it is told to come back later.
pub(super) const MOST: u32 = 100;
/// For so long all are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Clients that are counted in one window at most; more begin the next one.
const MOST_CLIENTS: usize = 4_096;

/// Those of this window and of the one before.
#[derive(Debug, Default)]
pub(super) struct Failures {
    now: HashMap<IpAddr, u32>,
    before: HashMap<IpAddr, u32>,
    began: Option<Instant>,
}

impl Failures {
    /// Counts one more; whether there were too many before it.
    pub(super) fn count(&mut self, client: IpAddr, at: Instant) -> bool {
        let client = network(client);
        let age = self.began.map(|began| at.saturating_duration_since(began));
        let is_full = self.now.len() >= MOST_CLIENTS && !self.now.contains_key(&client);
        if is_full || age.is_none_or(|age| age >= WINDOW) {
            self.before = std::mem::take(&mut self.now);
            if age.is_some_and(|age| age >= 2 * WINDOW) {
                self.before.clear();
            }
            self.began = Some(at);
        }
        let mine = self.now.entry(client).or_default();
        let had = mine.saturating_add(self.before.get(&client).copied().unwrap_or_default());
        *mine = mine.saturating_add(1);
        had >= MOST
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(number).into()
    }

    #[test]
    fn many_of_one_client_are_too_many_until_it_has_been_quiet() {
        let (begin, mut failures) = (Instant::now(), Failures::default());
        let told = (0..MOST + 3).map(|_| failures.count(client(1), begin)).filter(|told| *told).count();
        assert_eq!(told, 3, "after {MOST}");
        assert!(!failures.count(client(2), begin), "others are not concerned");
        assert!(failures.count(client(1), begin + WINDOW), "the window before counts");
        assert!(!failures.count(client(1), begin + 4 * WINDOW), "it was quiet");
    }

    #[test]
    fn a_host_has_one_count_for_all_its_addresses() {
        let (begin, mut failures) = (Instant::now(), Failures::default());
        let of = |number: u32| format!("2001:db8::{number:x}").parse().unwrap();
        assert!((0..MOST).all(|number| !failures.count(of(number), begin)));
        assert!(failures.count(of(MOST), begin));
    }

    proptest! {
        #[test]
        fn it_never_holds_more_than_two_windows(steps in prop::collection::vec((any::<u32>(), 0_u64..20), 0..60)) {
            let (mut at, mut failures) = (Instant::now(), Failures::default());
            for (number, pause_sec) in steps {
                at += Duration::from_secs(pause_sec);
                for next in 0..200 {
                    failures.count(client(number.wrapping_add(next)), at);
                }
                prop_assert!(failures.now.len() <= MOST_CLIENTS && failures.before.len() <= MOST_CLIENTS);
            }
        }
    }
}
