//! Tags, and conditions on what has happened to them.

use uuid::Uuid;

use super::{Store, append, event_of, happened, ids, read_all};
use crate::event::ExpectedVersion::Absent;
use crate::event::{Appended, NewEvent, Position, Tag};
use crate::store::{AppendCondition, AppendError, ConsistencyToken, ReadError, TagQuery, TaggedEvents};

pub(super) async fn read(store: &Store, query: &TagQuery) -> TaggedEvents {
    store.read_tagged(query, None).await.expect("the store reads")
}

pub(super) async fn token(store: &Store, query: &TagQuery) -> ConsistencyToken {
    read(store, query).await.token
}

async fn append_if(store: &Store, events: &[NewEvent], condition: &AppendCondition) -> Vec<Appended> {
    store.append_if(events, condition).await.expect("the condition holds")
}

/// Which item failed, on which tag, and the event that came.
pub(super) async fn fail(
    store: &Store,
    events: &[NewEvent],
    condition: &AppendCondition,
) -> (usize, Tag, Option<Position>) {
    match store.append_if(events, condition).await {
        Err(AppendError::ConditionFailed { item, tag, came }) => (item, tag, came.map(|came| came.id)),
        other => panic!("{other:?}"),
    }
}

/// An event of a type, with tags.
pub(super) fn tagged(event_type: &str, tags: &[&str]) -> NewEvent {
    tags.iter().fold(event_of(event_type), |event, tag| event.tagged(*tag))
}

pub(super) async fn events_are_read_by_tag_with_a_token(store: Store) {
    let events = [tagged("A", &["x"]), tagged("B", &["x", "y"]), tagged("A", &["y"]), tagged("A", &[])];
    let stored = append(&store, &events).await;
    let found = read(&store, &TagQuery::tag("x")).await;
    assert_eq!(ids(&found.events), [stored[0].id, stored[1].id]);
    assert_eq!(found.events[1].event_type, "B");
    // The token is of the state, whatever types were asked for.
    let of_type = read(&store, &TagQuery::tag("x").of_types(["B"])).await;
    assert_eq!((ids(&of_type.events), of_type.token), (vec![stored[1].id], found.token));
    let none = read(&store, &TagQuery::tag("z")).await;
    assert!(none.events.is_empty());
}

pub(super) async fn only_what_came_since_a_token_is_read(store: Store) {
    let query = TagQuery::tag("x").or(TagQuery::all_of(["y", "z"]));
    append(&store, &[tagged("A", &["x"]), tagged("A", &["y", "z"])]).await;
    let first = read(&store, &query).await;
    let later = append(&store, &[tagged("A", &["y"]), tagged("A", &["z", "y"]), tagged("A", &["x"])]).await;
    let tail = store.read_tagged(&query, Some(&first.token)).await.expect("the store reads");
    assert_eq!(ids(&tail.events), [later[1].id, later[2].id]);
    assert_eq!(tail.token, token(&store, &query).await);
    let nothing = store.read_tagged(&query, Some(&tail.token)).await.expect("the store reads");
    assert!(nothing.events.is_empty());
}

pub(super) async fn a_condition_excludes_what_came_since_its_token(store: Store) {
    let query = TagQuery::tag("x").of_types(["A"]);
    append(&store, &[tagged("A", &["x"])]).await;
    let condition = query.clone().unchanged_since(token(&store, &query).await);
    append(&store, &[tagged("B", &["x"]), tagged("A", &["y"])]).await;
    let stored = append_if(&store, &[tagged("A", &["x"])], &condition).await;
    assert_eq!(fail(&store, &[tagged("A", &["x"])], &condition).await, (0, "x".into(), Some(stored[0].id)));
    let again = query.clone().unchanged_since(token(&store, &query).await);
    append_if(&store, &[tagged("A", &["x"])], &again).await;
}

pub(super) async fn without_a_token_any_event_is_excluded(store: Store) {
    let condition = TagQuery::tag("x").without_any();
    let stored = append_if(&store, &[tagged("A", &["x"])], &condition).await;
    assert_eq!(fail(&store, &[tagged("A", &["x"])], &condition).await, (0, "x".into(), Some(stored[0].id)));
    append_if(&store, &[tagged("A", &["x"])], &TagQuery::tag("x").of_types(["B"]).without_any()).await;
}

