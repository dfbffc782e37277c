//! From a name and fields to an outcome.

use espd::commands::{CommandLog, Message, Received};
use espd::prelude::*;
use serde_json::{Value, json};
use validator::Validate;

use super::{Book, LendBook, count_events, lend, on_both, router};
use crate::store::store;

fn json_of(outcome: &Outcome) -> Value {
    serde_json::to_value(outcome).unwrap()
}

on_both!(a_command_is_found_by_its_name, check_routing);
async fn check_routing<S: EventStore + Clone + 'static>(store: S, _: impl CommandLog) {
    let (commands, book) = (router(&store), Id::<Book>::generate());
    assert_eq!(commands.names().collect::<Vec<_>>(), ["LendBook", "ReturnBook"]);
    let command_id = Uuid::new_v4();
    let envelope = Envelope::new().command_id(command_id).metadata("user", "ada");
    let body = json!({"book": &book, "to": "Ada", "days": 3});
    let lent = commands.execute_json("LendBook", body.to_string(), envelope.clone()).await;
    let event = store.read_after(Position::START, None, None, 9).await.unwrap().remove(0);
    let expected = json!({
        "outcome": "executed", "command_id": command_id, "aggregate_id": &book, "version": 1, "repeated": false,
        "events": [{"id": event.id, "uuid": event.uuid, "version": 1, "type": "BookLent"}]
    });
    assert_eq!((lent.status(), json_of(&lent)), (200, expected.clone()));
    assert_eq!(
        (event.metadata.get().replace(' ', ""), event.causation_id),
        (r#"{"user":"ada"}"#.into(), Some(command_id))
    );

    let again = commands.execute_json("LendBook", body.to_string(), envelope).await;
    let mut repeated = expected;
    repeated["repeated"] = json!(true);
    assert_eq!(json_of(&again), repeated);
    let form = [("book", book.to_string()), ("to", "Bob".to_owned()), ("days", "3".to_owned())];
    let refused = commands.execute_form("LendBook", form.clone(), Envelope::new()).await;
    let error = json!({"code": "lent_to_another", "params": {"to": "Ada"}, "message": "Ada has the book"});
    let told = json!({"outcome": "refused", "error": error, "status": 422, "repeated": false});
    assert_eq!((refused.status(), json_of(&refused)), (422, told));

    let returned = json!({"name": "ReturnBook", "body": {"book": &book}, "metadata": {"user": "ada"}});
    let message: Message = serde_json::from_value(returned).unwrap();
    assert!(commands.execute_message(message.clone()).await.is_executed());
    let nothing = json_of(&commands.execute_message(message).await);
    assert_eq!((&nothing["events"], &nothing["version"]), (&json!([]), &json!(2)), "apply only if changed");
    assert_eq!(count_events(&store).await, 2);
}

on_both!(each_kind_of_failure_has_its_outcome_and_status, check_failures);
async fn check_failures<S: EventStore + Clone + 'static>(store: S, _: impl CommandLog) {
    let (commands, book) = (router(&store), Id::<Book>::generate());
    let told = |outcome: Outcome| (outcome.label(), outcome.status());
    let json = |fields: Value| fields.to_string();
    let nobody = commands.execute_json("Nothing", "{}", Envelope::new()).await;
    assert_eq!(told(nobody), ("unknown_command", 404));
    assert_eq!(told(commands.execute_json("LendBook", "{", Envelope::new()).await), ("invalid", 400));
    assert_eq!(told(commands.execute(lend(&book, ""), Envelope::new()).await), ("invalid", 400));
    let unstorable = commands.execute(lend(&book, "A\0da"), Envelope::new()).await;
    assert_eq!(told(unstorable.clone()), ("invalid", 400), "{unstorable:?}");
    assert_eq!(json_of(&unstorable)["errors"][0]["code"], "not_storable");
    let never = commands.execute_json("ReturnBook", json(json!({"book": &book})), Envelope::new()).await;
    assert_eq!(told(never), ("refused", 404));

    let command_id = Uuid::new_v4();
    let once = Envelope::new().command_id(command_id).expecting(0);
    assert_eq!(told(commands.execute(lend(&book, "Ada"), once.clone()).await), ("executed", 200));
    assert_eq!(
        told(commands.execute(lend(&book, "Ada"), once).await),
        ("executed", 200),
        "looked up before the condition"
    );
    let conflict = commands.execute(lend(&book, "Ada"), Envelope::new().expecting(0)).await;
    assert_eq!(
        json_of(&conflict),
        json!({"outcome": "conflict", "aggregate_id": &book, "expected": 0, "actual": 1})
    );
    assert_eq!(conflict.status(), 409);
    let reused = commands.execute(lend(&Id::generate(), "Ada"), Envelope::new().command_id(command_id)).await;
    assert_eq!(told(reused), ("command_id_reused", 422));

    let stranger =
        NewEvent::new(book.get(), "BookBurnt", serde_json::value::to_raw_value(&json!({})).unwrap());
    store.append(&[stranger]).await.unwrap();
    let failed = commands.execute(lend(&book, "Ada"), Envelope::new()).await;
    assert_eq!(told(failed.clone()), ("failed", 500));
    let Outcome::Failed(problem) = &failed else { unreachable!() };
    assert!(
        problem.cause.contains("BookBurnt") && !json_of(&failed).to_string().contains("BookBurnt"),
        "{problem:?}"
    );
}

