//! Names and texts as they are written into SQL.
//!
//! Values travel as bind parameters. Only what PostgreSQL cannot bind comes through here: identifiers,
//! and the literals inside the functions that espd generates.

/// `name` as a quoted identifier.
pub(crate) fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `text` as a string literal, whatever `standard_conforming_strings` says.
pub(crate) fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// A dollar quote that does not occur in `text`.
pub(crate) fn dollar_quote(text: &str) -> String {
    let quotes = (0..).map(|number| format!("$espd{number}$"));
    quotes.take(text.len() + 1).find(|quote| !text.contains(quote)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_backslashes_cannot_leave_the_quotes() {
        assert_eq!(quote_identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\'b"), "E'a\\\\''b'");
        assert_eq!(dollar_quote("$espd0$ $espd2$"), "$espd1$");
    }
}
