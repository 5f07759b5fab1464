//! Chains with slow links, as they would be: bytes flow as the links let them, reports come once a second, places pass as
//! [`judge`] says. Who was moved reads from the first that nobody reads from and that holds more.

use proptest::prelude::*;

use super::*;

const STEP_MS: i64 = 50;
const PERIOD_MS: i64 = 1_000;
/// Bytes a second of a link that is not slow.
const RATE: u64 = 1_000_000;

#[derive(Debug, Clone, Copy)]
struct Link {
    down: u64,
    up: u64,
}

const FULL: Link = Link { down: RATE, up: RATE };
const SLOW_DOWN: Link = Link { down: RATE / 4, up: RATE };
const SLOW_UP: Link = Link { down: RATE, up: RATE / 4 };

/// `source` 0 is the complete seed, whose uplink is `root`; worker n of `workers` has number n + 1.
struct Chain {
    root: u64,
    links: Vec<Link>,
    workers: Vec<Loading>,
    /// What each has, of which its row shows what it has told.
    have: Vec<u64>,
    total: u64,
    now: i64,
    moved_ms: i64,
    /// Who was overtaken by whom, and why.
    moves: Vec<(i64, i64, Slow, i64)>,
}

impl Chain {
    fn new(root: u64, links: &[Link], total: u64) -> Self {
        let row = |at: usize| Loading {
            source: i64::try_from(at).ok(),
            depth: 0,
            root: None,
            held_bytes: 0,
            total_bytes: total,
            arrived_bytes: 0,
            period_ms: PERIOD_MS,
            pace: Pace::begun(1),
            lead: None,
        };
        Self {
            root,
            links: links.to_vec(),
            workers: (0..links.len()).map(row).collect(),
            have: vec![0; links.len()],
            total,
            now: 1,
            moved_ms: 0,
            moves: Vec::new(),
        }
    }

    fn at(number: i64) -> usize {
        usize::try_from(number).unwrap() - 1
    }

    fn readers(&self, number: i64) -> u64 {
        self.workers.iter().filter(|row| row.source == Some(number)).count() as u64
    }

    /// Whether it loads and tells; others are no [`Loading`] for those who look.
    fn row(&self, number: i64) -> Option<&Loading> {
        (number > 0 && self.have[Self::at(number)] < self.total).then(|| &self.workers[Self::at(number)])
    }

    fn flow(&mut self) {
        let before = self.have.clone();
        for at in 0..self.links.len() {
            let Some(source) = self.workers[at].source.filter(|source| *source >= 0) else { continue };
            let (up, has) = match source {
                0 => (self.root, self.total),
                source => (self.links[Self::at(source)].up, before[Self::at(source)]),
            };
            let rate = self.links[at].down.min(up / self.readers(source).max(1));
            let most = rate * STEP_MS.unsigned_abs() / 1_000;
            self.have[at] += most.min(has.saturating_sub(before[at]));
        }
    }

    /// The worker tells how far it is, and is judged with its source.
    fn report(&mut self, at: usize) {
        let id = i64::try_from(at).unwrap() + 1;
        let Some(source) = self.workers[at].source.filter(|source| *source >= 0) else { return };
        let readers = u32::try_from(self.readers(source)).unwrap();
        let ahead = self.row(source).map(|row| row.ahead(readers));
        let told = super::super::chain::Progress {
            incarnation: String::new(),
            arrived_bytes: self.have[at],
            held: Some(super::super::chain::Held { root: String::new(), bytes: self.have[at] }),
        };
        let now = self.now;
        let behind = self.workers[at].tell(now, &told, Some(source), ahead);
        if behind == Some(false) && source > 0 && !self.workers[at].pace.was_moved {
            let sends = &mut self.workers[Self::at(source)].pace.sends;
            *sends = if *sends == Sending::Doubtful { Sending::Well } else { *sends };
        }
        let Some(of_source) = self.row(source) else { return };
        let before = of_source.source.unwrap_or_default();
        let telling = Telling {
            id,
            reader: &self.workers[at],
            source: of_source,
            before: self.row(before),
            crosses_zones: false,
        };
        let Some(slow) = judge(telling, now).filter(|_| now - self.moved_ms >= MOVE_PAUSE_MS) else { return };
        let was_moved = of_source.pace.was_moved;
        self.moved_ms = now;
        self.moves.push((source, id, slow, now));
        let overtaken = &mut self.workers[Self::at(source)];
        (overtaken.pace, overtaken.source) = (overtaken.pace.elsewhere(), Some(-1));
        overtaken.pace.was_moved = true;
        if slow == Slow::SendsSlowly {
            overtaken.pace.sends = Sending::Slow;
        } else if !was_moved && before > 0 {
            self.workers[Self::at(before)].pace.sends = Sending::Doubtful;
        }
        let reader = &mut self.workers[at];
        (reader.pace, reader.source) = (reader.pace.elsewhere(), Some(before));
    }

