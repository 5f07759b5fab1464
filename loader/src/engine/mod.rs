//! Moving weights between workers, behind one narrow trait.

pub mod memory;
