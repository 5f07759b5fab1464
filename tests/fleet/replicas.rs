//! Planners, of which each is killed once on the way, and started again.

use rfork_tests::process::Planner;
use tokio::task::{JoinHandle, spawn_blocking};

#[derive(Debug)]
enum Replica {
    Works(Planner),
    Dead(Planner),
    Starts(JoinHandle<Planner>),
    /// It is becoming another of these.
    Changes,
}

#[derive(Debug)]
pub(crate) struct Replicas {
    each: Vec<(Replica, Vec<[u64; 2]>)>,
    killed: u32,
}

impl Replicas {
    /// Of each it is told at which tick it is killed, and started again.
    pub(crate) fn new(planners: Vec<Planner>, outages: Vec<[u64; 2]>) -> Self {
        let each = planners.into_iter().zip(outages);
        Self {
            each: each.map(|(planner, outage)| (Replica::Works(planner), vec![outage])).collect(),
            killed: 0,
        }
    }

    pub(crate) fn all_work(&self) -> bool {
        self.each.iter().all(|(replica, _)| matches!(replica, Replica::Works(_)))
    }

    /// How many were killed.
    pub(crate) fn killed(&self) -> u32 {
        self.killed
    }

    /// Kills and starts those whose tick has come.
    pub(crate) async fn step(&mut self, tick: u64) {
        for (replica, outages) in &mut self.each {
            let due = outages.last().copied();
            *replica = match (std::mem::replace(replica, Replica::Changes), due) {
                (Replica::Works(mut planner), Some([kill, _])) if tick >= kill => {
                    planner.process.kill();
                    self.killed += 1;
                    Replica::Dead(planner)
                }
                (Replica::Dead(mut planner), Some([_, start])) if tick >= start => {
                    outages.pop();
                    Replica::Starts(spawn_blocking(move || {
                        planner.restart();
                        planner
                    }))
                }
                (Replica::Starts(starting), _) if starting.is_finished() => {
                    Replica::Works(starting.await.unwrap())
                }
                (replica, _) => replica,
            };
        }
    }
}
