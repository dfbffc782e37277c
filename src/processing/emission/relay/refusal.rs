//! Whether an emission could not be moved because of itself, or because nothing can be moved now.

use crate::postgres::sqlstate::{describe, is_infrastructure, shorten};
use crate::store::AppendError;

/// Why the event store refuses an emission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) message: String,
    pub(super) sqlstate: Option<String>,
}

/// What of the infrastructure's errors is about one emission all the same, because a trigger, a lock on a row or a slow
/// statement may be the reason: serialization failures and deadlocks, missing rights, lock timeouts,
/// statement timeouts. Nothing but the moment
/// can be the reason of the others, such as a lost connection or a full disk.
const OF_ONE_EMISSION: [&str; 4] = ["40", "42501", "55P03", "57014"];

impl Refusal {
    pub(super) fn new(message: &str) -> Self {
        Self { message: shorten(message), sqlstate: None }
    }

    /// Decides whose error this is: that of the emission, or that of the infrastructure, which is returned as the error.
    pub(super) fn of_append(error: AppendError) -> Result<Self, sqlx::Error> {
        match error {
            AppendError::Database(error) => Self::of_database(error),
            error => Ok(Self::new(&error.to_string())),
        }
    }

    pub(super) fn of_database(error: sqlx::Error) -> Result<Self, sqlx::Error> {
        let code = error.as_database_error().and_then(|answer| answer.code()).map(|code| code.into_owned());
        match code {
            Some(code) if !concerns_all(&code) => {
                Ok(Self { sqlstate: Some(code), ..Self::new(&describe(&error)) })
            }
            _ => Err(error),
        }
    }
}

/// Whether no emission can be moved while the database answers with this code.
fn concerns_all(sqlstate: &str) -> bool {
    is_infrastructure(sqlstate) && !OF_ONE_EMISSION.iter().any(|start| sqlstate.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_emission_is_distinguished_from_an_outage() {
        for own in [
            "P0001", "40001", "40P01", "23503", "23502", "23505", "23514", "42501", "55P03", "57014", "22P05",
        ] {
            assert!(!concerns_all(own), "{own}");
        }
        for of_all in ["08006", "25006", "25P03", "53100", "53300", "57P01", "57P03", "58030"] {
            assert!(concerns_all(of_all), "{of_all}");
        }
        let lost = || sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        assert!(Refusal::of_append(AppendError::Database(lost())).is_err());
        let invalid = AppendError::Invalid { index: None, reason: "no uuid".to_owned() };
        assert_eq!(Refusal::of_append(invalid).unwrap().sqlstate, None);
    }
}
