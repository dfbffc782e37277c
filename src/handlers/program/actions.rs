//! Parses the actions that a program answers an event with.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;

use super::protocol::{ActionMessage, ProtocolViolation};
use crate::event::Version;
use crate::handlers::batch::Action;
use crate::processing::emission::{Due, Emission};

/// The longest delay of an emission, in seconds: a hundred years.
const AFTER_MAX: f64 = 100.0 * 366.0 * 86_400.0;

impl ActionMessage<'_> {
    /// Validates the action.
    pub(super) fn into_action(self) -> Result<Action, ProtocolViolation> {
        let deciding = [&self.upsert, &self.delete, &self.emit, &self.cancel];
        if deciding.into_iter().flatten().count() != 1 {
            return Err(ProtocolViolation::new(
                "wrote an action that is not one of upsert, delete, emit and cancel",
            ));
        }
        let (name, foreign) = self.foreign_key();
        if let Some(key) = foreign {
            return Err(ProtocolViolation(format!(
                "wrote `{key}` into the action `{name}`, which has no such key"
            )));
        }
        match self {
            Self { upsert: Some(table), row, .. } => {
                Ok(Action::Upsert { table, row: require(row, "upsert", "row")? })
            }
            Self { delete: Some(table), condition, .. } => {
                Ok(Action::Delete { table, columns: require(condition, "delete", "where")? })
            }
            Self { cancel: Some(key), .. } => Ok(Action::Cancel { key }),
            emission => emission.into_emission().map(Action::Emit),
        }
    }

    fn into_emission(self) -> Result<Emission, ProtocolViolation> {
        let aggregate_id = self.aggregate_id.ok_or_else(|| lacks("emit", "aggregate_id"))?;
        let aggregate_id: uuid::Uuid = aggregate_id.parse().map_err(|_| {
            ProtocolViolation(format!(
                "wrote an `aggregate_id` that is no uuid: {:?}",
                super::log_limit::truncate(&aggregate_id, 100)
            ))
        })?;
        let due = match (self.at, self.after) {
            (None, None) => Due::AtOnce,
            (Some(at), None) => Due::At(parse_time(&at)?),
            (None, Some(seconds)) => Due::After(parse_delay(seconds)?),
            (Some(_), Some(_)) => {
                return Err(ProtocolViolation::new("wrote both `at` and `after` into an action `emit`"));
            }
        };
        if self.key.is_some() && due == Due::AtOnce {
            return Err(ProtocolViolation::new(
                "wrote `key` into an action `emit` without `at` or `after`: what is emitted at once has no key",
            ));
        }
        Ok(Emission {
            event_type: self.emit.unwrap_or_default(),
            aggregate_id: aggregate_id.into(),
            body: require(self.body, "emit", "body")?,
            expected_version: self.expected_version.map(Version::new),
            due,
            key: self.key,
            metadata: self.metadata.map(ToOwned::to_owned),
        })
    }

    /// The name of the action, and a key that does not belong to it, if there is one.
    fn foreign_key(&self) -> (&'static str, Option<&'static str>) {
        let (name, allowed): (_, &[&str]) = match self {
            Self { upsert: Some(_), .. } => ("upsert", &["row"]),
            Self { delete: Some(_), .. } => ("delete", &["where"]),
            Self { cancel: Some(_), .. } => ("cancel", &[]),
            _ => ("emit", &["aggregate_id", "body", "expected_version", "at", "after", "key", "metadata"]),
        };
        let keys = [
            ("row", self.row.is_some()),
            ("where", self.condition.is_some()),
            ("aggregate_id", self.aggregate_id.is_some()),
            ("body", self.body.is_some()),
            ("expected_version", self.expected_version.is_some()),
            ("at", self.at.is_some()),
            ("after", self.after.is_some()),
            ("key", self.key.is_some()),
            ("metadata", self.metadata.is_some()),
        ];
        let foreign = keys.into_iter().find(|(key, is_there)| *is_there && !allowed.contains(key));
        (name, foreign.map(|(key, _)| key))
    }
}

fn require(value: Option<&RawValue>, action: &str, key: &str) -> Result<Box<RawValue>, ProtocolViolation> {
    value.map(ToOwned::to_owned).ok_or_else(|| lacks(action, key))
}

