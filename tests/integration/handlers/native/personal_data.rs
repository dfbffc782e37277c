//! Handlers in Rust and personal data: they read it, emit it, and go on after somebody is forgotten.

use espd::Program;
use espd::event::NewEvent;
use espd::native::{
    Delivery, HandlerError, Projector, ProjectorContext, Reactor, ReactorContext, Registration, Start,
};
use espd::personal_data::{MasterKey, Personal, PersonalData, PostgresKeys};
use espd::prelude::{Aggregate, MemoryEventStore};
use espd::store::{EventStore as _, Layout, PostgresEventStore};
use espd::testing::LocalProgram;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use uuid::Uuid;

use super::make;
use crate::processing::runner::{Life, settings};
use crate::support::facts::reaches;
use crate::support::{self, SCHEMA};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Registered {
    id: String,
    name: Personal<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Welcomed {
    id: String,
    name: Personal<String>,
}

espd::event_type!(Registered, personal = ["/name"] of "/id");
espd::event_type!(Welcomed, personal = ["/name"] of "/id");

espd::event_set! { enum Greeting { Registered(Registered), Welcomed(Welcomed) } }

#[derive(Debug, Clone, Default)]
struct Guest;

impl Aggregate for Guest {
    type Event = Greeting;

    fn evolve(&mut self, _: &Greeting) {}
}

struct Names(&'static str);

#[async_trait::async_trait]
impl Projector for Names {
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        for event in events {
            let Some(welcomed) = event.read::<Welcomed>()? else { continue };
            let name = welcomed.name.known().map_or("somebody", String::as_str);
            let insert = format!("insert into {} values ($1)", self.0);
            sqlx::query(sqlx::AssertSqlSafe(insert)).bind(name).execute(context.connection()).await?;
        }
        Ok(())
    }
}

struct Welcome;

#[async_trait::async_trait]
impl Reactor for Welcome {
    async fn react(
        &mut self,
        event: &Delivery,
        context: &mut ReactorContext<'_>,
    ) -> Result<(), HandlerError> {
        let Some(registered) = event.read::<Registered>()? else { return Ok(()) };
        context.emit(&event.aggregate_id, &Welcomed { id: registered.id, name: registered.name })
    }
}

fn personal(pool: &PgPool) -> PersonalData {
    let keys = PostgresKeys::new(pool, MasterKey::new([7; 32]));
    PersonalData::new(keys).of::<Registered>().of::<Welcomed>()
}

fn program(pool: &PgPool) -> Program {
    let names = |name: &'static str| {
        let registration = Registration::projector(name).handles::<Welcomed>().table(name, "name text");
        registration.codec(personal(pool))
    };
    let welcome = Registration::reactor("welcome").handles::<Registered>().emits::<Welcomed>();
    Program::new()
        .reactor(welcome.start(Start::Beginning).codec(personal(pool)), || Welcome)
        .projector(names("before"), || Names("before"))
        .projector(names("rebuilt"), || Names("rebuilt"))
}

#[tokio::test]
async fn handlers_read_and_emit_personal_data_and_a_rebuild_lacks_who_is_forgotten() {
    let db = support::database().await;
    PostgresKeys::new(&db.pool, MasterKey::new([7; 32])).create_tables().await.unwrap();
    let store = PostgresEventStore::new(db.pool.clone(), Layout::espd(SCHEMA).unwrap());
    let sealing = store.with_codec(personal(&db.pool));
    for (id, name) in [("ada", "Ada"), ("bob", "Bob")] {
        let registered = Registered { id: id.to_owned(), name: name.to_owned().into() };
        sealing.append(&[NewEvent::of(Uuid::new_v4(), &registered).unwrap()]).await.unwrap();
    }
    let program = program(&db.pool);
    let begin = |name| Life::begin_with(&db, make(&program, name), settings(&db));
    let lives = [begin("welcome"), begin("before")];
    reaches(&db.pool, "welcome", 4).await;
    reaches(&db.pool, "before", 4).await;
    for life in lives {
        life.end().await;
    }
    let plain: i64 = sqlx::query_scalar("select count(*) from espd.events where body::text ~ 'Ada|Bob'")
        .fetch_one(&db.pool)
        .await
        .unwrap();
    assert_eq!(plain, 0, "what is emitted is sealed as well");
    let forget = "with gone as (delete from espd_keys.subject_keys where subject = 'ada')
        insert into espd_keys.forgotten_subjects (subject, forgotten_by, keys) values ('ada', 'me', 1)";
    sqlx::query(forget).execute(&db.pool).await.unwrap();
    let program = self::program(&db.pool);
    let life = Life::begin_with(&db, make(&program, "rebuilt"), settings(&db));
    reaches(&db.pool, "rebuilt", 4).await;
    life.end().await;
    for (table, names) in [("before", ["Ada", "Bob"]), ("rebuilt", ["somebody", "Bob"])] {
        let query = format!("select array_agg(name) from {table}");
        let found: Vec<String> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_one(&db.pool).await.unwrap();
        assert_eq!(found, names, "{table}");
    }
}

#[tokio::test]
async fn a_reactor_that_would_emit_personal_data_in_the_clear_is_refused_at_the_start() {
    let start = async |registration: Registration| {
        let program = LocalProgram::new().reactor(registration, || Welcome);
        program.start(&MemoryEventStore::new()).await.map(drop).map_err(|error| error.to_string())
    };
    let emits = || Registration::reactor("welcome").handles::<Registered>().emits::<Welcomed>();
    let said = "welcome emits Welcomed, whose personal fields (/name) no codec seals: add .codec(…)";
    let refused = start(emits()).await.unwrap_err();
    assert!(refused.starts_with(said), "{refused}");
    let keys = espd::personal_data::MemoryKeys::new;
    let refused = start(emits().codec(PersonalData::new(keys()).of::<Registered>())).await.unwrap_err();
    assert!(refused.starts_with(said), "{refused}");
    let refused = start(Registration::reactor("welcome").executes::<Guest>()).await.unwrap_err();
    assert!(refused.contains("emits Registered") && refused.contains(said), "{refused}");
    let both = PersonalData::new(keys()).of::<Registered>().of::<Welcomed>();
    start(emits().executes::<Guest>().codec(both)).await.unwrap();
}
