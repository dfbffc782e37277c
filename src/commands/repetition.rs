//! Whether two commands are written alike.

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

/// Whether two commands have the same fields.
pub(super) fn have_same_fields<C: Serialize>(one: &C, other: &C) -> bool {
    match (serde_json::to_value(one), serde_json::to_value(other)) {
        (Ok(one), Ok(other)) => are_alike(&one, &other),
        _ => false,
    }
}

/// Whether two values mean the same: the database writes 1e16 with all its digits, and a uuid may be written in upper case.
fn are_alike(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            one == other || ((one.is_f64() || other.is_f64()) && one.as_f64() == other.as_f64())
        }
        (Value::String(one), Value::String(other)) => one == other || is_same_uuid(one, other),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| are_alike(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let is_there = |(name, value)| other.get(name).is_some_and(|other| are_alike(value, other));
            one.len() == other.len() && one.iter().all(is_there)
        }
        (one, other) => one == other,
    }
}

fn is_same_uuid(one: &str, other: &str) -> bool {
    matches!((Uuid::parse_str(one), Uuid::parse_str(other)), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_alike_however_they_are_written() {
        let uuid = "149d5c70-a373-4857-91e2-1d5ea90c27e4";
        for (one, other, are) in [
            (json!(1e16), json!(10_000_000_000_000_000_u64), true),
            (json!(9_007_199_254_740_993_u64), json!(9_007_199_254_740_992_u64), false),
            (json!({"a": [uuid]}), json!({"a": [uuid.to_uppercase()]}), true),
            (json!({"a": "x"}), json!({"a": "X"}), false),
            (json!({"a": 1}), json!({"a": 1, "b": null}), false),
            (json!([1, 2]), json!([2, 1]), false),
        ] {
            assert_eq!(are_alike(&one, &other), are, "{one} {other}");
        }
    }
}
