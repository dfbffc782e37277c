//! Transactions that may have drawn ids, by the names that `pg_locks` gives them.

use std::fmt;
use std::str::FromStr;

/// A transaction that may have drawn ids: a holder of the lock that every insert takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Writer {
    /// Its name in `pg_locks`. Unique from start to start of a server, not beyond.
    pub virtual_transaction: VirtualTransaction,
    /// Whether it is a prepared transaction. `PREPARE TRANSACTION` turns a writer into another one:
    /// the old vanishes and the new appears in one moment, with the ids that the old one drew.
    pub prepared: bool,
}

/// A transaction's name in `pg_locks.virtualtransaction`: `3/1234`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualTransaction {
    /// Slot of the session; -1 for a prepared transaction that was recovered after a restart.
    pub backend: i32,
    /// Number of the transaction in its slot.
    pub local: u32,
}

impl fmt::Display for VirtualTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.backend, self.local)
    }
}

impl FromStr for VirtualTransaction {
    type Err = InvalidVirtualTransaction;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (backend, local) = text.split_once('/')?;
            Some(Self { backend: backend.parse().ok()?, local: local.parse().ok()? })
        };
        parse().ok_or_else(|| InvalidVirtualTransaction(text.to_owned()))
    }
}

/// The text does not name a virtual transaction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a virtual transaction")]
pub struct InvalidVirtualTransaction(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_virtual_transactions_are_read_and_written() {
        for text in ["3/1234", "-1/789", "0/4294967295"] {
            let name: VirtualTransaction = text.parse().unwrap();
            assert_eq!(name.to_string(), text);
        }
        for text in ["", "3", "/", "3/", "3/-1", "3/4294967296", "a/1"] {
            assert!(text.parse::<VirtualTransaction>().is_err(), "{text:?}");
        }
    }
}
