//! The whole of it, as real processes on loopback.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests are tests too.

mod addresses;
mod apis;
mod balancers;
mod by_address;
mod chains;
mod chaos;
mod clocks;
mod cold_starts;
mod command;
mod databases;
mod examples;
mod faults;
mod forks;
mod generations;
mod identity;
mod npu;
mod pins;
mod planner;
mod replicas;
mod settings;
mod telemetry;
mod tls;
mod upstream;
mod versions;
