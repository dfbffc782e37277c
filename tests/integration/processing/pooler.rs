//! Batches through a transaction pooler: no statement may count on what the one before has left in the session.

use async_trait::async_trait;
use espd::Program;
use espd::internals::runner::RunnerContext;
use espd::native::{Delivery, HandlerError, Projector, ProjectorContext, Registration};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::handlers::native::{A, make};
use crate::processing::runner::{Life, settings};
use crate::support::facts::{append, assert_exactly_once, eventually, reaches};
use crate::support::pooler::Pooler;
use crate::support::program::Installation;
use crate::support::receiver::{Receiver, Reply};
use crate::support::{self, Database};

const RUNNER: &str = "[runner]\nbatch_size = 100\npoll_interval_max = '50ms'\n[retry]\ninitial = '2s'\n";

/// Fails with every event whose `n` is 0.
const DIVIDE: &str = "perform 1 / (event.body->>'n')::bigint;";

/// Two clients take turns on the pooler's connections: neither finds the session again that it had.
async fn assert_sessions_are_mixed(url: &str) {
    let mut client = PgConnection::connect(url).await.unwrap();
    let mut seen = std::collections::HashSet::new();
    eventually("another session of the same client", async || {
        let statement = sqlx::raw_sql("select pg_backend_pid() as pid");
        let row = statement.fetch_one(&mut client).await.unwrap();
        seen.insert(sqlx::Row::get::<i32, _>(&row, "pid"));
        (seen.len() > 1).then_some(())
    })
    .await;
}

/// Nothing that somebody has prepared or set is left for the next client of the pooler.
async fn assert_sessions_are_clean(url: &str) {
    let mut client = PgConnection::connect(url).await.unwrap();
    for _ in 0..10 {
        let statement = sqlx::raw_sql(
            "select (select count(*) from pg_prepared_statements) as prepared,
                    (select count(*) from pg_settings where source = 'session'
                       and name in ('statement_timeout', 'lock_timeout', 'search_path')) as changed",
        );
        let row = statement.fetch_one(&mut client).await.unwrap();
        let count = |name| sqlx::Row::get::<i64, _>(&row, name);
        assert_eq!((count("prepared"), count("changed")), (0, 0));
    }
}

#[tokio::test]
#[ignore = "needs pgbouncer: ./bin/test and ./.ci/run have it and run this"]
async fn behind_a_transaction_pooler_everything_works_and_no_session_is_changed() {
    let db = support::database().await;
    let pooler = Pooler::start(&db).await;
    let url = pooler.url(&db);
    // More would be a connection held, not borrowed: four runners share two connections.
    let store = format!("[event_store]\nurl = '{url}'\ndirect_url = '{}'\n", db.url);
    let installation = Installation::without_database(&format!("{store}{RUNNER}"));
    installation.declare_notes("one", "").declare_notes("two", DIVIDE);
    append(&db.pool, 1_000).await;
    sqlx::query("update espd.events set body = '{\"n\": 0}' where id = 950").execute(&db.pool).await.unwrap();
    let first = installation.start_daemon();
    reaches(&db.pool, "one", 1_000).await;
    let failing = eventually("the failure", async || {
        let status = installation.status("two").await;
        (status["attempts"].as_i64() > Some(1)).then_some(status)
    })
    .await;
    assert_eq!((&failing["position"], &failing["last_error"]["event_id"]), (&949.into(), &950.into()));
    assert_sessions_are_mixed(&url).await;

    let second = installation.start_daemon();
    second.says("standing by: another daemon owns the processor").await;
    sqlx::query("update espd.events set body = '{\"n\": 1}' where id = 950").execute(&db.pool).await.unwrap();
    // It may try again by itself before the command comes.
    installation.espctl(&["retry", "two"]).await.printed();
    reaches(&db.pool, "two", 1_000).await;
    let said = installation.espctl(&["retry", "two"]).await.printed();
    assert_eq!(said.trim(), "two had no failure, at position 1000");
    installation.espctl(&["pause", "one"]).await.printed();
    installation.espctl(&["resume", "one"]).await.printed();
    first.stop().await;
    second.says("claimed").await;
    let last = append(&db.pool, 500).await;
    for name in ["one", "two"] {
        reaches(&db.pool, name, last).await;
        assert_exactly_once(&db.pool, &db.pool, name).await;
    }
    for trouble in ["lost the database", "the database could not do it now"] {
        assert!(second.logged(trouble).is_empty(), "{:?}", second.logged(trouble));
    }
    assert_sessions_are_clean(&url).await;
    second.stop().await;
}

#[tokio::test]
#[ignore = "needs pgbouncer: ./bin/test and ./.ci/run have it and run this"]
async fn projections_elsewhere_may_be_behind_a_transaction_pooler() {
    let (events, projections) = (support::empty_database().await, support::empty_database().await);
    let pooler = Pooler::start(&projections).await;
    let url = pooler.url(&projections);
    let elsewhere = format!("[projections]\nurl = '{url}'\ndirect_url = '{}'\n{RUNNER}", projections.url);
    let installation = Installation::new(&events.url, &elsewhere);
    installation.declare_notes("one", "").declare_notes("two", "");
    installation.espctl(&["migrate"]).await.printed();
    let daemon = installation.start_daemon();
    let last = append(&events.pool, 1_000).await;
    for name in ["one", "two"] {
        reaches(&projections.pool, name, last).await;
        assert_exactly_once(&events.pool, &projections.pool, name).await;
    }
    for trouble in ["lost the database", "the database could not do it now"] {
        assert!(daemon.logged(trouble).is_empty(), "{:?}", daemon.logged(trouble));
    }
    assert_sessions_are_clean(&url).await;
    // A release reaches listeners on the other database.
    let standby = installation.start_daemon();
    standby.says("standing by: another daemon owns the processor").await;
    daemon.stop().await;
    let last = append(&events.pool, 10).await;
    reaches(&projections.pool, "two", last).await;
    standby.stop().await;
}

