//! Personal data: what is stored, what is read, before and after a person is forgotten.

use std::error::Error as _;

use espd::event::{Event, NewEvent, Position};
use espd::personal_data::{
    KeyError, MasterKey, MemoryKeys, Personal, PersonalData, PostgresKeys, SubjectKeys,
};
use espd::store::{
    AppendError, BodyCodec, ConsistencyToken, EventStore, Layout, MemoryEventStore, PostgresEventStore,
    ReadError, TagQuery,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{self, Database, SCHEMA};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct MoneySent {
    cents: i64,
    sender: Party,
    receivers: Vec<Party>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Party {
    id: String,
    name: Personal<String>,
}

espd::event_type!(
    MoneySent, was = ["MoneyTransferred"],
    personal = ["/sender/name"] of "/sender/id",
    personal = ["/receivers/*/name"] of "/receivers/*/id",
);

fn party(id: &str, name: &str) -> Party {
    Party { id: id.to_owned(), name: name.to_owned().into() }
}

fn sent() -> MoneySent {
    let receivers = vec![party("bob", "Bob Miller"), party("cy", "Cy Young")];
    MoneySent { cents: 1_250, sender: party("ada", "Ada Lovelace"), receivers }
}

fn raw(value: &Value) -> Box<RawValue> {
    RawValue::from_string(value.to_string()).unwrap()
}

async fn read(store: &impl EventStore) -> Vec<Event> {
    store.read_after(Position::START, None, None, 100).await.unwrap()
}

fn body(event: &Event) -> Value {
    serde_json::from_str(event.body.get()).unwrap()
}

async fn postgres(db: &Database, master: MasterKey) -> (PostgresEventStore, PostgresKeys) {
    let store = PostgresEventStore::new(db.pool.clone(), Layout::espd(SCHEMA).unwrap());
    let keys = PostgresKeys::new(&db.pool, master);
    keys.create_tables().await.unwrap();
    (store, keys)
}

/// Requires of a store without and with the codec that names are sealed, each for its own subject.
async fn names_are_sealed(plain: &impl EventStore, sealing: &impl EventStore) {
    let event = NewEvent::of(Uuid::new_v4(), &sent()).unwrap();
    let appended = sealing.append(std::slice::from_ref(&event)).await.unwrap();
    assert_eq!(
        sealing.append(std::slice::from_ref(&event)).await.unwrap(),
        appended,
        "the same is sealed the same"
    );
    assert_eq!(read(sealing).await[0].read::<MoneySent>().unwrap(), Some(sent()));
    let stored = body(&read(plain).await[0]);
    let text = stored.to_string();
    assert!(!["Ada", "Miller", "Young"].iter().any(|name| text.contains(name)), "{text}");
    assert_eq!((&stored["cents"], &stored["receivers"][1]["id"]), (&json!(1_250), &json!("cy")));
    let subjects = ["/sender/name", "/receivers/0/name", "/receivers/1/name"]
        .map(|path| stored.pointer(&format!("{path}/$sealed/s")).unwrap().as_str().unwrap().to_owned());
    assert_eq!(subjects, ["ada", "bob", "cy"]);
}

#[tokio::test]
async fn each_person_has_a_key_and_is_forgotten_alone() {
    let (plain, keys) = (MemoryEventStore::new(), MemoryKeys::new());
    let personal = PersonalData::new(keys.clone()).of::<MoneySent>().fallback(
        "MoneySent",
        "/receivers/1/name",
        &json!("somebody"),
    );
    let sealing = plain.clone().with_codec(personal.clone());
    names_are_sealed(&plain, &sealing).await;
    keys.forget("bob");
    keys.forget("cy");
    personal.clear();
    let known = read(&sealing).await[0].read::<MoneySent>().unwrap().unwrap();
    assert_eq!(known.sender, party("ada", "Ada Lovelace"));
    assert_eq!(known.receivers[0].name, Personal::Forgotten { subject: "bob".to_owned() });
    assert_eq!(known.receivers[1], party("cy", "somebody"), "the declared fallback");
    let refused = sealing.append(&[NewEvent::of(Uuid::new_v4(), &sent()).unwrap()]).await.unwrap_err();
    assert!(
        matches!(&refused, AppendError::Invalid { index: Some(0), reason } if reason.contains("bob was forgotten"))
    );
    let quoting = MoneySent { receivers: vec![known.receivers[0].clone()], ..sent() };
    sealing.append(&[NewEvent::of(Uuid::new_v4(), &quoting).unwrap()]).await.unwrap();
    assert_eq!(
        read(&sealing).await[1].read::<MoneySent>().unwrap(),
        Some(quoting),
        "what is forgotten may be said again"
    );
    // What only looks as if it was forgotten is sealed as anything else.
    let name = Personal::Forgotten { subject: "Ada's address".to_owned() };
    let looks = MoneySent { cents: 1, sender: Party { id: "ada".to_owned(), name }, receivers: vec![] };
    sealing.append(&[NewEvent::of(Uuid::new_v4(), &looks).unwrap()]).await.unwrap();
    assert!(!read(&plain).await[2].body.get().contains("address"));
    assert_eq!(read(&sealing).await[2].read::<MoneySent>().unwrap(), Some(looks));
}

#[tokio::test]
async fn a_subject_that_a_database_writes_otherwise_is_refused() {
    let sealing = MemoryEventStore::new().with_codec(PersonalData::new(MemoryKeys::new()).fields(
        "Noted",
        &["/name"],
        "/id",
    ));
    for (id, is_kept) in [("1", true), ("1.50", true), ("1e0", false), ("100E-2", false), ("-0", false)] {
        let body = RawValue::from_string(format!("{{\"id\": {id}, \"name\": \"Ada\"}}")).unwrap();
        let appended = sealing.append(&[NewEvent::new(Uuid::new_v4(), "Noted", body)]).await;
        assert_eq!(appended.is_ok(), is_kept, "{id}: {appended:?}");
    }
}

#[tokio::test]
async fn keys_are_kept_wrapped_in_postgresql() {
    let db = support::database().await;
    let (store, keys) = postgres(&db, MasterKey::new([7; 32])).await;
    // To register a type twice is to register it.
    let personal = PersonalData::new(keys).of::<MoneySent>().of::<MoneySent>();
    names_are_sealed(&store, &store.clone().with_codec(personal)).await;
    let again = PersonalData::new(PostgresKeys::new(&db.pool, MasterKey::new([7; 32])));
    assert_eq!(read(&store.clone().with_codec(again)).await[0].read::<MoneySent>().unwrap(), Some(sent()));
    let stranger = PersonalData::new(PostgresKeys::new(&db.pool, MasterKey::new([8; 32])));
    let refused =
        store.clone().with_codec(stranger).read_after(Position::START, None, None, 1).await.unwrap_err();
    assert!(
        matches!(&refused, ReadError::Undecodable { reason, .. } if reason.contains("give the program that master key"))
    );
    let other = PersonalData::new(MemoryKeys::new());
    let refused =
        store.clone().with_codec(other).read_after(Position::START, None, None, 1).await.unwrap_err();
    assert!(refused.to_string().contains("has no key, and was never forgotten"), "{refused}");
    let missing = PostgresKeys::new(&db.pool, MasterKey::new([7; 32])).in_schema("nowhere").unwrap();
    assert!(matches!(missing.find(&["ada".to_owned()]).await, Err(KeyError::Database(_))));
    let unavailable = store.with_codec(PersonalData::new(missing).of::<MoneySent>());
    let refused = unavailable.append(&[NewEvent::of(Uuid::new_v4(), &sent()).unwrap()]).await.unwrap_err();
    assert!(matches!(refused, AppendError::Database(_)), "{refused}");
    assert!(!refused.is_transient(), "it is refused again");
}

#[tokio::test]
async fn only_what_may_succeed_later_is_called_transient() {
    let db = support::database().await;
    let (store, keys) = postgres(&db, MasterKey::new([7; 32])).await;
    let event = |sender: &str| {
        [NewEvent::of(Uuid::new_v4(), &MoneySent { sender: party(sender, "Ada"), ..sent() }).unwrap()]
    };
    let sealing = store.clone().with_codec(PersonalData::new(keys).of::<MoneySent>());
    sealing.append(&event("ada")).await.unwrap();
    let refused = sealing.append(&event("a\0")).await.unwrap_err();
    assert!(matches!(refused, AppendError::Invalid { index: Some(0), .. }), "{refused:?}");
    let other = PersonalData::new(PostgresKeys::new(&db.pool, MasterKey::new([8; 32]))).of::<MoneySent>();
    let refused = store.clone().with_codec(other).append(&event("ada")).await.unwrap_err();
    let text = format!("{refused}: {:?}", refused.source().map(ToString::to_string));
    assert!(!refused.is_transient() && text.contains("was wrapped by master key"), "{text}");
    let missing = PostgresEventStore::new(db.pool.clone(), Layout::espd("nowhere").unwrap());
    let plain = [NewEvent::new(Uuid::new_v4(), "A", raw(&json!({})))];
    let refused = missing.append(&plain).await.unwrap_err();
    assert!(matches!(refused, AppendError::Database(_)) && !refused.is_transient(), "{refused:?}");

    assert!(AppendError::from(sqlx::Error::PoolTimedOut).is_transient());
    let closed = sqlx::PgPool::connect(&db.url).await.unwrap();
    closed.close().await;
    let keys = PostgresKeys::new(&db.pool, MasterKey::new([7; 32]));
    let away = PostgresEventStore::new(closed, Layout::espd(SCHEMA).unwrap());
    let refused = away.with_codec(PersonalData::new(keys)).append(&plain).await.unwrap_err();
    assert!(refused.is_transient(), "{refused:?}");
}

#[tokio::test]
async fn two_programs_that_meet_a_new_person_agree_on_one_key() {
    let db = support::database().await;
    let (store, keys) = postgres(&db, MasterKey::new([7; 32])).await;
    let other = PostgresKeys::new(&db.pool, MasterKey::new([7; 32]));
    let stores =
        [keys, other].map(|keys| store.clone().with_codec(PersonalData::new(keys).of::<MoneySent>()));
    let events: Vec<NewEvent> = (0..20).map(|_| NewEvent::of(Uuid::new_v4(), &sent()).unwrap()).collect();
    let (one, two) = tokio::join!(stores[0].append(&events[..10]), stores[1].append(&events[10..]));
    one.unwrap();
    two.unwrap();
    let all = read(&stores[0]).await;
    assert!(all.iter().all(|event| event.read::<MoneySent>().unwrap() == Some(sent())));
    let keys: i64 =
        sqlx::query_scalar("select count(*) from espd_keys.subject_keys").fetch_one(&db.pool).await.unwrap();
    assert_eq!(keys, 3);
}

#[tokio::test]
async fn what_is_sealed_belongs_to_its_event_and_its_place() {
    let (plain, keys) = (MemoryEventStore::new(), MemoryKeys::new());
    let sealing = plain.clone().with_codec(PersonalData::new(keys.clone()).of::<MoneySent>());
    let event = NewEvent::of(Uuid::new_v4(), &sent()).unwrap();
    sealing.append(std::slice::from_ref(&event)).await.unwrap();
    let stored = body(&read(&plain).await[0]);
    let swapped = json!({ "cents": 1, "sender": stored["receivers"][0], "receivers": [stored["sender"]] });
    let mut broken = stored.clone();
    broken["sender"]["name"]["$sealed"]["x"] = json!(1);
    for (uuid, body) in [(Uuid::new_v4(), &stored), (event.uuid, &swapped), (event.uuid, &broken)] {
        let elsewhere = MemoryEventStore::new();
        let moved = NewEvent { uuid, body: raw(body), personal: &[], ..event.clone() };
        elsewhere.append(&[moved]).await.unwrap();
        let reading = elsewhere.with_codec(PersonalData::new(keys.clone()));
        let refused = reading.read_after(Position::START, None, None, 1).await.unwrap_err();
        assert!(
            matches!(&refused, ReadError::Undecodable { reason, .. } if reason.contains("was changed")),
            "{refused}"
        );
    }
}

#[tokio::test]
async fn an_event_that_cannot_be_sealed_is_refused_and_others_stay_as_they_are() {
    let (plain, keys) = (MemoryEventStore::new(), MemoryKeys::new());
    let personal =
        PersonalData::new(keys).fields("A", &["/name"], "/id").fields("B", &["/name"], "aggregate_id");
    let sealing = plain.clone().with_codec(personal);
    let event = |event_type: &str, body: &Value| NewEvent::new(Uuid::from_u128(5), event_type, raw(body));
    for (body, complaint) in [
        (json!({ "name": "Ada" }), "/name has no subject"),
        (json!({ "name": "Ada", "id": null }), "/name has no subject"),
        (json!({ "other": [{ "$sealed": 1 }] }), "has the key \"$sealed\""),
    ] {
        let refused = sealing.append(&[event("A", &body)]).await.unwrap_err();
        assert!(refused.to_string().contains(complaint), "{refused}");
    }
    let untouched =
        [json!({ "id": 1, "name": null }), json!({ "id": 1 }), json!({ "text": "a $sealed letter" })];
    let events: Vec<NewEvent> = untouched.iter().map(|body| event("A", body)).collect();
    sealing.append(&events).await.unwrap();
    assert_eq!(read(&plain).await.iter().map(body).collect::<Vec<_>>(), untouched);
    let number = "{\"name\":1.00000000000000000001,\"n\":1e400}";
    let event =
        NewEvent { body: RawValue::from_string(number.to_owned()).unwrap(), ..event("B", &json!({})) };
    sealing.append(&[event]).await.unwrap();
    let (stored, opened) = (read(&plain).await.remove(3), read(&sealing).await.remove(3));
    assert!(stored.body.get().contains(&Uuid::from_u128(5).to_string()), "the aggregate is the subject");
    assert!(opened.body.get().contains("1.00000000000000000001"), "{}", opened.body);
}

/// Requires that nothing personal is stored in the clear, by any way to append.
async fn what_nothing_seals_is_refused(plain: &impl EventStore, wrong: &impl EventStore) {
    let event = || NewEvent::of(Uuid::new_v4(), &sent()).unwrap().tagged("t");
    let condition = TagQuery::tag("t").unchanged_since(ConsistencyToken::default());
    for store in [plain as &dyn EventStore, wrong as &dyn EventStore] {
        let refused = [
            store.append(&[NewEvent::new(Uuid::new_v4(), "Other", raw(&json!({}))), event()]).await,
            store
                .append_if(&[NewEvent::new(Uuid::new_v4(), "Other", raw(&json!({}))), event()], &condition)
                .await,
        ];
        for refused in refused {
            let refused = refused.unwrap_err();
            let AppendError::Invalid { index: Some(1), reason } = &refused else { panic!("{refused}") };
            assert!(reason.starts_with("MoneySent has personal fields (/sender/name)"), "{reason}");
            assert!(reason.contains(".with_codec"), "{reason}");
        }
    }
    assert!(read(plain).await.is_empty());
}

/// A codec that seals nothing.
#[derive(Debug)]
struct Plain;

impl BodyCodec for Plain {
    fn encode(&self, event: &NewEvent) -> Result<Box<RawValue>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(event.body.clone())
    }

    fn decode(&self, event: &Event) -> Result<Box<RawValue>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(event.body.clone())
    }
}

