//! Names and texts as they are written into SQL.
//!
//! Values travel as bind parameters. Only what PostgreSQL cannot bind comes through here: identifiers,
//! and the literals inside the functions that espd generates.

/// `name` as a quoted identifier.
pub(crate) fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `text` as a string literal, whatever `standard_conforming_strings` says.
///
/// A NUL would end the whole statement, which the server answers with an error of the protocol. Instead, the literal becomes an
/// expression that PostgreSQL refuses when it evaluates it (`54000`), as it refuses any other value that it cannot keep.
pub(crate) fn quote_literal(text: &str) -> String {
    if text.contains('\0') {
        let parts: Vec<String> = text.split('\0').map(quote_literal).collect();
        return format!("({})", parts.join(" || chr(0) || "));
    }
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

    #[test]
    fn no_nul_gets_into_a_statement() {
        assert_eq!(quote_literal("a\0b\0"), "('a' || chr(0) || 'b' || chr(0) || '')");
    }
}
