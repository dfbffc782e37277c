//! The order of an aggregate's events: nothing overtakes what is set aside.

use espd::internals::retry::OnFailure;

use super::{add, dead_letters, failed, noted, notes_of, operator_log, setting_aside, waiting};
use crate::processing::runner::{DIVIDE, Life, notes, set_n};
use crate::support;
use crate::support::facts::reaches;
use crate::support::program::Installation;

const X: u128 = 1;
const Y: u128 = 2;

#[tokio::test]
async fn later_events_of_a_parked_aggregate_wait_across_batches_and_restarts_and_are_handled_in_order() {
    let db = support::database().await;
    let mut settings = setting_aside(&db, OnFailure::Park);
    settings.limits.size = 2;
    let (x1, y1, x2, y2) = (
        add(&db.pool, X, 0).await,
        add(&db.pool, Y, 1).await,
        add(&db.pool, X, 2).await,
        add(&db.pool, Y, 2).await,
    );
    let life = Life::begin(&db, notes(DIVIDE), settings.clone());
    reaches(&db.pool, "notes", y2).await;
    assert_eq!(noted(&db.pool).await, [y1, y2]);
    assert_eq!(dead_letters(&db.pool).await, [failed(x1, 1), waiting(x2)]);
    life.crash().await;

    let life = Life::begin(&db, notes(DIVIDE), settings.clone());
    let (x3, y3) = (add(&db.pool, X, 3).await, add(&db.pool, Y, 3).await);
    reaches(&db.pool, "notes", y3).await;
    assert_eq!(noted(&db.pool).await, [y1, y2, y3]);
    assert_eq!(dead_letters(&db.pool).await, [failed(x1, 1), waiting(x2), waiting(x3)]);
    life.end().await;

    // A fixed handler alone moves nothing.
    let life = Life::begin(&db, notes(""), settings);
    let (x4, y4) = (add(&db.pool, X, 4).await, add(&db.pool, Y, 4).await);
    reaches(&db.pool, "notes", y4).await;
    assert_eq!(dead_letters(&db.pool).await.len(), 4);
    let espctl = Installation::new(&db.url, "");
    let said = espctl.espctl(&["dead-letters", "retry", "notes", &x1.to_string(), "--yes"]).await.printed();
    assert_eq!(said, "4 dead letters of notes handled\n");
    assert_eq!(noted(&db.pool).await, [y1, y2, y3, y4, x1, x2, x3, x4]);
    assert_eq!(dead_letters(&db.pool).await, []);

    let x5 = add(&db.pool, X, 5).await;
    reaches(&db.pool, "notes", x5).await;
    assert_eq!(noted(&db.pool).await.last(), Some(&x5));
    assert_eq!(operator_log(&db.pool).await, [("retry_dead_letters".into(), x1, x4)]);
    life.end().await;
}

#[tokio::test]
async fn a_dead_letter_that_fails_again_stays_and_so_do_those_behind_it() {
    let db = support::database().await;
    let mut ids = Vec::new();
    for n in [0, 2, 0, 4] {
        ids.push(add(&db.pool, X, n).await);
    }
    let other = add(&db.pool, Y, 0).await;
    let life = Life::begin(&db, notes(DIVIDE), setting_aside(&db, OnFailure::Park));
    reaches(&db.pool, "notes", other).await;
    assert_eq!(dead_letters(&db.pool).await.len(), 5);
    set_n(&db.pool, ids[0], 1).await;

    let espctl = Installation::new(&db.url, "");
    let retry = async |arguments: &[&str]| {
        espctl.espctl(&[&["dead-letters", "retry", "notes"], arguments].concat()).await
    };
    let complaint = retry(&["--all", "--yes"]).await.complained(1);
    assert!(
        complaint.contains("2 dead letters of notes handled, 2 failed again, 1 still wait behind"),
        "{complaint}"
    );
    assert!(
        complaint.contains(&format!("event {} (A): division by zero [22012] at 0.toml:10", ids[2])),
        "{complaint}"
    );
    assert_eq!(noted(&db.pool).await, ids[..2]);
    assert_eq!(dead_letters(&db.pool).await, [failed(ids[2], 1), waiting(ids[3]), failed(other, 2)]);
    let again: i64 =
        sqlx::query_scalar("select count(*) from espd.dead_letters where retry_requested_at is not null")
            .fetch_one(&db.pool)
            .await
            .unwrap();
    assert_eq!(again, 0, "no retry happens by itself");

    // Out of turn, and in turn.
    let complaint = retry(&[&ids[3].to_string()]).await.complained(1);
    let words = format!("event {} waits behind event {}", ids[3], ids[2]);
    assert!(complaint.contains(&words), "{complaint}");
    assert!(complaint.contains(&format!("`espctl dead-letters retry notes {}`", ids[2])), "{complaint}");
    set_n(&db.pool, ids[2], 3).await;
    let said = retry(&[&ids[2].to_string(), "--yes"]).await.printed();
    assert_eq!(said, "2 dead letters of notes handled\n");
    assert_eq!(noted(&db.pool).await, ids);
    assert_eq!(dead_letters(&db.pool).await, [failed(other, 2)]);
    life.end().await;
}

