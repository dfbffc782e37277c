//! Reads by tags, and appends under a condition.

use std::borrow::Cow;
use std::collections::BTreeMap;

use futures_util::TryStreamExt as _;
use sqlx::types::Json;
use sqlx::{PgConnection, Row as _, SqlStr};

use super::sql_text::sql;
use super::{PostgresEventStore, Uncommitted, append, connection, row};
use crate::event::{Appended, NewEvent, Position};
use crate::store::layout::Layout;
use crate::store::upcast::stored_types;
use crate::store::{
    AppendCondition, AppendError, ConsistencyToken, Kept, NO_TAGS, ReadError, TagQuery, TaggedEvents,
    validity,
};

/// Reads events and token in one statement, and so in one snapshot. The first row has the token, whether or not there is an event.
///
/// `$1` names the types that events are stored with. Where they may be read as others, `$3` is the query as it was asked: what is read
/// as another type is left out.
pub(super) fn read_tagged(layout: &Layout) -> SqlStr {
    let (schema, columns, source) = (layout.quoted_schema(), row::COLUMNS, layout.source());
    let as_asked = if layout.upcasts().is_empty() {
        String::new()
    } else {
        format!(
            "and exists (
              select from jsonb_array_elements($3) as item
              where coalesce(item->'types' ? e.type, true) and not exists (
                select from jsonb_array_elements_text(item->'tags') as named (tag)
                where not exists (
                  select from {schema}.tag_events as has where has.event_id = e.id and has.tag = named.tag)))"
        )
    };
    sql(format!(
        "-- read_tagged
        select {columns}, t.token
        from (select {schema}.find_token($1) as token) as t
          left join {source} as e on e.id = any (array(select {schema}.find_tagged($1, $2))) {as_asked}
        order by e.id"
    ))
}

impl PostgresEventStore {
    /// Appends as [`EventStore::append_if`](crate::store::EventStore::append_if) does, as part of the caller's own transaction on
    /// `connection`: see [`Self::append_in`]. From then on, and until the transaction ends, nobody else can append what the
    /// condition excludes.
    ///
    /// Several calls in one transaction lock in the order of the calls: deadlocks are possible, and for the caller to retry.
    ///
    /// # Errors
    /// As of [`EventStore::append_if`](crate::store::EventStore::append_if). Then the transaction can only be rolled back. No
    /// transaction is open: see [`Self::append_in`].
    pub async fn append_if_in(
        &self,
        connection: &mut PgConnection,
        events: &[NewEvent],
        condition: &AppendCondition,
    ) -> Result<Uncommitted, AppendError> {
        let events = &*self.codec.encode_all(events).await?;
        validity::check(events)?;
        condition.check()?;
        connection::require_transaction(connection).await?;
        let (statements, condition) = (self.statements.append()?, self.condition_as_stored(condition));
        let appended = append::append_tagged(statements, connection, events, Some(&condition)).await?;
        Ok(Uncommitted::new(self, appended))
    }

    /// Reads as [`EventStore::read_tagged`](crate::store::EventStore::read_tagged) does, in the caller's transaction on
    /// `connection`. In `read committed`, nothing more is needed; above it, an append under the token that was overtaken fails with a
    /// serialization failure (40001).
    ///
    /// # Errors
    /// As of [`EventStore::read_tagged`](crate::store::EventStore::read_tagged).
    pub async fn read_tagged_in(
        &self,
        connection: &mut PgConnection,
        query: &TagQuery,
        since: Option<&ConsistencyToken>,
    ) -> Result<TaggedEvents, ReadError> {
        let refused = |reason| ReadError::Refused { reason };
        if let Some(reason) = query.find_fault().or_else(|| since.and_then(ConsistencyToken::find_fault)) {
            return Err(refused(reason));
        }
        let statement = self.statements.read_tagged.clone().ok_or_else(|| refused(NO_TAGS.to_owned()))?;
        let as_stored = self.query_as_stored(query);
        let mut statement = sqlx::query(statement).bind(Json(&*as_stored)).bind(since.map(Json));
        if !self.layout.upcasts().is_empty() {
            statement = statement.bind(Json(query));
        }
        let mut rows = statement.fetch(connection);
        let (mut events, mut token) = (Vec::new(), None);
        while let Some(row) = rows.try_next().await? {
            if token.is_none() {
                let Json(numbers) = row.try_get::<Json<BTreeMap<_, _>>, _>("token")?;
                token = Some(ConsistencyToken(numbers));
            }
            if row.try_get::<Option<Position>, _>(0)?.is_some() {
                events.push(self.codec.decode(self.event(&row)?)?);
            }
        }
        Ok(TaggedEvents { events, token: token.unwrap_or_default() })
    }

    /// The state of the tags of a query, without its events.
    pub(crate) async fn read_token(&self, query: &TagQuery) -> Result<ConsistencyToken, ReadError> {
        let refused = |reason| ReadError::Refused { reason };
        if let Some(reason) = query.find_fault() {
            return Err(refused(reason));
        }
        if !self.layout.has_tags() {
            return Err(refused(NO_TAGS.to_owned()));
        }
        let statement = format!("-- find_token\nselect {}.find_token($1)", self.layout.quoted_schema());
        let Json(numbers) =
            sqlx::query_scalar(sql(statement)).bind(Json(query)).fetch_one(&self.pool).await?;
        Ok(ConsistencyToken(numbers))
    }

    /// A query by the types that events are stored with, where they are read as others.
    fn query_as_stored<'q>(&self, query: &'q TagQuery) -> Cow<'q, TagQuery> {
        let upcasts = self.layout.upcasts();
        if upcasts.is_empty() {
            return Cow::Borrowed(query);
        }
        let stored = |types: &[String]| {
            stored_types(upcasts, types.iter().map(String::as_str)).into_iter().map(str::to_owned).collect()
        };
        Cow::Owned(query.clone().with_types(stored))
    }

    fn condition_as_stored<'c>(&self, condition: &'c AppendCondition) -> Cow<'c, AppendCondition> {
        match self.query_as_stored(condition.query()) {
            Cow::Borrowed(_) => Cow::Borrowed(condition),
            Cow::Owned(query) => Cow::Owned(condition.clone().with_query(query)),
        }
    }

    pub(super) async fn append_under(
        &self,
        kept: &mut Kept,
        events: &[NewEvent],
        condition: Option<&AppendCondition>,
    ) -> Result<Vec<Appended>, AppendError> {
        let events = &*self.codec.encode_all(events).await?;
        validity::check(events)?;
        if events.is_empty() && condition.is_none() {
            return Ok(Vec::new());
        }
        let condition = condition.map(|condition| self.condition_as_stored(condition));
        let statements = self.statements.append()?;
        let appended = append::append(statements, &self.pool, kept, events, condition.as_deref()).await;
        // What follows takes a connection itself, and there may be only one.
        kept.release();
        let appended = appended?;
        if !appended.is_empty() {
            self.notify();
            self.tell_appended(&appended).await;
        }
        Ok(appended)
    }
}
