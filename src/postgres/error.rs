//! An error and its causes as one line.

use std::error::Error;

use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

use super::sqlstate::{describe, is_missing_right};

/// Joins the messages of an error and its causes. A message that those before it contain already is left out.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let (mut text, mut next) = (String::new(), Some(error));
    while let Some(error) = next {
        let database_error = error.downcast_ref::<sqlx::Error>();
        let message = database_error.map_or_else(|| in_the_words_of_the_server(error), describe);
        if text.is_empty() {
            text = message;
        } else if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        // What sqlx gives as the cause of an error is part of its message.
        next = error.source().filter(|_| database_error.is_none());
    }
    text
}

/// What the database says, for people who have to do something about it: a right that is missing is called so.
pub(crate) fn explain(error: &sqlx::Error) -> String {
    let said = chain(error);
    match remedy(error) {
        Some(remedy) => format!("{said} ({remedy})"),
        None => said,
    }
}

/// What to do about a right that is missing.
fn remedy(error: &sqlx::Error) -> Option<&'static str> {
    is_missing_right(error).then(|| match describe(error) {
        // Nobody can grant that. A server that speaks another language gives the other advice.
        said if said.starts_with("must be owner of ") => {
            "only its owner may do that: make espd's role the owner, by `alter … owner to`"
        }
        _ => "a right that this role lacks: docs/roles.md says which role has it",
    })
}

/// The message of an error. One that passes an error of the database on has the driver's introduction in it, and the line of
/// PostgreSQL's own source that raised it; both are left out.
fn in_the_words_of_the_server(error: &(dyn Error + 'static)) -> String {
    let text = error.to_string();
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(answer) = find_answer(error) {
            let shown = answer.to_string();
            let introduced = format!("error returned from database: {shown}");
            return text.replace(&introduced, answer.message()).replace(&shown, answer.message());
        }
        next = error.source();
    }
    text
}

/// What the server has answered with, if this error is that.
pub(crate) fn find_answer<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e dyn DatabaseError> {
    if let Some(error) = error.downcast_ref::<sqlx::Error>() {
        return error.as_database_error();
    }
    if let Some(answer) = error.downcast_ref::<PgDatabaseError>() {
        return Some(answer);
    }
    error.downcast_ref::<Box<dyn DatabaseError>>().map(|answer| &**answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{message}")]
    struct Layer {
        message: &'static str,
        source: Option<Box<dyn Error + Send + Sync>>,
    }

    fn layer(message: &'static str, source: impl Into<Box<dyn Error + Send + Sync>>) -> Layer {
        Layer { message, source: Some(source.into()) }
    }

    #[test]
    fn each_cause_is_shown_once() {
        assert_eq!(chain(&layer("no page", layer("no answer", "refused"))), "no page: no answer: refused");
        assert_eq!(chain(&layer("no answer: refused", "refused")), "no answer: refused");
        let io = sqlx::Error::Io(std::io::Error::other("refused"));
        assert_eq!(chain(&layer("no page", io)), "no page: error communicating with database: refused");
    }
}
