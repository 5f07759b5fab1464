//! What a batch of commands does: a pure function over rows, the same for every store. Rows in, answers and changes out.
//! Each rule is in the file that is named after what it decides. There is no I/O here, no clock and no SQL.
//!
//! # How a store decides a batch
//!
//! 1. It begins a transaction in which nobody else changes what it will have seen, and takes the time.
//! 2. *Load.* It makes [`Tables`], with the numbers that new rows take, and answers [`Batch::first_wants`].
//! 3. *Decide.* [`Batch::decide`] goes as far as it can with what it has seen. If it gives [`Wants`], the store answers
//!    these, too, and asks again; every answer gets it further. Without any it is [`Decision`].
//! 4. *Write.* The store writes [`Changes`] in a statement a table, commits, and only then answers and tells.
//!    [`Decision::wait_ms`] is what it fills in itself: when the next lease or suspicion of a key ends by itself.
//!
//! What a want means is said at its field. A store answers with the `put_` functions of [`Tables`]:
//!
//! - All answers are of one moment, that of the decision. A row that was put stays as the decision has made it, however
//!   often it is put, so a store may put more than was asked for, and need not know what it has put.
//! - What is not there is not put: there is no row of it. Only pages, hosts, sources, moves and witnesses are answered
//!   each.
//! - A page of [`Wants::offers`] has the seeds that [`place`] gives a rank, the least first, equals by their names, and
//!   of these the ones that are live. A store that keeps places in an index makes them anew when a row changes, and
//!   when their time [`place::Place::due_ms`] has come; or it puts those that are due beside the page. A seed with a
//!   wrong rank costs another look and is never leased by it; a seed without one that has a free point is a false
//!   refusal.
//! - With a request comes its planner ([`Tables::put_planner`]), and, where it is asked for by lease or name, the seed
//!   on which its lease is.
//!
//! # When it must load again
//!
//! A store that is alone with its rows never does. One that loads without locks must make sure, before it writes, that the
//! rows which [`Changes`] changes are as they were ([`changes::Changed::before`]): it locks and compares them, and if one is
//! another it begins at 2. Of a host that is bounded it holds a lock before it loads any seed.
//! `Tables` is used up by a decision; nothing of it is kept.
//!
//! The other functions here ([`heartbeat::flush`], [`drain::invalidate`], [`collect`], [`sweep`], [`adopt`]) take
//! `Tables` in which the rows were put that they are about.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rfork_protocol::SeedKey;

use crate::domain::chain;
use crate::store::commands::{Acquire, Acquired, Commands, Outcomes, Serve};
use crate::store::{Refusal, Rules};
pub use changes::{Changed, Changes};
use choose::OfLoading;
use resume::Twins;
use serve::Serving;
pub use tables::Tables;
pub use wants::{Near, Wants};

pub mod adopt;
mod answered;
pub mod changes;
mod choose;
pub mod collect;
pub mod drain;
mod end;
mod enqueue;
pub mod heartbeat;
mod inherit;
mod join;
mod lead;
mod leave;
mod overtake;
pub mod place;
mod progress;
pub mod quota;
mod refuse;
mod register;
mod release;
mod remember;
mod remove;
mod renew;
mod resume;
pub mod rows;
mod serve;
pub mod sweep;
mod tables;
#[cfg(test)]
mod testing;
mod wants;

/// A batch of commands while it is decided.
#[derive(Debug)]
pub struct Batch<'a> {
    commands: &'a Commands,
    rules: &'a Rules,
    planner: &'a Arc<str>,
    now: i64,
    tables: Tables,
    outcomes: Outcomes,
    /// Of acquisitions; `None` while it is not decided.
    answers: Vec<Option<Acquired>>,
    twins: Twins,
    /// Keys of which a point may be free, or for which somebody may wait.
    touched: BTreeSet<SeedKey>,
    /// How far it is with those who told how fast bytes come to them.
    judging: Judging,
    /// Made once the hosts are known whose seeds were changed.
    serving: Option<Serving>,
}

/// Whether those were judged who told how fast bytes come to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judging {
    Before,
    /// What has to be seen was asked for, which is done once: what is not there is not put.
    Seen,
    Done,
}

/// What a batch came to.
#[derive(Debug)]
pub struct Decision {
    /// What became of the commands.
    pub outcomes: Outcomes,
    /// What is to be written.
    pub changes: Changes,
    /// Planners whose waiters were served.
    pub woken: BTreeSet<Arc<str>>,
    /// Keys of which a point may have become free, or for which somebody may wait. A store that does not see what
    /// others change at the same time looks at them once more after its commit.
    pub touched: BTreeSet<SeedKey>,
}

