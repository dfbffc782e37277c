//! Retries under a killed worker, across databases, and of what fails where no event is named.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use espd::internals::processor::{BatchRequest, Outcome, Processor as _, Work};
use espd::internals::retry::OnFailure;
use espd::internals::runner::RunnerContext;
use espd::internals::tracker::Owner;
use nix::sys::signal::{Signal, kill};

use super::{add, dead_letters, failed, noted, setting_aside};
use crate::processing::runner::{DIVIDE, Life, notes, row};
use crate::support;
use crate::support::facts::{Gate, append, eventually, reaches};
use crate::support::program::Installation;
use crate::support::projectors::{LEASE, Running};

/// Small looks, and what fails is set aside at once.
const PARKING: &str =
    "[runner]\npoll_interval_max = '50ms'\n[retry]\nmax_attempts = 1\non_failure = 'park'\n";

/// Fails until somebody has made the table `remedy`.
const UNTIL_REMEDY: &str = "if to_regclass('public.remedy') is null then raise 'no remedy'; end if;\n";

#[tokio::test]
async fn a_worker_that_is_killed_in_the_middle_of_a_retry_has_handled_each_event_once() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, PARKING);
    installation.declare_notes("notes", &format!("{UNTIL_REMEDY}{}", Gate::at(13)));
    let last = append(&db.pool, 20).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", last).await;
    assert_eq!(dead_letters(&db.pool).await.len(), 20);
    sqlx::query("create table public.remedy ()").execute(&db.pool).await.unwrap();

    let mut gate = Gate::close(&db.pool, 13).await;
    let retry = ["dead-letters", "retry", "notes", "--all", "--yes", "--wait", "1s"];
    let late = installation.espctl(&retry).await.complained(75);
    assert!(late.contains("12 dead letters of notes handled, 8 not tried yet"), "{late}");
    gate.visitor().await;
    kill(daemon.child("notes", 1).await, Signal::SIGKILL).unwrap();
    daemon.child("notes", 2).await;
    gate.open().await;
    eventually("the end of the retry", async || dead_letters(&db.pool).await.is_empty().then_some(())).await;
    let handled = noted(&db.pool).await;
    assert_eq!((handled.len(), handled.iter().collect::<HashSet<_>>().len()), (20, 20));
    assert!(handled.is_sorted(), "{handled:?}");
    daemon.stop().await;
}

