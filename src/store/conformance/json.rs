//! What a body may be. Metadata is kept in the same way.

use serde_json::Value;
use uuid::Uuid;

use super::{Store, append, happened, json, read_all};
use crate::event::NewEvent;
use crate::store::AppendError;

fn with_body(text: &str) -> NewEvent {
    NewEvent { body: json(text), ..happened(Uuid::new_v4()) }
}

/// Appends the body alone and among others, and returns its text as stored both times.
async fn store_body(store: &Store, text: &str) -> [String; 2] {
    let alone = append(store, &[with_body(text)]).await[0].id;
    let among = append(store, &[with_body("1"), with_body(text), with_body("2")]).await[1].id;
    let stored = read_all(store).await;
    [alone, among].map(|id| {
        let event = stored.iter().find(|event| event.id == id).expect("the event is stored");
        event.body.get().to_owned()
    })
}

/// Appends what must be refused, alone and among others.
async fn refuse_body(store: &Store, text: &str) {
    for events in [vec![with_body(text)], vec![with_body(text), with_body("1")]] {
        match store.append(&events).await {
            Err(AppendError::Invalid { index: Some(0), .. }) => {}
            other => panic!("{:.60}: {other:?}", text),
        }
    }
}

pub(super) async fn a_body_may_be_any_json(store: Store) {
    for text in [
        "null",
        "true",
        "0",
        "-1.5",
        r#""""#,
        "[]",
        "{}",
        r#"[1, "a", null, [true], {"b": []}]"#,
        r#"{"": {"": {}}, "a b": [[]], "c": "NULL"}"#,
        r#"{"nul": "\\u0000"}"#,
    ] {
        let given: Value = serde_json::from_str(text).expect("the case has valid JSON");
        for stored in store_body(&store, text).await {
            let stored: Value = serde_json::from_str(&stored).expect("a stored body is JSON");
            assert_eq!(stored, given);
        }
    }
}

pub(super) async fn numbers_keep_every_digit(store: Store) {
    for number in [
        "123456789012345678901234567890",
        "-123456789012345678901234567890",
        "12345678901234567890.12345",
        "0.1000000000000000055511151231257827",
        "1.10",
        "9007199254740993",
        "18446744073709551616",
    ] {
        for stored in store_body(&store, number).await {
            assert_eq!(stored, number);
        }
    }
    for stored in store_body(&store, "1e131071").await {
        assert_eq!(stored, format!("1{}", "0".repeat(131_071)));
    }
    for stored in store_body(&store, "5e-16383").await {
        assert_eq!(stored, format!("0.{}5", "0".repeat(16_382)));
    }
}

pub(super) async fn numbers_out_of_range_are_refused(store: Store) {
    for number in ["1e131072", "-1e200000", r#"{"a": [1e-20000]}"#, "1e99999999999999999999"] {
        refuse_body(&store, number).await;
    }
}

pub(super) async fn text_that_no_database_keeps_is_refused(store: Store) {
    for text in [r#""\u0000""#, r#"{"a\u0000b": 1}"#, r#"{"a": ["\ud83d"]}"#, r#""\ude00""#] {
        refuse_body(&store, text).await;
    }
    let mut many: Vec<_> = (0..2_500).map(|_| with_body("1")).collect();
    many[1_700].body = json(r#""\u0000""#);
    match store.append(&many).await {
        Err(AppendError::Invalid { index: Some(1_700), .. }) => {}
        other => panic!("{other:?}"),
    }
}

pub(super) async fn text_is_kept_as_it_is(store: Store) {
    for text in [
        "it's \"quoted\" and \\ slashed",
        "',); drop table events; --",
        "$1 :name ? {} {\"a\": 1}",
        "línea\nnueva\ttab\r",
        "日本語 🎉 e\u{301} \u{202e}rtl \u{feff}bom",
        "\u{1}\u{1f}\u{7f}\u{80}\u{10ffff}",
    ] {
        let body = serde_json::to_string(&[text]).expect("text becomes JSON");
        for stored in store_body(&store, &body).await {
            let stored: Vec<String> = serde_json::from_str(&stored).expect("a stored body is JSON");
            assert_eq!(stored, [text]);
        }
    }
}

pub(super) async fn deep_nesting_is_kept_or_refused(store: Store) {
    let arrays = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let objects = |depth| format!("{}1{}", r#"{"a": "#.repeat(depth), "}".repeat(depth));
    for depth in [127, 128, 129, 1_000] {
        for text in [arrays(depth), objects(depth)] {
            for stored in store_body(&store, &text).await {
                assert_eq!(stored, text);
            }
        }
    }
    refuse_body(&store, &arrays(1_000_000)).await;
}

pub(super) async fn a_body_may_have_five_megabytes(store: Store) {
    let body = format!(r#"{{"text": "{}"}}"#, "0123456789".repeat(500_000));
    for stored in store_body(&store, &body).await {
        assert!(stored == body, "a body of {} bytes came back with {}", body.len(), stored.len());
    }
}
