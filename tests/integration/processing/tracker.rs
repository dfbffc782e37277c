//! Trackers on a real database: who may claim, what an outdated claim may do, and what operators leave behind.

use std::time::Duration;

use chrono::{DateTime, Utc};
use espd::embedded::StopMode;
use espd::internals::declaration::ProcessorKind;
use espd::internals::failure::{FailedEvent, Failure};
use espd::internals::processor::Outcome;
use espd::internals::tracker::{Claim, Owner, ProcessorKey, Reset, TrackerRow, Trackers};
use sqlx::PgPool;
use uuid::Uuid;

use crate::support::facts::{append, position};
use crate::support::projectors::{LEASE, Running, declare};
use crate::support::{self, SCHEMA};

const NAME: &str = "p";
const CHANNEL: &str = "espd_events";

/// The trackers of a fresh database, with one processor.
struct Fixture {
    pool: PgPool,
    trackers: Trackers,
    key: ProcessorKey,
}

impl Fixture {
    async fn new() -> Self {
        let pool = support::database().await.pool;
        let (trackers, key) = (Trackers::new(SCHEMA), ProcessorKey::new(NAME, 1));
        trackers.register(&pool, &key, ProcessorKind::Projector, 0.into()).await.unwrap();
        Self { pool, trackers, key }
    }

    async fn claim(&self, owner: &Owner) -> Option<Claim> {
        self.trackers.claim(&self.pool, &self.key, owner, LEASE).await.unwrap()
    }

    async fn renew(&self, claim: &Claim) -> bool {
        self.trackers.renew(&self.pool, claim, LEASE, true, 0.0).await.unwrap().is_some()
    }

    async fn row(&self) -> TrackerRow {
        self.trackers.list(&self.pool, Some(NAME)).await.unwrap().pop().unwrap()
    }

    async fn run(&self, statement: &'static str) {
        sqlx::query(statement).execute(&self.pool).await.unwrap();
    }

    /// Who did what to the position, and how long ago, oldest first.
    async fn log(&self) -> Vec<(String, String, i64, i64)> {
        let log: Vec<(String, String, i64, i64, DateTime<Utc>)> = sqlx::query_as(
            "select operator, action, from_position, to_position, at from espd.operator_log order by id",
        )
        .fetch_all(&self.pool)
        .await
        .unwrap();
        let entry = |(operator, action, from, to, at): (_, _, _, _, DateTime<Utc>)| {
            assert!((Utc::now() - at).num_seconds() < 60, "{at}");
            (operator, action, from, to)
        };
        log.into_iter().map(entry).collect()
    }
}

fn entry(operator: &str, action: &str, from: i64, to: i64) -> (String, String, i64, i64) {
    (operator.to_owned(), action.to_owned(), from, to)
}

#[tokio::test]
async fn a_running_lease_keeps_other_owners_out_until_it_ends() {
    let fixture = Fixture::new().await;
    let (one, other) = (Owner::generate(), Owner::generate());
    let first = fixture.claim(&one).await.unwrap();
    assert_eq!(fixture.claim(&other).await, None);
    fixture.run("update espd.trackers set lease_until = clock_timestamp() - interval '1 ms'").await;
    let second = fixture.claim(&other).await.unwrap();
    assert_eq!((first.epoch, second.epoch), (1, 2));
    assert_eq!(fixture.claim(&one).await, None);
    assert_eq!(fixture.row().await.owner_label, Some(other.label));
}

#[tokio::test]
async fn the_same_owner_claims_at_once_and_every_claim_raises_the_epoch() {
    let fixture = Fixture::new().await;
    let owner = Owner::generate();
    let mut epochs = Vec::new();
    for _ in 0..3 {
        epochs.push(fixture.claim(&owner).await.unwrap().epoch);
    }
    assert_eq!(epochs, [1, 2, 3]);
}

#[tokio::test]
async fn of_owners_that_claim_at_the_same_time_one_wins() {
    let fixture = Fixture::new().await;
    for round in 1..=5 {
        let owners: Vec<Owner> = (0..8).map(|_| Owner::generate()).collect();
        let claims = futures_util::future::join_all(owners.iter().map(|owner| fixture.claim(owner))).await;
        assert_eq!(claims.iter().flatten().map(|claim| claim.epoch).collect::<Vec<_>>(), [round]);
        fixture.run("update espd.trackers set lease_until = null").await;
    }
}

