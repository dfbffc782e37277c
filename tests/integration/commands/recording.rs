//! Commands are recorded, with what became of them.

use espd::commands::{CommandLog, PostgresCommandLog};
use espd::prelude::*;
use serde_json::json;

use super::{Book, ReturnBook, count_events, lend, on_both, router};
use crate::store::store;
use crate::support::program::Installation;

fn with_id(id: Uuid) -> Envelope {
    Envelope::new().command_id(id).metadata("user", "ada")
}

on_both!(what_was_carried_out_or_refused_is_recorded, check_records);
async fn check_records<S: EventStore + Clone + 'static>(store: S, log: impl CommandLog + Clone) {
    let (commands, book) = (router(&store).recorded_by(log.clone()), Id::<Book>::generate());
    let ids = [Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4()];
    let lent = commands.execute(lend(&book, "Ada"), with_id(ids[0])).await;
    let nothing = commands.execute(lend(&book, "Ada"), with_id(ids[1])).await;
    let refused = commands.execute(lend(&book, "Bob"), with_id(ids[2])).await;
    commands.execute(lend(&book, ""), with_id(Uuid::new_v4())).await;
    commands.execute(lend(&book, "Eve"), with_id(Uuid::new_v4()).expecting(7)).await;

    let newest = log.newest(9, None).await.unwrap();
    assert_eq!(newest.iter().map(|one| one.command_id).collect::<Vec<_>>(), [ids[2], ids[1], ids[0]]);
    let first = &newest[2];
    assert_eq!((first.name.as_str(), &first.aggregate_id), ("LendBook", book.get()));
    assert_eq!(first.body, json!({"book": &book, "to": "Ada", "days": 14}));
    assert_eq!(first.metadata["user"], "ada");
    let json = |outcome: &Outcome| serde_json::to_value(outcome).unwrap();
    let recorded: Vec<_> = newest.iter().map(|one| json(&one.outcome)).collect();
    assert_eq!(recorded, [json(&refused), json(&nothing), json(&lent)]);
    assert_eq!(log.newest(1, Some(newest[1].at)).await.unwrap()[0].command_id, ids[0]);

    let later = newest[0].at + chrono::TimeDelta::days(1);
    assert_eq!((log.prune(first.at).await.unwrap(), log.prune(later).await.unwrap()), (0, 3));
    // The events are still there to recognise it by.
    let Outcome::Executed(again) = commands.execute(lend(&book, "Ada"), with_id(ids[0])).await else {
        panic!()
    };
    assert!(again.repeated && count_events(&store).await == 1);
}

on_both!(repeating_is_recognised_also_where_nothing_has_happened, check_repetition);
async fn check_repetition<S: EventStore + Clone + 'static>(store: S, log: impl CommandLog + Clone) {
    let (commands, book) = (router(&store).recorded_by(log.clone()), Id::<Book>::generate());
    let (idle, refused) = (Uuid::new_v4(), Uuid::new_v4());
    commands.execute(lend(&book, "Ada"), Envelope::new()).await;
    commands.execute(lend(&book, "Ada"), with_id(idle)).await;
    assert_eq!(commands.execute(lend(&book, "Bob"), with_id(refused)).await.status(), 422);
    commands.execute(ReturnBook { book: book.clone() }, Envelope::new()).await;

    // Decided anew, both would lend the book.
    let Outcome::Executed(again) = commands.execute(lend(&book, "Ada"), with_id(idle)).await else {
        panic!()
    };
    assert_eq!((again.repeated, again.events.len(), again.version), (true, 0, Some(1.into())));
    let Outcome::Refused(again) = commands.execute(lend(&book, "Bob"), with_id(refused)).await else {
        panic!()
    };
    assert_eq!((again.repeated, again.error.code.as_str()), (true, "lent_to_another"));
    assert_eq!(count_events(&store).await, 2);
    let other = commands.execute(ReturnBook { book }, with_id(idle)).await;
    assert_eq!(other.label(), "command_id_reused");
}