fn lacks(action: &str, key: &str) -> ProtocolViolation {
    ProtocolViolation(format!("wrote an action `{action}` without `{key}`"))
}

fn parse_time(text: &str) -> Result<DateTime<Utc>, ProtocolViolation> {
    let invalid = |_| {
        ProtocolViolation(format!("wrote {text:?} for `at`, which is no time like \"2026-01-31T00:00:00Z\""))
    };
    text.parse().map_err(invalid)
}

fn parse_delay(seconds: f64) -> Result<Duration, ProtocolViolation> {
    let out_of_range = || {
        ProtocolViolation(format!("wrote {seconds} for `after`: it takes seconds from 0 to a hundred years"))
    };
    if !(0.0..=AFTER_MAX).contains(&seconds) {
        return Err(out_of_range());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| out_of_range())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Action, ProtocolViolation> {
        let message: ActionMessage<'_> = serde_json::from_str(text).unwrap();
        message.into_action()
    }

    const ID: &str = "00000000-0000-4000-8000-000000000001";

    #[test]
    fn every_action_is_parsed() {
        let upsert = parse(r#"{"upsert":"todos","row":{"price":1.10}}"#).unwrap();
        assert!(
            matches!(upsert, Action::Upsert { table, row } if table == "todos" && row.get() == r#"{"price":1.10}"#)
        );
        let delete = parse(r#"{"delete":"todos","where":{"id":1}}"#).unwrap();
        assert!(matches!(delete, Action::Delete { columns, .. } if columns.get() == r#"{"id":1}"#));
        assert!(matches!(parse(r#"{"cancel":"k"}"#), Ok(Action::Cancel { key }) if key == "k"));
        let emit = format!(r#"{{"emit":"E","aggregate_id":"{ID}","body":{{}},"expected_version":3}}"#);
        assert!(matches!(
            parse(&emit),
            Ok(Action::Emit(Emission { expected_version: Some(version), due: Due::AtOnce, .. })) if version == 3
        ));
        let moment = "1970-01-01T00:00:01.5Z".parse().unwrap();
        for (when, due) in [
            (r#""after":1.5"#, Due::After(Duration::from_millis(1_500))),
            (r#""at":"1970-01-01T00:00:01.5Z""#, Due::At(moment)),
        ] {
            let later = format!(r#"{{"emit":"E","aggregate_id":"{ID}","body":{{}},{when},"key":"k"}}"#);
            let Ok(Action::Emit(emission)) = parse(&later) else { panic!("{later}") };
            assert_eq!(emission.due, due);
        }
    }

    #[test]
    fn a_wrong_action_is_refused_with_the_reason() {
        let emit = |rest: &str| format!(r#"{{"emit":"E","aggregate_id":"{ID}"{rest}}}"#);
        for (text, words) in [
            ("{}".to_owned(), "not one of upsert"),
            (r#"{"upsert":"t","delete":"t","row":{}}"#.to_owned(), "not one of upsert"),
            (r#"{"upsert":"t"}"#.to_owned(), "without `row`"),
            (r#"{"delete":"t"}"#.to_owned(), "without `where`"),
            (r#"{"delete":"t","row":{}}"#.to_owned(), "`row` into the action `delete`"),
            (r#"{"emit":"E","body":{}}"#.to_owned(), "without `aggregate_id`"),
            (r#"{"emit":"E","aggregate_id":"7","body":{}}"#.to_owned(), "no uuid: \"7\""),
            (emit(""), "without `body`"),
            (emit(r#","body":{},"at":"tomorrow""#), "\"tomorrow\" for `at`"),
            (emit(r#","body":{},"after":-1"#), "-1 for `after`"),
            (emit(r#","body":{},"after":1e300"#), "for `after`"),
            (emit(r#","body":{},"after":1,"at":"2026-01-01T00:00:00Z""#), "both `at` and `after`"),
            (emit(r#","body":{},"key":"k""#), "`key` into an action `emit` without `at` or `after`"),
            (emit(r#","body":{},"where":{}"#), "`where` into the action `emit`"),
        ] {
            let violation = parse(&text).expect_err(&text);
            assert!(violation.0.contains(words), "{text}: {violation}");
        }
    }
}
