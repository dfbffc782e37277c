//! Handlers that live outside of the database: in this program, in a child process, behind HTTP.
//!
//! They are handed a `batch` of events and say what came of each: `effects`. Rows, emissions and position are committed
//! in one transaction, the `ledger`, which holds the tracker locked under the runner's claim from beginning to end.

mod changes;
mod effects;
mod ledger;
mod rows;
mod touched;

pub(crate) use effects::{Action, Applied, EventEffects};
pub(crate) use ledger::{Ledger, Reading};
pub(crate) use rows::{RowTables, TableShape};
pub(crate) use touched::Touched;
