//! Which fields of `event` handlers read: what nobody reads costs time in a loop over the events.

use crate::handlers::sql::event_source::COLUMNS;
use crate::postgres::lexer::{self, Token};
use crate::processing::declaration::ProcessorDeclaration;

/// What the function itself reads.
const OWN: [&str; 5] = ["id", "uuid", "aggregate_id", "type", "body"];

/// The columns that a loop over the events needs. A reactor emits with all of them.
pub(super) fn used_columns(declaration: &ProcessorDeclaration) -> String {
    let texts = declaration.handlers().iter().map(|handler| handler.sql.text.as_str());
    match texts.map(lexer::tokens).collect::<Result<Vec<_>, _>>() {
        Ok(texts) if declaration.reactor.is_none() && !texts.iter().any(|tokens| reads_whole(tokens)) => {
            let is_used = |column: &&str| OWN.contains(column) || texts.iter().any(|one| names(one, column));
            COLUMNS.split(", ").filter(is_used).collect::<Vec<_>>().join(", ")
        }
        _ => COLUMNS.to_owned(),
    }
}

/// Whether a text may read `event` as a whole, and not fields of it alone.
fn reads_whole(tokens: &[Token<'_>]) -> bool {
    let is = |token: Option<&Token<'_>>, text: &str| token.is_some_and(|token| token.text == text);
    let of_event = (0..tokens.len()).filter(|at| tokens[*at].name().as_deref() == Some("event"));
    of_event.into_iter().any(|at| !is(tokens.get(at + 1), ".") || is(tokens.get(at + 2), "*"))
}

fn names(tokens: &[Token<'_>], column: &str) -> bool {
    tokens.iter().any(|token| token.name().as_deref() == Some(column))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(text: &str) -> (bool, bool) {
        let tokens = lexer::tokens(text).unwrap();
        (reads_whole(&tokens), names(&tokens, "version"))
    }

    #[test]
    fn a_text_that_reads_fields_alone_is_told_from_one_that_may_read_all() {
        let fields = "insert into t values (event.id, Event . \"version\", 'event', $$ event $$) -- event";
        assert_eq!(reads(fields), (false, true));
        assert_eq!(reads("insert into t values (event.\"Version\")"), (false, false));
        for whole in ["select f(event)", "select event.*", "e := event;", "(event).version", "event"] {
            assert!(reads(whole).0, "{whole}");
        }
    }
}