/// Each row: the event that came, with its type and tags, and whether `(a and b, of type A or B) or c` excludes it.
const TRUTH_TABLE: &[(&str, &[&str], bool)] = &[
    ("A", &[], false),
    ("A", &["a"], false),
    ("A", &["b"], false),
    ("A", &["a", "b"], true),
    ("B", &["a", "b"], true),
    ("C", &["a", "b"], false),
    ("A", &["a", "b", "d"], true),
    ("C", &["c"], true),
    ("A", &["a", "c"], true),
    ("A", &["d"], false),
];

pub(super) async fn items_and_types_are_alternatives_and_tags_go_together(store: Store) {
    let query = TagQuery::all_of(["a", "b"]).of_types(["A", "B"]).or(TagQuery::tag("c"));
    for (event_type, tags, is_excluded) in TRUTH_TABLE {
        let before = token(&store, &query).await;
        let came = append(&store, &[tagged(event_type, tags)]).await[0].id;
        let tail = store.read_tagged(&query, Some(&before)).await.expect("the store reads");
        let outcome =
            store.append_if(&[tagged("D", &["a", "b"])], &query.clone().unchanged_since(before)).await;
        assert_eq!(outcome.is_err(), *is_excluded, "{event_type} {tags:?}: {outcome:?}");
        assert_eq!(
            ids(&tail.events),
            if *is_excluded { vec![came] } else { vec![] },
            "{event_type} {tags:?}"
        );
    }
}

pub(super) async fn a_condition_may_name_tags_that_are_not_written(store: Store) {
    let query = TagQuery::tag("x");
    let condition = query.clone().without_any();
    append_if(&store, &[tagged("A", &["y"])], &condition).await;
    append_if(&store, &[tagged("A", &[])], &condition).await;
    let came = append(&store, &[tagged("A", &["x"])]).await[0].id;
    assert_eq!(fail(&store, &[tagged("A", &["y"])], &condition).await, (0, "x".into(), Some(came)));
    let unchanged = query.clone().unchanged_since(token(&store, &query).await);
    append_if(&store, &[tagged("A", &["a"]), tagged("A", &["z"])], &unchanged).await;
}

pub(super) async fn a_condition_may_be_checked_alone(store: Store) {
    let condition = TagQuery::tag("y").without_any();
    assert_eq!(append_if(&store, &[], &condition).await, []);
    append(&store, &[tagged("A", &["y"])]).await;
    fail(&store, &[], &condition).await;
}

pub(super) async fn a_condition_that_fails_stores_nothing(store: Store) {
    append(&store, &[tagged("A", &["x"])]).await;
    let before = token(&store, &TagQuery::tag("x").or(TagQuery::tag("y"))).await;
    let excluded = TagQuery::tag("y").or(TagQuery::tag("x")).without_any();
    let (item, tag, _) = fail(&store, &[tagged("A", &["x", "y"]), tagged("A", &[])], &excluded).await;
    assert_eq!((item, tag.as_str()), (1, "x"));
    assert_eq!(read_all(&store).await.len(), 1);
    assert_eq!(token(&store, &TagQuery::tag("x").or(TagQuery::tag("y"))).await, before);
}

pub(super) async fn a_repeated_append_is_recognised_before_its_condition(store: Store) {
    let condition = TagQuery::tag("x").without_any();
    let events = [tagged("A", &["x"]), tagged("B", &["y"])];
    let first = append_if(&store, &events, &condition).await;
    append(&store, &[tagged("A", &["x"])]).await;
    assert_eq!(append_if(&store, &events, &condition).await, first);
    fail(&store, &[tagged("A", &["x"])], &condition).await;
}

pub(super) async fn a_repeated_append_moves_no_tag(store: Store) {
    let query = TagQuery::tag("x").or(TagQuery::tag("y"));
    let events = [tagged("A", &["x", "y"]), tagged("A", &["x"])];
    let first = append(&store, &events).await;
    let condition = query.clone().unchanged_since(token(&store, &query).await);
    assert_eq!(append(&store, &events).await, first);
    append_if(&store, &[tagged("A", &["x", "y"])], &condition).await;
    assert_eq!(read(&store, &query).await.events.len(), 3);
}

pub(super) async fn an_event_comes_with_the_tags_that_it_has(store: Store) {
    let event = tagged("A", &["x", "y"]);
    let stored = append(&store, std::slice::from_ref(&event)).await;
    let turned = NewEvent { tags: vec!["y".into(), "x".into(), "y".into()], ..event.clone() };
    assert_eq!(append(&store, &[turned]).await, stored);
    // Who repeats an append need not remember its tags.
    assert_eq!(append(&store, &[NewEvent { tags: Vec::new(), ..event.clone() }]).await, stored);
    for tags in [vec!["x".into()], vec!["x".into(), "z".into()]] {
        let other = store.append(&[NewEvent { tags, ..event.clone() }]).await;
        assert!(matches!(other, Err(AppendError::UuidReused { uuid }) if uuid == event.uuid), "{other:?}");
    }
}

