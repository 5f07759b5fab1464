//! When a lease ends that is renewed.

use super::progress;
use super::rows::LeaseRow;
use super::tables::Tables;
use crate::store::commands::{Renew, Renewed};

/// Renews exactly the live lease of exactly the named seed, or nothing; that of a loading seed also when it has just ended, as
/// long as nobody has its point. Loading seeds tell with it how far they are, and are told when to tell again.
///
/// Excluded: the point was granted since. Its row has that lease then, and not the one that ended.
pub(super) fn renew(tables: &mut Tables, now: i64, command: &Renew, period_ms: i64) -> Option<Renewed> {
    let row = tables.seed_at(&command.identity)?.clone();
    // Others on its host may have had its room since.
    let may_live_again = row.capped_host().is_none();
    let is_there = |known: &LeaseRow| known.lives(now) || may_live_again && !known.is_over(now);
    let at = row.leases.iter().position(|known| known.lease == command.lease && is_there(known))?;
    let ttl_ms = row.lease_ttl_ms(row.leases[at].reader.is_some());
    tables.change(row.id, |row| row.leases[at].ends_ms = now.saturating_add(ttl_ms))?;
    let reader = row.leases[at].reader.zip(command.progress.as_deref());
    let loading =
        reader.map(|(reader, told)| progress::of_reader(tables, now, &row, reader, told, period_ms));
    Some(Renewed { ttl_ms, loading })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{NOW, any_seeds, identity, lease, tables};
    use super::*;

    proptest! {
        #[test]
        fn only_the_named_lease_of_the_named_seed_is_renewed_and_only_while_it_lives(
            seeds in any_seeds(), seed in 0u8..5, number in (0u32..5, 0u32..5),
        ) {
            let command = Renew { identity: identity(seed), lease: lease(number.0 * 100 + number.1), progress: None };
            let mut tables = tables(&seeds);
            let answer = renew(&mut tables, NOW, &command, 1_000);
            let mut renewed = 0;
            for before in &seeds {
                for (was, is) in before.leases.iter().zip(&tables.seed(before.id).unwrap().leases) {
                    if was == is {
                        continue;
                    }
                    renewed += 1;
                    prop_assert!(!was.is_over(NOW) && was.lease == command.lease && before.identity == command.identity);
                    prop_assert_eq!(is.ends_ms, NOW + before.lease_ttl_ms(was.reader.is_some()));
                }
            }
            prop_assert_eq!(renewed, usize::from(answer.is_some()));
        }
    }
}
