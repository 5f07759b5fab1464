//! When leases lived, for certain and possibly.

use std::collections::BTreeMap;

use super::{Answer, Asked, Exchange, History, LeaseName, Span, Terms, Violation};

/// What is known of a lease.
pub(super) struct Life {
    pub(super) lease: LeaseName,
    pub(super) seed: String,
    /// While it lived for certain. Empty when its end is not after its beginning.
    pub(super) certain: Span,
    /// While it may have lived: not before, not after.
    pub(super) possible: Span,
}

/// The lives of all leases that were granted; what was answered about them must fit.
pub(super) fn lives(history: &History, found: &mut Vec<Violation>) -> Vec<Life> {
    let mut by_lease: BTreeMap<&LeaseName, (Vec<&Exchange>, Vec<&Exchange>)> = BTreeMap::new();
    for exchange in &history.exchanges {
        if let Answer::Granted { lease, .. } = &exchange.answer {
            by_lease.entry(lease).or_default().0.push(exchange);
        }
        if let Asked::Renew(lease) | Asked::Release(lease) = &exchange.asked {
            by_lease.entry(lease).or_default().1.push(exchange);
        }
    }
    let mut lives = Vec::new();
    for (lease, (grants, mut others)) in by_lease {
        if grants.len() > 1 {
            found.push(Violation::SameLease(lease.clone()));
        }
        let Some(grant) = grants.first() else {
            // Nobody was given it.
            found.extend(others.into_iter().cloned().map(Violation::Unexpected));
            continue;
        };
        others.sort_by_key(|exchange| exchange.span.from_us);
        lives.extend(life(&history.terms, grant, &others, found));
    }
    lives
}

fn life(terms: &Terms, grant: &Exchange, others: &[&Exchange], found: &mut Vec<Violation>) -> Option<Life> {
    let Answer::Granted { seed, lease } = &grant.answer else { return None };
    // The planner counts from a moment between sending and answer.
    let certainly_from = |span: Span| (span.from_us + terms.lease_ttl_us).saturating_sub(terms.slack_us);
    let possibly_from = |span: Span| span.until_us + terms.lease_ttl_us + terms.slack_us;
    let mut certain = Span { from_us: grant.span.until_us, until_us: certainly_from(grant.span) };
    let mut possible = Span { from_us: grant.span.from_us, until_us: possibly_from(grant.span) };
    // Once somebody asked to end it, nothing makes it live on for certain.
    let mut ending = false;
    for exchange in others {
        let span = exchange.span;
        let lives = !ending && span.until_us <= certain.until_us;
        let dead = span.from_us >= possible.until_us;
        match (&exchange.asked, &exchange.answer) {
            (_, Answer::Done) if dead => found.push(Violation::Revived((*exchange).clone())),
            (_, Answer::NoLease) if lives => found.push(Violation::Lost((*exchange).clone())),
            (Asked::Renew(_), Answer::Done) => {
                if !ending {
                    certain.until_us = certain.until_us.max(certainly_from(span));
                }
                possible.until_us = possible.until_us.max(possibly_from(span));
            }
            (Asked::Renew(_), Answer::Unclear(_)) if !dead => {
                possible.until_us = possible.until_us.max(possibly_from(span) + terms.settle_us);
            }
            _ => {}
        }
        if matches!(exchange.asked, Asked::Release(_)) || exchange.answer == Answer::NoLease {
            ending = true;
            certain.until_us = certain.until_us.min(span.from_us);
            // Done or not found: it is gone by the answer. Without a clear one it may live on.
            if !matches!(exchange.answer, Answer::Unclear(_)) {
                possible.until_us = possible.until_us.min(span.until_us);
            }
        }
    }
    Some(Life { lease: lease.clone(), seed: seed.clone(), certain, possible })
}

/// No seed has more leases that certainly live than points, at any moment.
pub(super) fn check_capacity(history: &History, lives: &[Life], found: &mut Vec<Violation>) {
    for seed in &history.seeds {
        let on_it: Vec<&Life> = lives
            .iter()
            .filter(|life| life.seed == seed.identity && life.certain.from_us < life.certain.until_us)
            .collect();
        // The most are alive at the moment in which some lease begins.
        let crowded = on_it.iter().find_map(|life| {
            let at_us = life.certain.from_us;
            let alive = on_it.iter().filter(|other| other.certain.contains(at_us));
            let leases: Vec<LeaseName> = alive.map(|other| other.lease.clone()).collect();
            (leases.len() > seed.capacity).then_some((at_us, leases))
        });
        if let Some((at_us, leases)) = crowded {
            found.push(Violation::TooManyLeases { seed: seed.identity.clone(), at_us, leases });
        }
    }
}
