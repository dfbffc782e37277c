//! Which event cannot be read, where a batch could not be.
//!
//! A plan may compute the bodies of later events first, so the error says nothing of which it is.

use sqlx::PgConnection;

use super::{BatchRequest, Events};
use crate::event::Position;
use crate::postgres::literal::{fetch_optional, simple};
use crate::postgres::quote::quote_literal;
use crate::postgres::sqlstate::is_infrastructure_error;
use crate::processing::failure::FailedEvent;
use crate::store::upcast::UpcastFailure;

/// How many ids are read first. Each time that all can be read, twice as many follow.
const FIRST_STEP: i64 = 1_000;

/// Where the events are, and which types of them are wanted; `None`: all.
#[derive(Clone, Copy)]
pub(super) struct Source<'s> {
    pub(super) events: &'s Events,
    pub(super) types: Option<&'s [String]>,
}

/// Finds the first event of a request that cannot be read, after an error; `None`: all can be read now.
pub(super) async fn find(
    source: Source<'_>,
    connection: &mut PgConnection,
    request: &BatchRequest<'_>,
    error: &sqlx::Error,
) -> Result<Option<FailedEvent>, sqlx::Error> {
    match source.events {
        Events::SameDatabase(_) => find_on(source, connection, request, error).await,
        Events::Elsewhere(store) => {
            let mut transaction = store.pool().begin().await?;
            find_on(source, &mut transaction, request, error).await
        }
    }
}

async fn find_on(
    source: Source<'_>,
    connection: &mut PgConnection,
    request: &BatchRequest<'_>,
    error: &sqlx::Error,
) -> Result<Option<FailedEvent>, sqlx::Error> {
    let found = match UpcastFailure::find_event(error) {
        Some(id) => Some(id),
        None => find_id(source, connection, request).await?,
    };
    match found {
        Some(id) => identify(source, connection, id).await,
        None => Ok(None),
    }
}

/// Reads ever more of the events, then ever fewer.
async fn find_id(
    source: Source<'_>,
    connection: &mut PgConnection,
    request: &BatchRequest<'_>,
) -> Result<Option<Position>, sqlx::Error> {
    let (mut readable, upto) = (request.after().get(), request.upto().get());
    let (mut step, mut unreadable) = (FIRST_STEP, None);
    while readable < upto && unreadable != Some(readable + 1) {
        let probe = unreadable.map_or(upto.min(readable.saturating_add(step)), |id| readable.midpoint(id));
        if can_read(source, connection, readable, probe).await? {
            readable = probe;
            step = step.saturating_mul(2);
        } else {
            unreadable = Some(probe);
        }
    }
    Ok(unreadable.map(Position::from))
}

/// Whether all events can be read that are behind one id, up to another one.
async fn can_read(
    source: Source<'_>,
    connection: &mut PgConnection,
    after: i64,
    upto: i64,
) -> Result<bool, sqlx::Error> {
    let of_types = source.types.map_or_else(String::new, |types| {
        let types: Vec<String> = types.iter().map(|name| quote_literal(name)).collect();
        format!(" and type = any (array[{}]::text[])", types.join(", "))
    });
    let statement = format!(
        "-- try_to_read_events
         select sum(pg_column_size(row(type, body, metadata, created_at))) from {} as e where id > {after} and id <= {upto}{of_types}",
        source.events.layout().source()
    );
    execute(connection, "savepoint espd_probe").await?;
    match simple(statement).fetch_one(&mut *connection).await {
        Ok(_) => Ok(true),
        Err(error) if is_infrastructure_error(&error) => Err(error),
        Err(_) => execute(connection, "rollback to savepoint espd_probe").await.map(|()| false),
    }
}

/// Which event it is. Its type is the one that it is read as, unless that cannot be read either.
async fn identify(
    source: Source<'_>,
    connection: &mut PgConnection,
    id: Position,
) -> Result<Option<FailedEvent>, sqlx::Error> {
    let layout = source.events.layout();
    let from = |source: &str| {
        format!(
            "-- identify_unreadable_event\nselect id, uuid, type as event_type, aggregate_id from {source} as e where id = {id}"
        )
    };
    execute(connection, "savepoint espd_probe").await?;
    match fetch_optional(&mut *connection, from(layout.source())).await {
        Ok(Some(event)) => Ok(Some(event)),
        Err(error) if is_infrastructure_error(&error) => Err(error),
        _ => {
            execute(connection, "rollback to savepoint espd_probe").await?;
            fetch_optional(connection, from(layout.stored_source())).await
        }
    }
}

async fn execute(connection: &mut PgConnection, statement: &'static str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(statement).execute(connection).await.map(drop)
}
