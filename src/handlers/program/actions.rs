//! What a worker may want done, read from what it wrote.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::value::RawValue;

use super::protocol::{SaidAction, Wrong};
use crate::handlers::batch::Action;
use crate::processing::emission::Emission;

/// The farthest that an emission may be put off, in seconds: a hundred years.
const AFTER_MAX: f64 = 100.0 * 366.0 * 86_400.0;

impl SaidAction<'_> {
    /// What is meant, at the time `now`.
    pub(super) fn understand(self, now: DateTime<Utc>) -> Result<Action, Wrong> {
        let telling = [&self.upsert, &self.delete, &self.emit, &self.cancel];
        if telling.into_iter().flatten().count() != 1 {
            return Err(Wrong::new("wrote an action that is not one of upsert, delete, emit and cancel"));
        }
        let (name, strange) = self.strange_key();
        if let Some(key) = strange {
            return Err(Wrong(format!("wrote `{key}` into the action `{name}`, which has no such key")));
        }
        match self {
            Self { upsert: Some(table), row, .. } => {
                Ok(Action::Upsert { table, row: require(row, "upsert", "row")? })
            }
            Self { delete: Some(table), condition, .. } => {
                Ok(Action::Delete { table, columns: require(condition, "delete", "where")? })
            }
            Self { cancel: Some(key), .. } => Ok(Action::Cancel { key }),
            emission => emission.understand_emission(now).map(Action::Emit),
        }
    }

    fn understand_emission(self, now: DateTime<Utc>) -> Result<Emission, Wrong> {
        let aggregate_id = self.aggregate_id.ok_or_else(|| lacks("emit", "aggregate_id"))?;
        let aggregate_id = aggregate_id.parse().map_err(|_| {
            Wrong(format!(
                "wrote an `aggregate_id` that is no uuid: {:?}",
                super::stderr::cut(&aggregate_id, 100)
            ))
        })?;
        let due_at = match (self.at, self.after) {
            (None, None) => None,
            (Some(at), None) => Some(time(&at)?),
            (None, Some(seconds)) => Some(now + length(seconds)?),
            (Some(_), Some(_)) => {
                return Err(Wrong::new("wrote both `at` and `after` into an action `emit`"));
            }
        };
        Ok(Emission {
            event_type: self.emit.unwrap_or_default(),
            aggregate_id,
            body: require(self.body, "emit", "body")?,
            expected_version: self.expected_version,
            due_at,
            key: self.key,
        })
    }

    /// The action, and a key of it that belongs to another one.
    fn strange_key(&self) -> (&'static str, Option<&'static str>) {
        let (name, allowed): (_, &[&str]) = match self {
            Self { upsert: Some(_), .. } => ("upsert", &["row"]),
            Self { delete: Some(_), .. } => ("delete", &["where"]),
            Self { cancel: Some(_), .. } => ("cancel", &[]),
            _ => ("emit", &["aggregate_id", "body", "expected_version", "at", "after", "key"]),
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
        ];
        let strange = keys.into_iter().find(|(key, is_there)| *is_there && !allowed.contains(key));
        (name, strange.map(|(key, _)| key))
    }
}

fn require(value: Option<&RawValue>, action: &str, key: &str) -> Result<Box<RawValue>, Wrong> {
    value.map(ToOwned::to_owned).ok_or_else(|| lacks(action, key))
}

fn lacks(action: &str, key: &str) -> Wrong {
    Wrong(format!("wrote an action `{action}` without `{key}`"))
}

fn time(words: &str) -> Result<DateTime<Utc>, Wrong> {
    let wrong =
        |_| Wrong(format!("wrote {words:?} for `at`, which is no time like \"2026-01-31T00:00:00Z\""));
    words.parse().map_err(wrong)
}

fn length(seconds: f64) -> Result<TimeDelta, Wrong> {
    let wrong = || Wrong(format!("wrote {seconds} for `after`: it takes seconds from 0 to a hundred years"));
    if !(0.0..=AFTER_MAX).contains(&seconds) {
        return Err(wrong());
    }
    TimeDelta::try_milliseconds((seconds * 1_000.0) as i64).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn understand(text: &str) -> Result<Action, Wrong> {
        let said: SaidAction<'_> = serde_json::from_str(text).unwrap();
        said.understand(DateTime::UNIX_EPOCH)
    }

    const ID: &str = "00000000-0000-4000-8000-000000000001";

    #[test]
    fn every_action_is_understood() {
        let upsert = understand(r#"{"upsert":"todos","row":{"price":1.10}}"#).unwrap();
        assert!(
            matches!(upsert, Action::Upsert { table, row } if table == "todos" && row.get() == r#"{"price":1.10}"#)
        );
        let delete = understand(r#"{"delete":"todos","where":{"id":1}}"#).unwrap();
        assert!(matches!(delete, Action::Delete { columns, .. } if columns.get() == r#"{"id":1}"#));
        assert!(matches!(understand(r#"{"cancel":"k"}"#), Ok(Action::Cancel { key }) if key == "k"));
        let emit = format!(r#"{{"emit":"E","aggregate_id":"{ID}","body":{{}},"expected_version":3}}"#);
        assert!(matches!(
            understand(&emit),
            Ok(Action::Emit(Emission { expected_version: Some(3), due_at: None, .. }))
        ));
        for when in [r#""after":1.5"#, r#""at":"1970-01-01T00:00:01.5Z""#] {
            let later = format!(r#"{{"emit":"E","aggregate_id":"{ID}","body":{{}},{when},"key":"k"}}"#);
            let Ok(Action::Emit(emission)) = understand(&later) else { panic!("{later}") };
            assert_eq!(emission.due_at.unwrap().timestamp_millis(), 1_500);
        }
    }

    #[test]
    fn what_is_no_action_is_refused_in_words() {
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
            (emit(r#","body":{},"where":{}"#), "`where` into the action `emit`"),
        ] {
            let wrong = understand(&text).expect_err(&text);
            assert!(wrong.0.contains(words), "{text}: {wrong}");
        }
    }
}
