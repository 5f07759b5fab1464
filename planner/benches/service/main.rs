//! How fast the planner is, and how much memory it takes: the real service, as a process of its own, on both stores.
//!
//! `cargo bench -p rfork-planner --bench service -- [--store sqlite|postgres] [--quick] [--json]`; `--help` lists all.
//! The method, and results, are in `docs/planner-performance.md`. This process makes the load and measures. It
//! starts itself again as the planners, and as a bare responder that shows what the load itself costs.

use std::error::Error;

use clap::Parser;

mod answer;
mod bars;
mod chains;
mod child;
mod compare;
mod fleet;
mod fleet_report;
mod load;
mod machine;
mod measure;
mod options;
mod population;
mod report;
mod responder;
mod rows;

#[path = "../../../tests/src/cluster.rs"]
mod cluster;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    if let Some(role) = child::Role::of_this_process() {
        return role.play();
    }
    let options = options::Options::parse().settled();
    if !options.fleet.is_empty() {
        let rows = fleet::all(&options)?;
        if options.json {
            println!("{}", serde_json::to_string_pretty(&rows)?);
        } else {
            print!("{}", fleet_report::Table(&rows));
        }
        return Ok(());
    }
    if !options.chain.is_empty() {
        let rows = chains::all(&options)?;
        if options.json {
            println!("{}", serde_json::to_string_pretty(&rows)?);
        } else {
            print!("{}", chains::Table(&rows));
        }
        return Ok(());
    }
    if let Some(against) = &options.against {
        let comparison = compare::all(&options, against)?;
        if options.json {
            println!("{}", serde_json::to_string_pretty(&comparison)?);
        } else {
            print!("{comparison}");
        }
        return Ok(());
    }
    let report = measure::all(&options)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}
