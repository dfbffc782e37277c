//! Reads the events that somebody selects, page by page: by what they are about, when they happened, from either end.

use chrono::{DateTime, Utc};
use futures_util::{StreamExt as _, TryStreamExt as _};
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::{PostgresEventStore, row};
use crate::event::{Event, Position, Tag, Version};
use crate::store::ReadError;
use crate::store::layout::Layout;

/// Which events of a store somebody wants. What is left out selects nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    /// Only events after this position.
    pub(crate) after: Position,
    /// Only events of these types.
    pub(crate) types: Option<Vec<String>>,
    /// Only events that have all of these tags.
    pub(crate) tags: Vec<Tag>,
    /// Only events of this correlation, with the event that it began with.
    pub(crate) correlation_id: Option<Uuid>,
    /// Only events that were created at or after this time.
    pub(crate) since: Option<DateTime<Utc>>,
    /// Only events that were created at or before this time. Of an aggregate: all up to the last such event.
    pub(crate) until: Option<DateTime<Utc>>,
    /// Only events of this aggregate.
    pub(crate) aggregate_id: Option<Uuid>,
    /// Only events of these versions, both inclusive.
    pub(crate) versions: (Option<Version>, Option<Version>),
    /// Ordered by version instead of by id.
    pub(crate) by_version: bool,
}

/// From which end a selection is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The oldest event first.
    Forward,
    /// The newest event first.
    Backward,
}

impl Selection {
    /// The number that the events are ordered by.
    pub(crate) fn key_of(&self, event: &Event) -> i64 {
        if self.by_version { event.version.get() } else { event.id.get() }
    }

    fn key(&self) -> &'static str {
        if self.by_version { "version" } else { "id" }
    }

    /// Adds the conditions on an event `e` of `source`.
    fn narrow(&self, query: &mut QueryBuilder<Postgres>, layout: &Layout) {
        query.push("id > ").push_bind(self.after);
        if let Some(types) = &self.types {
            query.push(" and type = any (").push_bind(types.clone()).push(")");
        }
        if let Some(id) = self.correlation_id {
            query.push(" and (correlation_id = ").push_bind(id).push(" or uuid = ").push_bind(id).push(")");
        }
        if let Some(id) = self.aggregate_id {
            query.push(" and aggregate_id = ").push_bind(id);
        }
        if let Some(from) = self.versions.0 {
            query.push(" and version >= ").push_bind(from);
        }
        if let Some(to) = self.versions.1 {
            query.push(" and version <= ").push_bind(to);
        }
        for tag in &self.tags {
            let tagged = format!(
                " and id in (select event_id from {}.tag_events where tag = ",
                layout.quoted_schema()
            );
            query.push(tagged).push_bind(tag.as_str().to_owned()).push(")");
        }
        self.narrow_by_time(query, layout.source());
    }

    fn narrow_by_time(&self, query: &mut QueryBuilder<Postgres>, source: &str) {
        if let Some(since) = self.since {
            query.push(" and created_at >= ").push_bind(since);
        }
        match (self.until, self.aggregate_id) {
            (Some(until), Some(id)) => {
                query.push(format!(
                    " and version <= (select max(version) from {source} as e where aggregate_id = "
                ));
                query.push_bind(id).push(" and created_at <= ").push_bind(until).push(")");
            }
            (Some(until), None) => {
                query.push(" and created_at <= ").push_bind(until);
            }
            (None, _) => {}
        }
    }
}

impl PostgresEventStore {
    /// Reads the next `limit` events of a selection, beyond the one of the key `beyond` and up to the position `upto`.
    ///
    /// The ids are found first: a body that cannot be read must not fail those who want other events.
    pub(crate) async fn select(
        &self,
        selection: &Selection,
        direction: Direction,
        beyond: Option<i64>,
        upto: Option<Position>,
        limit: i64,
    ) -> Result<Vec<Event>, ReadError> {
        let (source, key) = (self.layout.source(), selection.key());
        let (follows, order) = match direction {
            Direction::Forward => (">", "asc"),
            Direction::Backward => ("<", "desc"),
        };
        let mut query = QueryBuilder::new(format!(
            "-- select_events\nselect {} from {source} as e where id = any (array(select id from {source} as e where ",
            row::COLUMNS
        ));
        selection.narrow(&mut query, &self.layout);
        if let Some(beyond) = beyond {
            query.push(format!(" and {key} {follows} ")).push_bind(beyond);
        }
        if let Some(upto) = upto {
            query.push(" and id <= ").push_bind(upto);
        }
        query.push(format!(" order by {key} {order} limit ")).push_bind(limit.max(0));
        query.push(format!(")) order by {key} {order}"));
        let rows = query.build().persistent(false).fetch(&self.pool);
        rows.map(|row| self.event(&row?)).try_collect().await
    }

    /// The key of the first of the last `count` events of a selection, up to the position `upto`; `None`: there is no event.
    pub(crate) async fn find_first_of_last(
        &self,
        selection: &Selection,
        upto: Option<Position>,
        count: i64,
    ) -> Result<Option<i64>, ReadError> {
        let (source, key) = (self.layout.source(), selection.key());
        let mut query = QueryBuilder::new(format!(
            "-- find_first_of_last\nselect min({key}) from (select {key} from {source} as e where "
        ));
        selection.narrow(&mut query, &self.layout);
        query.push(" and id <= ").push_bind(upto.unwrap_or(Position::MAX));
        query.push(format!(" order by {key} desc limit ")).push_bind(count.max(0)).push(") as last");
        Ok(query.build_query_scalar().persistent(false).fetch_one(&self.pool).await?)
    }
}
