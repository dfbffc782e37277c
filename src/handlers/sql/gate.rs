//! Keeps a handler in its place in the function: what may not stand in its text, and the names that it cannot know.

use crate::postgres::lexer::{self, Token};

/// What would let a handler out of its place in the function, with its byte offset.
///
/// A `return` would commit rows without moving the position; a changed `event` would be another one for the handlers
/// behind; a parameter is the function's own.
pub(super) fn escape(tokens: &[Token<'_>]) -> Option<(usize, String)> {
    if let Some(found) = tokens.iter().find(|token| token.is_word("return")) {
        let message = "a handler cannot return: use if, or exit to end it for this event";
        return Some((found.start, message.to_owned()));
    }
    if let Some(parameter) = parameter(tokens) {
        return Some((parameter.start, "a handler has no parameters: use the fields of event".to_owned()));
    }
    let assigned = lexer::statements(tokens).find(|statement| statement[0].is_word("event"));
    let selected = tokens.windows(2).find(|pair| pair[0].is_word("into") && pair[1].is_word("event"));
    let changed = assigned.map(|statement| statement[0].start).or(selected.map(|pair| pair[1].start));
    changed.map(|offset| (offset, "event cannot be changed: declare a variable of your own".to_owned()))
}

/// A parameter, such as `$1`.
fn parameter<'b, 'a>(tokens: &'b [Token<'a>]) -> Option<&'b Token<'a>> {
    let is_number = |token: &Token<'_>| token.text.starts_with(|c: char| c.is_ascii_digit());
    let is_parameter =
        |pair: &[Token<'_>]| pair[0].text == "$" && pair[0].end == pair[1].start && is_number(&pair[1]);
    tokens.windows(2).find(|pair| is_parameter(pair)).map(|pair| &pair[0])
}

/// Whether a handler might change `event` where [`escape`] does not see it: inside of another statement, or in a loop.
pub(super) fn may_change_event(tokens: &[Token<'_>]) -> bool {
    let text = |index: usize| tokens.get(index).map_or("", |token| token.text);
    (0..tokens.len()).filter(|index| tokens[*index].is_word("event")).any(|index| {
        let is_field = text(index + 1) == ".";
        let behind = if is_field { index + 3 } else { index + 1 };
        let assigns = (text(behind), text(behind + 1)) == (":", "=") || text(behind) == "=";
        let begins = index == 0
            || BEFORE_A_STATEMENT.iter().any(|word| tokens[index - 1].text.eq_ignore_ascii_case(word));
        !is_field || assigns && (begins || text(behind) == ":")
    })
}

/// What a statement of PL/pgSQL stands behind.
pub(super) const BEFORE_A_STATEMENT: [&str; 6] = [";", "begin", "then", "else", "loop", ">"];

/// What the names of the function's own variables begin with in `project_batch.sql`.
pub(super) const OWN: &str = "espd_";

/// A beginning for the names of the function's own variables that occurs in none of these texts, whatever the case of the
/// letters: so no handler can name one, and none of them ends the function's text.
pub(super) fn own_prefix<'t>(texts: impl Iterator<Item = &'t str>) -> String {
    let texts: Vec<String> = texts.map(str::to_lowercase).collect();
    let is_free = |prefix: &String| texts.iter().all(|text| !text.contains(prefix.as_str()));
    // There are finitely many texts, so that one is free.
    (0..)
        .map(|number| if number == 0 { OWN.to_owned() } else { format!("espd{number}_") })
        .find(is_free)
        .unwrap_or_default()
}

/// What begins and ends the body of a function with this text.
pub(super) fn delimiter_of(text: &str) -> String {
    format!("${}body$", own_prefix([text].into_iter()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Option<usize> {
        escape(&lexer::tokens(text).unwrap()).map(|(offset, _)| offset)
    }

    #[test]
    fn what_leaves_its_place_is_found_where_it_stands() {
        assert_eq!(found("perform 1; $2 := 7"), Some(11));
        assert_eq!(found("perform '$1', $$ $1 $$, 'return'; -- $1"), None);
        assert_eq!(found("if true then return; end if"), Some(13));
        assert_eq!(found("select 1 into event"), Some(14));
    }

    #[test]
    fn an_event_that_may_be_changed_inside_of_a_statement_is_noticed() {
        let may_change = |text: &str| may_change_event(&lexer::tokens(text).unwrap());
        for text in [
            "if true then event := null; end if",
            "if true then event.id := 7; end if",
            "if true then event.id = 7; end if",
            "for event in select 1 loop perform 1; end loop",
            "select 1, 2 into x, event",
        ] {
            assert!(may_change(text), "{text}");
        }
        for text in
            ["insert into t values (event.id)", "delete from t where event.id = t.id and event.type = 'x'"]
        {
            assert!(!may_change(text), "{text}");
        }
    }

    #[test]
    fn no_text_contains_a_name_of_the_functions_own() {
        assert_eq!(own_prefix(["a", "b"].into_iter()), "espd_");
        assert_eq!(own_prefix(["ESPD_id", "x espd1_ y"].into_iter()), "espd2_");
    }
}
