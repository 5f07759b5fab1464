//! What one row of the table is about.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

/// Clients at once, in every row.
pub(crate) const CLIENTS: usize = 64;

/// Where the planner keeps its seeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StoreKind {
    Sqlite,
    Postgres,
}

/// What a client does over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Work {
    /// `POST /add_seed` of seeds that are known, which is one operation
    Heartbeats,
    /// `GET /get_seed` and `POST /put_seed` of that lease, which are one operation
    Cycles,
}

/// Whether a client keeps its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Connections {
    /// One connection for all of its requests
    KeepAlive,
    /// A new one for each request, which the client closes when it has the answer
    New,
}

/// What is measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Row {
    pub(crate) store: StoreKind,
    pub(crate) seeds: u32,
    pub(crate) keys: u32,
    pub(crate) work: Work,
    pub(crate) connections: Connections,
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        })
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Heartbeats => "heartbeats",
            Self::Cycles => "cycles",
        })
    }
}

impl fmt::Display for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::KeepAlive => "keep-alive",
            Self::New => "new",
        })
    }
}