/// Counts events in a row of its own table, with a statement as every author writes it: sqlx keeps it prepared.
struct Counter {
    statement: String,
}

#[async_trait]
impl Projector for Counter {
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        for event in events {
            let count = sqlx::query(AssertSqlSafe(self.statement.clone())).bind(1);
            count.execute(context.connection()).await.map_err(|error| event.failed(error))?;
        }
        Ok(())
    }
}

fn counter(name: &'static str) -> Program {
    let statement =
        format!("insert into {name} values ($1, 1) on conflict (id) do update set n = {name}.n + 1");
    let registration = Registration::projector(name).handles::<A>();
    let registration = registration.table(name, "id int primary key, n int not null");
    Program::new().projector(registration, move || Counter { statement: statement.clone() })
}

fn counting(db: &Database, pooler: &Pooler, name: &'static str) -> Life {
    let (database, direct) = (pooler.url(db).parse().unwrap(), db.url.parse().unwrap());
    let context = RunnerContext {
        database,
        direct: std::env::var_os("CONTROL").is_none().then_some(direct),
        ..settings(db)
    };
    Life::begin_with(db, make(&counter(name), name), context)
}

/// Each has prepared its statement in another session of the server, under the same name, before the second one gets the
/// session of the first.
#[tokio::test]
#[ignore = "needs pgbouncer: ./bin/test and ./.ci/run have it and run this"]
async fn a_native_projector_never_runs_the_statements_of_another_one() {
    let db = support::database().await;
    let pooler = Pooler::start(&db).await;
    let other = pooler.occupy(&db, None).await;
    let last = append(&db.pool, 1).await;
    let invoices = counting(&db, &pooler, "invoices");
    reaches(&db.pool, "invoices", last).await;
    let left = other.pid;
    other.free().await;
    let of_invoices = pooler.occupy(&db, Some(left)).await;
    let orders = counting(&db, &pooler, "orders");
    reaches(&db.pool, "orders", last).await;
    let left = of_invoices.pid;
    of_invoices.free().await;
    let of_orders = pooler.occupy(&db, Some(left)).await;
    let last = append(&db.pool, 1).await;
    for name in ["invoices", "orders"] {
        reaches(&db.pool, name, last).await;
    }
    of_orders.free().await;
    let counted = "select (select n from invoices) as invoices, (select n from orders) as orders";
    let counted: (i32, i32) = sqlx::query_as(counted).fetch_one(&db.pool).await.unwrap();
    assert_eq!(counted, (2, 2));
    invoices.end().await;
    orders.end().await;
}

/// Beside native handlers, see above. The sessions of espd share two of the server, in turn.
#[tokio::test]
#[ignore = "needs pgbouncer: ./bin/test and ./.ci/run have it and run this"]
async fn every_kind_of_handler_works_behind_a_transaction_pooler() {
    let db = support::database().await;
    let pooler = Pooler::start(&db).await;
    let url = pooler.url(&db);
    let receiver = Receiver::start(|request| {
        let emission = json!({ "type": "Received", "aggregate_id": request.aggregate(), "body": {} });
        Reply::json(&json!({ "emit": [emission] }))
    })
    .await;
    let store = format!("[event_store]\nurl = '{url}'\ndirect_url = '{}'\n", db.url);
    let installation = Installation::without_database(&format!("{store}{RUNNER}"));
    installation.declare_notes("noted", "");
    let hook = format!("[reactor.webhook]\nurl = '{}'\nallow_private = true\n", receiver.url());
    let later = "[[reactor.on]]\nevents = ['A']\nsql = '''
                 perform espd.emit_after('Late', event.aggregate_id, '{}', interval '10 ms')'''\n";
    for (name, keys, handler) in [
        ("hook", "emits = ['Received']\nevents = ['A']", hook.as_str()),
        ("later", "emits = ['Late']", later),
    ] {
        let head = format!("[reactor]\nname = '{name}'\nstart = 'beginning'\n{keys}\n");
        installation.declare(name, &format!("{head}{handler}"));
    }
    crate::handlers::program::declare_counting(&installation, "counted", "well", "");
    let daemon = installation.start_daemon();
    for _ in 0..20 {
        let last = append(&db.pool, 5).await;
        for name in ["noted", "counted", "hook", "later"] {
            reaches(&db.pool, name, last).await;
        }
    }
    assert_exactly_once(&db.pool, &db.pool, "noted").await;
    let counts = "select (select count(*) from counted), count(*) filter (where type = 'Received'),
                         count(*) filter (where type = 'Late') from espd.events";
    eventually("all emissions", async || {
        let counts: (i64, i64, i64) = sqlx::query_as(counts).fetch_one(&db.pool).await.unwrap();
        (counts == (100, 100, 100)).then_some(())
    })
    .await;
    let set_aside = sqlx::query_scalar::<_, i64>("select count(*) from espd.dead_letters");
    assert_eq!(set_aside.fetch_one(&db.pool).await.unwrap(), 0);
    for trouble in ["lost the database", "the database could not do it now"] {
        assert!(daemon.logged(trouble).is_empty(), "{:?}", daemon.logged(trouble));
    }
    assert_sessions_are_clean(&url).await;
    daemon.stop().await;
}
