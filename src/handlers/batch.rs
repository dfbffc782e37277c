//! What handlers outside of the database share: handlers in this program, in a child process, or behind HTTP.
//!
//! Such a handler is handed a batch of events and returns the `effects` of each event. Rows, emissions and position are
//! committed in one `BatchTransaction`, which holds the tracker locked under the runner's claim from beginning to end.

mod effects;
mod misuse;
mod read_ahead;
mod row_changes;
mod tables;
mod touched;
mod transaction;

pub(crate) use effects::{Action, Applied, EventEffects, collect_emissions};
pub(crate) use misuse::{ended, failed_before, find_misuse};
pub(crate) use read_ahead::ReadAhead;
pub(crate) use tables::{RowTables, TableShape};
pub(crate) use touched::Touched;
pub(crate) use transaction::{BatchTransaction, Reading};
