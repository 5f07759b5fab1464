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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::rows::SeedRow;
    use super::super::testing::{NOW, any_seeds, identity, tables};
    use super::*;

    proptest! {
        #[test]
        fn an_answer_is_noted_for_the_holding_that_was_asked_and_for_no_other(
            seeds in any_seeds(), number in 0u8..6, seed_id in 0i64..7,
        ) {
            let mut tables = tables(&seeds);
            let is_there = answered(&mut tables, NOW, &Answered { identity: identity(number), seed_id });
            prop_assert_eq!(is_there, seed_id == i64::from(number) + 1 && seeds.len() > usize::from(number));
            for before in &seeds {
                let answered_ms = if is_there && before.id == seed_id { NOW } else { before.answered_ms };
                prop_assert_eq!(tables.seed(before.id).unwrap().as_ref(), &SeedRow { answered_ms, ..before.clone() });
            }
        }
    }
}
