//! An error and its causes as one line.

use std::error::Error;

use super::sqlstate::describe;

/// Joins the messages of an error and its causes. A message that those before it contain already is left out.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let (mut text, mut next) = (String::new(), Some(error));
    while let Some(error) = next {
        let database_error = error.downcast_ref::<sqlx::Error>();
        let message = database_error.map_or_else(|| error.to_string(), describe);
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
