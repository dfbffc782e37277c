//! Fields from JSON and from forms, and all that is wrong with them.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use espd::commands::{CommandError, Input};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;
use validator::Validate;

#[derive(Debug, PartialEq, Deserialize, Validate)]
#[serde(deny_unknown_fields)]
struct Order {
    id: Uuid,
    #[validate(length(max = 4), nested)]
    items: Vec<Item>,
    #[validate(nested)]
    address: Address,
    #[serde(default)]
    is_gift: bool,
    note: Option<String>,
    weight: Option<f64>,
    day: Option<NaiveDate>,
    at: Option<DateTime<Utc>>,
    #[serde(default)]
    tags: Vec<String>,
    shipping: Shipping,
    #[serde(default)]
    points: BTreeMap<String, i64>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, Validate)]
struct Item {
    #[validate(length(min = 2))]
    name: String,
    #[validate(range(min = 1))]
    amount: u8,
}

#[derive(Debug, PartialEq, Deserialize, Validate)]
struct Address {
    #[validate(length(min = 1, message = "say where"))]
    street: String,
    #[validate(email)]
    mail: Option<String>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Shipping {
    Collect,
    Post { express: bool },
}

const ID: &str = "149d5c70-a373-4857-91e2-1d5ea90c27e4";

fn order() -> Order {
    Order {
        id: ID.parse().unwrap(),
        items: vec![Item { name: "tea".into(), amount: 12 }, Item { name: "jam".into(), amount: 7 }],
        address: Address { street: "Main Street".into(), mail: None },
        is_gift: true,
        note: None,
        weight: Some(-1.5),
        day: NaiveDate::from_ymd_opt(2026, 2, 3),
        at: Some("2026-02-03T04:05:06Z".parse().unwrap()),
        tags: vec!["a".into(), "b".into()],
        shipping: Shipping::Post { express: false },
        points: [("7".to_owned(), 10), ("8".to_owned(), -3)].into(),
    }
}

#[test]
fn a_form_is_converted_to_what_the_fields_are() {
    let brackets = format!(
        "id={ID}&items[1][name]=jam&items[1][amount]=007&items[0][name]=tea&items[0][amount]=+12&address[street]=Main+Street&address[mail]=\
        &is_gift=on&note=&weight=-1.5&day=2026-02-03&at=2026-02-03T04:05:06Z&tags[]=a&tags[]=b&shipping[post][express]=off&points[7]=10&points[8]=-3"
    );
    let dots = brackets.replace("tags[]", "tags").replace("][", ".").replace('[', ".").replace(']', "");
    assert!(dots.contains("items.0.name=tea") && dots.contains("tags=a&tags=b"), "{dots}");
    for form in [brackets, dots] {
        let read: Order = Input::form_encoded(&form).unwrap().read().unwrap();
        assert_eq!(read, order(), "{form}");
    }
    let one = [("id", ID), ("items", ""), ("address.street", "x"), ("tags", "only"), ("shipping", "collect")];
    let read: Order = Input::form(one).unwrap().read().unwrap();
    assert_eq!((read.items.len(), read.tags, read.shipping), (0, vec!["only".to_owned()], Shipping::Collect));
}

#[test]
fn json_is_taken_at_its_word() {
    let fields = json!({
        "id": ID, "items": [{"name": "tea", "amount": 12}, {"name": "jam", "amount": 7}], "address": {"street": "Main Street"}, "is_gift": true,
        "note": null, "weight": -1.5, "day": "2026-02-03", "at": "2026-02-03T04:05:06Z", "tags": ["a", "b"],
        "shipping": {"post": {"express": false}}, "points": {"7": 10, "8": -3}
    });
    let read: Order = Input::json(fields.to_string()).unwrap().read().unwrap();
    assert_eq!(read, order());
    let text = Input::value(fields).with("is_gift", "on").with("weight", "1").read::<Order>();
    assert_eq!(shown(&text.unwrap_err()), ["weight number", "is_gift boolean"].map(str::to_owned).sorted());
    let no_json = Input::json("{").unwrap_err();
    assert_eq!((no_json.code.as_str(), no_json.path.as_str()), ("json", ""));
}

trait Sorted {
    fn sorted(self) -> Vec<String>;
}

impl<I: IntoIterator<Item = String>> Sorted for I {
    fn sorted(self) -> Vec<String> {
        let mut all: Vec<String> = self.into_iter().collect();
        all.sort();
        all
    }
}

/// Path and code of each, sorted.
fn shown(errors: &[CommandError]) -> Vec<String> {
    errors.iter().map(|error| format!("{} {}", error.path, error.code)).sorted()
}

#[test]
fn all_errors_come_together_with_their_paths() {
    let form = [
        ("id", "no uuid"),
        ("items.0.name", "x"),
        ("items.0.amount", "300"),
        ("items.1.amount", "many"),
        ("items.2.name", "y"),
        ("items.2.amount", "0"),
        ("items.3.name", "sugar"),
        ("items.3.amount", "1"),
        ("address.mail", "nobody"),
        ("day", "yesterday"),
        ("points.7", ""),
        ("shipping", "carry"),
        ("colour", "red"),
    ];
    let errors = Input::form(form).unwrap().read::<Order>().unwrap_err();
    let expected = [
        "address.mail email",
        "address.street missing",
        "colour unknown_field",
        "day invalid",
        "id invalid",
        "items[0].amount integer_range",
        "items[0].name length",
        "items[1].amount integer",
        "items[1].name missing",
        "items[2].amount range",
        "items[2].name length",
        "points.7 missing",
        "shipping choice",
    ];
    assert_eq!(shown(&errors), expected);
    let choice = errors.iter().find(|error| error.code == "choice").unwrap();
    assert_eq!(choice.params["expected"], json!(["collect", "post"]));
    let json =
        serde_json::to_value(errors.iter().find(|error| error.path == "items[2].name").unwrap()).unwrap();
    let message = "must have a length of at least 2";
    let told = json!({"path": "items[2].name", "code": "length", "params": {"min": 2}, "message": message});
    assert_eq!(json, told, "what was sent is no part of it");

    // The elements are looked at when the list itself is right.
    let many = (0..5).map(|n| (format!("items.{n}.name"), "x"));
    let errors = Input::form(many).unwrap().read::<Order>().unwrap_err();
    let first = ["address missing", "id missing", "items length"];
    assert_eq!(shown(&errors)[..3], first, "{errors:?}");
}

#[test]
fn a_whole_that_is_no_object_is_one_error() {
    for fields in [json!([1]), json!("x"), json!(null)] {
        let errors = Input::value(fields).read::<Order>().unwrap_err();
        assert_eq!(shown(&errors), [" type"], "{errors:?}");
    }
    let errors = Input::value(json!({})).read::<Order>().unwrap_err();
    assert_eq!(shown(&errors), ["address missing", "id missing", "items missing", "shipping missing"]);
}

#[test]
fn a_message_of_ones_own_stays_and_others_are_translated_by_code() {
    let form = [
        ("id", ID),
        ("items.0.name", "x"),
        ("items.0.amount", "1"),
        ("address.street", ""),
        ("shipping", "collect"),
    ];
    let errors = Input::form(form).unwrap().read::<Order>().unwrap_err();
    let messages: Vec<_> = errors.iter().map(|error| error.message.as_str()).collect();
    assert_eq!(messages, ["say where", "must have a length of at least 2"]);
    let german = |error: &CommandError| match error.code.as_str() {
        "length" => Some("braucht mindestens {min} Zeichen".to_owned()),
        _ => None,
    };
    let translated = espd::commands::Outcome::invalid(errors).translated(german).to_string();
    let expected =
        "invalid: address.street: braucht mindestens 1 Zeichen; items[0].name: braucht mindestens 2 Zeichen";
    assert_eq!(translated, expected);
}

#[test]
fn what_is_shown_of_an_input_has_no_values() {
    let input = Input::form([("password", "hunter2")]).unwrap().with("id", "hunter2");
    assert_eq!(format!("{input:?}"), r#"Input { fields: ["id", "password"], is_text: true }"#);
}
