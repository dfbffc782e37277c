//! Writes log lines without waiting for who reads them.
//!
//! A line goes into a queue, and a thread writes the queue to standard error. If that blocks (a pipe that nobody reads) or
//! fails (a full disk, a reader that is gone), lines are lost and counted: never is it the program that waits or ends.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

use crate::own_name::in_own_name;

/// Bytes that wait to be written, at most.
const WAITING_MAX: usize = 256 << 10;

/// How long the end of the program waits for the last lines.
const FINISH_MAX: Duration = Duration::from_millis(500);

/// The lines of this process.
static QUEUE: OnceLock<Queue> = OnceLock::new();

/// Lines of this process that are lost.
static LOST: AtomicU64 = AtomicU64::new(0);

/// What waits to be written.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// Something has been added, or has been written.
    changed: Condvar,
    /// Writes what a notice of lost lines looks like.
    notice: Option<fn(u64) -> String>,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Whether the thread is writing a line.
    is_writing: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, line: Vec<u8>) {
        let mut waiting = self.lock();
        if waiting.bytes + line.len() > WAITING_MAX {
            LOST.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.bytes += line.len();
        waiting.lines.push_back(line);
        self.changed.notify_all();
    }

    /// Waits for the next line.
    fn next(&self) -> Vec<u8> {
        let mut waiting = self.lock();
        waiting.is_writing = false;
        self.changed.notify_all();
        loop {
            if let Some(line) = waiting.lines.pop_front() {
                waiting.bytes -= line.len();
                waiting.is_writing = true;
                return line;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until everything is written, but not for long.
    fn finish(&self) {
        let deadline = Instant::now() + FINISH_MAX;
        let mut waiting = self.lock();
        while waiting.is_writing || !waiting.lines.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            waiting = self.changed.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Writes for ever. Whoever reads again after lines were lost is told how many.
    fn write_all(&self, mut out: impl Write) {
        let mut told = 0;
        loop {
            let line = self.next();
            let lost = LOST.load(Ordering::Relaxed);
            if lost > told
                && let Some(notice) = self.notice
                && out.write_all(notice(lost - told).as_bytes()).is_ok()
            {
                told = lost;
            }
            if out.write_all(&line).is_err() {
                LOST.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Starts the thread that writes to standard error, unless it runs already. `notice` says that lines were lost, as a line.
pub(super) fn start(notice: fn(u64) -> String) -> Lines {
    let mut is_new = false;
    let queue = QUEUE.get_or_init(|| {
        is_new = true;
        Queue { notice: Some(notice), ..Queue::default() }
    });
    if is_new {
        let writing = thread::Builder::new().name("log".to_owned());
        let started = writing.spawn(move || queue.write_all(io::stderr()));
        if started.is_err() {
            // Nothing is written then, and every line is counted as soon as the queue is full.
            LOST.fetch_add(1, Ordering::Relaxed);
        }
    }
    Lines(queue)
}

/// How many lines of this process are lost.
pub(crate) fn lost_lines() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Gives the last lines a moment to be written.
pub(crate) fn finish() {
    if let Some(queue) = QUEUE.get() {
        queue.finish();
    }
}

/// The line with the commands that this program has.
fn in_own_words(line: Vec<u8>) -> Vec<u8> {
    let renamed = std::str::from_utf8(&line).ok().and_then(|text| match in_own_name(text) {
        Cow::Borrowed(_) => None,
        Cow::Owned(renamed) => Some(renamed.into_bytes()),
    });
    renamed.unwrap_or(line)
}

/// Where the lines of the log go.
#[derive(Clone, Copy)]
pub(super) struct Lines(&'static Queue);

/// One line that is being written.
pub(super) struct Line {
    queue: &'static Queue,
    text: Vec<u8>,
}

impl MakeWriter<'_> for Lines {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line { queue: self.0, text: Vec::new() }
    }
}

impl Write for Line {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.text.is_empty() {
            self.queue.add(in_own_words(std::mem::take(&mut self.text)));
        }
    }
}