#[tokio::test]
async fn what_waits_behind_a_discarded_event_stays_until_it_is_retried() {
    let db = support::database().await;
    let (x1, x2) = (add(&db.pool, X, 0).await, add(&db.pool, X, 2).await);
    let life = Life::begin(&db, notes(DIVIDE), setting_aside(&db, OnFailure::Park));
    reaches(&db.pool, "notes", x2).await;
    let espctl = Installation::new(&db.url, "");
    let discard = ["dead-letters", "discard", "notes", &x1.to_string()];
    let asked = espctl.espctl(&discard).await.complained(1);
    assert!(asked.contains("the processor never handles these events. 1 dead letter that wait"), "{asked}");
    assert!(asked.contains("nothing was done: add --yes"), "{asked}");
    assert_eq!(dead_letters(&db.pool).await.len(), 2);
    let said = espctl.espctl(&[&discard[..], &["--yes"]].concat()).await.printed();
    assert!(
        said.starts_with("discarded 1 dead letter of notes\nstill set aside behind these: 1 dead letter."),
        "{said}"
    );
    assert_eq!(dead_letters(&db.pool).await, [waiting(x2)]);

    // What is appended now waits as well, and follows.
    let x3 = add(&db.pool, X, 3).await;
    reaches(&db.pool, "notes", x3).await;
    assert_eq!((noted(&db.pool).await.len(), dead_letters(&db.pool).await.len()), (0, 2));
    let said = espctl.espctl(&["dead-letters", "retry", "notes", &x2.to_string(), "--yes"]).await.printed();
    assert_eq!(said, "2 dead letters of notes handled\n");
    assert_eq!(noted(&db.pool).await, [x2, x3]);
    let log = [("discard_dead_letters".to_owned(), x1, x1), ("retry_dead_letters".to_owned(), x2, x3)];
    assert_eq!(operator_log(&db.pool).await, log);
    life.end().await;
}

#[tokio::test]
async fn an_event_that_is_set_aside_after_a_retry_was_asked_for_follows_as_well() {
    let db = support::database().await;
    let x1 = add(&db.pool, X, 0).await;
    let life = Life::begin(&db, notes(DIVIDE), setting_aside(&db, OnFailure::Park));
    reaches(&db.pool, "notes", x1).await;
    life.end().await;
    set_n(&db.pool, x1, 1).await;
    let espctl = Installation::new(&db.url, "");
    let said = espctl.espctl(&["dead-letters", "retry", "notes", "--all"]).await.complained(75);
    assert!(said.contains("no daemon runs the processor now; the next one that does handles them"), "{said}");
    // The next owner meets this one before it hears of the retry.
    let x2 = add(&db.pool, X, 2).await;
    let life = Life::begin(&db, notes(DIVIDE), setting_aside(&db, OnFailure::Park));
    assert_eq!(notes_of(&db.pool, 2).await, [x1, x2]);
    assert_eq!(dead_letters(&db.pool).await, []);
    life.end().await;
}

#[tokio::test]
async fn a_skipped_event_keeps_no_other_waiting() {
    let db = support::database().await;
    let (x1, x2) = (add(&db.pool, X, 0).await, add(&db.pool, X, 2).await);
    let life = Life::begin(&db, notes(DIVIDE), setting_aside(&db, OnFailure::Skip));
    reaches(&db.pool, "notes", x2).await;
    assert_eq!((noted(&db.pool).await, dead_letters(&db.pool).await), (vec![x2], vec![failed(x1, 1)]));
    set_n(&db.pool, x1, 1).await;
    let espctl = Installation::new(&db.url, "");
    espctl.espctl(&["dead-letters", "retry", "notes", "--all"]).await.printed();
    assert_eq!((noted(&db.pool).await, dead_letters(&db.pool).await), (vec![x2, x1], vec![]));
    life.end().await;
}

#[tokio::test]
async fn a_projector_forgets_the_dead_letters_that_it_meets_again_after_a_reset() {
    let db = support::database().await;
    let (x1, y1, y2) = (add(&db.pool, X, 0).await, add(&db.pool, Y, 1).await, add(&db.pool, Y, 0).await);
    let life = Life::begin(&db, notes(DIVIDE), setting_aside(&db, OnFailure::Park));
    reaches(&db.pool, "notes", y2).await;
    assert_eq!(dead_letters(&db.pool).await, [failed(x1, 1), failed(y2, 1)]);
    set_n(&db.pool, x1, 1).await;
    set_n(&db.pool, y2, 2).await;
    let espctl = Installation::new(&db.url, "");
    let set_aside_at = async || {
        let query = "select set_aside_at from espd.dead_letters where event_id = $1";
        let query = sqlx::query_scalar::<_, chrono::DateTime<chrono::Utc>>(query).bind(x1);
        query.fetch_one(&db.pool).await.unwrap()
    };
    let before = set_aside_at().await;
    // Only what is behind the new position is met again.
    espctl.espctl(&["reset", "notes", "--to", &x1.to_string(), "--yes"]).await.printed();
    assert_eq!(notes_of(&db.pool, 3).await, [y1, y1, y2]);
    assert_eq!((dead_letters(&db.pool).await, set_aside_at().await), (vec![failed(x1, 1)], before));
    espctl.espctl(&["reset", "notes", "--to", "0", "--yes"]).await.printed();
    assert_eq!(notes_of(&db.pool, 6).await, [y1, y1, y2, x1, y1, y2]);
    assert_eq!(dead_letters(&db.pool).await, []);
    life.end().await;
}
