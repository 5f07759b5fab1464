//! Acquisitions of one batch that are the same request.

use std::collections::HashMap;

use super::Queue;

/// Which of a batch's acquisitions repeat others of it.
#[derive(Debug, Default)]
pub(super) struct Twins {
    /// Those, and for which they stand.
    pub(super) of_first: Vec<(usize, usize)>,
    /// The last attempt of each that others stand for.
    attempts: HashMap<usize, i64>,
}

impl Twins {
    /// The acquisition `at` stands for the first of its request.
    pub(super) fn add(&mut self, at: usize, first: usize, attempt: i64) {
        self.of_first.push((at, first));
        self.attempts.insert(first, attempt);
    }

    /// The attempt that has the place of a request: the last.
    pub(super) fn attempt(&self, at: usize, queue: &Queue) -> i64 {
        self.attempts.get(&at).copied().unwrap_or(queue.attempt)
    }
}
