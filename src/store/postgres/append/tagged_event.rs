//! Appends one event with tags in one statement, without a call of `append_tagged`, which costs the server more than the rows do.
//!
//! The statement stores the event, or fails and leaves nothing; then the function is called and finds out why.

use sqlx::types::Json;
use sqlx::{PgConnection, SqlStr};

use super::super::parameter::Jsonb;
use super::stray::{MAY_BE_WITHIN, Stored};
use crate::event::{Appended, NewEvent, Position, Version};
use crate::store::layout::Layout;
use crate::store::postgres::refusal;
use crate::store::postgres::sql_text::sql;
use crate::store::{AppendCondition, AppendError};

/// The statements, with the layout's names filled in once.
#[derive(Debug)]
pub(super) struct Statements {
    without_condition: SqlStr,
    under_condition: SqlStr,
}

/// Whether nothing came that the condition `$11` excludes, by what the locked rows say; `append_tagged` asks the same.
const IS_MET: &str = "not exists (
      select from jsonb_array_elements($11->'items') as item
      where not exists (
        select from locked as at
        where item->'tags' ? at.tag
          and coalesce(($11->'token'->>at.tag)::bigint, 0) >= case
            when item ? 'types' then (
              select coalesce(max((at.by_type->type->>(case when type = $4 then 1 else 0 end))::bigint), 0)
              from jsonb_array_elements_text(item->'types') as type)
            else at.n - 1 end)
    ) and not exists (select from locked as at where ($11->'token'->>at.tag)::bigint >= at.n)";

impl Statements {
    pub(super) fn new(layout: &Layout, event_schemas: &str) -> Self {
        let statement = |is_met: &str| statement(layout, event_schemas, is_met);
        Self { without_condition: statement("true"), under_condition: statement(IS_MET) }
    }
}

/// The tags are locked in their order, and before an id is drawn: where `moved` is read, all of them are.
fn statement(layout: &Layout, event_schemas: &str, is_met: &str) -> SqlStr {
    let (schema, events) = (layout.quoted_schema(), layout.events_table());
    sql(format!(
        "-- append_tagged_event
        with locked as (
          insert into {schema}.tag_heads as h (tag, n, by_type)
          select given.tag collate \"C\", 1, jsonb_build_object($4::text, '[1, 0]'::jsonb)
          from unnest($10::text[]) as given (tag)
          group by 1 order by 1
          on conflict (tag) do update set n = h.n + 1, by_type = h.by_type || jsonb_build_object(
            $4::text, jsonb_build_array(h.n + 1, coalesce(h.by_type->($4::text)->0, '0')))
          returning h.tag, h.n, h.by_type
        ), moved as (
          select {is_met} as is_met from (select count(*) from locked) as all_of_them
        ), stored as (
          insert into {events} as e
            (uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id, created_at)
          select $3, $1, $4, head.version + 1, $5, $6, $7, $8, coalesce($9, clock_timestamp())
          from moved, (select coalesce(max(version), 0) as version from {events} where aggregate_id = $1) as head
          where moved.is_met and ($2::bigint is null or $2 = head.version)
            and not exists (select from {event_schemas} as s where s.type = $4 and s.check_at_append)
          on conflict do nothing
          returning e.id, e.version
        ), noted as (
          insert into {schema}.tag_events (tag, n, event_id, type) select l.tag, l.n, s.id, $4 from stored as s, locked as l
        )
        select coalesce(s.id, {schema}.nothing_stored()), s.version, {MAY_BE_WITHIN} from (values (true)) as one left join stored as s on true"
    ))
}

/// Whether [`append`] is for this: one event that has all tags of the condition.
pub(super) fn is_for(events: &[NewEvent], condition: Option<&AppendCondition>) -> bool {
    let [event] = events else { return false };
    let has_all = |condition: &AppendCondition| condition.query().tags().all(|tag| event.tags.contains(tag));
    !event.tags.is_empty() && event.keys.is_empty() && condition.is_none_or(has_all)
}

/// Stores the event; `None` if nothing was stored, for whatever reason. An error ends a transaction, so it is for connections
/// that are in none.
pub(super) async fn append(
    statements: &Statements,
    prepared: bool,
    connection: &mut PgConnection,
    event: &NewEvent,
    condition: Option<&AppendCondition>,
) -> Result<Option<Stored>, AppendError> {
    let tags: Vec<&str> = event.tags.iter().map(|tag| tag.as_str()).collect();
    let statement = match condition {
        None => &statements.without_condition,
        Some(_) => &statements.under_condition,
    };
    let mut query = sqlx::query_as(statement.clone())
        .persistent(prepared)
        .bind(event.aggregate_id.as_uuid())
        .bind(event.expected_version.version())
        .bind(event.uuid)
        .bind(&event.event_type)
        .bind(Jsonb(&event.body))
        .bind(Jsonb(&event.metadata))
        .bind(event.correlation_id)
        .bind(event.causation_id)
        .bind(event.kept_created_at())
        .bind(tags);
    if let Some(condition) = condition {
        query = query.bind(Json(condition));
    }
    let stored: Result<(Position, Version, bool), sqlx::Error> = query.fetch_one(connection).await;
    match stored {
        Ok((id, version, may_be_within)) => {
            let appended = vec![Appended { id, uuid: event.uuid, version }];
            Ok(Some(Stored { appended, may_be_within }))
        }
        Err(error) if refusal::is_nothing_stored(&error) => Ok(None),
        Err(error) => Err(refusal::translate(error, std::slice::from_ref(event))),
    }
}