    /// Whoever has no source takes the first that nobody reads from and that holds more.
    fn seek(&mut self) {
        for at in 0..self.workers.len() {
            if self.workers[at].source == Some(-1) {
                let mut others = (0..self.workers.len()).filter(|other| *other != at);
                let found = others.find(|other| {
                    let number = i64::try_from(*other).unwrap() + 1;
                    let is_read = self.readers(number) > 0;
                    !is_read && !self.workers[*other].is_leaf() && self.have[*other] > self.have[at]
                });
                let complete = (self.readers(0) == 0).then_some(0);
                let found = found.map(|other| i64::try_from(other).unwrap() + 1).or(complete);
                self.workers[at].source = Some(found.unwrap_or(-1));
            }
        }
    }

    /// Goes on for so long, or until all have everything; `phases`: when in each second each of them tells.
    fn run(&mut self, ms: i64, phases: &[i64]) -> i64 {
        for _ in 0..ms / STEP_MS {
            if self.have.iter().all(|have| *have >= self.total) {
                break;
            }
            self.now += STEP_MS;
            self.flow();
            self.seek();
            for at in 0..self.workers.len() {
                if (self.now - 1) % PERIOD_MS == phases[at % phases.len()] / STEP_MS * STEP_MS {
                    self.report(at);
                }
            }
            for row in 0..self.workers.len() {
                // Who has everything tells a last time, and whoever read from it goes on.
                if self.have[row] >= self.total {
                    self.workers[row].source = Some(-2);
                }
            }
        }
        self.now
    }

    fn of_moves(&self) -> Vec<(i64, i64, Slow)> {
        self.moves.iter().map(|(who, by, why, _)| (*who, *by, *why)).collect()
    }
}

const PHASES: [i64; 5] = [0, 250, 900, 500, 700];
const TOTAL: u64 = 22 * RATE;

fn with(slow: &[(usize, Link)]) -> Chain {
    let mut links = [FULL; 8];
    for (number, link) in slow {
        links[number - 1] = *link;
    }
    Chain::new(RATE, &links, TOTAL)
}

/// When the last of those is done that are not named, in the time of one alone.
fn others(chain: &mut Chain, named: &[usize]) -> f64 {
    let mut last = 0;
    while chain.now < 300_000 {
        chain.run(STEP_MS, &PHASES);
        let is_loading = (0..chain.have.len()).any(|at| !named.contains(&(at + 1)) && chain.have[at] < TOTAL);
        last = chain.now;
        if !is_loading {
            break;
        }
    }
    f64::from(i32::try_from(last).unwrap()) / 22_000.0
}

#[test]
fn a_slow_downlink_is_passed_over_by_its_reader() {
    let mut chain = with(&[(4, SLOW_DOWN)]);
    let share = others(&mut chain, &[4]);
    assert_eq!(chain.of_moves(), [(4, 5, Slow::FallsBehind)]);
    assert!(share < 1.3, "{share}");
}

#[test]
fn a_slow_uplink_is_found_by_the_next_reader() {
    let mut chain = with(&[(4, SLOW_UP)]);
    let share = others(&mut chain, &[4]);
    assert_eq!(chain.of_moves(), [(5, 6, Slow::FallsBehind), (4, 6, Slow::SendsSlowly)]);
    assert!(share < 1.4, "{share}");
}

#[test]
fn nobody_is_moved_because_the_root_is_slow_or_its_source_has_nothing() {
    let mut chain = Chain::new(RATE / 4, &[FULL; 8], TOTAL);
    chain.run(60_000, &PHASES);
    assert_eq!(chain.of_moves(), []);
    chain.root = 0;
    chain.run(30_000, &PHASES);
    assert_eq!(chain.of_moves(), []);
}

