//! A program for the tests of versions side by side. Its environment says which version of its projectors it has, and what their
//! handlers do:
//!
//! - `VERSION`: the version of all of them; from 2 on, `orders` has two columns more.
//! - `FACTOR`: what the handler of `orders` multiplies the id of an event by.
//! - `EFFECTS`: a file that a line is added to for each event of type A after its commit.
//! - `HANDLER`: `fails`, `panics`, `exits`, `blocks at one`, `blocks`, `writes live` or `reads live`: what the handler of `orders` does wrong.
//! - `KEYED`: where it is set, `totals` declares the column that has the aggregate.

use std::io::Write as _;
use std::time::Duration;

use espd::Program;
use espd::native::{Approve, OnFailure};
use espd::prelude::*;
use sqlx::PgConnection;

#[derive(serde::Serialize, serde::Deserialize)]
struct A {
    n: i64,
}

impl EventType for A {
    const NAME: &'static str = "A";
}

fn said(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn number(name: &str) -> i64 {
    said(name).parse().unwrap_or(1)
}

fn version() -> i32 {
    i32::try_from(number("VERSION")).unwrap_or(1)
}

/// A row for each event.
struct Orders {
    /// How many events this instance has handled: it has seen everything that its version has.
    seen: i64,
}

impl Orders {
    fn registration() -> Registration {
        let more = if version() > 1 { ", seen bigint, replaying boolean" } else { "" };
        Registration::projector("orders")
            .version(version())
            .handles::<A>()
            .table("orders", &format!("id bigint primary key, product bigint{more}"))
            .ddl("create index orders_product on orders (product)")
            .ddl("create or replace function orders_twice(n bigint) returns bigint language sql immutable as 'select 2 * n'")
            .after_commit()
    }

    async fn go_wrong(event: &Delivery, connection: &mut PgConnection) -> Result<(), HandlerError> {
        match said("HANDLER").as_str() {
            "fails" if event.id.get() == 3 => return Err(event.failed("this one cannot be ordered")),
            "panics" if event.id.get() == 3 => panic!("there is nothing to order"),
            "exits" if event.id.get() == 3 => std::process::exit(3),
            "blocks at one" if event.id.get() == 3 => std::thread::sleep(Duration::from_secs(3_600)),
            "blocks" => std::thread::sleep(Duration::from_secs(3_600)),
            "writes live" => {
                sqlx::query("update public.orders set product = 0").execute(connection).await?;
            }
            "reads live" => {
                sqlx::query("select count(*) from public.orders").execute(connection).await?;
            }
            _ => {}
        }
        Ok(())
    }
}

#[async_trait]
impl Projector for Orders {
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        for event in events {
            Self::go_wrong(event, context.connection()).await?;
            self.seen += 1;
            let insert = if version() > 1 {
                "insert into orders (id, product, seen, replaying) values ($1, $2, $3, $4)"
            } else {
                "insert into orders (id, product) select $1, $2 where $3::bigint is not null and $4::boolean is not null"
            };
            let insert = sqlx::query(insert).bind(event.id).bind(number("FACTOR") * event.id.get());
            let inserted = insert.bind(self.seen).bind(event.replaying).execute(context.connection()).await;
            inserted.map_err(|error| event.failed(error))?;
            context.after_commit(event, &event.id.get())?;
        }
        Ok(())
    }

    async fn after_commit(&mut self, effect: &Effect) -> Result<(), HandlerError> {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(said("EFFECTS"))?;
        Ok(writeln!(file, "{}", effect.read::<i64>()?)?)
    }
}

/// What becomes of an aggregate depends on the order of its events. Four of them fail at one event.
struct Totals;

#[derive(Default)]
struct Total {
    events: i64,
    last_event: i64,
    total: i64,
    waits: bool,
}

impl Totals {
    fn registration() -> Registration {
        let totals = Registration::projector("totals")
            .version(version())
            .handles::<A>()
            .table("totals", "id uuid primary key, events bigint, last_event bigint, total bigint")
            .check("every total has events", "select id from totals where events < 1")
            .approve(Approve::Always)
            .batch_size(500)
            .max_attempts(1)
            .on_failure(OnFailure::Park);
        if said("KEYED").is_empty() { totals } else { totals.aggregate_column("id") }
    }
}

#[async_trait]
impl StateStored for Totals {
    type State = Total;

    async fn load(
        &self,
        key: &AggregateId,
        connection: &mut PgConnection,
    ) -> Result<Option<Total>, HandlerError> {
        let load = sqlx::query_as("select events, last_event, total from totals where id = $1").bind(key);
        let loaded: Option<(i64, i64, i64)> = load.fetch_optional(connection).await?;
        Ok(loaded.map(|(events, last_event, total)| Total { events, last_event, total, waits: false }))
    }

    fn evolve(&self, total: &mut Total, event: &Delivery) -> Result<(), HandlerError> {
        let A { n } = event.read()?.ok_or("it handles nothing else")?;
        if [777, 781, 785, 789].contains(&n) {
            return Err("not this one".into());
        }
        total.waits |= n == 6_001;
        total.events += 1;
        total.last_event = event.id.get();
        total.total = total.total * 3 % 1_000_003 + n;
        Ok(())
    }

    async fn save(
        &self,
        key: &AggregateId,
        total: &Total,
        connection: &mut PgConnection,
    ) -> Result<(), HandlerError> {
        if total.waits {
            sqlx::query("select pg_advisory_xact_lock_shared(88)").execute(&mut *connection).await?;
        }
        let save = "insert into totals values ($1, $2, $3, $4) on conflict (id) do update
                    set events = excluded.events, last_event = excluded.last_event, total = excluded.total";
        let save = sqlx::query(save).bind(key).bind(total.events).bind(total.last_event).bind(total.total);
        save.execute(connection).await?;
        Ok(())
    }
}

/// How many events each aggregate has, by its whole history.
struct Lengths;

#[async_trait]
impl EventSourced for Lengths {
    type State = i64;

    fn evolve(&self, length: &mut i64, _event: &Event) -> Result<(), HandlerError> {
        *length += 1;
        Ok(())
    }

    async fn save(
        &self,
        aggregate_id: &AggregateId,
        version: Version,
        length: &i64,
        connection: &mut PgConnection,
    ) -> Result<(), HandlerError> {
        let save = "insert into lengths values ($1, $2, $3)
                    on conflict (id) do update set version = excluded.version, length = excluded.length";
        sqlx::query(save).bind(aggregate_id).bind(version).bind(length).execute(connection).await?;
        Ok(())
    }
}

fn main() -> std::process::ExitCode {
    let lengths = Registration::projector("lengths")
        .version(version())
        .handles::<A>()
        .table("lengths", "id uuid primary key, version bigint, length bigint")
        .aggregate_column("id");
    Program::new()
        .projector(Orders::registration(), || Orders { seen: 0 })
        .projector(Totals::registration(), || StateStoredProjector(Totals))
        .projector(lengths, || EventSourcedProjector(Lengths))
        .main()
}