impl<'a> Batch<'a> {
    /// What a batch has to see in any case.
    pub fn first_wants(commands: &Commands, rules: &Rules) -> Wants {
        let mut wants = Wants::default();
        wants.identities.extend(commands.identities().cloned());
        wants.leases.extend(commands.leaves.iter().map(|leave| leave.lease));
        let telling = commands.renewals.iter().filter(|renewal| renewal.progress.is_some());
        wants.readers.extend(telling.map(|renewal| renewal.lease));
        wants.readers.extend(commands.releases.iter().map(|release| release.lease));
        wants.leaders.extend(commands.claims.iter().map(|claim| claim.key.clone()));
        wants.clients.extend(commands.registers.iter().filter_map(|one| one.client));
        wants.clients.extend(commands.claims.iter().filter_map(|one| one.client));
        wants.clients.extend(commands.acquires.iter().filter_map(|one| one.wish.client));
        wants.waiting.extend(commands.keys().map(|key| (key.clone(), 0)));
        let mut asked: BTreeMap<&SeedKey, usize> = BTreeMap::new();
        for Acquire { key, wish, lease, queue } in &commands.acquires {
            if let Some(queue) = queue.as_ref().filter(|queue| queue.may_have_a_row()) {
                wants.leases.insert(*lease);
                wants.names.extend(queue.idempotency.as_ref().map(|asked| asked.key));
            }
            wants.sources.extend(wish.instance_id.clone());
            wants.identities.extend(wish.named().cloned());
            *asked.entry(key).or_default() += 1 + wish.exclude.len();
        }
        for Acquire { key, wish, .. } in &commands.acquires {
            let limit = asked.get(key).map_or(1, |asked| asked.next_power_of_two());
            let pages = choose::pages(rules.policy, wish, OfLoading::asked(wish)).into_iter();
            wants.offers.extend(pages.map(|near| ((key.clone(), near), limit)));
        }
        wants
    }

    /// Decides all that only changes what the commands name, in the order of [`Commands`]. Acquisitions follow with
    /// [`Batch::decide`].
    pub fn new(
        commands: &'a Commands,
        rules: &'a Rules,
        planner: &'a Arc<str>,
        now: i64,
        tables: Tables,
    ) -> Self {
        let mut batch = Self {
            commands,
            rules,
            planner,
            now,
            tables,
            outcomes: Outcomes::default(),
            answers: vec![None; commands.acquires.len()],
            twins: Twins::default(),
            touched: commands.keys().cloned().collect(),
            judging: Judging::Before,
            serving: None,
        };
        batch.decide_named();
        batch
    }

    fn decide_named(&mut self) {
        let Self { commands, rules, planner, now, tables, outcomes, .. } = self;
        let (rules, now) = (*rules, *now);
        let reports = commands.heartbeats.len() + commands.renewals.len() + commands.claims.len();
        let period_ms = chain::period_ms(reports);
        let each = &commands.registers;
        outcomes.registers = each.iter().map(|one| register::register(tables, now, rules, one)).collect();
        let each = &commands.heartbeats;
        outcomes.heartbeats =
            each.iter().map(|one| heartbeat::hear(tables, now, rules, one, period_ms)).collect();
        outcomes.answers = commands.answers.iter().map(|one| answered::answered(tables, now, one)).collect();
        outcomes.renewals =
            commands.renewals.iter().map(|one| renew::renew(tables, now, one, period_ms)).collect();
        let each = &commands.releases;
        outcomes.releases = each.iter().map(|one| release::release(tables, now, rules, one)).collect();
        outcomes.removals =
            commands.removals.iter().map(|one| remove::remove(tables, now, rules, one)).collect();
        outcomes.drains = commands.drains.iter().map(|one| drain::drain(tables, now, rules, one)).collect();
        outcomes.claims = lead::lead(tables, now, rules, &commands.claims, period_ms);
        // Before repetitions, which may follow the end of what they repeat.
        for one in &commands.leaves {
            let (left, freed) = leave::leave(tables, now, rules, planner, one);
            outcomes.leaves.push(left);
            self.touched.extend(freed.map(|seed| SeedKey::clone(&seed.key)));
        }
        outcomes.serves = vec![None; commands.serves.len()];
        self.twins = resume::resume(tables, now, rules, planner, &commands.acquires, &mut self.answers);
        for (at, _) in &self.twins.of_first {
            // Until it is known what became of the first.
            self.answers[*at] = Some(Acquired::Queued(None));
        }
        quota::admit(tables, rules, &commands.acquires, &mut self.answers);
        let released = commands.releases.iter().filter_map(|one| tables.seed_at(&one.identity));
        self.touched.extend(released.map(|seed| SeedKey::clone(&seed.key)));
        // Whoever holds more than it did may be a source for somebody who waits.
        let telling = commands.renewals.iter().filter(|one| one.progress.is_some());
        let sources = telling.filter_map(|one| tables.seed_at(&one.identity));
        self.touched.extend(sources.map(|seed| SeedKey::clone(&seed.key)));
    }

