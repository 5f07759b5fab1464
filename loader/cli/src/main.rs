//! The `rfork` command.

fn main() {}
