//! What a registration does to the seed that is known, or not.

use std::sync::Arc;

use super::tables::Tables;
use super::{end, remember};
use crate::domain::seed::{self, Known, Profile, Registration};
use crate::store::Rules;
use crate::store::commands::{Register, Unregistered};
use crate::store::history::{EventKind, Happened};

/// Registers a seed, or hears that it is still there.
///
/// # Errors
/// There is no room for one more, a seed of somebody else lives there, or it holds what its key is not pinned to. Of what was
/// known at its address nothing remains then.
pub(super) fn register(
    tables: &mut Tables,
    now: i64,
    rules: &Rules,
    command: &Register,
) -> Result<(Registration, i64), Unregistered> {
    let Register { identity, key, profile, age_ms, client, owner, by } = command;
    let row = tables.seed_at(identity).cloned();
    let known = row.as_ref().map(|row| row.known(now, rules));
    let heard_ms = now.saturating_sub(*age_ms);
    let registration = seed::register(known.as_ref(), key, profile, owner)?;
    if is_barred(rules, command, registration, known.as_ref()) {
        // That it loaded here before is over as well.
        if let Some(row) = row {
            end::seed(tables, now, rules, row.id);
        }
        return Err(Unregistered::NotPinned);
    }
    let id = match (registration, row.zip(known)) {
        (Registration::New, _) | (_, None) => {
            tables.room_for_seed(key, *client, rules)?;
            let happened = Happened::to(identity, key, EventKind::Registered).by(by.as_ref());
            remember::event(tables, now, rules, happened);
            let told = Profile::clone(profile);
            tables.insert_seed((identity, key), told, heard_ms, (*client, owner), rules)
        }
        (Registration::NewHolding, Some((row, known))) => {
            tables.room_for_holding((&row.key, key), *client, rules)?;
            let novelty = seed::novelty(&known, key, profile, owner);
            let happened = Happened::to(identity, key, EventKind::NewHolding).by(by.as_ref()).with(novelty);
            remember::event(tables, now, rules, happened);
            // Nothing of what it was remains, its leases included.
            end::seed(tables, now, rules, row.id);
            let told = Profile::clone(profile);
            tables.insert_seed((identity, key), told, heard_ms, (*client, owner), rules)
        }
        (Registration::Repeated | Registration::Completed, Some((row, known))) => {
            if registration == Registration::Completed {
                remember::event(
                    tables,
                    now,
                    rules,
                    Happened::to(identity, key, EventKind::Completed).by(by.as_ref()),
                );
            }
            let profile = Profile::clone(profile).or(&known.profile);
            tables.change(row.id, |row| {
                row.loading = None;
                row.heard_ms = row.heard_ms.max(heard_ms);
                if profile != known.profile {
                    row.terms = rules.terms(identity, key, &profile);
                    row.profile = Arc::new(profile);
                }
            });
            row.id
        }
        (Registration::Draining, Some((row, _))) => {
            tables.change(row.id, |row| {
                row.loading = None;
                row.heard_ms = row.heard_ms.max(heard_ms);
            });
            row.id
        }
    };
    tables.own(id, owner);
    Ok((registration, id))
}