    /// Decides as much as it can; gives what it has to see for the rest, or nothing when all is decided.
    pub fn decide(&mut self) -> Wants {
        let Self { commands, rules, now, tables, outcomes, judging, .. } = self;
        if *judging == Judging::Before {
            *judging = Judging::Seen;
            let wants = overtake::wants(tables, *now, rules, &commands.renewals, &outcomes.renewals);
            if !wants.is_empty() {
                return wants;
            }
        }
        if *judging == Judging::Seen {
            *judging = Judging::Done;
            overtake::overtake(tables, *now, rules, &commands.renewals, &mut outcomes.renewals);
        }
        if self.serving.is_none() {
            let hosts = self.changed_hosts();
            let wants =
                Wants { hosts: hosts.difference(&self.tables.hosts).cloned().collect(), ..Wants::default() };
            if !wants.is_empty() {
                return wants;
            }
            // What a seed held before, or a lease on it, may have left room on its host.
            let beside =
                self.tables.seeds().filter(|row| row.capped_host().is_some_and(|host| hosts.contains(host)));
            self.touched.extend(beside.map(|row| SeedKey::clone(&row.key)));
        }
        let Self { commands, rules, now, tables, answers, touched, .. } = self;
        let serving =
            self.serving.get_or_insert_with(|| Serving::new(touched.clone(), &commands.acquires, answers));
        let batch = serve::Batch { now: *now, rules, acquires: &commands.acquires };
        let wants = serving.serve(&batch, tables, answers);
        if wants.is_empty() { self.refuse() } else { wants }
    }

    /// Hosts whose leases are bounded together, of seeds that were changed.
    fn changed_hosts(&self) -> BTreeSet<String> {
        if !self.rules.caps_hosts() {
            return BTreeSet::new();
        }
        let rows = self.tables.changed_seeds().flat_map(|changed| [&changed.before, &changed.after]);
        rows.flatten().filter_map(|row| row.capped_host().map(str::to_owned)).collect()
    }

    /// Finds the reason for those who got nothing; who waits needs none.
    fn refuse(&mut self) -> Wants {
        let mut wants = Wants::default();
        for at in self.serving.iter().flat_map(|serving| &serving.unserved) {
            let command = &self.commands.acquires[*at];
            let key = &command.key;
            if enqueue::waits(command) {
                self.answers[*at] = Some(Acquired::Refused(Refusal::AllBusy));
            } else if self.tables.witnessed.contains(key) {
                let reason = refuse::reason(&self.tables, self.now, self.rules, key);
                self.answers[*at] = Some(Acquired::Refused(reason));
            } else {
                wants.witnesses.insert(key.clone());
            }
        }
        wants
    }

    /// Where answers to its wants are put.
    pub fn tables(&mut self) -> &mut Tables {
        &mut self.tables
    }

    /// What it came to, once [`Batch::decide`] wants nothing.
    pub fn finish(mut self) -> Decision {
        let Self { commands, rules, planner, now, .. } = self;
        let tables = &mut self.tables;
        let undecided = Acquired::Refused(Refusal::AllBusy);
        let mut answers: Vec<Acquired> =
            self.answers.into_iter().map(|answer| answer.unwrap_or_else(|| undecided.clone())).collect();
        for (at, command) in commands.acquires.iter().enumerate() {
            enqueue::enqueue(tables, (now, rules), planner, (at, command), &self.twins, &mut answers[at]);
        }
        for (at, first) in &self.twins.of_first {
            answers[*at] = answers[*first].clone();
        }
        self.outcomes.acquires = answers;
        self.outcomes.moved = std::mem::take(&mut self.tables.moved);
        Decision {
            outcomes: self.outcomes,
            changes: self.tables.into_changes(),
            woken: self.serving.map(|serving| serving.woken).unwrap_or_default(),
            touched: self.touched,
        }
    }
}

impl Decision {
    /// Says, to those who wait, in how many milliseconds the next lease or suspicion of their key ends by itself, as
    /// `next_end_ms` has it for the rows after the changes.
    pub fn wait_ms(&mut self, commands: &Commands, mut next_end_ms: impl FnMut(&SeedKey) -> Option<i64>) {
        for (Acquire { key, .. }, answer) in commands.acquires.iter().zip(&mut self.outcomes.acquires) {
            if let Acquired::Queued(wait_ms) = answer {
                *wait_ms = next_end_ms(key);
            }
        }
        for (Serve { key }, wait_ms) in commands.serves.iter().zip(&mut self.outcomes.serves) {
            *wait_ms = next_end_ms(key);
        }
    }
}
