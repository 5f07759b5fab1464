//! Whose place a worker gets whose source is lost, by what the workers know.

use super::{Lease, Play, SILENT_MS};
use crate::store::conformance::Home;

/// A place that passes to a worker.
#[derive(Debug)]
pub(super) struct Inheritance {
    /// On whom it is.
    pub(super) source: u8,
    /// Who is passed over, and which memory of it.
    pub(super) passed_over: Vec<(u8, u32)>,
    /// Whether the place is the reserve.
    pub(super) on_reserve: bool,
}

impl<H: Home> Play<H> {
    /// Whose reader becomes who reads from `lost`, if that is silent: the first before it that is there, on which there is a
    /// lease of the one behind it.
    pub(super) fn inheritance(&self, name: u8, lost: (u8, u32)) -> Option<Inheritance> {
        let asks = &self.workers[usize::from(name)];
        let (mut at, mut passed_over) = (lost, Vec::new());
        loop {
            if !self.is_gone(at) || passed_over.contains(&at) {
                return None;
            }
            passed_over.push(at);
            let before = self.read_from(at)?;
            let worker = &self.workers[usize::from(at.0)];
            let leases = worker.leases.iter().chain(&worker.kept);
            let places = leases.filter(|lease| {
                let held = (lease.source, lease.memory, lease.holder);
                held == (before.0, before.1, at.1) && lease.ends_ms > self.now
            });
            let on_reserve = places.map(|lease| lease.is_reserve).min()?;
            if self.is_gone(before) {
                at = before;
                continue;
            }
            let seed = &self.workers[usize::from(before.0)];
            let reads_from_the_asker = asks.loads && seed.reads_from == Some((name, asks.memory));
            let is_there = seed.memory == before.1 && (seed.loads || seed.is_complete);
            // Who reads storage for itself is nobody's source.
            let is_alone = self.is_nameless(before.0);
            if !is_there || is_alone || before.0 == name || seed.loads && reads_from_the_asker {
                return None;
            }
            let is_same = |root| seed.told_root == Some(root) || seed.grew_from == Some(root);
            if asks.held.is_some_and(|(root, _)| !is_same(root)) {
                return None;
            }
            let is_new = !asks.loads && asks.held.is_none();
            let holds_more = seed.told_bytes > asks.held.map_or(0, |held| held.1);
            let is_nearer = asks.loads && seed.depth < asks.depth;
            let may_read = seed.is_complete || is_new || holds_more || is_nearer;
            return may_read.then_some(Inheritance { source: before.0, passed_over, on_reserve });
        }
    }

    /// Whether a memory of a worker loads, and is silent or was taken away.
    fn is_gone(&self, (name, memory): (u8, u32)) -> bool {
        let worker = &self.workers[usize::from(name)];
        if worker.memory == memory {
            return self.is_silent(worker);
        }
        worker.before.memory == memory && worker.before.loads && !worker.loads && !worker.is_complete
    }

    /// Whom a memory of a worker reads from, or read from last.
    fn read_from(&self, (name, memory): (u8, u32)) -> Option<(u8, u32)> {
        let worker = &self.workers[usize::from(name)];
        if worker.memory == memory { worker.reads_from } else { worker.before.reads_from }
    }

    /// The leases of these on their sources have ended, and they are no sources until they are heard of.
    pub(super) fn pass_over(&mut self, passed_over: &[(u8, u32)]) {
        for (name, memory) in passed_over {
            let (now, from) = (self.now, self.read_from((*name, *memory)));
            let worker = &mut self.workers[usize::from(*name)];
            let stays = |lease: &Lease| Some((lease.source, lease.memory)) != from || lease.holder != *memory;
            worker.leases.retain(stays);
            worker.kept.retain(stays);
            if worker.memory == *memory {
                worker.heard_ms = worker.heard_ms.min(now - SILENT_MS);
            }
        }
    }
}
