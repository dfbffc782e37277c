//! Handlers in Rust that do not return: they end their process, block it, or wait for something that does not come.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use async_trait::async_trait;
use espd::Program;
use espd::native::{
    Delivery, HandlerError, OnFailure, Projector, ProjectorContext, Reactor, ReactorContext, Registration,
    Start,
};
use sqlx::PgPool;

use super::{A, dead_letters};
use crate::support::facts::{append, eventually, reaches};
use crate::support::program::{self, Installation};
use crate::support::{self};

/// `tests/programs/versions.rs`, which cargo builds beside the tests, with what its handler does.
fn versions(installation: &Installation, handler: &str, arguments: &[&str]) -> Command {
    let own = std::env::current_exe().unwrap();
    let program: PathBuf = own.parent().and_then(std::path::Path::parent).unwrap().join("examples/versions");
    let mut command = installation.command(program.to_str().unwrap(), arguments);
    command.env("HANDLER", handler).env("EFFECTS", installation.path().join("effects"));
    command
}

fn declared(settings: &str, url: &str, attempts: u32) -> Installation {
    let runner = "[runner]\npoll_interval_max = '50ms'\nrestart_max = '1s'\nshutdown_timeout = '1s'\n";
    let installation = Installation::new(url, &format!("{runner}{settings}"));
    installation.declare(
        "orders",
        &format!(
            "[projector]\nname = 'orders'\nnative = true\n\
             [projector.retry]\ninitial = '50ms'\nmax = '100ms'\nmax_attempts = {attempts}\non_failure = 'skip'\n"
        ),
    );
    installation
}

/// The dead letters, each with its attempts and what is said of it.
async fn set_aside(pool: &PgPool) -> Vec<(i64, i32, String)> {
    let set_aside = dead_letters(pool).await.into_iter();
    let told = set_aside.map(|one| {
        let failure = one.failure.map(|failure| failure.0.message).unwrap_or_default();
        (one.event_id.get(), one.attempts, failure)
    });
    told.collect()
}

#[tokio::test]
async fn an_event_that_ends_its_worker_is_found_and_its_attempts_count() {
    let db = support::database().await;
    let installation = declared("", &db.url, 2);
    let last = append(&db.pool, 6).await;
    let daemon = program::Program::start(versions(&installation, "exits", &["run"]));
    reaches(&db.pool, "orders", last).await;
    let set_aside = set_aside(&db.pool).await;
    assert_eq!(set_aside.iter().map(|(id, attempts, _)| (*id, *attempts)).collect::<Vec<_>>(), [(3, 2)]);
    assert!(set_aside[0].2.contains("has not returned from this event"), "{set_aside:?}");
    let rows: Vec<i64> =
        sqlx::query_scalar("select id from public.orders order by id").fetch_all(&db.pool).await.unwrap();
    assert_eq!(rows, [1, 2, 4, 5, 6]);
    daemon.stop().await;
}

#[tokio::test]
async fn an_event_that_blocks_its_worker_is_found_and_its_attempts_count() {
    let db = support::database().await;
    let installation = declared("hang_timeout = '5s'\n", &db.url, 1);
    let last = append(&db.pool, 6).await;
    let daemon = program::Program::start(versions(&installation, "blocks at one", &["run"]));
    reaches(&db.pool, "orders", last).await;
    let set_aside = set_aside(&db.pool).await;
    assert_eq!(set_aside.iter().map(|(id, attempts, _)| (*id, *attempts)).collect::<Vec<_>>(), [(3, 1)]);
    daemon.stop().await;
}

#[tokio::test]
async fn a_dead_letter_that_ends_its_worker_again_is_not_tried_for_ever() {
    let db = support::database().await;
    let installation = declared("", &db.url, 1);
    let last = append(&db.pool, 6).await;
    let daemon = program::Program::start(versions(&installation, "exits", &["run"]));
    reaches(&db.pool, "orders", last).await;
    let retry = installation.espctl(&["dead-letters", "retry", "orders", "--all", "--yes", "--wait", "2m"]);
    let said = retry.await.complained(1);
    assert!(said.contains("1 failed again") && said.contains("has not returned"), "{said}");
    daemon.stop().await;
}

/// Does not return from an A whose `n` is 3.
struct Waiting;