#[tokio::test]
async fn an_outdated_claim_renews_records_and_releases_nothing() {
    let fixture = Fixture::new().await;
    let Fixture { pool, trackers, .. } = &fixture;
    let owner = Owner::generate();
    let old = fixture.claim(&owner).await.unwrap();
    let new = fixture.claim(&owner).await.unwrap();
    assert!(!fixture.renew(&old).await);
    let failure = Failure::of_processor("too late");
    trackers.record_failure(pool, &old, 1, &failure, Some(LEASE)).await.unwrap();
    trackers.release(pool, &old, CHANNEL).await.unwrap();
    let row = fixture.row().await;
    assert_eq!((row.owned, row.attempts, row.last_error.is_none()), (true, 0, true));
    assert!(fixture.renew(&new).await);
}

#[tokio::test]
async fn a_renewal_lets_the_lease_run_on() {
    let fixture = Fixture::new().await;
    let claim = fixture.claim(&Owner::generate()).await.unwrap();
    fixture.run("update espd.trackers set lease_until = clock_timestamp() - interval '1 ms'").await;
    assert!(!fixture.row().await.owned);
    assert!(fixture.renew(&claim).await);
    assert!(fixture.row().await.owned);
    assert_eq!(fixture.claim(&Owner::generate()).await, None);
}

#[tokio::test]
async fn a_release_lets_another_owner_claim_at_once() {
    let fixture = Fixture::new().await;
    let claim = fixture.claim(&Owner::generate()).await.unwrap();
    fixture.trackers.release(&fixture.pool, &claim, CHANNEL).await.unwrap();
    let row = fixture.row().await;
    assert_eq!((row.owned, row.owner_label), (false, None));
    assert_eq!(fixture.claim(&Owner::generate()).await.unwrap().epoch, 2);
}

#[tokio::test]
async fn a_failure_is_recorded_for_the_next_owner() {
    let fixture = Fixture::new().await;
    let Fixture { pool, trackers, .. } = &fixture;
    let owner = Owner::generate();
    let claim = fixture.claim(&owner).await.unwrap();
    let event = FailedEvent {
        id: 7.into(),
        uuid: Uuid::new_v4(),
        event_type: "A".into(),
        aggregate_id: Uuid::new_v4().into(),
    };
    let failure = Failure {
        event: Some(event),
        sqlstate: Some("22012".into()),
        ..Failure::of_processor("division by zero")
    };
    let delay = Duration::from_secs(3_600);
    trackers.record_failure(pool, &claim, 3, &failure, Some(delay)).await.unwrap();

    let next = fixture.claim(&owner).await.unwrap();
    let known = next.last_error.unwrap().0;
    assert_eq!((next.attempts, next.failed, known.event_id()), (3, false, Some(7.into())));
    assert_eq!((known.sqlstate, known.message), (failure.sqlstate, failure.message));
    assert!(next.retry_in_seconds.unwrap() > 3_500.0, "{:?}", next.retry_in_seconds);
    let at = known.at.expect("the time of the failure");
    assert!((Utc::now() - at).num_seconds() < 60, "{at}");
}

#[tokio::test]
async fn what_operators_do_is_recorded_once_with_who_when_from_and_to() {
    let fixture = Fixture::new().await;
    let Fixture { pool, trackers, .. } = &fixture;
    fixture.run("update espd.trackers set position = 40").await;
    let mut connection = pool.acquire().await.unwrap();
    assert!(trackers.pause(&mut connection, &fixture.key, "alice@here").await.unwrap());
    assert!(!trackers.pause(&mut connection, &fixture.key, "carol@here").await.unwrap());
    let row = fixture.row().await;
    assert_eq!((row.paused_by.as_deref(), row.paused_at.is_some()), (Some("alice@here"), true));
    assert!(trackers.resume(&mut connection, &fixture.key, "bob@here").await.unwrap());
    assert!(!trackers.resume(&mut connection, &fixture.key, "bob@here").await.unwrap());
    assert!(trackers.reset(&mut connection, &fixture.key, "dave@here", Reset::to(3.into())).await.unwrap());
    assert!(
        !trackers
            .reset(&mut connection, &ProcessorKey::new("nobody", 1), "dave@here", Reset::to(3.into()))
            .await
            .unwrap()
    );
    let expected = [
        entry("alice@here", "pause", 40, 40),
        entry("bob@here", "resume", 40, 40),
        entry("dave@here", "reset", 40, 3),
    ];
    assert_eq!(fixture.log().await, expected);
    assert_eq!(fixture.row().await.position, 3);
}

