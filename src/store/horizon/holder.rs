//! Transactions that hold the horizon back, described for people.

use std::fmt;
use std::time::Duration;

use super::VirtualTransaction;

/// A transaction that holds the horizon back, described for the operator who has to end it.
///
/// What the server does not tell (missing privileges, a session that has just ended) is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its name in `pg_locks`.
    pub virtual_transaction: VirtualTransaction,
    /// Process id of its session; `None` for a prepared transaction, which has none.
    pub pid: Option<i32>,
    /// Role of its session, or owner of the prepared transaction.
    pub user: Option<String>,
    /// `application_name` of its session.
    pub application_name: Option<String>,
    /// State of its session: `active`, `idle in transaction`, …
    pub state: Option<String>,
    /// The statement that its session runs or ran last, up to 200 characters, without the values in it.
    pub query: Option<String>,
    /// How long the transaction has been open, or prepared, on the server's clock.
    pub age: Option<Duration>,
    /// Global identifier of a prepared transaction: `rollback prepared 'gid'` ends it.
    pub prepared: Option<String>,
    /// Whether it holds no table, only the sequence: it has drawn ids and not inserted them, or has looked at the last id.
    pub draws_only: bool,
}

impl fmt::Display for Holder {
    /// Writes one line for the log: which transaction it is, how old, what it does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.prepared, self.pid) {
            (Some(gid), _) => write!(f, "prepared transaction {gid:?}")?,
            (None, Some(pid)) => write!(f, "process {pid}")?,
            (None, None) => write!(f, "transaction {}", self.virtual_transaction)?,
        }
        if let Some(name) = self.application_name.as_deref().filter(|name| !name.is_empty()) {
            write!(f, " of {name:?}")?;
        }
        if let Some(age) = self.age {
            write!(f, ", open for {} s", age.as_secs())?;
        }
        if self.draws_only {
            write!(f, ", holds the sequence of the ids (nextval, or a monitor that reads pg_sequences)")?;
        }
        if let Some(state) = &self.state {
            write!(f, ", {state}")?;
        }
        if let Some(query) = &self.query {
            write!(f, ": {query}")?;
        }
        Ok(())
    }
}
