//! Histories of loads, and what holds over any of them.

use super::*;
use proptest::prelude::*;

const LIMITS: Limits = Limits { seed_failures: 3, moves: 5, fallback: Fills::Chunks };
const SAME: Event = Event::Agreed(Offered::SameRoot);
const OTHER: Event = Event::Agreed(Offered::OtherRoot);
const UNNAMED: Event = Event::Agreed(Offered::Unnamed);

/// A history from the beginning: the states, the first included, and the effects.
fn run(events: &[Event]) -> (Vec<State>, Vec<Effect>) {
    let (mut states, mut effects) = (vec![State::begin()], vec![]);
    for event in events {
        let (next, more) = step(*states.last().unwrap(), *event, LIMITS);
        states.push(next);
        effects.extend(more);
    }
    (states, effects)
}

fn last(events: &[Event]) -> (State, Vec<Effect>) {
    let (states, effects) = run(events);
    (*states.last().unwrap(), effects)
}

fn nothing_held(failures: u32) -> Tried {
    Tried { failures, ..Tried::default() }
}

#[test]
fn a_fork_reads_and_releases() {
    let (states, effects) = run(&[Event::Granted, SAME, Event::AllHeld]);
    let reading = State::Reading(Tried { held: Held::Rooted, ..Tried::default() });
    let none = nothing_held(0);
    assert_eq!(states, [State::Asking(none), State::Checking(none), reading, State::Loaded]);
    assert_eq!(effects, [Effect::Release]);
}

#[test]
fn no_seed_means_storage_at_once_or_after_a_wait() {
    let none = nothing_held(0);
    let (asking, claiming, filling) =
        (State::Asking(none), State::Claiming(none), State::Filling(Filling::All));
    let no_seed = Event::NoSeed { may_wait: false };
    let (states, effects) = run(&[no_seed, Event::MayRead]);
    assert_eq!((states, effects), (vec![asking, claiming, filling], vec![]));
    let (states, effects) =
        run(&[Event::NoSeed { may_wait: true }, Event::PauseOver, no_seed, Event::MayRead]);
    assert_eq!(states, [asking, State::Waiting(none), asking, claiming, filling]);
    assert_eq!(effects, []);
}

#[test]
fn who_has_the_right_to_read_storage_asks_for_a_seed_once_more() {
    let no_seed = Event::NoSeed { may_wait: false };
    let claimed = Tried { claimed: true, ..Tried::default() };
    let (states, effects) = run(&[no_seed, Event::Claimed, no_seed, Event::Claimed]);
    let [asking, claiming] =
        [State::Asking, State::Claiming].map(|state| [Tried::default(), claimed].map(state));
    assert_eq!(
        states,
        [asking[0], claiming[0], asking[1], claiming[1], State::Filling(Filling::All)],
        "and reads storage when there still is none"
    );
    assert_eq!(effects, []);
    assert_eq!(step(asking[1], Event::Granted, LIMITS).0, State::Checking(claimed));
}

#[test]
fn who_waits_for_another_one_that_reads_storage_asks_for_a_seed_again() {
    let no_seed = Event::NoSeed { may_wait: false };
    let (state, effects) = last(&[no_seed, Event::Led, no_seed, Event::Led, Event::Granted]);
    assert_eq!((state, effects), (State::Checking(Tried::default()), vec![]));
}

#[test]
fn whom_enough_seeds_have_failed_waits_for_nobody_who_reads_storage() {
    let failing = [Event::Granted, Event::SeedFailed].repeat(LIMITS.seed_failures as usize);
    let (state, _) = last(&[&failing[..], &[Event::Led]].concat());
    assert_eq!(state, State::Filling(Filling::All));
}

#[test]
fn a_lost_seed_is_replaced_and_what_is_held_stays() {
    let (states, effects) = run(&[Event::Granted, SAME, Event::SeedFailed, Event::Granted, SAME]);
    let tried = Tried { failures: 1, held: Held::Rooted, ..Tried::default() };
    assert!(states.ends_with(&[State::Asking(tried), State::Checking(tried), State::Reading(tried)]));
    assert_eq!(effects, [Effect::Condemn], "nothing starts over");
}

#[test]
fn storage_completes_what_a_seed_began_under_its_root() {
    let (state, effects) =
        last(&[Event::Granted, SAME, Event::SeedFailed, Event::NoSeed { may_wait: false }, Event::MayRead]);
    assert_eq!(state, State::Filling(Filling::Missing));
    assert!(!effects.contains(&Effect::StartOver));
    let (state, effects) = step(state, Event::OtherBytes, LIMITS);
    let claimed = Tried { claimed: true, ..Tried::default() };
    assert_eq!(state, State::Claiming(claimed), "who took itself away has no right any more");
    assert_eq!(effects, START_OVER);
    for event in [Event::MayRead, Event::Claimed] {
        assert_eq!(step(state, event, LIMITS), (State::Filling(Filling::All), vec![]));
    }
}