pub(super) async fn a_tag_goes_on_past_9_and_99(store: Store) {
    let query = TagQuery::tag("x");
    for _ in 0..105 {
        let condition = query.clone().unchanged_since(token(&store, &query).await);
        let stored = append_if(&store, &[tagged("A", &["x"])], &condition).await;
        assert_eq!(fail(&store, &[tagged("A", &["x"])], &condition).await.2, Some(stored[0].id));
    }
    assert_eq!(read(&store, &query).await.events.len(), 105);
}

pub(super) async fn an_append_may_tag_many_events(store: Store) {
    let names: Vec<String> = (0..7).map(|n| format!("tag:{n}")).collect();
    let events: Vec<NewEvent> =
        (0..1_500).map(|n: usize| event_of("A").tagged(&*names[n % 7]).tagged("all")).collect();
    let condition = TagQuery::tag("all").without_any();
    let stored = append_if(&store, &events, &condition).await;
    let found = read(&store, &TagQuery::all_of(["all", "tag:3"])).await;
    let expected: Vec<Position> = stored.iter().skip(3).step_by(7).map(|stored| stored.id).collect();
    assert_eq!(ids(&found.events), expected);
}

pub(super) async fn a_token_of_a_later_state_is_refused(store: Store) {
    append(&store, &[tagged("A", &["x"])]).await;
    let later = serde_json::from_str(r#"{"x": 5}"#).expect("a token is JSON");
    let condition = TagQuery::tag("x").unchanged_since(later);
    assert_eq!(fail(&store, &[tagged("A", &["x"])], &condition).await, (0, "x".into(), None));
}

pub(super) async fn what_cannot_be_a_token_is_refused(store: Store) {
    append(&store, &[tagged("A", &["x"])]).await;
    for number in [-1, i64::MIN] {
        let text = format!(r#"{{"x": {number}}}"#);
        let token: ConsistencyToken = serde_json::from_str(&text).expect("a token is JSON");
        let read = store.read_tagged(&TagQuery::tag("x"), Some(&token)).await;
        assert!(matches!(read, Err(ReadError::Refused { .. })), "{read:?}");
        let condition = TagQuery::tag("x").unchanged_since(token);
        let refused = store.append_if(&[tagged("A", &["x"])], &condition).await;
        assert!(matches!(refused, Err(AppendError::Invalid { index: None, .. })), "{refused:?}");
    }
}

pub(super) async fn what_cannot_be_a_tag_is_refused(store: Store) {
    for name in ["", &"x".repeat(1_001), "a\0b"] {
        let refused = store.append(&[event_of("A"), tagged("A", &[name])]).await;
        assert!(matches!(refused, Err(AppendError::Invalid { index: Some(1), .. })), "{refused:?}");
        let refused = store.append_if(&[event_of("A")], &TagQuery::tag(name).without_any()).await;
        assert!(matches!(refused, Err(AppendError::Invalid { index: None, .. })), "{refused:?}");
        let refused = store.read_tagged(&TagQuery::tag(name), None).await;
        assert!(matches!(refused, Err(ReadError::Refused { .. })), "{refused:?}");
    }
    let without = TagQuery::all_of(Vec::<Tag>::new());
    let refused = store.append_if(&[event_of("A")], &without.clone().without_any()).await;
    assert!(matches!(refused, Err(AppendError::Invalid { .. })), "{refused:?}");
    assert!(store.read_tagged(&TagQuery::tag("x").or(without), None).await.is_err());
    append(&store, &[tagged("A", &[&"x".repeat(1_000), "\u{e4} '\"\\{}", " "])]).await;
    assert_eq!(read(&store, &TagQuery::all_of(["\u{e4} '\"\\{}", " "])).await.events.len(), 1);
}

pub(super) async fn a_version_and_a_condition_both_count(store: Store) {
    let a = Uuid::new_v4();
    append(&store, &[happened(a).tagged("x")]).await;
    let query = TagQuery::tag("x");
    let condition = query.clone().unchanged_since(token(&store, &query).await);
    let stale = store.append_if(&[happened(a).expecting(Absent).tagged("x")], &condition).await;
    assert!(matches!(stale, Err(AppendError::Conflict { .. })), "{stale:?}");
    append_if(&store, &[happened(a).tagged("x")], &condition).await;
    assert_eq!(read(&store, &query).await.events.len(), 2);
}
