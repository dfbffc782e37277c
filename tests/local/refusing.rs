//! What cannot be run without PostgreSQL, and what its author is told.

use espd::prelude::*;
use espd::store::Upcast;
use espd::testing::LocalProgram;

use crate::scenario::{Notes, OnTitle, TestStore, TodoAdded, noting, on_each_store};

on_each_store! {
    a_projector_that_wants_a_connection_is_told_where_there_is_one
    a_reactor_that_wants_a_connection_is_told_where_there_is_one
    what_cannot_be_run_is_refused_at_the_start
}

struct Titles;

#[async_trait]
impl Projector for Titles {
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        let insert = sqlx::query("insert into titles values ($1)").bind(events[0].body.get());
        insert.execute(context.connection()).await?;
        Ok(())
    }
}

struct Writes;

#[async_trait]
impl Reactor for Writes {
    async fn react(&mut self, _: &Delivery, context: &mut ReactorContext<'_>) -> Result<(), HandlerError> {
        sqlx::query("delete from titles").execute(context.connection().await?).await?;
        Ok(())
    }
}

const WANTED: &str = "the handler wants a connection to PostgreSQL, and this store has none. Run it with `Program::start` on a \
                      PostgreSQL of its own (`espd::embedded`)";

async fn a_projector_that_wants_a_connection_is_told_where_there_is_one(store: TestStore) {
    let registration = Registration::projector("titles").handles::<TodoAdded>().table("titles", "title text");
    let mut processors = store.start(LocalProgram::new().projector(registration, || Titles)).await;
    store.add(&["milk"]).await;
    let error = processors.drain().await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("titles: event 1 (TodoAdded): {WANTED}")), "{error}");
}

async fn a_reactor_that_wants_a_connection_is_told_where_there_is_one(store: TestStore) {
    let registration = Registration::reactor("writes").handles::<TodoAdded>();
    let mut processors = store.start(LocalProgram::new().reactor(registration, || Writes)).await;
    store.add(&["milk"]).await;
    let error = processors.drain().await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("writes: event 1 (TodoAdded): {WANTED}")), "{error}");
}

async fn what_cannot_be_run_is_refused_at_the_start(store: TestStore) {
    let refused =
        async |program: LocalProgram| program.start(store.local.clone()).await.unwrap_err().to_string();
    let program = || noting(LocalProgram::new(), "titles", &Notes::default());
    assert_eq!(refused(program().only(["title"])).await, "there is no processor title");
    let error = refused(program().upcast(Upcast::of(["A"]).body_sql("event.body"))).await;
    assert_eq!(error, "the upcast of A needs PostgreSQL: it is SQL. Make the body in Rust (`Upcast::body`)");
    let error = refused(noting(program(), "2nd", &Notes::default())).await;
    assert!(error.contains("\"2nd\" is not a name"), "{error}");
}

#[cfg(feature = "daemon")]
#[tokio::test]
async fn a_configuration_with_sql_is_refused_by_name_unless_others_are_chosen() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("espd.toml");
    std::fs::write(&file, "include = [\"counts.toml\", \"titles.toml\"]\n").unwrap();
    let sql = "[projector]\nname = 'counts'\n[projector.tables]\ncounts = 'n int'\n\
               [[projector.on]]\nevents = ['*']\nsql = 'insert into counts values (1)'\n";
    std::fs::write(folder.path().join("counts.toml"), sql).unwrap();
    let native = "[projector]\nname = 'titles'\nnative = true\nbatch_size = 1\n";
    std::fs::write(folder.path().join("titles.toml"), native).unwrap();
    let config = espd::Config::load(&file).unwrap();
    let program = || Program::new().projector(Registration::projector("titles"), || Titles);
    let store = MemoryEventStore::new();

    let all = program().locally_with(&config).unwrap();
    let error = all.start(&store).await.unwrap_err().to_string();
    assert!(
        error.starts_with("projector counts (")
            && error.contains("counts.toml) needs PostgreSQL: its handlers are SQL"),
        "{error}"
    );
    let some = program().locally_with(&config).unwrap().only(["titles"]);
    some.start(&store).await.unwrap().drain().await.unwrap();
    program().locally().start(&store).await.unwrap().drain().await.unwrap();
}

#[tokio::test]
async fn settings_that_no_daemon_takes_are_refused() {
    let second = std::time::Duration::from_secs(1);
    let registration = Registration::projector("a").version(-1).retry_delays(9 * second, second);
    let program = LocalProgram::new().projector(registration, || OnTitle(|_: &str| Ok(())));
    let refused = program.start(&MemoryEventStore::new()).await.unwrap_err().to_string();
    assert!(refused.contains("`version` is -1") && refused.contains("`retry_delays` is 9s"), "{refused}");
}