#[tokio::test]
async fn the_owner_learns_of_a_pause_which_outlasts_claims() {
    let fixture = Fixture::new().await;
    let owner = Owner::generate();
    let claim = fixture.claim(&owner).await.unwrap();
    let mut connection = fixture.pool.acquire().await.unwrap();
    fixture.trackers.pause(&mut connection, &fixture.key, "alice@here").await.unwrap();
    let standing = fixture.trackers.renew(&fixture.pool, &claim, LEASE, true, 0.0).await.unwrap().unwrap();
    assert!(standing.paused);
    assert!(fixture.claim(&owner).await.unwrap().paused);
    fixture.trackers.resume(&mut connection, &fixture.key, "alice@here").await.unwrap();
    assert!(!fixture.claim(&owner).await.unwrap().paused);
}

/// It may have requests under way, which another owner would send again.
#[tokio::test]
async fn an_operator_who_ends_a_claim_leaves_the_tracker_to_its_owner() {
    let fixture = Fixture::new().await;
    let (owner, standby) = (Owner::generate(), Owner::generate());
    let claim = fixture.claim(&owner).await.unwrap();
    let failure = Failure::of_processor("no");
    fixture.trackers.record_failure(&fixture.pool, &claim, 1, &failure, Some(LEASE)).await.unwrap();
    let mut connection = fixture.pool.acquire().await.unwrap();
    assert!(fixture.trackers.retry(&mut connection, &fixture.key, "alice@here").await.unwrap());
    assert!(!fixture.renew(&claim).await);
    assert_eq!(fixture.claim(&standby).await, None);
    let next = fixture.claim(&owner).await.unwrap();
    assert_eq!((next.epoch, next.ended_claims), (claim.epoch + 2, claim.ended_claims + 1));
    assert!(next.retried_at > claim.retried_at);
    fixture.run("update espd.trackers set lease_until = clock_timestamp() - interval '1 ms'").await;
    assert!(fixture.claim(&standby).await.is_some(), "an owner that is gone");
}

#[tokio::test]
async fn a_tracker_stands_since_it_was_claimed_moved_paused_or_failed_last() {
    let fixture = Fixture::new().await;
    let claim = fixture.claim(&Owner::generate()).await.unwrap();
    let mut standing = fixture.row().await.standing_since;
    assert!(fixture.renew(&claim).await);
    assert_eq!(fixture.row().await.standing_since, standing, "a renewal moves nothing");
    for change in [
        "update espd.trackers set position = position + 1",
        "update espd.trackers set epoch = epoch + 1",
        "update espd.trackers set paused_at = now()",
        "update espd.trackers set paused_at = null",
        "update espd.trackers set attempts = 1",
    ] {
        fixture.run(change).await;
        let changed = fixture.row().await.standing_since;
        assert!(changed > standing, "{change}");
        standing = changed;
    }
}

#[tokio::test]
async fn a_reset_ends_every_claim_and_forgets_the_failure() {
    let fixture = Fixture::new().await;
    let Fixture { pool, trackers, .. } = &fixture;
    let claim = fixture.claim(&Owner::generate()).await.unwrap();
    trackers.record_failure(pool, &claim, 2, &Failure::of_processor("no"), None).await.unwrap();
    assert!(fixture.row().await.failed_at.is_some());
    let mut connection = pool.acquire().await.unwrap();
    let reset = Reset { rebuilt_as: Some(1), ..Reset::to(0.into()) };
    trackers.reset(&mut connection, &fixture.key, "alice@here", reset).await.unwrap();
    assert!(!fixture.renew(&claim).await);
    let row = fixture.row().await;
    assert_eq!((row.attempts, row.last_error.is_none(), row.failed_at), (0, true, None));
    assert!(fixture.claim(&Owner::generate()).await.is_some());
}

#[tokio::test]
async fn no_batch_moves_a_position_backward() {
    let pool = support::database().await.pool;
    let mut running = Running::start(&pool, declare(NAME, &[], &[(&["A"], "null")])).await.unwrap();
    let last = append(&pool, 10).await;
    let moved = running.process(last).await.unwrap();
    assert!(matches!(moved, Outcome::Committed { position, .. } if position == last), "{moved:?}");

    // The right owner at the right position, with an end that lies behind it.
    running.process(last - 5).await.unwrap_err();
    assert_eq!(position(&pool, NAME).await, last);
    // The right owner, which believes to be further behind.
    running.claim.position = (last - 5).into();
    assert_eq!(running.process(last - 2).await.unwrap(), Outcome::ClaimLost);
    // An operator has moved it back meanwhile: what the owner believes is outdated, forward and backward.
    let mut connection = pool.acquire().await.unwrap();
    Trackers::new(SCHEMA)
        .reset(&mut connection, &ProcessorKey::new(NAME, 1), "alice@here", Reset::to(2.into()))
        .await
        .unwrap();
    running.claim.position = last.into();
    assert_eq!(running.process(last).await.unwrap(), Outcome::ClaimLost);
    assert_eq!(position(&pool, NAME).await, 2);
}