/// Whether a seed does not hold what its key is pinned to. What it told before of the same memory it need not tell again.
fn is_barred(rules: &Rules, command: &Register, registration: Registration, known: Option<&Known>) -> bool {
    let Some(pinned) = rules.pinned(&command.key) else { return false };
    let before = match registration {
        Registration::New | Registration::NewHolding => None,
        Registration::Repeated | Registration::Completed | Registration::Draining => known,
    };
    let content_id = command.profile.content_id.as_deref();
    !pinned.allow(content_id.or(before.and_then(|known| known.profile.content_id.as_deref())), false)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::super::testing::{NOW, any_seed, identity, key, rules, seed, tables};
    use super::*;
    use crate::decide::quota::{OfClient, Quota};
    use crate::domain::owner::Owner;
    use crate::domain::policy::Policy;
    use crate::store::Room;
    use crate::store::commands::NoRoom;

    fn of(holds: &str, age_ms: i64) -> Register {
        Register {
            by: None,
            identity: identity(0),
            key: key(holds),
            profile: Box::default(),
            age_ms,
            client: None,
            owner: Owner::default(),
        }
    }

    #[test]
    fn what_is_full_takes_nobody_new_and_goes_on_with_who_is_there() {
        let rules = rules(Policy::Balanced);
        let mut tables = Tables::new(1, 1, Room { seeds: 1, ..Room::AMPLE });
        assert!(register(&mut tables, NOW, &rules, &of("k", 0)).is_ok());
        assert!(register(&mut tables, NOW, &rules, &of("k", 0)).is_ok(), "its heartbeat");
        assert!(register(&mut tables, NOW, &rules, &of("l", 0)).is_ok(), "in its own place");
        let other = Register { identity: identity(1), ..of("k", 0) };
        assert_eq!(register(&mut tables, NOW, &rules, &other), Err(NoRoom(Quota::Seeds).into()));
    }

    #[test]
    fn the_last_quarter_is_for_clients_with_no_more_than_their_share() {
        let room = Room { seeds: 16, ..Room::AMPLE };
        let rules = Rules { room, ..rules(Policy::Balanced) };
        let mut tables = Tables::new(1, 1, room);
        let client = |number: u8| IpAddr::from([10, 1, 0, number]);
        (1..6).for_each(|number| tables.put_client(client(number), OfClient::default()));
        let mut of_client = |seed: u8, number: u8| {
            let one = Register { identity: identity(seed), client: Some(client(number)), ..of("k", 0) };
            register(&mut tables, NOW, &rules, &one).map(|_| ())
        };
        assert!((0..12).all(|seed| of_client(seed, 1).is_ok()), "three quarters are anybody's");
        assert_eq!(of_client(12, 1), Err(NoRoom(Quota::SeedsOfClient).into()));
        assert_eq!(of_client(0, 1), Ok(()), "what is there goes on");
        assert_eq!((of_client(12, 2), of_client(13, 2)), (Ok(()), Err(NoRoom(Quota::SeedsOfClient).into())));
        assert!((13..16).all(|seed| of_client(seed, seed - 10).is_ok()), "others find room");
        assert_eq!(of_client(16, 6), Err(NoRoom(Quota::Seeds).into()));
    }

    #[test]
    fn an_older_heartbeat_does_not_make_a_seed_younger() {
        let mut tables = tables(&[seed(0, 1)]);
        let (registration, id) = register(&mut tables, NOW, &rules(Policy::Balanced), &of("k", 5)).unwrap();
        assert_eq!(registration, Registration::Repeated);
        assert_eq!(tables.seed(id).unwrap().heard_ms, NOW);
    }

    proptest! {
        #[test]
        fn leases_live_on_unless_the_seed_is_another(known in any_seed(0), holds in prop_oneof![Just("k"), Just("l")]) {
            let mut tables = tables(std::slice::from_ref(&known));
            let registered = register(&mut tables, NOW, &rules(Policy::Balanced), &of(holds, 1));
            let (registration, id) = registered.unwrap();
            let row = tables.seed(id).unwrap();
            prop_assert_eq!(id == known.id, registration != Registration::NewHolding);
            if id == known.id {
                prop_assert_eq!(&row.leases, &known.leases);
                prop_assert_eq!(row.heard_ms, known.heard_ms.max(NOW - 1));
            } else {
                prop_assert!(row.leases.is_empty() && !row.removed && !row.drained);
                prop_assert!(tables.seed(known.id).is_none(), "nothing of what it was remains");
                prop_assert_eq!(tables.into_changes().ended.len(), known.leases.len());
            }
        }
    }
}
