//! The clock that says what is due.

use chrono::{DateTime, TimeDelta, Utc};

/// The last time that the clock may show. What is due later never comes.
pub(super) const END: DateTime<Utc> = match DateTime::from_timestamp(8_210_266_876_799, 0) {
    Some(time) => time,
    None => DateTime::<Utc>::MAX_UTC,
};

/// The computer's clock, which a test can set forward.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Clock {
    ahead: TimeDelta,
}

impl Clock {
    pub(super) fn now(&self) -> DateTime<Utc> {
        Utc::now().checked_add_signed(self.ahead).map_or(END, |now| now.min(END))
    }

    /// The time that events are given; `None`: that of the store, because the clock was never set.
    pub(super) fn time_of_events(&self) -> Option<DateTime<Utc>> {
        (!self.ahead.is_zero()).then(|| self.now())
    }

    /// Sets the clock forward to a time. One that is over changes nothing.
    pub(super) fn set(&mut self, time: DateTime<Utc>) {
        self.ahead = self.ahead.max(time - Utc::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_goes_forward_only() {
        let mut clock = Clock::default();
        assert_eq!(clock.time_of_events(), None);
        let later = Utc::now() + TimeDelta::hours(1);
        clock.set(later);
        assert!(clock.now() >= later && clock.time_of_events().is_some());
        clock.set(Utc::now());
        assert!(clock.now() >= later);
        clock.set(DateTime::<Utc>::MAX_UTC);
        assert_eq!(clock.now(), END);
        assert!(END < DateTime::<Utc>::MAX_UTC);
    }
}
