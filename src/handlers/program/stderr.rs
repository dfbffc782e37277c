//! The standard error of a program, on its way to espd's log.
//!
//! The last lines are kept, because they often tell why a program ended.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tracing::info;

use super::log_limit::{LINE_MAX, LogDecision, LogLimit, log_suppressed, truncate};

/// Lines, and bytes of them, that [`StderrTail`] keeps.
const TAIL_LINES_MAX: usize = 12;
const TAIL_BYTES_MAX: usize = 1_500;

/// The last lines that a program has written to its standard error. [`forward`] writes them, [`Self::read`] reads them.
#[derive(Debug, Clone, Default)]
pub(super) struct StderrTail(Arc<Mutex<VecDeque<String>>>);

impl StderrTail {
    /// The lines so far, one below the other; `None` if there are none.
    pub(super) fn read(&self) -> Option<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (!lines.is_empty()).then(|| lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n"))
    }

    fn push(&self, line: &str) {
        if line.trim().is_empty() {
            return;
        }
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push_back(truncate(line, TAIL_BYTES_MAX).to_owned());
        let is_too_long = |lines: &VecDeque<String>| {
            lines.len() > TAIL_LINES_MAX || lines.iter().map(String::len).sum::<usize>() > TAIL_BYTES_MAX
        };
        while lines.len() > 1 && is_too_long(&lines) {
            lines.pop_front();
        }
    }
}

/// Logs what a program writes to standard error, until the pipe closes.
pub(super) async fn forward(processor: String, mut source: impl AsyncRead + Unpin, tail: StderrTail) {
    let (mut chunk, mut line) = (vec![0; 64 << 10], PartialLine::default());
    let mut limit = LogLimit::new(Instant::now());
    while let Ok(1..) = source.read(&mut chunk).await.inspect(|length| {
        for part in chunk[..*length].split_inclusive(|byte| *byte == b'\n') {
            if let Some(whole) = line.add(part) {
                log(&processor, &whole, &mut limit, &tail);
            }
        }
    }) {}
    if !line.is_empty() {
        log(&processor, &line.take(), &mut limit, &tail);
    }
    log_suppressed(&processor, limit.take_suppressed());
}

fn log(processor: &str, line: &str, limit: &mut LogLimit, tail: &StderrTail) {
    tail.push(line);
    if let LogDecision::Log { suppressed } = limit.decide(Instant::now(), line.len()) {
        log_suppressed(processor, suppressed);
        info!(processor, line, "the program wrote to its standard error");
    }
}

/// A line whose end has not been read yet. Only its first [`LINE_MAX`] bytes are kept.
#[derive(Debug, Default)]
struct PartialLine {
    bytes: Vec<u8>,
    is_cut: bool,
}

impl PartialLine {
    /// Adds a part of a line. Returns the line if this part ends it.
    fn add(&mut self, part: &[u8]) -> Option<String> {
        let (text, ends) = match part.strip_suffix(b"\n") {
            Some(text) => (text, true),
            None => (part, false),
        };
        let room = LINE_MAX - self.bytes.len();
        self.is_cut |= text.len() > room;
        self.bytes.extend_from_slice(&text[..text.len().min(room)]);
        ends.then(|| self.take())
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn take(&mut self) -> String {
        let mut text = String::from_utf8_lossy(&self.bytes).trim_end().to_owned();
        if std::mem::take(&mut self.is_cut) {
            text.push_str(" …");
        }
        self.bytes.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_cut() {
        let mut line = PartialLine::default();
        for _ in 0..1_000 {
            assert_eq!(line.add(&[b'x'; 100]), None);
        }
        let whole = line.add(b"end\n").unwrap();
        assert_eq!(whole, format!("{} …", "x".repeat(LINE_MAX)));
        assert_eq!(line.add(b"short\n").as_deref(), Some("short"));
    }

    #[tokio::test]
    async fn the_tail_is_short_and_has_the_last_lines() {
        let tail = StderrTail::default();
        assert_eq!(tail.read(), None);
        let written: String = (0..1_000).map(|n| format!("line {n}\n\n")).collect();
        forward("p".into(), written.as_bytes(), tail.clone()).await;
        let kept = tail.read().unwrap();
        assert!(kept.starts_with("line 988\n") && kept.ends_with("\nline 999"), "{kept}");
        forward("p".into(), "é".repeat(5_000).as_bytes(), tail.clone()).await;
        assert!(tail.read().unwrap().len() <= TAIL_BYTES_MAX);
    }
}
