//! The statements that read a store, as text.

use sqlx::SqlStr;

use super::sql_text::sql;
use super::{append, row, tagged};
use crate::store::AppendError;
use crate::store::layout::Layout;

/// The store's statements, with the layout's names filled in once.
#[derive(Debug)]
pub(super) struct Statements {
    pub(super) read_after: SqlStr,
    pub(super) read_aggregate: SqlStr,
    pub(super) read_aggregates: SqlStr,
    pub(super) read_aggregate_until: SqlStr,
    pub(super) read_correlation: SqlStr,
    pub(super) read_range: SqlStr,
    pub(super) read_ids: SqlStr,
    pub(super) read_uuids: SqlStr,
    pub(super) find_position_at: SqlStr,
    pub(super) find_latest_id: SqlStr,
    pub(super) find_next_id: SqlStr,
    pub(super) count_events: SqlStr,
    pub(super) list_aggregate: SqlStr,
    /// None where events have no tags.
    pub(super) read_tagged: Option<SqlStr>,
    /// None in a store that espd only reads.
    append: Option<append::Statements>,
}

impl Statements {
    pub(super) fn new(layout: &Layout) -> Self {
        let (events, columns) = (format!("{} as e", layout.source()), row::COLUMNS);
        Self {
            read_after: sql(read_after(layout)),
            read_aggregate: sql(read_aggregate(layout)),
            read_aggregates: sql(format!(
                "-- read_aggregates
                select {columns} from {events} where aggregate_id = any ($1) order by aggregate_id, version"
            )),
            read_aggregate_until: sql(format!(
                "-- read_aggregate_until
                select {columns} from {events}
                where aggregate_id = $1 and version <= (
                  select max(version) from {events} where aggregate_id = $1 and created_at <= $2)
                order by version"
            )),
            read_correlation: sql(format!(
                "-- read_correlation
                select {columns} from {events} where correlation_id = $1 or uuid = $1 order by id"
            )),
            read_range: sql(format!(
                "-- read_event_range
                select {columns} from {events}
                where id between $1 and $2 and ($3::text[] is null or type = any ($3))
                order by id"
            )),
            read_ids: sql(format!(
                "-- read_ids
                select {columns} from {events} where id = any ($1) order by id"
            )),
            read_uuids: sql(format!(
                "-- read_uuids
                select {columns} from {events} where uuid = any ($1) order by id"
            )),
            find_position_at: sql(format!(
                "-- find_position_at
                select id from {events} where created_at <= $1 order by id desc limit 1"
            )),
            find_latest_id: sql(format!(
                "-- find_latest_id
                select id from {events}
                where $1::text[] is null or type = any ($1)
                order by id desc
                limit 1"
            )),
            find_next_id: sql(format!(
                "-- find_next_id
                select id from {events}
                where id > $1 and ($2::text[] is null or type = any ($2))
                order by id
                limit 1"
            )),
            list_aggregate: sql(format!(
                "-- list_aggregate
                select id, uuid from {events} where aggregate_id = $1 and version between $2 and $3 order by version"
            )),
            count_events: sql(format!(
                "-- count_events
                select case current_setting('transaction_isolation') when 'serializable' then cardinality($1)::bigint
                  else (select count(*) from {events} where id = any ($1)) end"
            )),
            read_tagged: layout.append.as_ref().map(|_| tagged::read_tagged(layout)),
            append: layout.append.as_ref().map(|append| append::Statements::new(layout, append)),
        }
    }

    pub(super) fn append(&self) -> Result<&append::Statements, AppendError> {
        self.append.as_ref().ok_or_else(|| {
            let reason =
                "espd only reads a store of this layout: append through its own application".to_owned();
            AppendError::Invalid { index: None, reason }
        })
    }
}

pub(super) fn read_aggregate(layout: &Layout) -> String {
    format!(
        "-- read_aggregate
        select {} from {} as e
        where aggregate_id = $1 and version between $2 and $3
        order by version",
        row::COLUMNS,
        layout.source()
    )
}

pub(super) fn read_uuids(layout: &Layout) -> String {
    let (columns, source) = (row::COLUMNS, layout.source());
    format!("-- read_uuids\nselect {columns} from {source} as e where uuid = any ($1) order by id")
}

pub(super) fn read_after(layout: &Layout) -> String {
    let (columns, source) = (row::COLUMNS, layout.source());
    let wanted = "id > $1 and id <= $2 and ($3::text[] is null or type = any ($3)) order by id limit $4";
    if !layout.may_be_unreadable() {
        return format!("-- read_events_after\nselect {columns} from {source} as e where {wanted}");
    }
    // A plan may compute the selected columns before it sorts and applies the limit. So the ids are found first: a body
    // that cannot be read must not fail those who want the events before it.
    format!(
        "-- read_events_after
        select {columns} from {source} as e
        where id = any (array(select id from {source} as e where {wanted}))
        order by id"
    )
}
