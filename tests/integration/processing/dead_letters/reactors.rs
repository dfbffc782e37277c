//! Dead letters of reactors: whether what an event leads to is done once, after resets and retries.

use espd::internals::declaration::{ProcessorDeclaration, ReactorDeclaration};
use espd::internals::retry::OnFailure;
use espd::native::Start;
use sqlx::PgPool;

use super::{add, dead_letters, failed, notes_of, setting_aside};
use crate::processing::runner::{DIVIDE, Life, notes, set_n};
use crate::support;
use crate::support::facts::reaches;
use crate::support::program::Installation;

/// A reactor that answers each event whose `n` is not 0, and notes it.
fn answering() -> ProcessorDeclaration {
    let handler = format!("{DIVIDE}\nperform espd.emit('Answered', gen_random_uuid(), event.body);");
    let reactor = Some(ReactorDeclaration { emits: vec!["Answered".into()], ..Default::default() });
    ProcessorDeclaration { reactor, start: Some(Start::Beginning), ..notes(&handler) }
}

/// What was answered, as `n`.
async fn answers(pool: &PgPool) -> Vec<i64> {
    let query = "select (body->>'n')::bigint from espd.events where type = 'Answered' order by id";
    sqlx::query_scalar(query).fetch_all(pool).await.unwrap()
}

/// The store loses what was emitted, so that a repetition would be seen.
async fn lose_answers(pool: &PgPool) {
    sqlx::query("delete from espd.events where type = 'Answered'").execute(pool).await.unwrap();
}

#[tokio::test]
async fn a_silent_reset_keeps_the_dead_letters_and_a_retry_does_what_was_never_done() {
    let db = support::database().await;
    let (x1, y1) = (add(&db.pool, 1, 0).await, add(&db.pool, 2, 5).await);
    let life = Life::begin(&db, answering(), setting_aside(&db, OnFailure::Park));
    reaches(&db.pool, "notes", y1).await;
    assert_eq!((answers(&db.pool).await, dead_letters(&db.pool).await), (vec![5], vec![failed(x1, 1)]));
    lose_answers(&db.pool).await;

    // It could be handled now, and is not: no operator has asked for that.
    set_n(&db.pool, x1, 7).await;
    let espctl = Installation::new(&db.url, "");
    espctl.espctl(&["reset", "notes", "--to", "0", "--yes"]).await.printed();
    assert_eq!(notes_of(&db.pool, 2).await, [y1, y1]);
    reaches(&db.pool, "notes", y1).await;
    assert_eq!((answers(&db.pool).await, dead_letters(&db.pool).await), (vec![], vec![failed(x1, 1)]));
    espctl.espctl(&["dead-letters", "retry", "notes", "--all"]).await.printed();
    assert_eq!((answers(&db.pool).await, dead_letters(&db.pool).await), (vec![7], vec![]));
    assert_eq!(notes_of(&db.pool, 3).await, [y1, y1, x1]);
    life.end().await;
}

#[tokio::test]
async fn a_retry_of_what_failed_only_after_a_reset_repeats_no_effect() {
    let db = support::database().await;
    let (x1, x2) = (add(&db.pool, 1, 5).await, add(&db.pool, 1, 6).await);
    let life = Life::begin(&db, answering(), setting_aside(&db, OnFailure::Park));
    reaches(&db.pool, "notes", x2).await;
    assert_eq!(answers(&db.pool).await, [5, 6]);
    lose_answers(&db.pool).await;

    set_n(&db.pool, x1, 0).await;
    let espctl = Installation::new(&db.url, "");
    espctl.espctl(&["reset", "notes", "--to", "0", "--yes"]).await.printed();
    let x3 = add(&db.pool, 1, 8).await;
    reaches(&db.pool, "notes", x3).await;
    assert_eq!(dead_letters(&db.pool).await.len(), 3);
    let shown = espctl.espctl(&["dead-letters", "show", "notes", &x1.to_string()]).await.printed();
    assert!(shown.contains("had passed it before a reset: a retry repeats no effects"), "{shown}");
    set_n(&db.pool, x1, 5).await;
    espctl.espctl(&["dead-letters", "retry", "notes", "--all", "--yes"]).await.printed();
    assert_eq!(notes_of(&db.pool, 5).await, [x1, x2, x1, x2, x3]);
    // Two were answered before, one never was.
    assert_eq!((answers(&db.pool).await, dead_letters(&db.pool).await), (vec![8], vec![]));
    life.end().await;
}

#[tokio::test]
async fn a_reset_that_repeats_effects_meets_the_dead_letters_again() {
    let db = support::database().await;
    let (x1, y1) = (add(&db.pool, 1, 0).await, add(&db.pool, 2, 5).await);
    let life = Life::begin(&db, answering(), setting_aside(&db, OnFailure::Park));
    reaches(&db.pool, "notes", y1).await;
    set_n(&db.pool, x1, 7).await;
    let espctl = Installation::new(&db.url, "");
    espctl.espctl(&["reset", "notes", "--to", "0", "--repeat-effects", "--yes"]).await.printed();
    assert_eq!(notes_of(&db.pool, 3).await, [y1, x1, y1]);
    assert_eq!((answers(&db.pool).await, dead_letters(&db.pool).await), (vec![5, 7], vec![]));
    life.end().await;
}
