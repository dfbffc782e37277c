//! How a command ends: its exit code, and its error in one line.

use crate::own_name::in_own_name;
use crate::postgres::error::{chain, find_answer};
use crate::postgres::sqlstate::INSUFFICIENT_PRIVILEGE;
use crate::process::exit_code::{Exit, ExitCode};
use crate::visible::in_lines;

/// The exit code of a command, and what to print to standard error.
pub(crate) fn conclude(outcome: anyhow::Result<()>) -> (ExitCode, Option<String>) {
    match outcome {
        Ok(()) => (ExitCode::Success, None),
        // A reader that has closed the pipe, such as `head`, has read enough; that is no failure.
        Err(error) if is_closed_pipe(&error) => (ExitCode::Success, None),
        Err(error) => {
            let code = error.downcast_ref::<Exit>().map_or(ExitCode::Failure, |exit| exit.code);
            let text = chain(&*error);
            (code, Some(format!("error: {}{}", in_lines(&in_own_name(&text)), in_own_name(remedy(&error)))))
        }
    }
}

/// What to do about an error that the database has named by a code, as a further line; empty where the message says it.
fn remedy(error: &anyhow::Error) -> &'static str {
    let mut answers = error.chain().filter_map(find_answer);
    match answers.find_map(|answer| answer.code()).as_deref() {
        Some(READ_ONLY) => {
            "\nremedy: this session may only read. Connect to the primary, or look where `default_transaction_read_only` is \
             set (`alter role … reset default_transaction_read_only`, `alter database …`, postgresql.conf, or the URL's `options`)"
        }
        Some(INSUFFICIENT_PRIVILEGE) => {
            "\nremedy: docs/roles.md says which role is for which command, and what has to belong to it: run this as a login of that role. \
             `espctl roles` prints the SQL that grants each role what it may; run it again after each `espctl migrate`, which is for the owner of the schema"
        }
        _ => "",
    }
}

/// PostgreSQL's code for a change in a transaction that may only read.
const READ_ONLY: &str = "25006";

/// Whether the reader of the output has closed the pipe.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_its_code_and_its_causes_in_one_line() {
        let failed = anyhow::anyhow!("refused").context("no database");
        assert_eq!(conclude(Err(failed)), (ExitCode::Failure, Some("error: no database: refused".into())));
        let wrong = Exit::configuration("espd.toml:1:1: unknown key").into();
        assert_eq!(
            conclude(Err(wrong)),
            (ExitCode::Configuration, Some("error: espd.toml:1:1: unknown key".into()))
        );
        let closed = std::io::Error::from(std::io::ErrorKind::BrokenPipe).into();
        assert_eq!(conclude(Err(closed)), (ExitCode::Success, None));
        assert_eq!(conclude(Ok(())), (ExitCode::Success, None));
    }
}
