//! Events that are set aside: what becomes of them, of those behind them, and what operators see and do.

mod admin;
mod order;
mod policies;
mod programs;
mod reactors;
mod retries;
mod scale;
mod set_aside;
mod tools;

use espd::internals::retry::{OnFailure, RetryPolicy, Strategy};
use espd::internals::runner::RunnerContext;
use sqlx::PgPool;
use uuid::Uuid;

use crate::processing::runner::settings;
use crate::support::Database;
use crate::support::facts::eventually;

/// Settings by which an event that fails once is set aside.
fn setting_aside(db: &Database, on_failure: OnFailure) -> RunnerContext {
    let retry =
        RetryPolicy { strategy: Strategy::None, max_attempts: Some(1), on_failure, ..RetryPolicy::default() };
    RunnerContext { retry, ..settings(db) }
}

/// Adds an event of type `A` with this `n` to an aggregate, and returns its id.
async fn add(pool: &PgPool, aggregate: u128, n: i64) -> i64 {
    sqlx::query_scalar(
        "insert into espd.events (aggregate_id, type, version, body)
         select $1, 'A', coalesce(max(version), 0) + 1, jsonb_build_object('n', $2::bigint)
         from espd.events where aggregate_id = $1
         returning id",
    )
    .bind(Uuid::from_u128(aggregate))
    .bind(n)
    .fetch_one(pool)
    .await
    .unwrap()
}

/// The dead letters of all processors: the event, why it is here, how often it was tried.
async fn dead_letters(pool: &PgPool) -> Vec<(i64, String, i32)> {
    let query = "select event_id, reason, attempts from espd.dead_letters order by processor, event_id";
    sqlx::query_as(query).fetch_all(pool).await.unwrap()
}

fn failed(event_id: i64, attempts: i32) -> (i64, String, i32) {
    (event_id, "failed".to_owned(), attempts)
}

fn waiting(event_id: i64) -> (i64, String, i32) {
    (event_id, "waiting".to_owned(), 0)
}

/// The events that the processor `notes` has handled, in the order in which it did.
async fn noted(pool: &PgPool) -> Vec<i64> {
    sqlx::query_scalar("select event_id from notes order by place").fetch_all(pool).await.unwrap()
}

/// Waits until as many events are noted, and returns them.
async fn notes_of(pool: &PgPool, count: usize) -> Vec<i64> {
    eventually(&format!("{count} notes"), async || {
        Some(noted(pool).await).filter(|notes| notes.len() >= count)
    })
    .await
}

/// What operators have done: what, from which event to which.
async fn operator_log(pool: &PgPool) -> Vec<(String, i64, i64)> {
    let query = "select action, from_position, to_position from espd.operator_log order by id";
    sqlx::query_as(query).fetch_all(pool).await.unwrap()
}
