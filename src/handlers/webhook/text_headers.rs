//! Headers whose values are written one behind the other into one text, so that they are allocated together.

use std::fmt::{Display, Write as _};

use hyper::body::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

/// Room for the values of a request.
const LENGTH: usize = 512;

/// The most headers that a request has of these.
const COUNT: usize = 12;

/// Headers that are written.
#[derive(Debug)]
pub(crate) struct TextHeaders {
    text: String,
    /// The names, and where the values end.
    ends: Vec<(HeaderName, usize)>,
}

impl TextHeaders {
    pub(crate) fn new() -> Self {
        Self { text: String::with_capacity(LENGTH), ends: Vec::with_capacity(COUNT) }
    }

    /// Adds a header. The value is visible ASCII.
    pub(crate) fn add(&mut self, name: HeaderName, value: impl Display) {
        // Nothing fails that is written into a text.
        let _ = write!(self.text, "{value}");
        self.ends.push((name, self.text.len()));
    }

    /// Puts the headers into a table, except for those whose values are not valid in a header.
    pub(crate) fn write_to(self, headers: &mut HeaderMap) {
        let (text, mut begin) = (Bytes::from(self.text), 0);
        for (name, end) in self.ends {
            // Digits, base64 and encoded text always are.
            if let Ok(value) = HeaderValue::from_maybe_shared(text.slice(begin..end)) {
                headers.insert(name, value);
            }
            begin = end;
        }
    }
}
