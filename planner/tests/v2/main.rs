//! API v2 over sockets: what it does, what it refuses, and that its document tells the truth.

// Clippy knows tests by their attribute, which helpers of theirs lack.
#![allow(clippy::unwrap_used, clippy::panic)]

use cluster::Cluster;
use support::Planner;
use tempfile::TempDir;

#[path = "../../../tests/src/cluster.rs"]
mod cluster;
#[path = "../support/mod.rs"]
mod support;

/// Makes two tests of each of these functions, which take a planner: one with a planner on SQLite, one on Postgres.
macro_rules! on_both_stores {
    ($($test:ident),+ $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test]
                async fn $test() {
                    let (_directory, planner) = $crate::planner().await;
                    super::$test(&planner).await;
                    planner.stop().await;
                }
            )+
        }

        mod postgres {
            $(
                #[tokio::test]
                async fn $test() {
                    let planner = $crate::planner_on_postgres().await;
                    super::$test(&planner).await;
                    planner.stop().await;
                }
            )+
        }
    };
}

mod calls;
mod document;
mod history;
mod pins;
mod refusals;

/// A planner over a new file.
async fn planner() -> (TempDir, Planner) {
    let directory = TempDir::new().unwrap();
    let planner = Planner::start(&directory.path().join("p.db"), |_| {}).await;
    (directory, planner)
}

/// A planner over a new database.
async fn planner_on_postgres() -> Planner {
    Planner::start_on(Cluster::shared().database().parse().unwrap(), |_| {}).await
}
