//! What a worker says to people: its standard error and its `log` messages, on their way to espd's log.
//!
//! A worker may say as much as it likes; what is logged of it is bounded in length and in rate, and what is left out
//! is counted. Its last words are kept, because they often tell why it ended.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tracing::{info, warn};

/// Bytes of a line that are logged.
pub(super) const LINE_MAX: usize = 4 << 10;

/// Lines that are logged in one [`WINDOW`], and bytes of them after which no further one is.
const LINES_MAX: u64 = 100;
const BYTES_MAX: usize = 64 << 10;

const WINDOW: Duration = Duration::from_secs(1);

/// Lines and bytes of them that are kept as last words.
const LAST_LINES_MAX: usize = 12;
const LAST_BYTES_MAX: usize = 1_500;

/// How many lines may be logged now.
#[derive(Debug)]
pub(super) struct Allowance {
    since: Instant,
    lines: u64,
    bytes: usize,
    left_out: u64,
}

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is logged. So many before it were not, and nobody has said so yet.
    Logged {
        left_out: u64,
    },
    LeftOut,
}

impl Allowance {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, lines: 0, bytes: 0, left_out: 0 }
    }

    /// Whether a line of this length may be logged now.
    pub(super) fn ask(&mut self, now: Instant, length: usize) -> Verdict {
        if now.duration_since(self.since) >= WINDOW {
            (self.since, self.lines, self.bytes) = (now, 0, 0);
        }
        if self.lines == LINES_MAX || self.bytes >= BYTES_MAX {
            self.left_out += 1;
            return Verdict::LeftOut;
        }
        self.lines += 1;
        self.bytes += length;
        Verdict::Logged { left_out: std::mem::take(&mut self.left_out) }
    }

    /// How many were left out since that was said last.
    pub(super) fn left_out(&mut self) -> u64 {
        std::mem::take(&mut self.left_out)
    }
}

/// Says how many lines were left out, if any were.
pub(super) fn confess(processor: &str, left_out: u64) {
    if left_out > 0 {
        warn!(processor, left_out, "the program says too much: lines were left out");
    }
}

/// The last lines of a worker's standard error.
#[derive(Debug, Clone, Default)]
pub(super) struct LastWords(Arc<Mutex<VecDeque<String>>>);

impl LastWords {
    /// The lines so far, one below the other.
    pub(super) fn read(&self) -> Option<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (!lines.is_empty()).then(|| lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n"))
    }

    fn hear(&self, line: &str) {
        if line.trim().is_empty() {
            return;
        }
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push_back(cut(line, LAST_BYTES_MAX).to_owned());
        let too_much = |lines: &VecDeque<String>| {
            lines.len() > LAST_LINES_MAX || lines.iter().map(String::len).sum::<usize>() > LAST_BYTES_MAX
        };
        while lines.len() > 1 && too_much(&lines) {
            lines.pop_front();
        }
    }
}

/// The beginning of a text, of so many bytes at most.
pub(super) fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// Logs what a worker writes to standard error until that closes.
pub(super) async fn pump(processor: String, mut source: impl AsyncRead + Unpin, words: LastWords) {
    let (mut chunk, mut line) = (vec![0; 64 << 10], Line::default());
    let mut allowance = Allowance::new(Instant::now());
    while let Ok(1..) = source.read(&mut chunk).await.inspect(|length| {
        for part in chunk[..*length].split_inclusive(|byte| *byte == b'\n') {
            if let Some(whole) = line.add(part) {
                tell(&processor, &whole, &mut allowance, &words);
            }
        }
    }) {}
    if !line.is_empty() {
        tell(&processor, &line.take(), &mut allowance, &words);
    }
    confess(&processor, allowance.left_out());
}

fn tell(processor: &str, line: &str, allowance: &mut Allowance, words: &LastWords) {
    words.hear(line);
    if let Verdict::Logged { left_out } = allowance.ask(Instant::now(), line.len()) {
        confess(processor, left_out);
        info!(processor, line, "the program wrote to its standard error");
    }
}

/// A line that is being read; only its beginning is kept.
#[derive(Debug, Default)]
struct Line {
    bytes: Vec<u8>,
    was_cut: bool,
}

impl Line {
    /// Adds a part of a line, and returns the line if that ends it.
    fn add(&mut self, part: &[u8]) -> Option<String> {
        let (text, ends) = match part.strip_suffix(b"\n") {
            Some(text) => (text, true),
            None => (part, false),
        };
        let room = LINE_MAX - self.bytes.len();
        self.was_cut |= text.len() > room;
        self.bytes.extend_from_slice(&text[..text.len().min(room)]);
        ends.then(|| self.take())
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn take(&mut self) -> String {
        let mut text = String::from_utf8_lossy(&self.bytes).trim_end().to_owned();
        if std::mem::take(&mut self.was_cut) {
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
    fn what_is_too_much_is_counted_and_said_with_the_next_line() {
        let begin = Instant::now();
        let mut allowance = Allowance::new(begin);
        for _ in 0..LINES_MAX {
            assert_eq!(allowance.ask(begin, 10), Verdict::Logged { left_out: 0 });
        }
        for _ in 0..7 {
            assert_eq!(allowance.ask(begin, 10), Verdict::LeftOut);
        }
        assert_eq!(allowance.ask(begin + WINDOW, BYTES_MAX), Verdict::Logged { left_out: 7 });
        assert_eq!(allowance.ask(begin + WINDOW, 10), Verdict::LeftOut);
        assert_eq!((allowance.left_out(), allowance.left_out()), (1, 0));
    }

    #[test]
    fn a_long_line_is_cut() {
        let mut line = Line::default();
        for _ in 0..1_000 {
            assert_eq!(line.add(&[b'x'; 100]), None);
        }
        let whole = line.add(b"end\n").unwrap();
        assert_eq!(whole, format!("{} …", "x".repeat(LINE_MAX)));
        assert_eq!(line.add(b"short\n").as_deref(), Some("short"));
    }

    #[tokio::test]
    async fn the_last_words_are_few_and_the_last() {
        let words = LastWords::default();
        assert_eq!(words.read(), None);
        let said: String = (0..1_000).map(|n| format!("line {n}\n\n")).collect();
        pump("p".into(), said.as_bytes(), words.clone()).await;
        let kept = words.read().unwrap();
        assert!(kept.starts_with("line 988\n") && kept.ends_with("\nline 999"), "{kept}");
        pump("p".into(), "é".repeat(5_000).as_bytes(), words.clone()).await;
        assert!(words.read().unwrap().len() <= LAST_BYTES_MAX);
    }
}
