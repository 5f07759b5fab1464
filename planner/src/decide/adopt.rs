//! What changes when a planner starts under other settings, or after another process.

use super::tables::Tables;
use crate::store::Rules;

/// Gives the seeds that were put the terms that the rules have now. Leases on points that are offered no more go on.
pub fn adopt(tables: &mut Tables, rules: &Rules) {
    let others: Vec<_> = tables
        .seeds()
        .map(|row| (row.id, rules.terms(&row.identity, &row.key, &row.profile), row.terms))
        .filter(|(_, now, before)| now != before)
        .collect();
    for (id, terms, _) in others {
        tables.change(id, |row| row.terms = terms);
    }
}

/// Ends the waits of a process that is gone: nobody answers them. What may be repeated keeps its place, or its lease;
/// a lease that nobody may have heard of lives for its time.
pub fn abandon(tables: &mut Tables) {
    let all: Vec<_> =
        tables.requests().map(|row| (row.id, row.idempotency.is_some(), row.planner.is_some())).collect();
    for (id, may_be_repeated, is_answered) in all {
        if !may_be_repeated {
            tables.delete_request(id);
        } else if is_answered {
            tables.change_request(id, |row| row.planner = None);
        }
    }
}
