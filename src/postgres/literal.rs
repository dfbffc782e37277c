//! This module writes values into statements of the simple protocol, which have no parameters, and reads the one row that
//! such a statement returns.

use std::time::Duration;

use serde::Serialize;
use sqlx::RawSql;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgExecutor};

use crate::postgres::quote::quote_literal;
use crate::postgres::server_mark::SEE_ALL_ROWS;

/// Writes a value as a quoted literal of JSON text, to be cast to `json` or `jsonb`.
///
/// The texts in it explain something to people, and may come from anywhere. What `jsonb` refuses to keep, a NUL, is kept as
/// the six characters that JSON writes it with. So is every character beyond ASCII in a database of another encoding than
/// UTF-8, which may lack it: the whole statement would fail.
pub(crate) fn json_literal(value: &impl Serialize) -> Result<String, sqlx::Error> {
    let text = serde_json::to_string(value).map_err(|error| sqlx::Error::Encode(error.into()))?;
    Ok(json_text_literal(&without_nul(text)))
}

/// The same of a value that is JSON text already, with its numbers as they are written.
pub(crate) fn json_text_literal(text: &str) -> String {
    if text.is_ascii() {
        return quote_literal(text);
    }
    format!(
        "(case pg_catalog.getdatabaseencoding() when 'UTF8' then {} else {} end)::jsonb",
        quote_literal(&in_ascii(text, "\\u")),
        quote_literal(&in_ascii(text, "\\\\u"))
    )
}

/// JSON text with every character beyond ASCII as the numbers of its UTF-16 code units, each behind `escape`.
fn in_ascii(json: &str, escape: &str) -> String {
    let mut kept = String::with_capacity(json.len() * 2);
    for character in json.chars() {
        if character.is_ascii() {
            kept.push(character);
        } else {
            let units = character.encode_utf16(&mut [0; 2]).to_vec();
            kept.extend(units.iter().map(|unit| format!("{escape}{unit:04x}")));
        }
    }
    kept
}

/// JSON text with every escaped NUL as visible text. Serde writes one in no other way.
pub(crate) fn without_nul(json: String) -> String {
    const NUL: &str = "\\u0000";
    if !json.contains(NUL) {
        return json;
    }
    let (mut kept, mut rest) = (String::with_capacity(json.len() + 16), json.as_str());
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        // A backslash that is itself escaped begins no escape.
        let (escape, behind) = escape.split_at(if escape.starts_with(NUL) { NUL.len() } else { 2 });
        kept.push_str(before);
        kept.push_str(if escape == NUL { "\\\\u0000" } else { escape });
        rest = behind;
    }
    kept + rest
}

/// The longest duration that [`interval`] writes: a thousand years.
pub(crate) const INTERVAL_MAX: Duration = Duration::from_secs(1_000 * 365 * 86_400);

/// Writes a duration as a literal of type `interval`. A duration over a thousand years is cut.
///
/// Minutes and microseconds: before PostgreSQL 15 no field of an interval may be over 32 bits, and 36 minutes have more
/// microseconds than that.
pub(crate) fn interval(duration: Duration) -> String {
    const MINUTE: u128 = 60_000_000;
    let all = duration.min(INTERVAL_MAX).as_micros();
    format!("'{} minutes {} microseconds'::interval", all / MINUTE, all % MINUTE)
}

/// A statement of the simple protocol that fails where a policy hides rows from it, also on a session of a pooler, which
/// keeps no settings.
pub(crate) fn simple(statement: String) -> RawSql {
    sqlx::raw_sql(AssertSqlSafe(format!("{SEE_ALL_ROWS}\n{statement}")))
}

/// As [`simple`], behind another statement of the same transaction.
pub(crate) fn simple_behind(first: &str, statement: &str) -> RawSql {
    sqlx::raw_sql(AssertSqlSafe(format!("{first}{SEE_ALL_ROWS}\n{statement}")))
}

/// Runs a statement in the simple protocol, and returns its first row, if there is one.
pub(crate) async fn fetch_optional<T>(
    connection: impl PgExecutor<'_>,
    statement: String,
) -> Result<Option<T>, sqlx::Error>
where
    T: for<'r> FromRow<'r, PgRow>,
{
    let row = simple(statement).fetch_optional(connection).await?;
    row.map(|row| T::from_row(&row)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nul_in_a_text_is_kept_as_text() {
        for (text, kept) in [
            ("a\0b", r#"E'"a\\\\u0000b"'"#),
            ("\0\0", r#"E'"\\\\u0000\\\\u0000"'"#),
            // This is no NUL, but a backslash and five characters.
            (r"\u0000", r#"E'"\\\\u0000"'"#),
            (r"\", r#"E'"\\\\"'"#),
        ] {
            assert_eq!(json_literal(&text).unwrap(), kept, "{text:?}");
        }
        assert_eq!(json_literal(&"it's").unwrap(), "'\"it''s\"'");
    }

    #[test]
    fn no_field_of_an_interval_is_over_32_bits() {
        for (duration, literal) in [
            (Duration::ZERO, "'0 minutes 0 microseconds'::interval"),
            (Duration::from_millis(1_500), "'0 minutes 1500000 microseconds'::interval"),
            (Duration::from_micros(3_600_000_001), "'60 minutes 1 microseconds'::interval"),
            (Duration::MAX, "'525600000 minutes 0 microseconds'::interval"),
        ] {
            assert_eq!(interval(duration), literal);
        }
    }

    #[test]
    fn a_literal_is_ascii_whatever_it_says() {
        let literal = json_literal(&"a\u{e9}\u{1f600}").unwrap();
        assert!(literal.is_ascii() && literal.ends_with(" end)::jsonb"), "{literal}");
        assert!(literal.contains(r#"then E'"a\\u00e9\\ud83d\\ude00"'"#), "{literal}");
        assert!(literal.contains(r#"else E'"a\\\\u00e9\\\\ud83d\\\\ude00"'"#), "{literal}");
    }
}
