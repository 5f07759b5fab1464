//! Transactions of several planners, a statement of one and then some of another, as a seed says.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use sha2::{Digest, Sha256};

use super::history::{Cut, Place};
use super::statements;

/// How long a task keeps its turn without a statement: it waits for a lock that another task holds.
const BLOCKED: Duration = Duration::from_millis(3);

/// Something that a planner does, and when it is cut off, if it is.
pub(super) struct Task<'a, T> {
    pub(super) future: Pin<Box<dyn Future<Output = T> + 'a>>,
    pub(super) cut: Option<Cut>,
}

/// A task that has not ended.
struct Running<'a, T> {
    /// Its place among all.
    at: usize,
    task: Task<'a, T>,
    /// Statements that it has sent.
    sent: u64,
    /// Whether a commit was among them.
    commits: bool,
    /// Times that it waited since the place at which it is cut off.
    waits: u64,
}

/// Runs the tasks in turns: one goes on until it has sent a statement, then it is another's turn. Gives what they
/// gave; `None` for those that were cut off.
pub(super) async fn interleave<T>(tasks: Vec<Task<'_, T>>, order: u64) -> Vec<Option<T>> {
    let mut random = random(order);
    let mut done: Vec<Option<T>> = tasks.iter().map(|_| None).collect();
    let begin = |(at, task)| Running { at, task, sent: 0, commits: false, waits: 0 };
    let mut running: Vec<_> = tasks.into_iter().enumerate().map(begin).collect();
    let mut turn = pick(&mut random, running.len());
    let mut blocked = pin!(tokio::time::sleep(BLOCKED));
    poll_fn(|context| {
        while let Some(Running { at, task, sent, commits, waits }) = running.get_mut(turn) {
            let (before, commits_before) = (statements::made(), statements::commits());
            let polled = task.future.as_mut().poll(context);
            let made = statements::made() - before;
            *sent += made;
            *commits |= statements::commits() > commits_before;
            let mut ended = polled.is_ready();
            let is_there = |cut: Cut| match cut.at {
                Place::Statement(count) => *sent >= count,
                Place::Commit => *commits,
            };
            if let Some(cut) = task.cut
                && is_there(cut)
            {
                ended |= *waits >= cut.waits;
                *waits += 1;
            }
            if let Poll::Ready(value) = polled {
                done[*at] = Some(value);
            }
            if ended {
                running.swap_remove(turn);
            } else if made == 0 && blocked.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            turn = pick(&mut random, running.len());
            blocked.as_mut().reset(tokio::time::Instant::now() + BLOCKED);
        }
        Poll::Ready(())
    })
    .await;
    done
}

/// A source of choices that are the same for the same seed.
pub(super) fn random(seed: u64) -> TestRng {
    // Seeds that follow each other must not begin alike, which they would with this quick generator.
    let digest: [u8; 32] = Sha256::digest(seed.to_le_bytes()).into();
    TestRng::from_seed(RngAlgorithm::XorShift, &digest[..16])
}

fn pick(random: &mut TestRng, below: usize) -> usize {
    random.next_u32() as usize % below.max(1)
}
