//! The texts of strangers' statements, as people may see them: without the values in them.

use std::sync::atomic::{AtomicBool, Ordering};

use super::lexer::{Lexer, TokenKind};

/// What stands in the place of a literal.
const HIDDEN: &str = "?";

/// What stands in the place of what cannot be told apart.
const REST: &str = "...";

/// Whether `log.query_literals` asks for the values.
static SHOWS_LITERALS: AtomicBool = AtomicBool::new(false);

/// Shows statements as they are from now on, in this process, or hides their literals again.
#[cfg(feature = "daemon")]
pub(crate) fn show_literals(shows: bool) {
    SHOWS_LITERALS.store(shows, Ordering::Relaxed);
}

/// A statement of somebody else, for a log or a status.
pub(crate) fn present(statement: &str) -> String {
    if SHOWS_LITERALS.load(Ordering::Relaxed) { statement.to_owned() } else { without_literals(statement) }
}

/// The statement without strings, numbers and comments. What follows a quote that never ends, because the text was cut,
/// or one whose end depends on a setting, is left out.
fn without_literals(statement: &str) -> String {
    let (mut lexer, mut shown, mut end) = (Lexer::new(statement), String::new(), 0);
    let mut is_parameter = false;
    loop {
        let token = match lexer.next() {
            Ok(Some(token)) => token,
            Ok(None) => return shown,
            Err(_) => return shown + " " + REST,
        };
        if token.start > end && !shown.is_empty() {
            shown.push(' ');
        }
        let is_value = token.kind == TokenKind::Literal && !(is_parameter && token.start == end);
        shown.push_str(if is_value { HIDDEN } else { token.text });
        if is_value && token.text.contains('\\') {
            return shown + " " + REST;
        }
        (is_parameter, end) = (token.text == "$", token.end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_is_shown() {
        for (statement, shown) in [
            ("insert into a (b) values ('DE89 3704', 17, $1)", "insert into a (b) values (?, ?, $1)"),
            ("select  *\n from t where x = e'a' -- DE89", "select * from t where x = e?"),
            ("select $q$DE89$q$, \"Quoted\", 1.5e3", "select ?, \"Quoted\", ?"),
            ("update t set iban = 'DE89 37", "update t set iban = ..."),
            ("select 'it\\'s DE89', 'x'", "select ? ..."),
            ("/* DE89 */ commit", "commit"),
            ("select t1.a from t1", "select t1.a from t1"),
            ("", ""),
        ] {
            assert_eq!(without_literals(statement), shown);
        }
    }
}