#[tokio::test]
async fn a_raised_version_takes_the_tracker_of_the_version_before_only_when_that_has_no_tables() {
    let fixture = Fixture::new().await;
    let Fixture { pool, trackers, key } = &fixture;
    let raised = ProcessorKey { version: 2, ..key.clone() };
    let owner = Owner::generate();
    let claim = async || trackers.claim(pool, &raised, &owner, LEASE).await.unwrap().unwrap();

    fixture.run("insert into espd.declarations values ('p', 1, 'as it was made')").await;
    let refused = claim().await;
    assert_eq!((refused.key, refused.declaration.as_deref()), (key.clone(), Some("as it was made")));
    // It registers no second tracker beside the first one.
    trackers.register(pool, &raised, ProcessorKind::Projector, 0.into()).await.unwrap();
    assert_eq!(trackers.list(pool, Some(NAME)).await.unwrap().len(), 1);

    fixture
        .run(
            "insert into espd.dead_letters
               (processor, version, event_id, event_uuid, event_type, aggregate_id, reason, blocks)
             values ('p', 1, 7, gen_random_uuid(), 'A', gen_random_uuid(), 'failed', true)",
        )
        .await;
    fixture.run("delete from espd.declarations").await;
    let moved = claim().await;
    assert_eq!((&moved.key, moved.declaration.as_deref()), (&raised, None));
    let versions: Vec<i32> = sqlx::query_scalar(
        "select version from espd.trackers union all select version from espd.dead_letters",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    assert_eq!(versions, [2, 2], "what refers to the tracker follows");
    assert!(trackers.renew(pool, &moved, LEASE, true, 0.0).await.unwrap().is_some());
}

#[tokio::test]
async fn of_several_trackers_a_claim_takes_that_of_its_own_version() {
    let fixture = Fixture::new().await;
    let Fixture { pool, trackers, key } = &fixture;
    fixture
        .run("insert into espd.trackers (name, kind, version, position) values ('p', 'projector', 2, 40)")
        .await;
    fixture.run("insert into espd.declarations values ('p', 1, 'one'), ('p', 2, 'two')").await;
    for (version, position, fingerprint) in [(1, 0, "one"), (2, 40, "two")] {
        let wanted = ProcessorKey { version, ..key.clone() };
        let claim = trackers.claim(pool, &wanted, &Owner::generate(), LEASE).await.unwrap().unwrap();
        assert_eq!((&claim.key, claim.position), (&wanted, position.into()));
        assert_eq!(claim.declaration.as_deref(), Some(fingerprint));
    }
    fixture.run("delete from espd.trackers where version = 2").await;
    let known: Vec<i32> =
        sqlx::query_scalar("select version from espd.declarations").fetch_all(pool).await.unwrap();
    assert_eq!(known, [1], "no tracker, no tables");
}

/// After a crash, and behind a pooler that has kept the client's connection, nothing else tells the claim apart from one
/// that somebody else makes on the restarted server.
#[tokio::test]
async fn a_claim_is_not_forgotten_in_a_crash_and_ends_with_the_server_that_it_was_made_on() {
    let server = support::server_with(&[("wal_writer_delay", "10s"), ("synchronous_commit", "off")]).await;
    let db = support::database_on(&server).await;
    let (trackers, key) = (Trackers::new(SCHEMA), ProcessorKey::new(NAME, 1));
    trackers.register(&db.pool, &key, ProcessorKind::Projector, 0.into()).await.unwrap();
    let claim = trackers.claim(&db.pool, &key, &Owner::generate(), LEASE).await.unwrap().unwrap();
    assert!(trackers.renew(&db.pool, &claim, LEASE, true, 0.0).await.unwrap().is_some());
    let server = server.restart(StopMode::Immediate).await.unwrap();
    let row = trackers.list(&db.pool, Some(NAME)).await.unwrap().pop().expect("a tracker");
    assert_eq!(row.epoch, claim.epoch);
    assert!(trackers.renew(&db.pool, &claim, LEASE, true, 0.0).await.unwrap().is_none());
    server.stop().await;
}