on_both!(other_fields_under_the_same_id_are_another_command, check_reuse);
async fn check_reuse<S: EventStore + Clone + 'static>(store: S, log: impl CommandLog + Clone) {
    let (commands, book) = (router(&store).recorded_by(log.clone()), Id::<Book>::generate());
    let (lent, refused) = (Uuid::new_v4(), Uuid::new_v4());
    assert!(commands.execute(lend(&book, "Ada"), with_id(lent)).await.is_executed());
    assert_eq!(commands.execute(lend(&book, "Bob"), with_id(refused)).await.label(), "refused");
    for (to, id, label) in [
        ("Ada", lent, "executed"),
        ("Eve", lent, "command_id_reused"),
        ("Bob", refused, "refused"),
        ("Eve", refused, "command_id_reused"),
    ] {
        assert_eq!(commands.execute(lend(&book, to), with_id(id)).await.label(), label, "{to}");
    }
    // The record of an earlier version, which lacked a field and had another.
    let mut old = log.find(lent).await.unwrap().unwrap();
    old.command_id = Uuid::new_v4();
    old.body = json!({"book": &book, "to": "Ada", "shelf": 7});
    assert!(log.record(&old).await.unwrap());
    assert_eq!(commands.execute(lend(&book, "Ada"), with_id(old.command_id)).await.label(), "executed");
    assert_eq!(count_events(&store).await, 1);
}

on_both!(what_no_text_can_have_is_refused_and_a_refusal_that_quotes_it_is_kept, check_unstorable);
async fn check_unstorable<S: EventStore + Clone + 'static>(store: S, log: impl CommandLog + Clone) {
    let (commands, book) = (router(&store).recorded_by(log.clone()), Id::<Book>::generate());
    let refused = Uuid::new_v4();
    assert!(commands.execute(lend(&book, "Ada"), Envelope::new()).await.is_executed());
    commands.execute(lend(&book, "Bob"), with_id(refused)).await;
    // Refused, executed with nothing, and executed: none can be recorded with this.
    for to in ["Bob", "Ada"] {
        let outcome =
            commands.execute(lend(&book, to), Envelope::new().metadata("by", json!({"x": "a\0b"}))).await;
        assert_eq!((outcome.label(), outcome.status()), ("invalid", 400), "{outcome}");
        let told = serde_json::to_string(&outcome).unwrap();
        assert!(told.contains("not_storable") && told.contains("metadata.by.x"), "{told}");
    }
    let mut other = log.find(refused).await.unwrap().unwrap();
    other.command_id = Uuid::new_v4();
    let Outcome::Refused(refusal) = &mut other.outcome else { panic!() };
    refusal.error.message.push('\0');
    assert!(log.record(&other).await.unwrap());
    assert_eq!(commands.execute(lend(&book, "Bob"), with_id(other.command_id)).await.label(), "refused");
}