#[test]
fn nobody_is_moved_whose_readers_do_not_starve() {
    // The last has no reader; and who reads from the slow one has as slow a link.
    let mut last = with(&[(8, SLOW_DOWN)]);
    last.run(60_000, &PHASES);
    assert_eq!(last.of_moves(), []);
    let slower = Link { down: RATE / 16, up: RATE };
    let mut chain = with(&[(7, SLOW_DOWN), (8, slower)]);
    chain.run(60_000, &PHASES);
    assert_eq!(chain.of_moves(), []);
}

#[test]
fn two_that_are_slow_stand_behind_in_the_end() {
    // And who reads from one that sends slowly, or is taken for such a one.
    let cases = [
        ([(4, SLOW_DOWN), (5, SLOW_DOWN)], [3, 4, 5]),
        ([(4, SLOW_UP), (5, SLOW_DOWN)], [4, 5, 5]),
        ([(3, SLOW_DOWN), (6, SLOW_UP)], [3, 6, 7]),
    ];
    for (slow, behind) in cases {
        let mut chain = with(&slow);
        let share = others(&mut chain, &behind);
        assert!(share < 2.0, "{share}: {:?}", chain.of_moves());
    }
}

#[test]
fn three_reports_are_needed() {
    let ahead = Some(Ahead { rate: 1_000, held_bytes: 5_000, readers: 1 });
    let mut pace = Pace::begun(1);
    for (second, behind) in [(1, false), (2, false), (3, true)] {
        assert_eq!(pace.hear(1 + second * 1_000, 100, 100, ahead), Some(true));
        assert_eq!(pace.falls_behind(), behind, "{second}");
    }
    assert_eq!(pace.hear(4_001, 500, 600, ahead), Some(false), "half of it is no falling behind");
    assert!(!pace.falls_behind());
}

#[test]
fn a_source_that_several_read_from_gives_each_a_part() {
    let mut pace = Pace::begun(1);
    let of_two = Some(Ahead { rate: 1_000, held_bytes: 5_000, readers: 2 });
    assert_eq!(pace.hear(1_001, 400, 400, of_two), Some(false));
    assert_eq!(pace.hear(2_001, 200, 600, of_two), Some(true));
}

#[test]
fn whoever_has_what_its_source_holds_falls_behind_nobody() {
    let mut pace = Pace::begun(1);
    let holds_as_much = Some(Ahead { rate: 1_000, held_bytes: 5_000, readers: 1 });
    assert_eq!(
        pace.hear(1_001, 0, 5_000, holds_as_much),
        Some(false),
        "a large chunk is on its way to its source"
    );
}

#[test]
fn a_promise_that_is_not_taken_up_lapses() {
    let source = Pace { yields_to: Some(7), yielded_ms: 5, ..Pace::default() };
    assert!(source.is_promised(8, 5 + PROMISE_MS - 1) && !source.is_promised(8, 5 + PROMISE_MS));
    assert!(!source.is_promised(7, 5), "its own");
}

fn any_link() -> impl Strategy<Value = Link> {
    let rate = || prop_oneof![5 => Just(RATE), 2 => Just(RATE / 4), 1 => Just(RATE / 16)];
    (rate(), rate()).prop_map(|(down, up)| Link { down, up })
}

