//! When an event is to be emitted.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::event::StoredTime;
use crate::postgres::literal::{INTERVAL_MAX, interval};
use crate::postgres::quote::quote_literal;

/// When an event is to be emitted, by the clock of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Due {
    /// With the position of the reactor.
    #[default]
    AtOnce,
    /// At this time.
    At(DateTime<Utc>),
    /// This long after the emission has been stored, which happens with the position of the reactor. No other clock than that
    /// of the database counts it. At most a thousand years.
    After(Duration),
}

impl Due {
    /// After a delay.
    ///
    /// # Errors
    /// It is longer than a thousand years.
    pub(crate) fn after(delay: Duration) -> Result<Self, &'static str> {
        if delay > INTERVAL_MAX {
            Err("the delay is longer than a thousand years")
        } else {
            Ok(Self::After(delay))
        }
    }

    /// The time as an expression in SQL.
    pub(super) fn expression(self) -> String {
        match self {
            Self::AtOnce => "clock_timestamp()".to_owned(),
            Self::At(time) => {
                format!("{}::timestamptz", quote_literal(&StoredTime::at_least_first(time).to_string()))
            }
            Self::After(delay) => format!("clock_timestamp() + {}", interval(delay)),
        }
    }
}

/// What stands behind "emitted": nothing, or the time.
impl fmt::Display for Due {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtOnce => Ok(()),
            Self::At(time) => write!(f, " at {time}"),
            Self::After(delay) => write!(f, " after {} s", delay.as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_counted_by_the_server_and_a_time_is_written_as_it_reads_it() {
        assert_eq!(Due::AtOnce.expression(), "clock_timestamp()");
        let delay = Due::After(Duration::from_millis(1_500));
        assert_eq!(delay.expression(), "clock_timestamp() + '0 minutes 1500000 microseconds'::interval");
        let far = DateTime::from_timestamp(253_402_300_800, 0).unwrap();
        let first = Due::At(DateTime::<Utc>::MIN_UTC).expression();
        assert_eq!(first, "'4714-11-24T00:00:00+00:00 BC'::timestamptz");
        assert_eq!(Due::At(far).expression(), "'10000-01-01T00:00:00+00:00'::timestamptz");
    }
}