#[tokio::test]
async fn personal_fields_are_not_stored_in_the_clear() {
    let memory = MemoryEventStore::new();
    what_nothing_seals_is_refused(&memory, &memory.clone().with_codec(Plain)).await;
    let half = PersonalData::new(MemoryKeys::new()).fields("MoneySent", &["/sender/name"], "/sender/id");
    let event = || NewEvent::of(Uuid::new_v4(), &sent()).unwrap();
    let refused = memory.clone().with_codec(half.clone()).append(&[event()]).await.unwrap_err();
    assert!(refused.to_string().contains("(/receivers/*/name)"), "{refused}");
    // What covers a field seals it.
    let whole = half.fields("MoneySent", &["/receivers/*"], "/receivers/*/id");
    memory.clone().with_codec(whole).append(&[event()]).await.unwrap();
    assert!(!read(&memory).await[0].body.get().contains("Miller"));

    let db = support::database().await;
    let store = PostgresEventStore::new(db.pool.clone(), Layout::espd(SCHEMA).unwrap());
    what_nothing_seals_is_refused(&store, &store.clone().with_codec(Plain)).await;
    let event = [NewEvent::of(Uuid::new_v4(), &sent()).unwrap()];
    let mut transaction = db.pool.begin().await.unwrap();
    assert!(store.append_in(&mut transaction, &event).await.unwrap_err().to_string().contains(".with_codec"));
    transaction.rollback().await.unwrap();
    let later = store.append_at(std::time::Duration::from_secs(60), None, &event).await;
    assert!(later.unwrap_err().to_string().contains(".with_codec"));
}

