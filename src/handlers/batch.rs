//! Handlers that live outside of the database: in this program, in a child process, behind HTTP.
//!
//! They are handed a `batch` of events and say what came of each: `effects`. Rows, emissions and position are committed
//! in one transaction, the `ledger`, which holds the tracker locked under the runner's claim from beginning to end.

mod effects;
mod row_changes;
mod tables;
mod touched;
mod transaction;

pub(crate) use effects::{Action, Applied, EventEffects};
pub(crate) use tables::{RowTables, TableShape};
pub(crate) use touched::Touched;
pub(crate) use transaction::{BatchTransaction, Reading};
