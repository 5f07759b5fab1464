//! Who leads, by what the workers did and were told.

use super::{Play, TOTAL_BYTES, Worker, asker, is_origin, named};
use crate::domain::chain::Held;
use crate::domain::owner::Owner;
use crate::domain::seed::Profile;
use crate::store::commands::{Claim, Role};
use crate::store::conformance::{Home, identity, key};
use crate::store::listed::{Command, Outcome};

/// Between two who are let read storage beside who leads, in milliseconds.
const PAUSE_MS: i64 = 1_000;
/// How long the right lives without a renewal, in milliseconds.
const TTL_MS: i64 = 10_000;

/// Who was told that it leads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leader {
    name: u8,
    memory: u32,
    until_ms: i64,
    /// When it last told of more bytes.
    moved_ms: i64,
}

impl Worker {
    /// What it reads from storage is for nobody new.
    fn has_no_right(&mut self) {
        if self.reads_from.is_none() {
            self.told_root = self.told_root.filter(|root| !is_origin(*root));
        }
    }
}

impl<H: Home> Play<H> {
    /// A worker that finds nothing asks for the right, or renews it.
    pub(super) async fn claim(&mut self, name: u8) -> Result<(), String> {
        let now = self.now;
        let worker = self.workers[usize::from(name)].clone();
        if worker.is_complete {
            return Ok(());
        }
        let moves = self.random.bool() && worker.arrived_bytes < TOTAL_BYTES;
        let patience_ms = self.random.choice([1, 4_000, 20_000]).unwrap_or(1);
        let arrived_bytes = worker.arrived_bytes + u64::from(moves);
        let had_it = self.leader().filter(|holder| holder.name == name);
        let origin = self.origin_of(name, had_it.is_some());
        let worker = self.workers[usize::from(name)].clone();
        let told = asker(name, worker.memory, None);
        let profile = Profile { incarnation: Some(told.incarnation), ..Profile::default() };
        let command = Command::Claim(Box::new(Claim {
            by: None,
            owner: Owner::default(),
            identity: told.identity,
            key: key("k"),
            profile: Box::new(profile),
            client: None,
            total_bytes: TOTAL_BYTES,
            arrived_bytes,
            held: worker.held.map(|(root, bytes)| Held { root: named(root), bytes }),
            origin: origin.map(named),
            whole: false,
            patience_ms,
        }));
        let Outcome::Claimed(claimed) = self.apply(command).await else { panic!("not of a claim") };
        let holder = self.leader().filter(|holder| holder.name != name);
        let keeps = holder.filter(|holder| holder.until_ms > now && holder.moved_ms > now - patience_ms);
        let expected = keeps.map_or(Role::Leads, |holder| {
            let leader = &self.workers[usize::from(holder.name)];
            let left = TOTAL_BYTES - leader.told_bytes;
            let content = worker.held.filter(|(root, _)| !is_origin(*root));
            let is_sooner = content.is_some_and(|(_, bytes)| 2 * (TOTAL_BYTES - bytes) <= left);
            let is_due = leader.shared_ms.is_none_or(|shared_ms| now - shared_ms >= PAUSE_MS);
            let is_known = leader.told_root.is_some();
            if is_sooner && is_due && is_known { Role::Alone } else { Role::Waits(identity(holder.name)) }
        });
        if let (Role::Alone, Some(holder)) = (&expected, keeps) {
            self.workers[usize::from(holder.name)].shared_ms = Some(now);
        }
        if claimed.role != expected {
            return Err(format!("{name} is told {:?} instead of {expected:?}", claimed.role));
        }
        if let Some(before) =
            self.leader().filter(|before| claimed.role == Role::Leads && before.name != name)
        {
            self.workers[usize::from(before.name)].has_no_right();
        }
        let worker = &mut self.workers[usize::from(name)];
        worker.arrived_bytes = arrived_bytes;
        if claimed.role != Role::Leads && !worker.loads {
            return Ok(());
        }
        worker.heard_ms = now;
        worker.told_bytes = worker.held.map_or(0, |held| held.1);
        worker.told_root = worker.held.map(|held| held.0).or(worker.told_root.filter(|_| worker.loads));
        if claimed.role == Role::Leads {
            if !worker.loads || worker.reads_from.is_some() {
                worker.shared_ms = None;
            }
            (worker.loads, worker.depth, worker.reads_from) = (true, 0, None);
            let moved_ms = had_it.filter(|_| !moves).map_or(now, |holder| holder.moved_ms);
            self.leads = Some(Leader { name, memory: worker.memory, until_ms: now + TTL_MS, moved_ms });
            worker.told_root = worker.held.map(|held| held.0).or(origin);
        } else {
            worker.has_no_right();
        }
        Ok(())
    }

    /// What names what a worker reads from storage that had nothing. More comes while it reads.
    fn origin_of(&mut self, name: u8, leads: bool) -> Option<char> {
        let worker = &mut self.workers[usize::from(name)];
        if leads && worker.held.is_none() && worker.origin.is_none() && self.random.bool() {
            worker.origin = Some(self.next_origin);
            self.next_origin = char::from_u32(u32::from(self.next_origin) + 1).unwrap();
        }
        if let Some(origin) =
            worker.origin.filter(|_| leads && worker.held.is_none_or(|held| is_origin(held.0)))
        {
            let bytes = worker.held.map_or(0, |held| held.1) + self.random.u64(0..30);
            let root = worker.held.map_or(origin, |held| held.0);
            worker.held = Some((root, bytes.min(TOTAL_BYTES))).filter(|_| bytes > 0);
        }
        worker.origin
    }

    /// Who has the right, or had it last: it loads with the same memory, and from nobody.
    fn leader(&self) -> Option<Leader> {
        self.leads.filter(|leader| {
            let worker = &self.workers[usize::from(leader.name)];
            worker.memory == leader.memory && worker.loads && worker.reads_from.is_none()
        })
    }

    /// Whether nobody may read from a worker yet: it leads, and has no name for its bytes.
    pub(super) fn is_nameless(&self, name: u8) -> bool {
        let worker = &self.workers[usize::from(name)];
        worker.loads && worker.reads_from.is_none() && worker.told_root.is_none()
    }
}