#[tokio::test]
async fn a_person_is_forgotten_from_rust() {
    let db = support::database().await;
    let (store, keys) = postgres(&db, MasterKey::new([7; 32])).await;
    let personal = PersonalData::new(keys).of::<MoneySent>();
    let sealing = store.with_codec(personal.clone());
    sealing.append(&[NewEvent::of(Uuid::new_v4(), &sent()).unwrap()]).await.unwrap();
    let keys = PostgresKeys::new(&db.pool, MasterKey::new([7; 32]));
    assert!(keys.forget("nobody", "me", None).await.unwrap().is_none());
    let forgotten = keys.forget("bob", "me", Some("asked for")).await.unwrap().unwrap();
    assert_eq!((forgotten.subject.as_str(), forgotten.keys), ("bob", 1));
    assert_eq!((forgotten.forgotten_by.as_str(), forgotten.why.as_deref()), ("me", Some("asked for")));
    let again = keys.forget("bob", "you", None).await.unwrap().unwrap();
    assert_eq!((again.forgotten_by.as_str(), again.keys), ("me", 1));
    personal.clear();
    let known = read(&sealing).await[0].read::<MoneySent>().unwrap().unwrap();
    assert_eq!(known.sender, party("ada", "Ada Lovelace"));
    assert_eq!(known.receivers[0].name, Personal::Forgotten { subject: "bob".to_owned() });
}
