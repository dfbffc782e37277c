//! Times on the command line, most of them of the past.

use chrono::{DateTime, TimeDelta, Utc};

use crate::config::parse_duration;

/// A moment, or how long ago it was.
///
/// # Errors
/// What to write instead.
pub(super) fn parse_moment(text: &str) -> Result<DateTime<Utc>, String> {
    let ago = || TimeDelta::from_std(parse_duration(text).ok()?).ok();
    let moment = text.parse().ok().or_else(|| Utc::now().checked_sub_signed(ago()?));
    moment.ok_or_else(|| {
        "write a time like 2026-01-31T18:00:00Z (RFC 3339), or how long ago it was: 90s, 1h, 7d".to_owned()
    })
}

/// A time that may be to come.
///
/// # Errors
/// What to write instead.
pub(super) fn parse_time(text: &str) -> Result<DateTime<Utc>, String> {
    text.parse().map_err(|_| "write a time with a zone like 2026-01-31T18:00:00Z (RFC 3339)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_how_long_ago_it_was() {
        assert_eq!(parse_moment("2026-01-31T18:00:00Z").unwrap().timestamp(), 1_769_882_400);
        let an_hour_ago = parse_moment("1h").unwrap();
        let ago = Utc::now() - an_hour_ago;
        assert!((3_600..3_660).contains(&ago.num_seconds()), "{ago}");
        for wrong in ["", "yesterday", "2026-01-31", "-1h", "99999999999d"] {
            assert!(parse_moment(wrong).unwrap_err().contains("RFC 3339"), "{wrong}");
            assert!(parse_time(wrong).unwrap_err().contains("RFC 3339"), "{wrong}");
        }
    }
}
