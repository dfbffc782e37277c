//! What a handler must not do to the transaction of its batch, and how that is noticed.
//!
//! The transaction has a setting of its own from its first statement on, which ends with it. A position moves only where the
//! setting is still there.

use crate::postgres::quote::quote_literal;
use crate::processing::failure::Failure;

/// The setting that lasts as long as the transaction. Its value is the epoch of the claim.
const SETTING: &str = "espd.in_batch";

const ENDED: &str = "the handler has ended the transaction of its batch, which it must not do: its rows and the position \
    would not be one. It may use savepoints; what it has committed stays";

const FAILED_BEFORE: &str = "a statement of the handler has failed, and the handler has gone on as if it had not: the \
    transaction of the batch can only be rolled back. Return the error, or set a savepoint before the statement";

/// The statement that marks the transaction of a batch.
pub(super) fn mark_transaction(epoch: i64) -> String {
    format!("set local {SETTING} = {}", quote_literal(&epoch.to_string()))
}

/// The condition that the transaction is still the marked one.
pub(super) fn is_marked(epoch: i64) -> String {
    format!("current_setting({}, true) = {}", quote_literal(SETTING), quote_literal(&epoch.to_string()))
}

/// The failure of a handler that has ended the transaction.
pub(crate) fn ended() -> Failure {
    Failure::of_processor(ENDED)
}

/// What the handler has done, where an error of espd's own next statement tells that.
pub(crate) fn find_misuse(error: &sqlx::Error) -> Option<Failure> {
    let code = error.as_database_error().and_then(|answer| answer.code())?;
    match code.as_ref() {
        // There is no transaction, or another one without espd's savepoint.
        "25P01" | "3B001" => Some(Failure { sqlstate: Some(code.into_owned()), ..ended() }),
        "25P02" => Some(failed_before()),
        _ => None,
    }
}

/// The failure of a handler that has gone on after a statement had failed.
pub(crate) fn failed_before() -> Failure {
    Failure { sqlstate: Some("25P02".to_owned()), ..Failure::of_processor(FAILED_BEFORE) }
}