#[tokio::test]
async fn a_command_and_its_events_are_stored_together() {
    let (pool, store) = store().await;
    let log = PostgresCommandLog::of(&store).unwrap();
    let (commands, book) = (router(&store).recorded_by(log.clone()), Id::<Book>::generate());
    let refuse = "alter table espd.commands add constraint refuse check (metadata ->> 'user' <> 'eve')";
    sqlx::raw_sql(refuse).execute(&pool).await.unwrap();
    let outcome = commands.execute(lend(&book, "Eve"), Envelope::new().metadata("user", "eve")).await;
    assert_eq!((outcome.label(), count_events(&store).await), ("failed", 0));
    assert!(commands.execute(lend(&book, "Ada"), with_id(Uuid::new_v4())).await.is_executed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_command_at_once_is_carried_out_once_and_answered_alike() {
    let (_pool, store) = store().await;
    let log = PostgresCommandLog::of(&store).unwrap();
    let commands = router(&store).recorded_by(log.clone());
    for round in 0..10 {
        let (book, id) = (Id::<Book>::generate(), Uuid::new_v4());
        if round % 2 == 1 {
            commands.execute(lend(&book, "Bob"), Envelope::new()).await;
        }
        let callers = (0..4).map(|_| commands.execute(lend(&book, "Ada"), with_id(id)));
        let outcomes = futures_util::future::join_all(callers).await;
        let label = if round % 2 == 1 { "refused" } else { "executed" };
        assert!(outcomes.iter().all(|one| one.label() == label), "{outcomes:?}");
        assert_eq!(store.read_aggregates(vec![book.get().clone()]).count().await, 1);
        assert_eq!(log.find(id).await.unwrap().unwrap().outcome.label(), label);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn different_commands_of_one_id_at_once_are_not_answered_alike() {
    let (_pool, store) = store().await;
    let log = PostgresCommandLog::of(&store).unwrap();
    let commands = router(&store).recorded_by(log.clone());
    for _ in 0..10 {
        let (book, id) = (Id::<Book>::generate(), Uuid::new_v4());
        let callers = ["Ada", "Bob", "Eve"].map(|to| commands.execute(lend(&book, to), with_id(id)));
        let outcomes = futures_util::future::join_all(callers).await;
        let executed = outcomes.iter().filter(|one| one.is_executed()).count();
        let reused = outcomes.iter().filter(|one| one.label() == "command_id_reused").count();
        assert_eq!((executed, reused), (1, 2), "{outcomes:?}");
    }
}

use futures_util::StreamExt as _;

#[tokio::test]
async fn espctl_lists_and_prunes_commands() {
    let database = crate::support::database().await;
    let store = PostgresEventStore::new(database.pool.clone(), Layout::espd("espd").unwrap());
    let log = PostgresCommandLog::of(&store).unwrap();
    let (commands, book) = (router(&store).recorded_by(log), Id::<Book>::generate());
    commands.execute(lend(&book, "Ada"), with_id(Uuid::new_v4())).await;
    commands.execute(ReturnBook { book: book.clone() }, with_id(Uuid::new_v4())).await;
    commands.execute(ReturnBook { book: Id::generate() }, Envelope::new()).await;

    let here = Installation::new(&database.url, "");
    let names = |listed: serde_json::Value| -> Vec<String> {
        let of = |one: &serde_json::Value| format!("{} {}", one["name"], one["outcome"]).replace('"', "");
        listed.as_array().unwrap().iter().map(of).collect()
    };
    let listed = here.espctl(&["commands", "--json"]).await.json();
    assert_eq!(names(listed), ["ReturnBook refused", "ReturnBook executed", "LendBook executed"]);
    for (filter, expected) in [
        (vec!["--name", "LendBook"], vec!["LendBook executed"]),
        (vec!["--outcome", "refused"], vec!["ReturnBook refused"]),
        (vec!["--aggregate", &book.to_string(), "--limit", "1"], vec!["ReturnBook executed"]),
        (vec!["--metadata", "user=ada", "--since", "1h"], vec!["ReturnBook executed", "LendBook executed"]),
    ] {
        let listed = here.espctl(&[&["commands", "list", "--json"], &filter[..]].concat()).await.json();
        assert_eq!(names(listed), expected, "{filter:?}");
    }
    let printed = here.espctl(&["commands", "list"]).await.printed();
    assert!(
        printed.contains("LendBook")
            && printed.contains("refused: never_lent")
            && printed.contains("BookLent"),
        "{printed}"
    );
    assert_eq!(
        here.espctl(&["commands", "prune", "--older-than", "1d"]).await.printed(),
        "removed 0 commands\n"
    );
    sqlx::query("update espd.commands set at = at - interval '2 days' where name = 'LendBook'")
        .execute(&database.pool)
        .await
        .unwrap();
    assert_eq!(
        here.espctl(&["commands", "prune", "--older-than", "1d"]).await.printed(),
        "removed 1 command\n"
    );
    assert!(here.espctl(&["commands", "prune"]).await.complained(2).contains("--older-than"));
}