#[test]
fn a_fallback_that_reloads_the_whole_begins_with_nothing() {
    let limits = Limits { fallback: Fills::Whole, ..LIMITS };
    let reading = State::Reading(Tried { held: Held::Rooted, ..Tried::default() });
    let (asking, _) = step(reading, Event::SeedFailed, limits);
    let (state, effects) = step(asking, Event::NoSeed { may_wait: false }, limits);
    assert_eq!(effects, START_OVER);
    assert_eq!(step(state, Event::MayRead, limits), (State::Filling(Filling::All), vec![]));
}

#[test]
fn what_is_adopted_is_filled_without_a_question() {
    assert_eq!(State::adopt(), State::Filling(Filling::All));
    assert_eq!(step(State::adopt(), Event::AllHeld, LIMITS), (State::Loaded, vec![]));
}

#[test]
fn another_root_starts_over() {
    let (state, effects) = last(&[Event::Granted, SAME, Event::SeedFailed, Event::Granted, OTHER]);
    assert_eq!(state, State::Reading(Tried { failures: 1, held: Held::Rooted, ..Tried::default() }));
    assert!(effects.ends_with(&[Effect::StartOver]));
}

#[test]
fn bytes_without_a_name_go_with_no_other_source_s() {
    let lost = [Event::Granted, UNNAMED, Event::SeedFailed];
    for (next, held) in [(UNNAMED, Held::Unnamed), (SAME, Held::Rooted), (OTHER, Held::Rooted)] {
        let (state, effects) = last(&[&lost[..], &[Event::Granted, next]].concat());
        assert_eq!(state, State::Reading(Tried { failures: 1, held, ..Tried::default() }));
        assert!(effects.ends_with(&[Effect::StartOver]), "{effects:?}");
    }
    let to_storage = [Event::NoSeed { may_wait: false }, Event::MayRead];
    let (state, effects) = last(&[&lost[..], &to_storage].concat());
    assert_eq!(state, State::Filling(Filling::All));
    assert!(effects.ends_with(&[Effect::StartOver]), "{effects:?}");
    let (_, effects) = last(&[Event::Granted, UNNAMED, Event::AllHeld]);
    assert!(!effects.contains(&Effect::StartOver), "{effects:?}");
}

#[test]
fn a_source_that_stalls_is_read_until_there_is_another() {
    let reading = [Event::Granted, SAME, Event::Stalled];
    let tried = Tried { held: Held::Rooted, ..Tried::default() };
    let (state, effects) = last(&reading);
    assert_eq!((state, effects), (State::Seeking(tried), vec![]), "lease and connection are kept");
    for (event, expected) in [
        (Event::NoSeed { may_wait: true }, (State::Seeking(tried), vec![])),
        (Event::BytesFlow, (State::Reading(tried), vec![])),
        (Event::AllHeld, (State::Loaded, vec![Effect::Release])),
        (Event::Granted, (State::Checking(Tried { moves: 1, ..tried }), vec![Effect::Replace])),
        (Event::SourceGone, (State::Seeking(tried), vec![])),
        (Event::SeedFailed, (State::Asking(Tried { failures: 1, ..tried }), vec![Effect::Condemn])),
        (Event::NoSeed { may_wait: false }, (State::Claiming(tried), vec![Effect::Replace, Effect::Release])),
    ] {
        assert_eq!(step(state, event, LIMITS), expected, "{event:?}");
    }
}

#[test]
fn storage_beside_a_source_is_left_for_a_seed_when_it_fails() {
    let tried = Tried { held: Held::Rooted, ..Tried::default() };
    let (state, effects) = last(&[Event::Granted, SAME, Event::MayRead]);
    assert_eq!((state, effects), (State::Filling(Filling::Beside(tried)), vec![Effect::Release]));
    assert_eq!(step(state, Event::AllHeld, LIMITS), (State::Loaded, vec![]));
    assert_eq!(step(state, Event::StorageFailed, LIMITS), (State::Asking(tried), vec![]));
    let missing = State::Filling(Filling::Missing);
    let over = step(missing, Event::OtherBytes, LIMITS);
    assert_eq!(step(state, Event::OtherBytes, LIMITS), over, "nothing that is held may be that of storage");
    assert_eq!(step(missing, Event::StorageFailed, LIMITS), (missing, vec![]), "there is nothing else");
}

#[test]
fn a_source_that_goes_away_costs_no_try_but_moves_are_bounded() {
    let mut state = step(State::begin(), Event::Granted, LIMITS).0;
    for moves in 0..=LIMITS.moves {
        state = step(state, SAME, LIMITS).0;
        assert_eq!(state, State::Reading(Tried { moves, held: Held::Rooted, ..Tried::default() }));
        let (seeking, effects) = step(state, Event::SourceGone, LIMITS);
        assert_eq!(effects, [], "the lease is kept: it says whose place may be had");
        state = step(seeking, Event::Granted, LIMITS).0;
    }
    let tried = Tried { moves: LIMITS.moves, held: Held::Rooted, ..Tried::default() };
    assert_eq!(state, State::Claiming(tried));
}

