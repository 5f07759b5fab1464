//! The `rfork` command.

#[cfg_attr(not(test), expect(dead_code, reason = "the demo, its caller, is not written yet"))]
mod sample_model;

fn main() {}
