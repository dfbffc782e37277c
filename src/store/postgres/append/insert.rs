//! Appends by a plain insert where the version that the aggregate must be at is known, and no type of the events is declared to
//! be checked.

use sqlx::postgres::{PgArguments, PgBindIterExt};
use sqlx::query::Query;
use sqlx::{PgConnection, Postgres, Row, SqlStr};

use super::stray::{MAY_BE_WITHIN, Stored};
use crate::event::{Appended, NewEvent, Position, Version};
use crate::store::AppendError;
use crate::store::layout::Append;
use crate::store::postgres::parameter::Jsonb;
use crate::store::postgres::refusal;
use crate::store::postgres::sql_text::sql;

/// The statements, with the name of the table of events filled in once.
#[derive(Debug)]
pub(super) struct Statements {
    insert_one: SqlStr,
    insert_several: SqlStr,
    /// The constraints that the statements may violate.
    keys: [String; 2],
}

impl Statements {
    pub(super) fn new(events: &str, append: &Append) -> Self {
        let schemas = &append.event_schemas;
        // A look into an index, which is empty where nothing is declared.
        let none_checked = |types: &str| {
            format!("not exists (select from {schemas} as s where s.type = {types} and s.check_at_append)")
        };
        Self {
            keys: append.keys.clone(),
            insert_one: sql(format!(
                "-- insert_event
                insert into {events}
                  (uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id, created_at)
                select $3, $1, $4, $2 + 1, $5, $6, $7, $8, coalesce($9, clock_timestamp())
                where $2 = coalesce(
                  (select version from {events} where aggregate_id = $1 order by version desc limit 1), 0)
                  and {}
                returning id, {MAY_BE_WITHIN}",
                none_checked("$4")
            )),
            insert_several: sql(format!(
                "-- insert_events
                insert into {events}
                  (uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id, created_at)
                select new.uuid, $1, new.type, $2 + new.place, new.body, new.metadata, new.correlation_id,
                  new.causation_id, coalesce(new.created_at, clock_timestamp())
                from unnest($3::uuid[], $4::text[], $5::jsonb[], $6::jsonb[], $7::uuid[], $8::uuid[],
                    $9::timestamptz[])
                  with ordinality as new
                    (uuid, type, body, metadata, correlation_id, causation_id, created_at, place)
                where $2 = coalesce(
                  (select version from {events} where aggregate_id = $1 order by version desc limit 1), 0)
                  and {}
                order by new.place
                returning id, {MAY_BE_WITHIN}",
                none_checked("any ($4)")
            )),
        }
    }
}

/// Stores the events if they are of one aggregate, and it is at the version that they expect; `None`
/// if nothing was stored, for whatever reason.
pub(super) async fn insert_where_expected(
    statements: &Statements,
    connection: &mut PgConnection,
    events: &[NewEvent],
) -> Result<Option<Stored>, AppendError> {
    let Some(head) = find_expected_head(events) else { return Ok(None) };
    let query = match events {
        [event] => bind_one(statements, event, head),
        _ => bind_several(statements, events, head),
    };
    let rows = match query.fetch_all(connection).await {
        Ok(rows) => rows,
        Err(error) if refusal::is_taken(&error, &statements.keys) || refusal::is_of_older_store(&error) => {
            return Ok(None);
        }
        Err(error) => return Err(refusal::translate(error, events)),
    };
    let Some(first) = rows.first() else { return Ok(None) };
    let may_be_within = first.try_get(1)?;
    let mut ids: Vec<Position> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    // Ids were drawn in the order of the events, whatever order the rows came back in.
    ids.sort_unstable();
    let places = ids.into_iter().zip(events).zip(head.get() + 1..);
    let appended =
        places.map(|((id, event), version)| Appended { id, uuid: event.uuid, version: version.into() });
    Ok(Some(Stored { appended: appended.collect(), may_be_within }))
}

/// The version that the aggregate must be at; `None` if there are several aggregates, or if the events
/// expect nothing or contradict each other. One expectation is enough: it fixes all versions.
fn find_expected_head(events: &[NewEvent]) -> Option<Version> {
    let aggregate_id = &events.first()?.aggregate_id;
    let mut head = None;
    for (place, event) in (0..).zip(events) {
        if event.aggregate_id != *aggregate_id {
            return None;
        }
        let Some(expected) = event.expected_version.version() else { continue };
        let before = expected.get() - place;
        if before < 0 || *head.get_or_insert(before) != before {
            return None;
        }
    }
    let length = i64::try_from(events.len()).ok()?;
    head.filter(|head: &i64| head.checked_add(length).is_some()).map(Version::new)
}

type Bound<'q> = Query<'q, Postgres, PgArguments>;

fn bind_one<'q>(statements: &Statements, event: &NewEvent, head: Version) -> Bound<'q> {
    sqlx::query(statements.insert_one.clone())
        .bind(event.aggregate_id.as_uuid())
        .bind(head)
        .bind(event.uuid)
        .bind(&event.event_type)
        .bind(Jsonb(&event.body))
        .bind(Jsonb(&event.metadata))
        .bind(event.correlation_id)
        .bind(event.causation_id)
        .bind(event.kept_created_at())
}

fn bind_several<'q>(statements: &Statements, events: &[NewEvent], head: Version) -> Bound<'q> {
    sqlx::query(statements.insert_several.clone())
        .bind(events[0].aggregate_id.as_uuid())
        .bind(head)
        .bind(events.iter().map(|event| event.uuid).bind_iter())
        .bind(events.iter().map(|event| &event.event_type).bind_iter())
        .bind(events.iter().map(|event| Jsonb(&event.body)).bind_iter())
        .bind(events.iter().map(|event| Jsonb(&event.metadata)).bind_iter())
        .bind(events.iter().map(|event| event.correlation_id).bind_iter())
        .bind(events.iter().map(|event| event.causation_id).bind_iter())
        .bind(events.iter().map(|event| event.kept_created_at()).bind_iter())
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;
    use uuid::Uuid;

    use super::*;
    use crate::event::ExpectedVersion::{self, Absent, Any, Exact};

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);

    fn head_of(events: &[(Uuid, ExpectedVersion)]) -> Option<Version> {
        let body = RawValue::from_string("{}".to_owned()).unwrap();
        let event = |&(aggregate_id, expected): &(Uuid, ExpectedVersion)| {
            NewEvent::new(aggregate_id, "Happened", body.clone()).expecting(expected)
        };
        find_expected_head(&events.iter().map(event).collect::<Vec<_>>())
    }

    #[test]
    fn one_expectation_fixes_all_versions_of_an_aggregate() {
        assert_eq!(head_of(&[(A, Absent)]), Some(0.into()));
        assert_eq!(head_of(&[(A, Exact(99.into())), (A, Any)]), Some(99.into()));
        assert_eq!(
            head_of(&[(A, Any), (A, Any), (A, Exact(9.into())), (A, Exact(10.into()))]),
            Some(7.into())
        );
    }

    #[test]
    fn what_is_open_or_cannot_be_is_left_to_the_function() {
        assert_eq!(head_of(&[(A, Any)]), None);
        assert_eq!(head_of(&[(A, Absent), (B, Absent)]), None);
        assert_eq!(head_of(&[(A, Absent), (A, Absent)]), None);
        assert_eq!(head_of(&[(A, Any), (A, Absent)]), None);
        assert_eq!(head_of(&[(A, Exact(Version::MAX))]), None);
        assert_eq!(head_of(&[(A, Exact((i64::MAX - 1).into())), (A, Any)]), None);
    }
}
