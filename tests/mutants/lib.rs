//! What the planner decides, without what it decides for: see `run` beside this.
#![allow(dead_code, unused_imports)]

pub mod decide;
pub mod domain;
pub mod store;
