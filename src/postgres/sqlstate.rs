//! What a database's error says, and whether it is about the server or about what was asked for.

/// SQLSTATEs (`like` patterns) that say something about the server or the moment, never about an event:
/// connections, serialization and deadlock, read-only mode, resources such as memory, disk and
/// connections, locks, shutdown and cancellation, system errors.
///
/// They are retried for ever and never count as an attempt. The list is compiled into the projector
/// functions as well, so that both sides decide alike.
pub(crate) const INFRASTRUCTURE_SQLSTATES: [&str; 8] =
    ["08%", "25006", "25P03", "40%", "53%", "55P03", "57%", "58%"];

/// Characters that are kept of each text of an error, because an error may quote a body of megabytes.
pub(crate) const TEXT_MAX: usize = 2_000;

/// Whether an error with this SQLSTATE is about the infrastructure and not about the handler.
pub fn is_infrastructure(sqlstate: &str) -> bool {
    INFRASTRUCTURE_SQLSTATES.iter().any(|pattern| match pattern.strip_suffix('%') {
        Some(class) => sqlstate.starts_with(class),
        None => sqlstate == *pattern,
    })
}

/// Whether the error is about the infrastructure and not about the handler. An error that no database has answered with
/// always is.
pub fn is_infrastructure_error(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(answer) => answer.code().is_some_and(|code| is_infrastructure(&code)),
        _ => true,
    }
}

/// The error as users read it: the database's own words, without the driver's introduction.
pub(crate) fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(answer) => answer.message().to_owned(),
        other => other.to_string(),
    }
}

/// The text, cut to [`TEXT_MAX`] characters.
pub(crate) fn shorten(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::is_infrastructure;

    #[test]
    fn failures_of_the_infrastructure_are_distinguished_from_those_of_handlers() {
        for state in
            ["08006", "40001", "40P01", "25006", "53100", "53300", "55P03", "57P01", "57014", "58030"]
        {
            assert!(is_infrastructure(state), "{state}");
        }
        for state in
            ["22P02", "23505", "42P01", "P0001", "2D000", "XX000", "54000", "54001", "25001", "55006"]
        {
            assert!(!is_infrastructure(state), "{state}");
        }
    }
}