proptest! {
    #[test]
    fn moves_are_paced_and_never_go_back_and_forth(
        links in prop::collection::vec(any_link(), 2..9), phases in prop::collection::vec(0i64..1_000, 8),
    ) {
        let mut chain = Chain::new(RATE, &links, TOTAL);
        chain.run(300_000, &phases);
        for pair in chain.moves.windows(2) {
            prop_assert!(pair[1].3 - pair[0].3 >= MOVE_PAUSE_MS);
        }
        for (who, by, ..) in &chain.moves {
            let back = chain.moves.iter().find(|(other, reader, ..)| (other, reader) == (by, who));
            prop_assert!(back.is_none(), "{who} and {by}: {:?}", chain.moves);
        }
        // Nobody moves without end.
        prop_assert!(chain.moves.len() <= links.len() * links.len());
    }

    #[test]
    fn nobody_moves_where_all_links_are_alike(phases in prop::collection::vec(0i64..1_000, 8), root in 1u64..5) {
        let mut chain = Chain::new(RATE / root, &[FULL; 8], TOTAL);
        chain.run(40_000, &phases);
        prop_assert_eq!(chain.of_moves(), []);
    }

    #[test]
    fn whatever_is_told_nothing_overflows(
        reports in prop::collection::vec((any::<i64>(), any::<u64>(), any::<u64>(), any::<u64>(), 0u32..3), 1..6),
    ) {
        let mut pace = Pace::begun(1);
        for (now, bytes, held_bytes, rate, readers) in reports {
            pace.hear(now, bytes, held_bytes, Some(Ahead { rate, held_bytes: rate, readers }));
            prop_assert!(pace.lags <= REPORTS);
        }
    }
}

/// One that reads storage, and its reader.
fn beside(source: (u64, u64), reader: (u64, u64), root: &str) -> [Loading; 2] {
    let row = |id: Option<i64>, (rate, held_bytes): (u64, u64), lags| Loading {
        source: id,
        depth: 0,
        root: Some(root.into()),
        held_bytes,
        total_bytes: TOTAL,
        arrived_bytes: held_bytes,
        period_ms: PERIOD_MS,
        pace: Pace { told_ms: 1, rate, lags, ..Pace::default() },
        lead: None,
    };
    [row(None, source, 0), row(Some(1), reader, REPORTS)]
}

fn is_sooner([source, reader]: &[Loading; 2], has_readers: bool) -> bool {
    is_sooner_alone(Telling { id: 2, reader, source, before: None, crosses_zones: false }, has_readers)
}

#[test]
fn whoever_has_the_one_slow_link_is_not_sent_to_storage_while_a_reader_may_have_its_place() {
    let [mut source, mut reader] = beside((RATE, TOTAL / 2), (RATE / 4, 1), "x");
    assert!(is_sooner(&[source.clone(), reader.clone()], false));
    assert!(!is_sooner(&[source.clone(), reader.clone()], true));
    source.pace.sends = Sending::Doubtful;
    assert!(is_sooner(&[source.clone(), reader.clone()], true), "it is the next one");
    reader.pace.was_moved = true;
    assert!(!is_sooner(&[source.clone(), reader.clone()], true), "it was moved for its link");
    reader.pace = Pace { was_moved: false, lags: REPORTS - 1, ..reader.pace };
    assert!(!is_sooner(&[source, reader], true), "three reports are needed");
}

#[test]
fn bytes_of_an_origin_count_as_if_all_were_to_be_read() {
    let nearly = (RATE / 4, TOTAL * 9 / 10);
    assert!(is_sooner(&beside((RATE, TOTAL), nearly, "x"), false));
    assert!(!is_sooner(&beside((RATE, TOTAL), nearly, "origin:1"), false));
    let half = (RATE / 4, TOTAL / 2);
    assert!(is_sooner(&beside((RATE, TOTAL), half, "origin:1"), false));
    assert!(!is_sooner(&beside((RATE, TOTAL), (half.0 + 1, half.1), "origin:1"), false));
}

proptest! {
    /// It is not sent there unless what is left would take longer over its link than all that it has to read takes at half
    /// the rate that storage gives.
    #[test]
    fn who_is_sent_to_storage_is_loaded_sooner(
        rate in 1u64..RATE, storage in 1u64..RATE * 20, held in 0u64..TOTAL, content: bool,
    ) {
        let rows = beside((storage, TOTAL), (rate, held), if content { "x" } else { "origin:1" });
        let to_read = if content { TOTAL - held } else { TOTAL };
        let seconds = |bytes: u64, rate: f64| num(bytes) / rate;
        let (alone, waiting) = (seconds(to_read, num(storage) / 2.0), seconds(TOTAL - held, num(rate)));
        prop_assert!(!is_sooner(&rows, false) || alone <= waiting * 1.000_001);
        prop_assert!(is_sooner(&rows, false) || alone >= waiting * 0.999_999);
    }
}

fn num(number: u64) -> f64 {
    f64::from(u32::try_from(number).unwrap())
}
