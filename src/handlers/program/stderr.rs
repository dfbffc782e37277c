//! The standard error of a program, on its way to espd's log.
//!
//! The last lines are kept, because they often tell why a program ended.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tracing::info;

use super::log_limit::{LINE_MAX, LogDecision, LogLimit, log_suppressed, truncate};
use crate::processing::declaration::HiddenTexts;

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
            // Frames follow after what is wrong in some languages, any number of them.
            let is_first_telling = lines.iter().rposition(|line| tells_what(line)) == Some(0);
            lines.remove(usize::from(is_first_telling));
        }
    }
}

/// The last line of a program's last lines that says what is wrong, if there is one, and otherwise the last line.
pub(super) fn find_telling(tail: &str) -> Option<&str> {
    let lines = || tail.lines().filter(|line| !line.trim().is_empty());
    lines().rfind(|line| tells_what(line)).or_else(|| lines().next_back())
}

/// Whether a line may say what is wrong. Frames do not, which are indented where they follow after that (Node, Ruby, the JVM), nor does
/// the end of what Node writes: the fields of an error object, and its own version.
fn tells_what(line: &str) -> bool {
    let is_version =
        || line.strip_prefix("Node.js v").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    !line.starts_with(char::is_whitespace) && line.contains(char::is_alphanumeric) && !is_version()
}

/// Logs what a program writes to standard error, without what is `hidden`, until the pipe closes.
pub(super) async fn forward(
    processor: String,
    hidden: HiddenTexts,
    mut source: impl AsyncRead + Unpin,
    tail: StderrTail,
) {
    let (mut chunk, mut line) = (vec![0; 64 << 10], PartialLine::default());
    let mut limit = LogLimit::new(Instant::now());
    while let Ok(1..) = source.read(&mut chunk).await.inspect(|length| {
        for part in chunk[..*length].split_inclusive(|byte| *byte == b'\n') {
            if let Some(whole) = line.add(part) {
                log(&processor, &hidden.conceal_excerpt(&whole), &mut limit, &tail);
            }
        }
    }) {}
    if !line.is_empty() {
        log(&processor, &hidden.conceal_excerpt(&line.take()), &mut limit, &tail);
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
    async fn the_line_that_says_what_is_wrong_is_found_and_kept() {
        let frames = |indent: &str| (0..20).map(|n| format!("{indent}frame {n}\n")).collect::<String>();
        for (written, told) in [
            ("warning\nValueError: x\n".to_owned(), "ValueError: x"),
            ("  File \"x.py\"\n    raise\nValueError: x\n".to_owned(), "ValueError: x"),
            (format!("x.rb:5:in `y': x (KeyError)\n{}", frames("\tfrom ")), "x.rb:5:in `y': x (KeyError)"),
            (
                format!(
                    "x.mjs:5\n  throw x\n  ^\n\nError: x\n{} {{\n  code: 'X'\n}}\n\nNode.js v20.20.2\n",
                    frames("    at ")
                ),
                "Error: x",
            ),
            ("Node.js v20.20.2\n".to_owned(), "Node.js v20.20.2"),
            ("  indented\n  only\n".to_owned(), "  only"),
        ] {
            let tail = StderrTail::default();
            forward("p".into(), HiddenTexts::default(), written.as_bytes(), tail.clone()).await;
            assert_eq!(find_telling(&tail.read().unwrap()), Some(told), "{written}");
        }
        assert_eq!(find_telling("\n"), None);
    }

    #[tokio::test]
    async fn the_tail_is_short_and_has_the_last_lines() {
        let tail = StderrTail::default();
        assert_eq!(tail.read(), None);
        let written: String = (0..1_000).map(|n| format!("line {n}\n\n")).collect();
        forward("p".into(), HiddenTexts::default(), written.as_bytes(), tail.clone()).await;
        let kept = tail.read().unwrap();
        assert!(kept.starts_with("line 988\n") && kept.ends_with("\nline 999"), "{kept}");
        forward("p".into(), HiddenTexts::default(), "é".repeat(5_000).as_bytes(), tail.clone()).await;
        assert!(tail.read().unwrap().len() <= TAIL_BYTES_MAX);
    }
}
