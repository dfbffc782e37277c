//! Where a generated function finds its events, and what is said of them in SQL.

use crate::postgres::quote::quote_literal;
use crate::processing::declaration::{ProcessorDeclaration, TableDeclaration};
use crate::store::upcast::Upcast;

/// Where the function finds its events.
#[derive(Debug, Clone, Copy)]
pub(crate) enum EventSource<'a> {
    /// In the same database: the function reads them itself.
    Table {
        /// What stands behind `from`, with the columns of an event.
        source: &'a str,
        /// The table of the events itself.
        table: &'a str,
        /// The name of the table of trackers, in espd's own schema; not quoted.
        trackers: &'a str,
        /// As `source`, without upcasts and with JSON as it is stored, which reading cannot fail at.
        stored: &'a str,
        /// Whether it may have an event that cannot be read.
        may_be_unreadable: bool,
        /// Whether all events of the table are in the source, and none is read through an upcast.
        is_whole: bool,
        /// The layers that old events are read through.
        upcasts: &'a [Upcast],
    },
    /// In another database: the caller passes the batch as arrays.
    Arguments,
}

/// The columns of `event`, in the order of the arrays that a batch is passed as.
pub(crate) const COLUMNS: &str =
    "id, uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id, created_at";

pub(super) fn type_condition<'t>(types: Option<impl IntoIterator<Item = &'t str>>) -> String {
    types.map_or(String::new(), |types| format!(" and e.type in ({})", literals(types)))
}

pub(super) fn literals<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> String {
    texts.into_iter().map(|text| quote_literal(text.as_ref())).collect::<Vec<_>>().join(", ")
}

/// Whether a constraint of the projector's tables may be checked at commit only.
pub(super) fn mentions_deferrable(projector: &ProcessorDeclaration) -> bool {
    let tables = projector.tables.iter().flat_map(TableDeclaration::texts);
    tables.chain(&projector.ddl).any(|sql| sql.text.to_lowercase().contains("deferrable"))
}
