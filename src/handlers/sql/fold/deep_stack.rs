//! The parser and what reads its trees call themselves for each level of an expression, and a long sum is as deep as it has terms.

use std::thread;

/// Enough for the deepest tree of a text of [`super::TEXT_MAX`] bytes, in a debug build as well. Only what is touched takes memory.
const SIZE: usize = 128 << 20;

/// Does work that may go deep, on a thread of its own with a large stack. `None` if there is no thread to be had, or the work has
/// panicked.
pub(super) fn on_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("espd-sql".to_owned()).stack_size(SIZE);
        thread.spawn_scoped(scope, work).ok()?.join().ok()
    })
}
