//! The checker accuses nobody who is right, and finds each kind of wrong.

use std::collections::BTreeMap;

use super::*;

const MS: u64 = 1_000;
const TERMS: Terms = Terms {
    lease_ttl_us: 3_000 * MS,
    heartbeat_ttl_us: 6_000 * MS,
    flush_us: 1_500 * MS,
    settle_us: 1_000 * MS,
    slack_us: 20 * MS,
    recovery_us: 1_000 * MS,
    gives_up_us: 1_500 * MS,
    late_us: 0,
};

/// A seed `s` of the key `k` with this capacity, registered at the beginning.
fn history(capacity: usize) -> History {
    let seed = Seed { identity: "s".into(), key: "k".into(), capacity };
    let mut history = History { terms: TERMS, seeds: vec![seed], exchanges: Vec::new(), faults: Vec::new() };
    add(&mut history, 0, Asked::Heartbeat("s".into()), Answer::Done);
    history
}

/// Adds an exchange that takes 10 ms.
fn add(history: &mut History, sent_ms: u64, asked: Asked, answer: Answer) {
    let span = Span { from_us: sent_ms * MS, until_us: (sent_ms + 10) * MS };
    history.exchanges.push(Exchange { span, asked, answer });
}

fn name(lease: &str) -> LeaseName {
    LeaseName(lease.into())
}

fn grant(history: &mut History, sent_ms: u64, lease: &str) {
    let answer = Answer::Granted { seed: "s".into(), lease: name(lease) };
    add(history, sent_ms, Asked::Acquire("k".into()), answer);
}

fn refuse(history: &mut History, sent_ms: u64) {
    add(history, sent_ms, Asked::Acquire("k".into()), Answer::NoSeed);
}

fn last(history: &History) -> Exchange {
    history.exchanges.last().unwrap().clone()
}

#[test]
fn what_late_threads_explain_is_no_violation_and_the_rest_is() {
    let mut history = history(1);
    grant(&mut history, 100, "a");
    // 200 ms before its end.
    add(&mut history, 2_890, Asked::Renew(name("a")), Answer::NoLease);
    assert_eq!(history.violations(), [Violation::Lost(last(&history))]);
    history.terms = TERMS.where_threads_are_late(10 * MS);
    assert_eq!(history.violations(), [Violation::Lost(last(&history))]);
    history.terms = TERMS.where_threads_are_late(20 * MS);
    assert_eq!(history.violations(), []);
}

#[test]
fn a_planner_may_give_up_where_the_machine_alone_takes_as_long() {
    let mut history = history(1);
    let span = Span { from_us: 3_000 * MS, until_us: 4_500 * MS };
    let (asked, answer) = (Asked::Acquire("k".into()), Answer::Unclear(String::new()));
    history.exchanges.push(Exchange { span, asked, answer });
    for (late_ms, is_explained) in [(0, false), (149, false), (150, true)] {
        history.terms = TERMS.where_threads_are_late(late_ms * MS);
        let expected = if is_explained { vec![] } else { vec![Violation::Unexplained(last(&history))] };
        assert_eq!(history.violations(), expected, "{late_ms} ms");
    }
    // One that gave up at once did not wait for anything.
    history.exchanges.last_mut().unwrap().span.until_us -= MS;
    assert_eq!(history.violations(), [Violation::Unexplained(last(&history))]);
}