/// What other aggregates have done may be in the way without anything being wrong with the service.
#[test]
fn a_key_that_is_taken_is_a_refusal_and_being_overtaken_is_not() {
    let key = espd::event::UniqueKey::new("email", "ann@example.org");
    let taken = AppendError::KeyTaken { index: 0, key, owner: Uuid::nil().into() };
    let outcome = Outcome::of_commit(Err(CommitError::Append(taken)));
    let error = json!({"code": "taken", "params": {"scope": "email", "key": "ann@example.org"},
        "message": "email ann@example.org is taken"});
    assert_eq!(
        json_of(&outcome),
        json!({"outcome": "refused", "error": error, "status": 409, "repeated": false})
    );
    let overtaken = AppendError::ConditionFailed { item: 0, tag: "x".into(), came: None };
    let outcome = Outcome::of_commit(Err(CommitError::Append(overtaken)));
    assert_eq!((outcome.label(), outcome.status()), ("unavailable", 503));
}

on_both!(a_dry_run_says_what_would_happen, check_dry_run);
async fn check_dry_run<S: EventStore + Clone + 'static>(store: S, log: impl CommandLog + Clone) {
    let (commands, book) = (router(&store).recorded_by(log.clone()), Id::<Book>::generate());
    let planned = commands.execute(lend(&book, "Ada"), Envelope::new().dry_run()).await;
    let event = json!({"aggregate_id": &book, "type": "BookLent", "body": {"to": "Ada", "days": 14}});
    assert_eq!(json_of(&planned), json!({"outcome": "planned", "version": 0, "events": [event]}));
    assert_eq!((count_events(&store).await, log.newest(9, None).await.unwrap().len()), (0, 0));
}

#[derive(Debug, serde::Deserialize, Validate)]
struct SwapReaders {
    one: Id<Book>,
    other: Id<Book>,
}

/// Two aggregates in one append.
async fn swap<S: EventStore>(received: Received<S>) -> Result<Outcome, Outcome> {
    let swap: SwapReaders = received.read()?;
    let mut work = received.repository.unit_of_work();
    for (book, to) in [(&swap.one, "Bob"), (&swap.other, "Ada")] {
        let days = if received.name == "SwapReaders" { 14 } else { 1 };
        let recorded = work.record(book, espd::events![super::BookLent { to: to.into(), days }]).await;
        recorded.map_err(|error| Outcome::of::<Book, _>(Err(error)))?;
    }
    Ok(Outcome::of_commit(work.commit().await))
}

on_both!(a_function_handles_several_commands, check_function);
async fn check_function<S: EventStore + Clone + 'static>(store: S, _: impl CommandLog) {
    let commands = router(&store).handle(["SwapReaders", "SwapReadersForADay"], |received| {
        Box::pin(async move { swap(received).await.unwrap_or_else(|outcome| outcome) })
    });
    let ids = json!({"one": Uuid::new_v4(), "other": Uuid::new_v4()}).to_string();
    for name in ["SwapReaders", "SwapReadersForADay"] {
        let swapped = commands.execute_json(name, &ids, Envelope::new()).await;
        let Outcome::Executed(receipt) = swapped else { panic!("{swapped}") };
        assert_eq!(receipt.events.len(), 2);
    }
    assert_eq!(commands.execute_json("SwapReaders", "{}", Envelope::new()).await.status(), 400);
    assert_eq!(count_events(&store).await, 4);
}

#[tokio::test]
async fn a_store_that_cannot_be_reached_is_unavailable() {
    let (pool, store) = store().await;
    let commands = router(&store);
    pool.close().await;
    let outcome = commands.execute(lend(&Id::generate(), "Ada"), Envelope::new()).await;
    assert_eq!((outcome.label(), outcome.status()), ("unavailable", 503));
    assert!(!json_of(&outcome).to_string().contains("pool"), "{outcome}");
}

#[test]
fn an_envelope_is_made_of_headers() {
    let id = Uuid::new_v4();
    let (key, correlation) = (id.to_string(), Uuid::new_v4().to_string());
    let headers = |name: &str| match name {
        "idempotency-key" => Some(key.as_str()),
        "if-match" => Some("\"3\""),
        "x-correlation-id" => Some(correlation.as_str()),
        _ => None,
    };
    let envelope = Envelope::from_headers(headers).unwrap();
    assert_eq!((envelope.command_id, envelope.expected_version), (Some(id), Some(3.into())));
    assert_eq!(envelope.correlation_id.map(|id| id.to_string()), Some(correlation.clone()));
    let by_text = || {
        Envelope::from_headers(|name| (name == "idempotency-key").then_some("order 7")).unwrap().command_id
    };
    assert_eq!((by_text(), by_text().is_some()), (by_text(), true));
    let wrong = Envelope::from_headers(|name| (name == "if-match").then_some("\"abc\"")).unwrap_err();
    assert_eq!(wrong.path, "If-Match");
    // Nothing that was sent counts as not sent.
    for (header, value) in
        [("if-match", &b"\"7\xc3\xa9\""[..]), ("if-match", b"\"7\xe9\""), ("idempotency-key", b"cl\xe9")]
    {
        let wrong = Envelope::from_headers(|name| (name == header).then_some(value)).unwrap_err();
        assert_eq!((wrong.code.as_str(), wrong.path.to_lowercase().as_str()), ("header", header));
    }
}

#[test]
#[should_panic(expected = "two commands are called LendBook")]
fn two_commands_of_one_name_are_a_mistake() {
    let _ = router(&MemoryEventStore::new()).register::<LendBook>();
}
