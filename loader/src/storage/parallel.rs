//! Work on a bounded number of threads that end with the call.

use std::thread;

/// Runs `work` on up to `threads` threads at once, the calling one among them, and returns what each gave. When
/// the system refuses a thread, those that there are do its part too: `work` takes what is next until nothing
/// is left.
pub(super) fn on_threads<T: Send>(threads: usize, work: impl Fn() -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads)
            .map_while(|_| {
                thread::Builder::new().name("rfork-storage".into()).spawn_scoped(scope, &work).ok()
            })
            .collect();
        let mut results = vec![work()];
        for helper in helpers {
            match helper.join() {
                Ok(result) => results.push(result),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        results
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn as_many_threads_as_asked_for_work_at_once() {
        for threads in 1..4 {
            let all_at_work = Barrier::new(threads);
            let leaders = on_threads(threads, || all_at_work.wait().is_leader());
            assert_eq!((leaders.len(), leaders.iter().filter(|leader| **leader).count()), (threads, 1));
        }
    }
}
