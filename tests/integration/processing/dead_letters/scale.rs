//! Many dead letters: whatever is seen of them and done about them stays quick.

use std::time::{Duration, Instant};

use crate::support;
use crate::support::program::Installation;

const DEAD_LETTERS: i64 = 100_000;

#[tokio::test]
async fn a_hundred_thousand_dead_letters_are_counted_asked_for_and_discarded_in_seconds() {
    let db = support::database().await;
    // A thousand aggregates with a hundred dead letters each; the first of each has failed.
    sqlx::raw_sql(
        "insert into espd.trackers (name, kind, version, position) values ('notes', 'projector', 1, 100000);
         insert into espd.dead_letters
           (processor, version, event_id, event_uuid, event_type, aggregate_id, reason, blocks, failure, attempts)
         select 'notes', 1, id, gen_random_uuid(), 'A', lpad(to_hex(id % 1000), 32, '0')::uuid,
           case when id <= 1000 then 'failed' else 'waiting' end, true,
           case when id <= 1000 then jsonb_build_object('event_id', id, 'message', 'no ' || id) end, 1
         from generate_series(1, 100000) as id;
         analyze espd.dead_letters",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let installation = Installation::new(&db.url, "");
    let command = |arguments: &[&'static str]| [&["dead-letters"], arguments].concat();
    for (arguments, words, limit) in [
        (vec!["status", "notes", "--json"], "\"dead_letters\": 100000", 2),
        (command(&["list"]), "99,900 more", 3),
        (command(&["list", "notes", "--error", "no 77", "-n", "3"]), "8 more", 3),
        (command(&["show", "notes", "1", "--json"]), "\"waiting\": 99", 3),
        (command(&["retry", "notes", "1", "--yes", "--wait", "0s"]), "100 dead letters of notes", 5),
        (command(&["retry", "notes", "--all", "--yes", "--wait", "0s"]), "100,000 dead letters of notes", 30),
        (command(&["discard", "notes", "1", "--yes"]), "still set aside behind these: 99 dead letters", 5),
        (command(&["discard", "notes", "--all", "--yes"]), "discarded 99,999 dead letters", 30),
    ] {
        let begun = Instant::now();
        let printed = installation.espctl(&arguments).await.printed();
        let taken = begun.elapsed();
        assert!(printed.contains(words), "{arguments:?}\n{printed}");
        // A plan that compares each dead letter with each other one takes minutes.
        assert!(taken < Duration::from_secs(limit), "{arguments:?} takes {taken:?}");
        println!("{taken:?} for {DEAD_LETTERS} dead letters: {arguments:?}");
    }
}
