//! What a program has been sent and has not read yet.

use std::io;

/// A message may be many times as large as what the program reads at once, so nothing is moved when a part of it is read.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    bytes: Vec<u8>,
    /// How many of them are written.
    written: usize,
}

impl Unwritten {
    /// Adds a message.
    pub(super) fn push(&mut self, message: Vec<u8>) {
        if self.is_empty() {
            (self.bytes, self.written) = (message, 0);
        } else {
            self.bytes.extend_from_slice(&message);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.written == self.bytes.len()
    }

    /// What is to be written next.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    /// Takes note of an attempt to write. After an error nothing is left: the program does not read any more, and what it still
    /// writes, and how it ends, tells why.
    pub(super) fn note(&mut self, written: io::Result<usize>) {
        self.written = written.map_or(self.bytes.len(), |written| self.written + written);
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_written_in_parts_and_the_next_one_follows() {
        let mut unwritten = Unwritten::default();
        assert!(unwritten.is_empty());
        unwritten.push(b"first".to_vec());
        unwritten.note(Ok(3));
        unwritten.push(b"second".to_vec());
        assert_eq!(unwritten.bytes(), b"stsecond");
        unwritten.note(Ok(8));
        assert!(unwritten.is_empty());
        unwritten.push(b"third".to_vec());
        unwritten.note(Err(io::ErrorKind::BrokenPipe.into()));
        assert!(unwritten.is_empty() && unwritten.bytes().is_empty());
    }
}