#[test]
fn a_point_that_is_leased_twice_is_found() {
    let mut one = history(1);
    grant(&mut one, 100, "a");
    grant(&mut one, 3_000, "b");
    let [Violation::TooManyLeases { seed, at_us, leases }] = &one.violations()[..] else {
        panic!("{:?}", one.violations())
    };
    assert_eq!((seed.as_str(), *at_us), ("s", 3_010 * MS));
    assert_eq!(*leases, [name("a"), name("b")]);
    // Two points, or one that may have come back, are no violation.
    let mut two = history(2);
    two.exchanges = one.exchanges.clone();
    assert_eq!(two.violations(), []);
    let mut over = history(1);
    grant(&mut over, 100, "a");
    grant(&mut over, 3_075, "b");
    assert_eq!(over.violations(), [], "the first may just have ended");
    let mut given_back = history(1);
    grant(&mut given_back, 100, "a");
    add(&mut given_back, 200, Asked::Release(name("a")), Answer::Unclear("502".into()));
    given_back.faults.push(Span { from_us: 0, until_us: MS });
    grant(&mut given_back, 300, "b");
    assert_eq!(given_back.violations(), [], "the release may have been done");
}

#[test]
fn a_renewed_lease_holds_its_point() {
    let mut renewed = history(1);
    grant(&mut renewed, 100, "a");
    add(&mut renewed, 2_000, Asked::Renew(name("a")), Answer::Done);
    grant(&mut renewed, 4_900, "b");
    assert!(matches!(renewed.violations()[..], [Violation::TooManyLeases { .. }]));
    let mut unclear = history(1);
    grant(&mut unclear, 100, "a");
    add(&mut unclear, 2_000, Asked::Renew(name("a")), Answer::Unclear("503".into()));
    unclear.faults.push(Span { from_us: 2_000 * MS, until_us: 2_010 * MS });
    grant(&mut unclear, 4_900, "b");
    assert_eq!(unclear.violations(), [], "it may not have been renewed");
    refuse(&mut unclear, 5_500);
    assert_eq!(unclear.violations(), [], "or it may");
}

#[test]
fn a_lease_that_is_lost_is_found() {
    for asked in [Asked::Renew(name("a")), Asked::Release(name("a"))] {
        let mut lost = history(1);
        grant(&mut lost, 100, "a");
        add(&mut lost, 3_060, asked.clone(), Answer::NoLease);
        assert_eq!(lost.violations(), [Violation::Lost(last(&lost))]);
        let mut ended = history(1);
        grant(&mut ended, 100, "a");
        add(&mut ended, 3_085, asked, Answer::NoLease);
        assert_eq!(ended.violations(), []);
    }
}

#[test]
fn a_lease_that_comes_back_is_found() {
    for asked in [Asked::Renew(name("a")), Asked::Release(name("a"))] {
        let mut released = history(1);
        grant(&mut released, 100, "a");
        add(&mut released, 200, Asked::Release(name("a")), Answer::Done);
        add(&mut released, 300, asked.clone(), Answer::Done);
        assert_eq!(released.violations(), [Violation::Revived(last(&released))]);
        let mut expired = history(1);
        grant(&mut expired, 100, "a");
        add(&mut expired, 3_131, asked.clone(), Answer::Done);
        assert_eq!(expired.violations(), [Violation::Revived(last(&expired))]);
        expired.exchanges.pop();
        add(&mut expired, 3_120, asked, Answer::Done);
        assert_eq!(expired.violations(), [], "it may just have lived");
    }
    let mut twice = history(2);
    grant(&mut twice, 100, "a");
    grant(&mut twice, 200, "a");
    assert!(twice.violations().contains(&Violation::SameLease(name("a"))));
}

#[test]
fn a_refusal_while_a_point_is_free_is_found() {
    let mut free = history(1);
    refuse(&mut free, 100);
    assert_eq!(free.violations(), [Violation::FalseRefusal(last(&free))]);
    // A point that was never given back is a leak: it is free one time to live after its holder vanished.
    let mut leaked = history(1);
    grant(&mut leaked, 100, "a");
    refuse(&mut leaked, 3_120);
    assert_eq!(leaked.violations(), [], "the lease may just have lived");
    refuse(&mut leaked, 3_131);
    assert_eq!(leaked.violations(), [Violation::FalseRefusal(last(&leaked))]);
    let mut released = history(2);
    grant(&mut released, 100, "a");
    grant(&mut released, 200, "b");
    refuse(&mut released, 300);
    assert_eq!(released.violations(), []);
    add(&mut released, 400, Asked::Release(name("a")), Answer::Done);
    refuse(&mut released, 405);
    assert_eq!(released.violations(), [], "the refusal may have been before the release");
    refuse(&mut released, 420);
    assert_eq!(released.violations(), [Violation::FalseRefusal(last(&released))]);
}

