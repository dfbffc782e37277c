//! Reads the lines that a program writes, without ever holding more than the longest line allowed.

use std::io;
use std::ops::Range;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The longest line that is read, in bytes.
pub(super) const LINE_MAX: usize = 16 << 20;

/// Bytes that are read from the pipe at a time.
const CHUNK: usize = 64 << 10;

/// A buffer that has grown larger is freed when it is empty, in bytes.
const KEPT_MAX: usize = 1 << 20;

/// Why no further line can be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("wrote a line of more than {} bytes", LINE_MAX)]
    TooLong,
    #[error("ended in the middle of a line: {}", excerpt(.0))]
    Partial(Vec<u8>),
    #[error("wrote a line that is not UTF-8: {}", excerpt(.0))]
    NotText(Vec<u8>),
    #[error("could not be read from: {0}")]
    Io(#[from] io::Error),
}

/// The lines of a stream.
#[derive(Debug)]
pub(super) struct Lines<R> {
    source: R,
    buffer: Vec<u8>,
    /// The current line.
    line: Range<usize>,
    /// Where the next line begins in the buffer.
    start: usize,
    /// The buffer has no end of a line between `start` and here.
    searched: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, buffer: Vec::new(), line: 0..0, start: 0, searched: 0 }
    }

    /// Moves on to the next line. Returns `false` at the end of the stream. Cancel-safe: dropping the future loses nothing.
    pub(super) async fn advance(&mut self) -> Result<bool, LineError> {
        loop {
            if let Some(length) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                self.line = self.start..self.searched + length;
                self.start = self.line.end + 1;
                self.searched = self.start;
                let line = &self.buffer[self.line.clone()];
                if line.len() > LINE_MAX {
                    return Err(LineError::TooLong);
                }
                return std::str::from_utf8(line)
                    .map(|_| true)
                    .map_err(|_| LineError::NotText(beginning(line)));
            }
            self.searched = self.buffer.len();
            if self.searched - self.start > LINE_MAX {
                return Err(LineError::TooLong);
            }
            self.make_room();
            if (&mut self.source).take(CHUNK as u64).read_buf(&mut self.buffer).await? == 0 {
                return match &self.buffer[self.start..] {
                    [] => Ok(false),
                    rest => Err(LineError::Partial(beginning(rest))),
                };
            }
        }
    }

    /// The line that [`Self::advance`] has moved to, without its end.
    pub(super) fn line(&self) -> &str {
        std::str::from_utf8(&self.buffer[self.line.clone()]).unwrap_or_default()
    }

    /// Whether the next line can be read without waiting.
    #[cfg(test)]
    fn is_buffered(&self) -> bool {
        self.buffer[self.searched..].contains(&b'\n')
    }

    /// Drops the lines that were read, and makes room for the next chunk.
    fn make_room(&mut self) {
        self.line = 0..0;
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
        }
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT_MAX {
            self.buffer = Vec::new();
        }
        self.buffer.reserve(CHUNK);
    }
}

/// As much of a line as an error shows.
fn beginning(line: &[u8]) -> Vec<u8> {
    line[..line.len().min(EXCERPT_MAX + 1)].to_vec()
}

/// Bytes of a line that an error shows.
const EXCERPT_MAX: usize = 200;

/// The beginning of a line, escaped, for an error message.
pub(super) fn excerpt(line: &[u8]) -> String {
    let shown = String::from_utf8_lossy(&line[..line.len().min(EXCERPT_MAX)]).escape_debug().to_string();
    if line.len() > EXCERPT_MAX { format!("{shown} …") } else { shown }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    async fn read(bytes: &[u8]) -> (Vec<String>, Option<LineError>) {
        let (mut lines, mut read) = (Lines::new(bytes), Vec::new());
        loop {
            match lines.advance().await {
                Ok(true) => read.push(lines.line().to_owned()),
                Ok(false) => return (read, None),
                Err(error) => return (read, Some(error)),
            }
        }
    }

    #[tokio::test]
    async fn lines_come_whole_and_in_order() {
        let text: String = (0..10_000).map(|n| format!("{n}{}\n", "x".repeat(n % 100))).collect();
        let (lines, error) = read(text.as_bytes()).await;
        assert!(error.is_none());
        assert_eq!(lines, text.lines().collect::<Vec<_>>());
        assert_eq!(read(b"").await.0.len(), 0);
        assert_eq!(read(b"\n\na\n").await.0, ["", "", "a"]);
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_an_error_that_shows_it() {
        let (lines, error) = read(b"{}\n{\"do").await;
        assert_eq!(lines, ["{}"]);
        assert_eq!(error.unwrap().to_string(), r#"ended in the middle of a line: {\"do"#);
    }

    #[tokio::test]
    async fn bytes_that_are_not_text_are_an_error() {
        let (lines, error) = read(b"{}\n\xff\xfe\n").await;
        assert_eq!(lines, ["{}"]);
        assert!(matches!(error, Some(LineError::NotText(_))), "{error:?}");
    }

    #[tokio::test]
    async fn a_line_may_be_as_long_as_the_bound_and_no_longer() {
        let mut text = vec![b'x'; LINE_MAX];
        text.push(b'\n');
        assert_eq!(read(&text).await.0[0].len(), LINE_MAX);
        text.insert(0, b'x');
        assert!(matches!(read(&text).await, (lines, Some(LineError::TooLong)) if lines.is_empty()));
        // A line is refused before its end is read, and no more of it is kept than the bound.
        let endless = tokio::io::repeat(b'x');
        let mut lines = Lines::new(endless);
        assert!(matches!(lines.advance().await, Err(LineError::TooLong)));
        assert!(lines.buffer.len() <= LINE_MAX + 2 * CHUNK, "{}", lines.buffer.len());
    }

    #[tokio::test]
    async fn a_long_line_does_not_keep_its_memory() {
        let mut text = vec![b'x'; 8 << 20];
        text.extend_from_slice(b"\nshort\n");
        let mut lines = Lines::new(text.as_slice());
        for length in [8 << 20, 5] {
            assert!(lines.advance().await.unwrap());
            assert_eq!(lines.line().len(), length);
        }
        assert!(!lines.advance().await.unwrap());
        assert!(lines.buffer.capacity() <= KEPT_MAX, "{}", lines.buffer.capacity());
    }

    #[tokio::test]
    async fn cancelling_a_read_loses_nothing() {
        let (mut writer, reader) = tokio::io::duplex(64);
        let mut lines = Lines::new(reader);
        writer.write_all(b"fir").await.unwrap();
        let given_up = tokio::time::timeout(Duration::from_millis(20), lines.advance()).await;
        assert!(given_up.is_err());
        writer.write_all(b"st\nsecond\n").await.unwrap();
        assert!(lines.advance().await.unwrap());
        assert_eq!(lines.line(), "first");
        assert!(lines.is_buffered());
        assert!(lines.advance().await.unwrap());
        assert_eq!(lines.line(), "second");
    }
}