#[test]
fn a_manifest_that_disagrees_moves_no_byte() {
    let (states, effects) = run(&[Event::Granted, Event::Disagreed]);
    let none = nothing_held(0);
    assert_eq!(states, [State::Asking(none), State::Checking(none), State::Filling(Filling::All)]);
    assert_eq!(effects, [Effect::Release]);
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Granted),
        any::<bool>().prop_map(|may_wait| Event::NoSeed { may_wait }),
        Just(Event::PauseOver),
        prop_oneof![Just(SAME), Just(OTHER), Just(UNNAMED)],
        Just(Event::Disagreed),
        Just(Event::SeedFailed),
        Just(Event::LeaseLost),
        Just(Event::Stalled),
        Just(Event::BytesFlow),
        Just(Event::SourceGone),
        Just(Event::MayRead),
        Just(Event::Claimed),
        Just(Event::Led),
        Just(Event::AllHeld),
        Just(Event::OtherBytes),
        Just(Event::NotPinned),
        Just(Event::StorageFailed),
    ]
}

proptest! {
    #[test]
    fn the_rules_hold_over_any_history(
        adopts: bool, events in prop::collection::vec(events(), 0..60), whole_only: bool
    ) {
        let fallback = if whole_only { Fills::Whole } else { Fills::Chunks };
        let limits = Limits { fallback, ..LIMITS };
        let mut state = if adopts { State::adopt() } else { State::begin() };
        // What the driver's world looks like: is a lease held, whose bytes are held.
        let (mut leased, mut condemned, mut content) = (false, false, Held::Nothing);
        // Whether others may read here what is held.
        let mut served = false;
        // How often storage might have been read.
        for event in events {
            let (next, effects) = step(state, event, limits);
            let asks = matches!(state, State::Asking(_) | State::Seeking(_));
            if asks && matches!(event, Event::Granted | Event::NoSeed { .. }) {
                // The planner has answered: the driver has released what it kept from it.
                condemned = false;
                leased |= event == Event::Granted;
            }
            for effect in &effects {
                match effect {
                    Effect::Condemn => (leased, condemned) = (false, true),
                    Effect::Release => (leased, condemned) = (false, false),
                    // The new lease, which was granted before the first one went.
                    Effect::Replace => leased = true,
                    Effect::TakeAway => served = false,
                    Effect::StartOver => {
                        prop_assert!(!served, "chunks are dropped that others may read");
                        content = Held::Nothing;
                    }
                }
            }
            if next == state {
                prop_assert_eq!(effects, vec![], "an event that is not expected does something");
                continue;
            }
            match next {
                State::Reading(tried) => {
                    prop_assert!(leased, "bytes move only under a lease");
                    let goes_on = content == tried.held && content != Held::Unnamed && event != OTHER;
                    let mixed = content != Held::Nothing && !goes_on;
                    prop_assert!(!mixed || event == Event::BytesFlow, "two contents mixed");
                    content = tried.held;
                    served = true;
                }
                State::Seeking(tried) => {
                    prop_assert!(leased && content == tried.held, "what is read stays as it is");
                }
                State::Filling(Filling::All) => {
                    prop_assert_eq!(content, Held::Nothing, "storage over a seed's chunks");
                }
                State::Filling(Filling::Missing | Filling::Beside(_)) => {
                    prop_assert_eq!(content, Held::Rooted);
                    prop_assert!(!whole_only, "asked for less than it gives");
                }
                State::Claiming(tried) => {
                    prop_assert!(!leased && !condemned, "a lease outlives its reading");
                    prop_assert_eq!(content, tried.held, "what is served meanwhile stays as it is");
                }
                State::Asking(_) | State::Waiting(_) | State::Checking(_) => {}
                State::Loaded => prop_assert_eq!(event, Event::AllHeld, "loaded without all chunks"),
            }
            match next {
                State::Asking(tried)
                | State::Reading(tried)
                | State::Seeking(tried)
                | State::Checking(tried)
                | State::Waiting(tried) => {
                    // Who has tried enough, and has the right to read storage, tries once more.
                    prop_assert!(tried.failures <= LIMITS.seed_failures && tried.moves <= LIMITS.moves);
                }
                State::Claiming(_) => {}
                State::Filling(_) | State::Loaded => {
                    prop_assert!(!leased && !condemned, "a lease outlives its reading");
                }
            }
            state = next;
        }
    }

    /// Whatever fails, a worker whose storage is readable ends loaded: from every state on the way, the
    /// worst that seeds and planner can do leads to storage in a bounded number of steps.
    #[test]
    fn storage_is_always_reached(history in prop::collection::vec(events(), 0..30)) {
        let mut state = State::begin();
        for event in history {
            state = step(state, event, LIMITS).0;
        }
        for _ in 0..20 {
            let event = match state {
                State::Asking(_) => Event::NoSeed { may_wait: false },
                State::Claiming(_) => Event::Claimed,
                State::Waiting(_) => Event::PauseOver,
                State::Checking(_) | State::Reading(_) => Event::SeedFailed,
                State::Seeking(_) => Event::NoSeed { may_wait: false },
                State::Filling(_) => Event::AllHeld,
                State::Loaded => break,
            };
            state = step(state, event, LIMITS).0;
        }
        prop_assert_eq!(state, State::Loaded);
    }
}
