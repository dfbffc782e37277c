//! What the demo looks up in its database, as any application would: rows of read models, a dead letter, and the proof that
//! rows and events agree.

use sqlx::PgPool;

use crate::event::Position;
use crate::postgres::row::from_row;

/// A to-do of the read model `outstanding_todos`.
#[derive(Debug)]
pub(super) struct OutstandingTodo {
    pub(super) title: String,
    pub(super) due: String,
    pub(super) stakeholder: String,
}

from_row!(OutstandingTodo { title, due, stakeholder });

/// The to-dos whose events came last, among those that are still to be done.
pub(super) async fn latest_todos(pool: &PgPool, limit: i64) -> sqlx::Result<Vec<OutstandingTodo>> {
    sqlx::query_as(
        "-- latest_todos
         with recent as (
           select aggregate_id, max(id) as id
           from (select aggregate_id, id from espd.events order by id desc limit 50) as e group by aggregate_id)
         select t.title, coalesce(t.due_date::text, '') as due, coalesce(t.stakeholder_email, '') as stakeholder
         from recent as r join outstanding_todos as t on t.todo_id::text = r.aggregate_id::text
         order by r.id desc limit $1",
    )
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// How the rows of `outstanding_todos` compare with the events up to the position of their projector.
#[derive(Debug)]
pub(super) struct Comparison {
    pub(super) rows: i64,
    /// Rows that the events do not lead to, and rows that they lead to and that are missing.
    pub(super) different: i64,
}

from_row!(Comparison { rows, different });

/// Works out the open to-dos and their titles from the events, and compares them with the read model, in one snapshot.
pub(super) async fn compare_with_events(pool: &PgPool) -> sqlx::Result<Comparison> {
    sqlx::query_as(
        "-- compare_with_events
         with past as (
           select e.aggregate_id::text as todo_id, e.id, e.type, e.body->>'title' as title
           from espd.events as e
           where e.id <= (select position from espd.trackers where name = 'outstanding_todos')),
         folded as (
           select distinct on (p.todo_id) p.todo_id, p.title
           from past as p
           where p.type in ('TodoAdded', 'TodoAmended')
             and not exists (
               select from past as done
               where done.todo_id = p.todo_id and done.type in ('TodoCompleted', 'TodoAbandoned'))
           order by p.todo_id, p.id desc),
         found as (select todo_id::text, title from outstanding_todos)
         select (select count(*) from found) as rows,
           (select count(*) from (table folded except table found) as missing)
             + (select count(*) from (table found except table folded) as surplus) as different",
    )
    .fetch_one(pool)
    .await
}

/// An event that was set aside for `completed_todos`.
#[derive(Debug)]
pub(super) struct SetAside {
    pub(super) attempts: i32,
    pub(super) message: String,
}

from_row!(SetAside { attempts, message });

/// The dead letter of the event, once there is one.
pub(super) async fn dead_letter(pool: &PgPool, event: Position) -> sqlx::Result<Option<SetAside>> {
    sqlx::query_as(
        "-- find_dead_letter
         select attempts, failure->>'message' as message from espd.dead_letters
         where processor = 'completed_todos' and event_id = $1",
    )
    .bind(i64::from(event))
    .fetch_optional(pool)
    .await
}