#[test]
fn a_refusal_is_explained_by_a_request_that_nobody_knows_the_end_of() {
    let mut unclear = history(1);
    unclear.faults.push(Span { from_us: 0, until_us: 200 * MS });
    add(&mut unclear, 100, Asked::Acquire("k".into()), Answer::Unclear("502".into()));
    refuse(&mut unclear, 4_100);
    assert_eq!(unclear.violations(), []);
    assert_eq!((unclear.summary().refused, unclear.summary().refused_clearly), (1, 0));
    refuse(&mut unclear, 4_140);
    assert_eq!(unclear.violations(), [Violation::FalseRefusal(last(&unclear))]);
    assert_eq!((unclear.summary().refused, unclear.summary().refused_clearly), (2, 1));
}

#[test]
fn a_refusal_is_explained_by_a_silent_or_removed_seed() {
    let mut silent = history(1);
    refuse(&mut silent, 5_985);
    assert_eq!(silent.violations(), []);
    let mut beating = history(1);
    add(&mut beating, 2_000, Asked::Heartbeat("s".into()), Answer::Done);
    refuse(&mut beating, 7_000);
    assert_eq!(beating.violations(), [Violation::FalseRefusal(last(&beating))]);
    beating.faults.push(Span { from_us: 3_400 * MS, until_us: 3_500 * MS });
    assert_eq!(beating.violations(), [], "the planner that noted it may have died");
    let mut removed = history(1);
    add(&mut removed, 100, Asked::Remove("s".into()), Answer::Done);
    refuse(&mut removed, 200);
    assert_eq!(removed.violations(), []);
}

#[test]
fn a_grant_of_a_seed_that_is_not_offered_is_found() {
    let mut silent = history(1);
    grant(&mut silent, 6_031, "a");
    assert_eq!(silent.violations(), [Violation::NotOffered(last(&silent))]);
    add(&mut silent, 6_035, Asked::Heartbeat("s".into()), Answer::Done);
    assert_eq!(silent.violations(), [], "the heartbeat may have come first");

    let mut removed = history(1);
    add(&mut removed, 100, Asked::Remove("s".into()), Answer::Done);
    grant(&mut removed, 200, "a");
    assert_eq!(removed.violations(), [Violation::NotOffered(last(&removed))]);
    add(&mut removed, 150, Asked::Heartbeat("s".into()), Answer::Done);
    assert_eq!(removed.violations(), []);

    let mut draining = history(2);
    grant(&mut draining, 100, "a");
    add(&mut draining, 200, Asked::Remove("s".into()), Answer::Draining);
    add(&mut draining, 300, Asked::Heartbeat("s".into()), Answer::Done);
    grant(&mut draining, 400, "b");
    assert_eq!(draining.violations(), [Violation::NotOffered(last(&draining))], "its last lease lives");

    let mut other = history(1);
    let answer = Answer::Granted { seed: "s".into(), lease: name("a") };
    add(&mut other, 100, Asked::Acquire("another".into()), answer);
    assert_eq!(other.violations(), [Violation::NotOffered(last(&other))]);
}

#[test]
fn an_answer_without_a_reason_is_found() {
    let mut unclear = history(1);
    add(&mut unclear, 2_000, Asked::Acquire("k".into()), Answer::Unclear("503".into()));
    assert_eq!(unclear.violations(), [Violation::Unexplained(last(&unclear))]);
    unclear.faults.push(Span { from_us: 900 * MS, until_us: 1_000 * MS });
    assert_eq!(unclear.violations(), [], "planners recover");
    for (asked, answer) in [
        (Asked::Heartbeat("s".into()), Answer::Wrong("400".into())),
        (Asked::Acquire("k".into()), Answer::Done),
        (Asked::Renew(name("nobody's")), Answer::Done),
    ] {
        let mut wrong = history(1);
        add(&mut wrong, 100, asked, answer);
        assert_eq!(wrong.violations(), [Violation::Unexpected(last(&wrong))]);
    }
}

