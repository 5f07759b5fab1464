//! What a decision has to see, from the mirror.

use std::sync::Arc;

use super::mirror::Mirror;
use crate::decide::rows::{RequestRow, SeedRow};
use crate::decide::{Tables, Wants};
use crate::domain::seed::State;
use crate::store::{LeaseHash, MAX_CALLED, Rules};

impl Mirror {
    /// Tables in which nothing was seen yet.
    pub(super) fn tables(&self) -> Tables {
        Tables::new(self.new_seed, self.new_request, self.room())
    }

    /// Answers what a decision wants.
    pub(super) fn load(&mut self, wants: &Wants, tables: &mut Tables, now: i64, rules: &Rules) {
        for identity in &wants.identities {
            if let Some(id) = self.names.get(identity.to_string().as_str()) {
                self.put_seed(tables, *id);
            }
        }
        for client in &wants.clients {
            tables.put_client(*client, self.by_client.get(client).copied().unwrap_or_default());
        }
        for number in &wants.numbers {
            self.put_seed(tables, *number);
        }
        for lease in &wants.leases {
            self.put_leased(tables, lease);
            if let Some(id) = self.requests_by_lease.get(lease) {
                self.put_request(tables, *id);
            }
        }
        for lease in &wants.readers {
            let seed = self.leases.get(lease).and_then(|id| self.seeds.get(id));
            let reader = seed.and_then(|seed| seed.row.lease(lease)?.reader);
            if let Some(reader) = reader {
                self.put_seed(tables, reader);
            }
        }
        for key in &wants.leaders {
            if let Some(leader) = self.keys.get(key).and_then(|key| key.leader) {
                self.put_seed(tables, leader);
            }
        }
        for name in &wants.names {
            if let Some(id) = self.requests_by_name.get(name) {
                self.put_request(tables, *id);
            }
        }
        for (key, after) in &wants.waiting {
            let waiting = self.keys.get(key).into_iter().flat_map(|key| key.waiting.range(after + 1..));
            let mut rows = waiting.filter_map(|id| self.requests.get(id).cloned());
            let page: Vec<Arc<RequestRow>> = rows.by_ref().take(MAX_CALLED).collect();
            let more = rows.next().is_some();
            for row in &page {
                self.put_planner(tables, row);
            }
            tables.put_waiting(key, page, more);
        }
        for ((key, near), limit) in &wants.offers {
            self.refresh_due(key, now);
            let slots = self.keys.get(key).and_then(|key| key.near.get(near));
            let mut rows = slots
                .into_iter()
                .flatten()
                .filter_map(|(.., id)| Some(&self.seeds.get(id)?.row))
                .filter(|row| row.state(now, rules) == State::Live);
            let page: Vec<Arc<SeedRow>> = rows.by_ref().take(*limit).cloned().collect();
            let complete = rows.next().is_none();
            tables.put_offer(key, near, *limit, page, complete);
        }
        for instance in &wants.sources {
            tables.put_source(instance, self.sources.get(instance).map(|source| source.instance.clone()));
        }
        for key in &wants.moves {
            tables.put_move(key, self.moves.get(key).copied().unwrap_or_default());
        }
        for host in &wants.hosts {
            for id in self.hosts.get(host).into_iter().flatten() {
                self.put_seed(tables, *id);
            }
            tables.put_host(host);
        }
        for key in &wants.witnesses {
            let rows = || self.keys.get(key).into_iter().flat_map(|key| key.seeds.values());
            let unseen = |id: &&i64| !tables.has_seen(**id);
            let of = |state| {
                let is_so = |id: &&i64| {
                    let row = self.seeds.get(*id).map(|seed| &seed.row);
                    row.is_some_and(|row| !row.is_nameless() && row.state(now, rules) == state)
                };
                rows().filter(unseen).find(is_so)
            };
            if let Some(id) = of(State::Live).or_else(|| of(State::Suspect)).copied() {
                self.put_seed(tables, id);
            }
            tables.put_witness(key);
        }
    }

    pub(super) fn put_seed(&self, tables: &mut Tables, id: i64) {
        if let Some(seed) = self.seeds.get(&id) {
            tables.put_seed(seed.row.clone());
        }
    }

    fn put_leased(&self, tables: &mut Tables, lease: &LeaseHash) {
        if let Some(id) = self.leases.get(lease) {
            self.put_seed(tables, *id);
        }
    }

    /// A request, with its planner and the seed that its lease is on.
    pub(super) fn put_request(&self, tables: &mut Tables, id: i64) {
        let Some(row) = self.requests.get(&id) else { return };
        self.put_leased(tables, &row.lease);
        self.put_planner(tables, row);
        tables.put_request(row.clone());
    }

    fn put_planner(&self, tables: &mut Tables, row: &RequestRow) {
        if let Some((planner, until_ms)) =
            row.planner.as_ref().and_then(|name| self.planners.get_key_value(name))
        {
            tables.put_planner(planner, *until_ms);
        }
    }
}
