//! Headers whose values are written one behind the other into one text, so that they are allocated together.

use std::fmt::{self, Display, Write};

use hyper::body::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{CONTROLS, utf8_percent_encode};

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

    /// Adds a header. What is not ASCII in its value, or not visible, is percent-encoded.
    pub(crate) fn add(&mut self, name: HeaderName, value: impl Display) {
        // Nothing fails that is written into a text.
        let _ = write!(Visible(&mut self.text), "{value}");
        self.ends.push((name, self.text.len()));
    }

    /// Puts the headers into a table.
    pub(crate) fn write_to(self, headers: &mut HeaderMap) {
        let (text, mut begin) = (Bytes::from(self.text), 0);
        for (name, end) in self.ends {
            let value = HeaderValue::from_maybe_shared(text.slice(begin..end));
            headers.insert(name, value.expect("visible ASCII is valid in a header"));
            begin = end;
        }
    }
}

/// A text to which nothing but visible ASCII and spaces is added.
struct Visible<'t>(&'t mut String);

impl Write for Visible<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend(utf8_percent_encode(text, CONTROLS));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_is_left_out_or_ends_its_header() {
        let (mut texts, mut headers) = (TextHeaders::new(), HeaderMap::new());
        for (name, value) in [("a", "v1,x= y"), ("b", "1\r\nc: 2\0"), ("c", "grün\u{7f}"), ("d", "")] {
            texts.add(HeaderName::from_static(name), value);
        }
        texts.write_to(&mut headers);
        let values = ["a", "b", "c", "d"].map(|name| headers[name].to_str().unwrap());
        assert_eq!(values, ["v1,x= y", "1%0D%0Ac: 2%00", "gr%C3%BCn%7F", ""]);
    }
}
