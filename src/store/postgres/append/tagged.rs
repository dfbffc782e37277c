//! Appends with tags, with keys, or under a condition: one call of `append_tagged` (migrations/event_store), which holds the rules.

use serde::Serialize;
use sqlx::types::Json;
use sqlx::{PgConnection, SqlStr};

use super::stray::{MAY_BE_WITHIN, Stored};
use super::{Row, bind_events, stored};
use crate::event::{KeyChange, NewEvent};
use crate::store::layout::Layout;
use crate::store::postgres::refusal;
use crate::store::postgres::sql_text::sql;
use crate::store::{AppendCondition, AppendError};

pub(super) fn statement(layout: &Layout) -> SqlStr {
    sql(format!(
        "-- append_tagged
        select id, uuid, version, {MAY_BE_WITHIN}
        from {}.append_tagged($1::uuid[], $2::text[], $3::jsonb[], $4::bigint[], $5::uuid[], $6::jsonb[],
          $7::uuid[], $8::uuid[], $9::timestamptz[], $10::text[], $11::int[], $12::jsonb, $13::jsonb)",
        layout.quoted_schema()
    ))
}

/// A claim or a release, as the function takes it.
#[derive(Serialize)]
struct Change<'e> {
    event: usize,
    scope: &'e str,
    key: &'e str,
    claims: bool,
}

/// Appends all `events`, any number, in one statement: locks are taken in one order only where all are taken at once.
pub(super) async fn append(
    (statement, prepared): (&SqlStr, bool),
    connection: &mut PgConnection,
    events: &[NewEvent],
    condition: Option<&AppendCondition>,
) -> Result<Stored, AppendError> {
    let (tags, tagged): (Vec<&str>, Vec<i32>) = (1..)
        .zip(events)
        .flat_map(|(place, event)| event.tags.iter().map(move |tag| (tag.as_str(), place)))
        .unzip();
    let changes = changes(events);
    let query = sqlx::query_as(statement.clone()).persistent(prepared);
    let rows: Vec<Row> = bind_events(query, events)
        .bind(tags)
        .bind(tagged)
        .bind((!changes.is_empty()).then_some(Json(changes)))
        .bind(condition.map(Json))
        .fetch_all(connection)
        .await
        .map_err(|error| refusal::translate(error, events))?;
    Ok(stored(rows))
}

fn changes(events: &[NewEvent]) -> Vec<Change<'_>> {
    let changes =
        (1..).zip(events).flat_map(|(event, new)| new.keys.iter().map(move |change| (event, change)));
    changes
        .map(|(event, change)| {
            let key = change.key();
            let claims = matches!(change, KeyChange::Claim(_));
            Change { event, scope: &key.scope, key: &key.key, claims }
        })
        .collect()
}
