//! Projectors that fold events into a state, on a real database.

use async_trait::async_trait;
use espd::Program;
use espd::event::{AggregateId, Event, Version};
use espd::native::{
    Delivery, EventSourced, EventSourcedProjector, HandlerError, Registration, StateStored,
    StateStoredProjector,
};
use sqlx::PgConnection;

use super::{A, make};
use crate::processing::runner::{Life, settings};
use crate::support::facts::{append_typed, reaches};
use crate::support::{self, Database};

/// Sums the numbers of each aggregate.
struct Sums;

#[async_trait]
impl StateStored for Sums {
    type State = i64;

    async fn load(
        &self,
        key: &AggregateId,
        connection: &mut PgConnection,
    ) -> Result<Option<i64>, HandlerError> {
        let query = sqlx::query_scalar("select sum from sums where id = $1").bind(key);
        Ok(query.fetch_optional(connection).await?)
    }

    fn evolve(&self, state: &mut i64, event: &Delivery) -> Result<(), HandlerError> {
        let a: A = event.read()?.ok_or("it handles nothing else")?;
        *state += a.n;
        Ok(())
    }

    async fn save(
        &self,
        key: &AggregateId,
        state: &i64,
        connection: &mut PgConnection,
    ) -> Result<(), HandlerError> {
        let upsert = "insert into sums values ($1, $2) on conflict (id) do update set sum = excluded.sum";
        sqlx::query(upsert).bind(key).bind(state).execute(connection).await?;
        Ok(())
    }
}

/// Counts the events of each aggregate, of whatever type.
struct Lengths;

#[async_trait]
impl EventSourced for Lengths {
    type State = i64;

    fn evolve(&self, state: &mut i64, _event: &Event) -> Result<(), HandlerError> {
        *state += 1;
        Ok(())
    }

    async fn save(
        &self,
        aggregate_id: &AggregateId,
        version: Version,
        state: &i64,
        connection: &mut PgConnection,
    ) -> Result<(), HandlerError> {
        let upsert = "insert into lengths values ($1, $2, $3)
                      on conflict (id) do update set version = excluded.version, length = excluded.length";
        sqlx::query(upsert).bind(aggregate_id).bind(version).bind(state).execute(connection).await?;
        Ok(())
    }
}

/// 20 aggregates of 50 events of type A and one of type B each; aggregates interleave.
async fn history(db: &Database) -> i64 {
    let insert = "insert into espd.events (aggregate_id, type, version, body)
                  select md5(a::text)::uuid, 'A', v, jsonb_build_object('n', v)
                  from generate_series(1, 50) as v, generate_series(1, 20) as a order by v, a";
    sqlx::query(insert).execute(&db.pool).await.unwrap();
    let insert = "insert into espd.events (aggregate_id, type, version, body)
                  select md5(a::text)::uuid, 'B', 51, '{}' from generate_series(1, 20) as a";
    sqlx::query(insert).execute(&db.pool).await.unwrap();
    append_typed(&db.pool, "C", 1).await
}

async fn counted(db: &Database, query: &'static str) -> Vec<(i64, i64)> {
    sqlx::query_as(query).fetch_all(&db.pool).await.unwrap()
}

#[tokio::test]
async fn a_state_is_loaded_evolved_and_saved_across_batches() {
    let db = support::database().await;
    let last = history(&db).await;
    let declaration =
        Registration::projector("sums").handles::<A>().table("sums", "id uuid primary key, sum bigint");
    let program = Program::new().projector(declaration, || StateStoredProjector(Sums));
    let life = Life::begin_with(&db, make(&program, "sums"), settings(&db));
    reaches(&db.pool, "sums", last).await;
    assert_eq!(counted(&db, "select count(*), sum from sums group by sum").await, [(20, 1_275)]);
    life.end().await;
}

#[tokio::test]
async fn a_history_is_folded_whatever_its_types() {
    let db = support::database().await;
    let last = history(&db).await;
    let declaration = Registration::projector("lengths")
        .handles_type("B")
        .table("lengths", "id uuid primary key, version bigint, length bigint");
    let program = Program::new().projector(declaration, || EventSourcedProjector(Lengths));
    let life = Life::begin_with(&db, make(&program, "lengths"), settings(&db));
    reaches(&db.pool, "lengths", last).await;
    assert_eq!(counted(&db, "select version, length from lengths group by 1, 2").await, [(51, 51)]);
    life.end().await;
}
