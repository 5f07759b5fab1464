//! API v2 over sockets: what it does, what it refuses, and that its document tells the truth.

// Clippy knows tests by their attribute, which helpers of theirs lack.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod calls;
mod document;
mod history;
mod refusals;
