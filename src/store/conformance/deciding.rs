//! Decisions at the same time. What must hold under any timing is tried often, with real tasks.

use futures_util::future::join_all;
use uuid::Uuid;

use super::tagging::{read, tagged, token};
use super::{Store, append, ids, read_all};
use crate::event::{Appended, NewEvent};
use crate::store::{AppendCondition, AppendError, TagQuery};

const WRITERS: usize = 8;

const ROUNDS: usize = 20;

/// Appends each in a task of its own, all at once.
async fn append_at_once(
    store: &Store,
    appends: impl IntoIterator<Item = (NewEvent, AppendCondition)>,
) -> Vec<Result<Vec<Appended>, AppendError>> {
    let append = |(event, condition): (NewEvent, AppendCondition)| {
        let store = store.clone();
        tokio::spawn(async move { store.append_if(&[event], &condition).await })
    };
    let tasks: Vec<_> = appends.into_iter().map(append).collect();
    join_all(tasks).await.into_iter().map(|joined| joined.expect("the store does not panic")).collect()
}

/// How many were stored; the others must have met their condition.
fn count_winners(outcomes: Vec<Result<Vec<Appended>, AppendError>>) -> usize {
    let is_winner = |outcome| match outcome {
        Ok(_) => true,
        Err(AppendError::ConditionFailed { .. }) => false,
        Err(other) => panic!("{other:?}"),
    };
    outcomes.into_iter().map(is_winner).filter(|won| *won).count()
}

pub(super) async fn of_many_who_decide_within_a_boundary_one_wins(store: Store) {
    for round in 0..ROUNDS {
        // With a tag that all of them write, one that only the condition names, both, and several items.
        let query = match round % 4 {
            0 => TagQuery::tag("x"),
            1 => TagQuery::all_of(["x", "y"]),
            2 => TagQuery::tag("x").of_types(["A"]).or(TagQuery::tag("unwritten")),
            _ => TagQuery::tag("y").or(TagQuery::tag("x").of_types(["A"])),
        };
        let condition = query.clone().unchanged_since(token(&store, &query).await);
        let appends = (0..WRITERS).map(|_| (tagged("A", &["x", "y"]), condition.clone()));
        assert_eq!(count_winners(append_at_once(&store, appends).await), 1);
    }
    assert_eq!(read_all(&store).await.len(), ROUNDS);
}

/// Each decides by the tag that the other one writes. Stored one after the other, the second must see the first.
pub(super) async fn two_decisions_on_each_others_tags_are_not_both_stored(store: Store) {
    for round in 0..ROUNDS {
        let [one, other] = [format!("one:{round}"), format!("other:{round}")];
        // Whether something has happened to the tags before must make no difference.
        if round % 2 == 0 {
            append(&store, &[tagged("B", &[&one, &other])]).await;
        }
        let appends = [(&one, &other), (&other, &one)].map(|(writes, reads)| {
            (tagged("A", &[writes]), TagQuery::tag(&**reads).of_types(["A"]).without_any())
        });
        assert_eq!(count_winners(append_at_once(&store, appends).await), 1);
    }
}

/// Tags in any order must not make two writers wait for each other.
pub(super) async fn writers_of_many_tags_all_get_through(store: Store) {
    let names: Vec<String> = (0..6).map(|n| format!("tag:{n}")).collect();
    let write = |writer: usize| {
        let (store, names) = (store.clone(), names.clone());
        tokio::spawn(async move {
            for _ in 0..ROUNDS {
                let picked = Uuid::new_v4();
                let pick = |at: usize| &*names[usize::from(picked.as_bytes()[at]) % names.len()];
                let event = tagged("A", &[pick(0), pick(1), pick(2)]);
                // Half of them also look at tags that they do not write, for what never happens.
                let never =
                    TagQuery::tag(pick(3)).or(TagQuery::all_of([pick(4), pick(5)])).of_types(["Never"]);
                let outcome = match writer % 2 {
                    0 => store.append(&[event]).await,
                    _ => store.append_if(&[event], &never.without_any()).await,
                };
                outcome.expect("nothing that it excludes happens");
            }
        })
    };
    for joined in join_all((0..WRITERS).map(write)).await {
        joined.expect("every writer gets through");
    }
    assert_eq!(read_all(&store).await.len(), WRITERS * ROUNDS);
}

pub(super) async fn tags_are_numbered_without_holes(store: Store) {
    let query = TagQuery::tag("x");
    let never = || TagQuery::tag("x").of_types(["Never"]).without_any();
    let fails =
        || TagQuery::tag("y").unchanged_since(serde_json::from_str(r#"{"y": 9}"#).expect("a token is JSON"));
    for _ in 0..5 {
        let appends = (0..WRITERS)
            .map(|writer| (tagged("A", &["x", "y"]), if writer % 3 == 0 { fails() } else { never() }));
        count_winners(append_at_once(&store, appends).await);
    }
    let found = read(&store, &query).await;
    // An unmet condition uses up no number.
    let token = serde_json::to_value(&found.token).expect("a token is JSON");
    assert_eq!(token["x"], found.events.len());
    assert_eq!(ids(&found.events), ids(&read_all(&store).await));
}
