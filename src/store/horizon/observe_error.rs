//! Why the horizon could not be observed.

use thiserror::Error;

use super::writer::InvalidVirtualTransaction;

/// Why an observation failed. The horizon is unknown until the next observation succeeds.
#[derive(Debug, Error)]
pub enum ObserveError {
    /// The database did not answer, or refused.
    #[error("failed to observe the event store")]
    Database(#[from] sqlx::Error),
    /// The server is a standby, where the locks of writers cannot be seen.
    #[error("the server is a standby: connect to the primary")]
    Standby,
    /// The reads of an observation came from two servers, or from one before and after a restart.
    #[error("the server was restarted or replaced during an observation")]
    ServerReplaced,
    /// `pg_locks` names a transaction in a way that this program does not know.
    #[error("failed to read pg_locks")]
    UnknownName(#[from] InvalidVirtualTransaction),
}
