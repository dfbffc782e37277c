//! What a database's error says, and whether it is about the server or about what was asked for.

use sqlx::error::DatabaseError;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

/// SQLSTATEs (`like` patterns) that say something about the server, the role or the moment, never about an event:
/// connections, serialization and deadlock, read-only mode, missing rights and row security that would hide rows,
/// resources such as memory, disk and connections, locks, shutdown and cancellation, system errors.
///
/// They are retried for ever and never count as an attempt. The list is compiled into the projector
/// functions as well, so that both sides decide alike.
pub(crate) const INFRASTRUCTURE_SQLSTATES: [&str; 10] = [
    "08%",
    "25006",
    "25P03",
    TRANSACTION_TIMEOUT,
    "40%",
    INSUFFICIENT_PRIVILEGE,
    "53%",
    "55P03",
    "57%",
    "58%",
];

/// The server's disk is full.
pub(crate) const DISK_FULL: &str = "53100";

/// The server has no memory left.
pub(crate) const OUT_OF_MEMORY: &str = "53200";

/// The server, the database or the role has as many sessions as it may have.
pub(crate) const TOO_MANY_CONNECTIONS: &str = "53300";

/// The server has ended the session, because a transaction has lasted longer than `transaction_timeout`.
pub(crate) const TRANSACTION_TIMEOUT: &str = "25P04";

/// SQLSTATEs that a session can be to blame for: a plan that a change of a table has outdated (42804: "type of parameter …
/// does not match that when preparing the plan", 0A000: "cached plan must not change result type"), something in a cache
/// that is gone (XX000: "cache lookup failed", "could not open relation"), a prepared statement or a cursor that is not
/// there (26000, 34000), is there already (42P05), or is another one ([`PROTOCOL_VIOLATION`]).
///
/// Each of them may as well be the fault of a handler. So it counts if it comes again on a new session.
const SESSION_SQLSTATES: [&str; 7] =
    ["0A000", UNPREPARED, "34000", "42804", "42P05", PROTOCOL_VIOLATION, "XX000"];

/// SQLSTATE of a prepared statement that is not there.
const UNPREPARED: &str = "26000";

/// A message that the server cannot accept, such as parameters of another statement. A pooler gives all its own errors this
/// code, with the severity FATAL; they are about the infrastructure.
const PROTOCOL_VIOLATION: &str = "08P01";

/// SQLSTATE of a right that the role lacks, and of a query that row security would hide rows from.
pub(crate) const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// Others held a lock for longer than `lock_timeout`.
pub(crate) const LOCK_NOT_AVAILABLE: &str = "55P03";

/// SQLSTATE of the refusal of a batch that has written a table of another processor.
pub(crate) const FOREIGN_WRITE: &str = "ES006";

/// Characters that are kept of each text of an error, because an error may quote a body of megabytes.
pub(crate) const TEXT_MAX: usize = 2_000;

/// Whether the database has refused because of a right that the role lacks, or because row security would hide rows.
pub(crate) fn is_missing_right(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(DatabaseError::code).as_deref() == Some(INSUFFICIENT_PRIVILEGE)
}

/// Whether a statement was not prepared on the session, or is not any more.
pub(crate) fn is_unprepared(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(DatabaseError::code).as_deref() == Some(UNPREPARED)
}

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
    let sqlx::Error::Database(answer) = error else { return true };
    match answer.code().as_deref() {
        Some(PROTOCOL_VIOLATION) => has_ended_session(answer.as_ref()),
        code => code.is_some_and(is_infrastructure),
    }
}

/// Whether the database could not be asked. What the role has no right to is an answer: it stays as it is until somebody
/// changes the role or the statement.
pub(crate) fn is_no_answer(error: &sqlx::Error) -> bool {
    is_infrastructure_error(error) && !is_missing_right(error)
}

/// Whether the same statement may well succeed when it is repeated later: nothing has answered, or what has answered could not do it at
/// the moment. What a server refuses for another reason it will refuse again.
pub(crate) fn may_succeed_later(error: &sqlx::Error) -> bool {
    use sqlx::Error as E;
    match error {
        E::Database(answer) if answer.try_downcast_ref::<PgDatabaseError>().is_some() => {
            is_no_answer(error) || answer.code().as_deref().is_some_and(is_of_session)
        }
        E::Configuration(_)
        | E::Encode(_)
        | E::Decode(_)
        | E::ColumnDecode { .. }
        | E::ColumnNotFound(_)
        | E::ColumnIndexOutOfBounds { .. }
        | E::TypeNotFound { .. }
        | E::RowNotFound => false,
        _ => true,
    }
}

/// Whether the server, or a pooler before it, has ended the session with this error.
fn has_ended_session(answer: &dyn DatabaseError) -> bool {
    let severity = answer.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::severity);
    matches!(severity, Some(PgSeverity::Fatal | PgSeverity::Panic))
}

/// Whether the session, or a plan in it, may be to blame for an error with this SQLSTATE.
pub(crate) fn is_of_session(sqlstate: &str) -> bool {
    SESSION_SQLSTATES.contains(&sqlstate)
}

/// Whether the server has ended the session because of `transaction_timeout`.
pub(crate) fn is_transaction_timeout(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|answer| answer.code()).is_some_and(|code| code == TRANSACTION_TIMEOUT)
}

/// Whether the database has given up waiting for a lock.
pub(crate) fn is_lock_timeout(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(DatabaseError::code).as_deref() == Some(LOCK_NOT_AVAILABLE)
}

/// Whether the database has refused a batch that has written a table of another processor.
pub(crate) fn is_foreign_write(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(DatabaseError::code).as_deref() == Some(FOREIGN_WRITE)
}

/// The error as users read it: the database's own words, without the driver's introduction.
pub(crate) fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(answer) => answer.message().to_owned(),
        other => other.to_string(),
    }
}

/// The text, cut to [`TEXT_MAX`] characters. A NUL, which no column keeps, becomes visible text.
pub(crate) fn shorten(text: &str) -> String {
    let cut: String = text.chars().take(TEXT_MAX).collect();
    if cut.contains('\0') { cut.replace('\0', "\\u0000") } else { cut }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_the_infrastructure_are_distinguished_from_those_of_handlers() {
        for state in [
            "08006", "40001", "40P01", "25006", "25P04", "42501", "53100", "53300", "55P03", "57P01",
            "57014", "58030",
        ] {
            assert!(is_infrastructure(state), "{state}");
        }
        for state in
            ["22P02", "23505", "42P01", "P0001", "2D000", "XX000", "54000", "54001", "25001", "55006"]
        {
            assert!(!is_infrastructure(state), "{state}");
        }
    }

    #[test]
    fn what_a_session_may_be_to_blame_for_is_told_from_what_only_a_handler_can_do() {
        for state in ["0A000", "26000", "34000", "42804", "42P05", "08P01", "XX000"] {
            assert!(is_of_session(state), "{state}");
            assert!(state == "08P01" || !is_infrastructure(state), "{state}");
        }
        for state in ["22P02", "23505", "42P01", "42703", "P0001", "54000", "57014"] {
            assert!(!is_of_session(state), "{state}");
        }
    }
}