/// The notification of a retry may be lost while a worker starts, or come together with an event.
#[tokio::test]
async fn a_retry_that_is_not_announced_is_done_in_a_stream_of_events_that_never_ends() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, PARKING);
    installation.declare_notes("notes", UNTIL_REMEDY);
    let last = append(&db.pool, 1).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", last).await;
    sqlx::raw_sql("create table public.remedy (); update espd.dead_letters set retry_requested_at = now()")
        .execute(&db.pool)
        .await
        .unwrap();
    let pool = db.pool.clone();
    let stream = tokio::spawn(async move {
        loop {
            append(&pool, 1).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    eventually("the end of the retry", async || dead_letters(&db.pool).await.is_empty().then_some(())).await;
    stream.abort();
    daemon.stop().await;
}

#[tokio::test]
async fn an_event_that_fails_at_the_commit_is_found_by_bisection_and_set_aside() {
    let db = support::database().await;
    // Not the processor's own table, so nothing is known about its constraints.
    sqlx::raw_sql(
        "create table public.strict (n bigint unique deferrable initially deferred);
         create sequence public.tries",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let last = append(&db.pool, 1_000).await;
    sqlx::query("update espd.events set body = '{\"n\": 300}' where id = 700")
        .execute(&db.pool)
        .await
        .unwrap();
    let mut settings = setting_aside(&db, OnFailure::Park);
    settings.limits.size = 1_000;
    let insert = "perform nextval('tries'); insert into strict values ((event.body->>'n')::bigint);";
    let life = Life::begin(&db, notes(insert), settings);
    reaches(&db.pool, "notes", last).await;
    assert_eq!(dead_letters(&db.pool).await, [failed(700, 1)]);
    assert_eq!(noted(&db.pool).await.len(), 999);
    let failure: String = sqlx::query_scalar("select failure->>'sqlstate' from espd.dead_letters")
        .fetch_one(&db.pool)
        .await
        .unwrap();
    assert_eq!(failure, "23505");
    // The batch, its halves, and each of the others once or twice.
    let tries: i64 =
        sqlx::query_scalar("select last_value from public.tries").fetch_one(&db.pool).await.unwrap();
    assert!((1_999..4_000).contains(&tries), "{tries}");

    // A retry fails where no event is named as well, and is of one event.
    let espctl = Installation::new(&db.url, "");
    let complaint = espctl.espctl(&["dead-letters", "retry", "notes", "700"]).await.complained(1);
    assert!(complaint.contains("1 failed again\n  event 700 (A): duplicate key"), "{complaint}");
    sqlx::query("delete from public.strict where n = 300").execute(&db.pool).await.unwrap();
    espctl.espctl(&["dead-letters", "retry", "notes", "700"]).await.printed();
    assert_eq!((noted(&db.pool).await.len(), dead_letters(&db.pool).await), (1_000, vec![]));
    life.end().await;
}

#[tokio::test]
async fn dead_letters_are_beside_the_projections_where_these_are_in_another_database() {
    let (db, other) = (support::database().await, support::database().await);
    let installation =
        Installation::new(&db.url, &format!("{PARKING}[projections]\nurl = '{}'\n", other.url));
    installation.declare_notes(
        "notes",
        UNTIL_REMEDY.replace("is null", "is null and (event.body->>'n') = '0'").as_str(),
    );
    let (x1, y1, x2) = (add(&db.pool, 1, 0).await, add(&db.pool, 2, 1).await, add(&db.pool, 1, 2).await);
    let daemon = installation.start_daemon();
    reaches(&other.pool, "notes", x2).await;
    assert_eq!(noted(&other.pool).await, [y1]);
    assert_eq!((dead_letters(&other.pool).await.len(), dead_letters(&db.pool).await.len()), (2, 0));
    let x3 = add(&db.pool, 1, 3).await;
    reaches(&other.pool, "notes", x3).await;

    let shown =
        installation.espctl(&["dead-letters", "show", "notes", &x1.to_string(), "--json"]).await.json();
    assert_eq!((&shown["event"]["body"]["n"], &shown["waiting"]), (&0.into(), &2.into()), "{shown}");
    sqlx::query("create table public.remedy ()").execute(&other.pool).await.unwrap();
    let said = installation.espctl(&["dead-letters", "retry", "notes", "--all", "--yes"]).await.printed();
    assert_eq!(said, "3 dead letters of notes handled\n");
    assert_eq!(noted(&other.pool).await, [y1, x1, x2, x3]);
    daemon.stop().await;
}

#[tokio::test]
async fn a_long_retry_keeps_its_claim_and_lets_other_events_pass() {
    let db = support::database().await;
    for aggregate in 0..300 {
        add(&db.pool, aggregate, 0).await;
    }
    // Far shorter than the retry.
    let lease = Duration::from_secs(2);
    let settings = RunnerContext { lease, ..setting_aside(&db, OnFailure::Park) };
    // The fixed handler is slow.
    let handler = format!("{DIVIDE} if event.body->>'n' = '1' then perform pg_sleep(0.02); end if;");
    let life = Life::begin(&db, notes(&handler), settings.clone());
    reaches(&db.pool, "notes", 300).await;
    let standby = Life::begin(&db, notes(&handler), RunnerContext { owner: Owner::generate(), ..settings });
    let before = row(&db.pool).await.unwrap();
    assert_eq!(before.dead_letters, 300);
    sqlx::query("update espd.events set body = '{\"n\": 1}'").execute(&db.pool).await.unwrap();

    let espctl = Installation::new(&db.url, "");
    let retry = ["dead-letters", "retry", "notes", "--all", "--yes", "--wait", "0s"];
    let said = espctl.espctl(&retry).await.printed();
    assert!(said.contains("not tried yet: the daemon continues with them"), "{said}");
    let live = add(&db.pool, 1_000, 5).await;
    reaches(&db.pool, "notes", live).await;
    let left = dead_letters(&db.pool).await.len();
    assert!(left > 0, "it has waited for all of them");
    eventually("the end of the retry", async || dead_letters(&db.pool).await.is_empty().then_some(())).await;
    let after = row(&db.pool).await.unwrap();
    assert_eq!(
        (after.epoch, after.owner_label),
        (before.epoch, before.owner_label),
        "no other owner has taken it over"
    );
    let handled = noted(&db.pool).await;
    assert_eq!((handled.len(), handled.iter().collect::<HashSet<_>>().len()), (301, 301));
    life.end().await;
    standby.end().await;
}

#[tokio::test]
async fn a_dead_letter_that_was_discarded_meanwhile_is_not_handled() {
    let db = support::database().await;
    let event = add(&db.pool, 1, 1).await;
    let mut running = Running::start(&db.pool, notes("")).await.unwrap();
    sqlx::query("update espd.trackers set position = 1").execute(&db.pool).await.unwrap();
    running.claim.position = 1.into();
    let Running { projector, claim, limits, connection } = &mut running;
    let request = BatchRequest {
        claim,
        work: Work::DeadLetter(event.into()),
        limits,
        lease: LEASE,
        leased_at: Instant::now(),
        mark: None,
        keeps_session: true,
    };
    let outcome = projector.process(connection, request).await.unwrap();
    assert_eq!(outcome, Outcome::Committed { position: event.into(), handled: 0, failure: None });
    assert_eq!(noted(&db.pool).await, Vec::<i64>::new());

    // The control: as long as it is there, it is.
    sqlx::query(
        "insert into espd.dead_letters
           (processor, version, event_id, event_uuid, event_type, aggregate_id, reason, blocks)
         select 'notes', 1, id, uuid, type, aggregate_id, 'failed', true from espd.events",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let outcome = projector.process(connection, request).await.unwrap();
    assert_eq!(outcome, Outcome::Committed { position: event.into(), handled: 1, failure: None });
    assert_eq!((noted(&db.pool).await, dead_letters(&db.pool).await), (vec![event], vec![]));
}

#[tokio::test]
async fn a_dead_letter_whose_event_is_gone_or_is_another_one_is_told_and_left() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, PARKING);
    installation.declare_notes("notes", "perform 1 / (event.body->>'n')::bigint;");
    for (aggregate, n) in [(1, 0), (2, 0), (3, 0), (4, 1)] {
        add(&db.pool, aggregate, n).await;
    }
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", 4).await;
    // As after a restore that an operator has accepted.
    sqlx::raw_sql(
        "update espd.events set uuid = gen_random_uuid() where id = 1;
         delete from espd.events where id = 2;
         update espd.events set body = '{\"n\": 1}'",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let said = installation.espctl(&["dead-letters", "retry", "notes", "--all", "--yes"]).await.complained(1);
    assert!(said.contains("1 dead letter of notes handled"), "{said}");
    assert_eq!(
        (noted(&db.pool).await, dead_letters(&db.pool).await),
        (vec![4, 3], vec![failed(1, 2), failed(2, 2)])
    );
    for (id, words) in [
        ("1", "the event store has another event under id 1"),
        ("2", "event 2 is not in the event store any more"),
    ] {
        let letter = installation.espctl(&["dead-letters", "show", "notes", id]).await.printed();
        assert!(letter.contains(words) && letter.contains("dead-letters discard notes"), "{letter}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn who_waits_until_nothing_is_left_waits_for_dead_letters_that_are_to_be_handled_again() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    installation.declare_notes("notes", "");
    append(&db.pool, 1).await;
    let requested = "insert into espd.trackers (name, kind, version, position) values ('notes', 'projector', 1, 1);
        insert into espd.dead_letters
          (processor, version, event_id, event_uuid, event_type, aggregate_id, reason, blocks, failure, attempts,
           retry_requested_at)
        select 'notes', 1, id, uuid, type, aggregate_id, 'failed', false, '{\"message\": \"no\"}', 1, now() from espd.events";
    sqlx::raw_sql(requested).execute(&db.pool).await.unwrap();
    let wait = ["wait", "--all", "--idle", "--timeout", "200ms"];
    let late = installation.espctl(&wait).await.complained(75);
    assert!(late.contains("dead letters are to be handled again"), "{late}");
    let withdraw = "update espd.dead_letters set retry_requested_at = null";
    sqlx::raw_sql(withdraw).execute(&db.pool).await.unwrap();
    assert!(installation.espctl(&wait).await.printed().starts_with("idle: "));
}