#[test]
fn each_point_is_to_be_leased_once() {
    let seeds = [("s", 2), ("t", 1)].map(|(identity, capacity)| Seed {
        identity: identity.into(),
        key: "k".into(),
        capacity,
    });
    let check = |granted: &[&str]| {
        each_point_once(&seeds, &granted.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(check(&["t", "s", "s"]), Ok(()));
    assert_eq!(check(&["t", "s"]), Err(vec![("s".into(), 1, 2)]), "a point leaked");
    assert_eq!(check(&["t", "s", "t", "s"]), Err(vec![("t".into(), 2, 1)]));
    assert_eq!(check(&["t", "s", "s", "u"]), Err(vec![("u".into(), 1, 0)]));
}

/// What is wrong with a made-up planner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Nothing,
    /// A capacity test that is off by one.
    OneTooMany,
    /// An expiry that comes too early.
    ExpiresEarly,
    /// A point that is not free when its lease has expired.
    Leaks,
    /// A release that ends somebody else's lease.
    Unfenced,
    /// A heartbeat that renews leases.
    HeartbeatRenews,
    /// Silence that is not noticed.
    OffersSilent,
}

/// A planner that does everything at one moment, and clients that ask it at the same time.
struct World {
    fault: Fault,
    random: fastrand::Rng,
    history: History,
    /// Each seed's last heartbeat and leases, with their ends.
    seeds: BTreeMap<String, (u64, Vec<(LeaseName, u64)>)>,
    leases: u32,
}

impl World {
    fn run(fault: Fault, random_seed: u64) -> History {
        let seeds = [("s", 1), ("t", 1), ("u", 2)].map(|(identity, capacity)| Seed {
            identity: identity.into(),
            key: "k".into(),
            capacity,
        });
        let history = History { terms: TERMS, seeds: seeds.into(), exchanges: vec![], faults: vec![] };
        let random = fastrand::Rng::with_seed(random_seed);
        let mut world = Self { fault, random, history, seeds: BTreeMap::new(), leases: 0 };
        for seed in world.history.seeds.clone() {
            world.exchange(10 * MS, Asked::Heartbeat(seed.identity));
        }
        // Each client's next moment, and the lease that it has or had.
        let mut clients: Vec<(u64, Option<LeaseName>)> = vec![(20 * MS, None); 6];
        let mut next_beat = [500 * MS; 3];
        for _ in 0..400 {
            let client = (0..clients.len()).min_by_key(|client| clients[*client].0).unwrap();
            let beats = (0..3).min_by_key(|seed| next_beat[*seed]).unwrap();
            if next_beat[beats] < clients[client].0 {
                let identity = world.history.seeds[beats].identity.clone();
                world.exchange(next_beat[beats], Asked::Heartbeat(identity));
                let silent = world.random.u8(..10) == 0;
                next_beat[beats] += if silent { 8_000 * MS } else { 500 * MS };
                continue;
            }
            let (at_us, lease) = &mut clients[client];
            let asked = match lease.clone() {
                Some(lease) if world.random.bool() => Asked::Renew(lease),
                Some(lease) => Asked::Release(lease),
                None => Asked::Acquire("k".into()),
            };
            let (asked_to_end, at) = (matches!(asked, Asked::Release(_)), *at_us);
            match world.exchange(at, asked) {
                Answer::Granted { lease: granted, .. } => *lease = Some(granted),
                _ if asked_to_end && world.random.u8(..4) > 0 => *lease = None,
                _ => {}
            }
            let late = world.random.u8(..10) == 0;
            *at_us += if late { world.random.u64(2_000..5_000) } else { world.random.u64(40..800) } * MS;
        }
        world.history
    }

    fn exchange(&mut self, at_us: u64, asked: Asked) -> Answer {
        let answer = self.answer(at_us, &asked);
        let (before, after) = (self.random.u64(..10 * MS), self.random.u64(1..10 * MS));
        let span = Span { from_us: at_us - before, until_us: at_us + after };
        self.history.exchanges.push(Exchange { span, asked, answer: answer.clone() });
        answer
    }

    fn answer(&mut self, at_us: u64, asked: &Asked) -> Answer {
        let fault = self.fault;
        let ttl_us = TERMS.lease_ttl_us - if fault == Fault::ExpiresEarly { 500 * MS } else { 0 };
        for (_, leases) in self.seeds.values_mut().filter(|_| fault != Fault::Leaks) {
            leases.retain(|(_, end_us)| at_us < *end_us);
        }
        match asked {
            Asked::Heartbeat(identity) => {
                let (heard_us, leases) = self.seeds.entry(identity.clone()).or_default();
                *heard_us = at_us;
                for (_, end_us) in leases.iter_mut().filter(|_| fault == Fault::HeartbeatRenews) {
                    *end_us = at_us + ttl_us;
                }
                Answer::Done
            }
            Asked::Acquire(_) => {
                let extra = usize::from(fault == Fault::OneTooMany);
                let offered = self.history.seeds.iter().find(|seed| {
                    let (heard_us, leases) = &self.seeds[&seed.identity];
                    let silent = at_us >= heard_us + TERMS.heartbeat_ttl_us && fault != Fault::OffersSilent;
                    !silent && leases.len() < seed.capacity + extra
                });
                let Some(seed) = offered else { return Answer::NoSeed };
                self.leases += 1;
                let lease = name(&format!("lease {}", self.leases));
                let leases = &mut self.seeds.get_mut(&seed.identity).unwrap().1;
                leases.push((lease.clone(), at_us + ttl_us));
                Answer::Granted { seed: seed.identity.clone(), lease }
            }
            Asked::Renew(lease) => {
                let mut all = self.seeds.values_mut().flat_map(|(_, leases)| leases);
                match all.find(|(known, _)| known == lease) {
                    Some((_, end_us)) => *end_us = at_us + ttl_us,
                    None => return Answer::NoLease,
                }
                Answer::Done
            }
            Asked::Release(lease) => {
                let holds = |leases: &[(LeaseName, u64)]| leases.iter().any(|(known, _)| known == lease);
                match self.seeds.values_mut().find(|(_, leases)| holds(leases)) {
                    Some((_, leases)) => leases.retain(|(known, _)| known != lease),
                    None if fault == Fault::Unfenced => {
                        let _ended = self.seeds.values_mut().any(|(_, leases)| leases.pop().is_some());
                        return Answer::NoLease;
                    }
                    None => return Answer::NoLease,
                }
                Answer::Done
            }
            Asked::Remove(_) => Answer::NotKnown,
        }
    }
}

#[test]
fn a_right_planner_is_never_accused_and_each_wrong_one_is_caught() {
    let violations = |fault, random_seed| World::run(fault, random_seed).violations();
    for random_seed in 0..100 {
        assert_eq!(violations(Fault::Nothing, random_seed), [], "random seed {random_seed}");
    }
    for fault in [
        Fault::OneTooMany,
        Fault::ExpiresEarly,
        Fault::Leaks,
        Fault::Unfenced,
        Fault::HeartbeatRenews,
        Fault::OffersSilent,
    ] {
        let caught = (0..20).filter(|random_seed| !violations(fault, *random_seed).is_empty()).count();
        println!("{fault:?}: caught in {caught} of 20 histories");
        assert!(caught > 0, "{fault:?} is not caught");
    }
}