impl Waiting {
    async fn handle(event: &Delivery) -> Result<(), HandlerError> {
        if event.read::<A>()?.is_some_and(|a| a.n == 3) {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

#[async_trait]
impl Projector for Waiting {
    async fn project(
        &mut self,
        events: &[Delivery],
        _context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        for event in events {
            Self::handle(event).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Reactor for Waiting {
    async fn react(
        &mut self,
        event: &Delivery,
        _context: &mut ReactorContext<'_>,
    ) -> Result<(), HandlerError> {
        Self::handle(event).await
    }
}

fn waiting(registration: Registration) -> Registration {
    registration
        .handles::<A>()
        .start(Start::Beginning)
        .retry_delays(Duration::from_millis(10), Duration::from_millis(20))
        .max_attempts(2)
        .on_failure(OnFailure::Skip)
}

#[tokio::test]
async fn a_handler_that_waits_for_ever_is_given_up_and_has_failed() {
    let db = support::database().await;
    let last = append(&db.pool, 9).await;
    let installation = Installation::new(&db.url, "[runner]\npoll_interval_max = '50ms'\n");
    let time = Duration::from_millis(300);
    let program = Program::new()
        .projector(waiting(Registration::projector("titles")).handler_timeout(time), || Waiting)
        .reactor(waiting(Registration::reactor("mails")).handler_timeout(time), || Waiting);
    let config = espd::Config::load(&installation.path().join("espd.toml")).unwrap();
    let running = program.start(&config).await.unwrap();
    for name in ["titles", "mails"] {
        reaches(&db.pool, name, last).await;
    }
    for (id, attempts, failure) in set_aside(&db.pool).await {
        assert_eq!((id, attempts), (3, 2));
        assert!(failure.contains("has not returned within 0.3 s (handler_timeout)"), "{failure}");
    }
    assert_eq!(dead_letters(&db.pool).await.len(), 2);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn an_operator_who_sets_the_event_aside_does_not_wait_for_its_handler() {
    let db = support::database().await;
    let last = append(&db.pool, 4).await;
    let installation = Installation::new(&db.url, "[runner]\npoll_interval_max = '50ms'\n");
    let config = espd::Config::load(&installation.path().join("espd.toml")).unwrap();
    let mails = waiting(Registration::reactor("mails")).batch_size(1);
    let running = Program::new().reactor(mails, || Waiting).start(&config).await.unwrap();
    reaches(&db.pool, "mails", 2).await;
    eventually("the handler is at work", async || {
        let at_work = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'espd: mails' and state = 'idle in transaction'";
        let at_work: i64 = sqlx::query_scalar(at_work).fetch_one(&db.pool).await.unwrap();
        (at_work > 0).then_some(())
    })
    .await;
    installation.espctl(&["dead-letters", "park", "mails", "--event", "3", "--yes"]).await.printed();
    reaches(&db.pool, "mails", last).await;
    assert_eq!(dead_letters(&db.pool).await.len(), 1);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_plan_says_that_old_events_are_read_in_another_way_from_here_on() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "[runner]\npoll_interval_max = '50ms'\n");
    let last = append(&db.pool, 3).await;
    let daemon = program::Program::start(versions(&installation, "", &["run"]));
    reaches(&db.pool, "orders", last).await;
    daemon.stop().await;
    let plan = async || program::run(versions(&installation, "", &["plan"]), "").await.printed();
    let before = plan().await;
    assert!(before.contains("orders: goes on, nothing changes"), "{before}");
    let path = installation.path().join("espd.toml");
    let settings = std::fs::read_to_string(&path).unwrap();
    let upcasts = |of: &str, to: &str| format!("{settings}\n[[upcast]]\nevents = ['{of}']\ntype = '{to}'\n");
    std::fs::write(&path, upcasts("X", "Y")).unwrap();
    let other = plan().await;
    assert!(other.contains("orders: goes on, nothing changes"), "no type of it: {other}");
    std::fs::write(&path, upcasts("Before", "A")).unwrap();
    let after = plan().await;
    assert!(after.contains("orders: reads old events by other upcasts from position 3 on"), "{after}");
    assert!(after.contains("`versions reset orders`"), "{after}");
    let daemon = program::Program::start(versions(&installation, "", &["run"]));
    eventually("the change is recorded", async || {
        let changed = "select handler_change is not null from espd.trackers where name = 'orders'";
        let changed: bool = sqlx::query_scalar(changed).fetch_one(&db.pool).await.unwrap();
        changed.then_some(())
    })
    .await;
    daemon.stop().await;
}
