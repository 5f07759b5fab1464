//! Workers of the generations in the field: programs in `tests/peers`, written from the protocol's description and in
//! another language, so that what our own two ends could have misunderstood alike shows.

use std::path::Path;
use std::process::Command;

use crate::model::Model;
use crate::process::{Process, Worker};

/// A generation of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// 2026-03.
    A,
    /// 2026-08.
    B,
    /// 2026-09 on.
    C,
}

impl Generation {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::A, Self::B, Self::C];

    /// What gives a worker of ours the key of this generation's peers.
    pub fn flags(self) -> &'static [&'static str] {
        match self {
            Self::A => &[],
            Self::B => &["--compatibility-fingerprint=f00"],
            Self::C => &["--compatibility-fingerprint=f00", "--structural-digest=beef"],
        }
    }

    /// Starts a peer of this generation. It logs what our workers log, where it does what they do.
    pub fn start(self, model: &Model, planner_url: &str, flags: &[&str]) -> Worker {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/peer.py");
        let name = format!("peer of generation {self:?}");
        let mut command = Command::new("python3");
        // Without bytecode files beside the sources.
        command.arg("-B").arg(program).arg(format!("--generation={self:?}"));
        command.arg(format!("--planner={planner_url}")).arg("--model").arg(model.path()).args(flags);
        Worker { process: Process::spawn(&name, &mut command) }
    }
}
