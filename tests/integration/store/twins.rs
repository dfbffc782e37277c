//! The memory store keeps JSON as the database does.

use espd::event::NewEvent;
use espd::store::{AppendError, EventStore, MemoryEventStore};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use uuid::Uuid;

use super::{happened, json, store};

/// Text of JSON as a client might write it: any order, any spacing, any escapes, any numbers.
fn any_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![Just("null".to_owned()), Just("true".to_owned()), any_number(), any_string(),];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let member = (any_string(), inner.clone()).prop_map(|(key, value)| format!("{key} :{value}"));
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(|list| format!("[ {} ]", list.join(" ,"))),
            prop::collection::vec(member, 0..4).prop_map(|list| format!("{{{}\n}}", list.join(", "))),
        ]
    })
}

fn any_number() -> impl Strategy<Value = String> {
    "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3}|[eE][+-]?[0-9]{5})?"
}

fn any_string() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        8 => "[a-c]{0,2}",
        2 => "[ -!#-\\[\\]-~é😀\u{7f}]",
        2 => r#"\\["\\/bfnrt]"#,
        1 => r"\\u00[0-9a-fA-F]{2}",
        1 => r"\\ud83d\\ude0[0-9]",
        1 => r"\\u[0-9a-f]{4}",
    ];
    prop::collection::vec(piece, 0..4).prop_map(|pieces| format!("\"{}\"", pieces.concat()))
}

async fn keep(store: &dyn EventStore, event: &NewEvent) -> Option<String> {
    match store.append(std::slice::from_ref(event)).await {
        Ok(appended) => {
            let stored = store.read_after(appended[0].id.previous(), None, None, 1).await.unwrap();
            Some(stored[0].body.get().to_owned())
        }
        Err(AppendError::Invalid { index: Some(0), .. }) => None,
        Err(other) => panic!("{}: {other:?}", event.body),
    }
}

#[tokio::test]
async fn both_twins_keep_the_same_text_or_none() {
    let (_, postgres) = store().await;
    let memory = MemoryEventStore::new();
    let mut runner = TestRunner::default();
    let mut refused = 0;
    for _ in 0..1_000 {
        let text = any_json().new_tree(&mut runner).unwrap().current();
        let event = NewEvent { body: json(&text), ..happened(Uuid::new_v4()) };
        let kept = keep(&postgres, &event).await;
        assert_eq!(keep(&memory, &event).await, kept, "{text}");
        refused += usize::from(kept.is_none());
    }
    assert!((1..900).contains(&refused), "{refused} of 1000 were refused");
}
