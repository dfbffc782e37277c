//! Decides how long to wait before the next look. Pure: what was seen goes in, a wait comes out.

use std::time::Duration;

use super::WatcherSettings;

/// How long the writers' events of one second are worth waiting for: at 1,000 events per second 4 ms.
///
/// A look, and the batch that follows it, cost about as much as an append or two. So at a high rate looks have to be
/// rare in comparison, and at a low rate they do not matter.
const WAIT_PER_EVENT_PER_SECOND: Duration = Duration::from_micros(4);

/// The time over which the rate is averaged: one append of many events is not a rate.
const RATE_WINDOW: Duration = Duration::from_millis(100);

/// How many times longer the interval becomes where nothing has happened for long and writers wake who waits.
const QUIET_TIMES: u32 = 5;

/// Longest time without a look in such a store while runners find that nothing is drawn.
const REST_MAX: Duration = Duration::from_mins(5);

/// How long looks are as frequent as before after an event that came unannounced: others like it may follow.
const SURPRISED_FOR: Duration = Duration::from_secs(3600);

/// More ids per second than writers can draw.
const RATE_MAX: f64 = 1e6;

/// What a look has found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    /// Ids that were drawn or settled since the look before; negative in a store that has gone back.
    pub(super) moved: i64,
    /// Whether ids are drawn that are not settled yet.
    pub(super) held: bool,
    /// Whether writers were asked to wake who waits.
    pub(super) is_bell_set: bool,
    /// Time since the look before.
    pub(super) elapsed: Duration,
}

/// A wait that a notification may end early, but not before `at_least`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wait {
    pub(super) at_least: Duration,
    pub(super) at_most: Duration,
    /// How long it lasts at most while runners read again and again that nothing has been drawn.
    pub(super) longest: Duration,
}

/// The interval between looks: short while events arrive, growing when nothing happens.
#[derive(Debug)]
pub(super) struct Pace {
    settings: WatcherSettings,
    interval: Duration,
    /// Whether a notification has arrived since the last wait was chosen.
    notified: bool,
    /// Ids per second, lately.
    rate: f64,
    /// How long nothing has happened.
    quiet: Duration,
    /// How much longer writers that wake nobody are reckoned with.
    surprised: Duration,
}

impl Pace {
    pub(super) fn new(settings: &WatcherSettings) -> Self {
        Self {
            settings: settings.clone(),
            interval: settings.shortest_interval,
            notified: false,
            rate: 0.0,
            quiet: Duration::ZERO,
            surprised: Duration::ZERO,
        }
    }

    /// Whether a notification has arrived since the last wait was chosen.
    pub(super) fn is_notified(&self) -> bool {
        self.notified
    }

    /// Takes that a notification has arrived: something may have happened.
    pub(super) fn quicken(&mut self) {
        self.interval = self.settings.shortest_interval;
        self.notified = true;
    }

    /// The wait after a look. A notification ends it at once; but if the one before has led to nothing, it has to wait for a
    /// while, so that whoever notifies for nothing does not keep the watcher busy. Those of many events are not waited for.
    pub(super) fn wait_after(&mut self, look: Look) -> Wait {
        let notified = std::mem::take(&mut self.notified);
        let WatcherSettings { shortest_interval, busy_interval, held_interval, idle_interval, .. } =
            self.settings;
        self.note_rate(look);
        let is_at_rest = self.is_at_rest(look, notified);
        let longest_idle = if is_at_rest { idle_interval.saturating_mul(QUIET_TIMES) } else { idle_interval };
        let busy = Duration::try_from_secs_f64(WAIT_PER_EVENT_PER_SECOND.as_secs_f64() * self.rate)
            .map_or(busy_interval, |wait| wait.min(busy_interval));
        if busy > shortest_interval {
            // No notification is worth an answer here: the next look comes soon and finds a lot.
            self.interval = busy;
            return Wait { at_least: busy, at_most: busy, longest: busy };
        }
        self.interval = match look {
            Look { moved: 1.., .. } => shortest_interval,
            Look { held: true, .. } => self.grown(held_interval),
            Look { held: false, .. } => self.grown(longest_idle),
        };
        let in_vain = notified && look.moved <= 0;
        Wait {
            at_least: if in_vain { shortest_interval } else { Duration::ZERO },
            at_most: self.interval,
            longest: if is_at_rest { self.interval.max(REST_MAX) } else { self.interval },
        }
    }

    /// Whether looks may be rare: nothing has happened for long, and the writers of the store wake who waits. The first event
    /// that comes unannounced shows that not all of them do.
    fn is_at_rest(&mut self, look: Look, notified: bool) -> bool {
        let quiet_after = self.settings.quiet_after;
        let was_quiet = self.quiet >= quiet_after;
        self.surprised = self.surprised.saturating_sub(look.elapsed);
        if look.moved != 0 || look.held {
            self.quiet = Duration::ZERO;
            if was_quiet && !notified {
                self.surprised = SURPRISED_FOR;
            }
        } else {
            self.quiet = self.quiet.saturating_add(look.elapsed);
        }
        look.is_bell_set && self.surprised.is_zero() && self.quiet >= quiet_after
    }

    /// Moves the rate towards that of the last look, the more the longer it took.
    fn note_rate(&mut self, look: Look) {
        let seconds = look.elapsed.as_secs_f64().max(1e-6);
        let weight = 1.0 - (-seconds / RATE_WINDOW.as_secs_f64()).exp();
        // A head that has gone back has not moved on, and one that was set far ahead by `setval` is no flood of events.
        let seen = (look.moved.max(0) as f64 / seconds).min(RATE_MAX);
        self.rate += (seen - self.rate) * weight;
    }

    /// Half as long again as the last interval, up to `longest`.
    fn grown(&self, longest: Duration) -> Duration {
        (self.interval * 3 / 2).min(longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Look =
        Look { moved: 0, held: false, is_bell_set: false, elapsed: Duration::from_millis(10) };
    const HELD: Look = Look { held: true, ..NOTHING };
    /// 200 events per second.
    const CALM: Look = Look { moved: 2, ..NOTHING };
    /// 20,000 events per second.
    const BUSY: Look = Look { moved: 200, held: true, ..NOTHING };

    fn settle(pace: &mut Pace, look: Look) -> Wait {
        for _ in 0..100 {
            pace.wait_after(look);
        }
        pace.wait_after(look)
    }

    #[test]
    fn the_interval_grows_to_its_cap_and_shrinks_at_once() {
        let settings = WatcherSettings::default();
        let mut pace = Pace::new(&settings);
        let second = (pace.wait_after(NOTHING), pace.wait_after(NOTHING)).1;
        assert!(second.at_most > settings.shortest_interval && second.at_most < settings.idle_interval);
        assert_eq!(settle(&mut pace, NOTHING).at_most, settings.idle_interval);
        let wait = pace.wait_after(CALM);
        assert_eq!(wait.at_most, settings.shortest_interval);
    }

    #[test]
    fn a_head_that_goes_back_is_no_rate() {
        let settings = WatcherSettings::default();
        let mut pace = Pace::new(&settings);
        let wait = pace.wait_after(Look { moved: -1_000_000, ..NOTHING });
        assert!(wait.at_most <= settings.idle_interval);
        assert_eq!(pace.rate, 0.0);
    }

    #[test]
    fn a_held_horizon_is_looked_at_more_often_than_an_idle_store() {
        let settings = WatcherSettings::default();
        let mut pace = Pace::new(&settings);
        settle(&mut pace, NOTHING);
        assert_eq!(pace.wait_after(HELD).at_most, settings.held_interval);
    }

    #[test]
    fn a_notification_shortens_a_wait_unless_events_come_faster_than_looks() {
        let settings = WatcherSettings::default();
        let mut pace = Pace::new(&settings);
        let busy = settle(&mut pace, BUSY);
        let always = settings.busy_interval;
        assert_eq!(busy, Wait { at_least: always, at_most: always, longest: always });
        let idle = settle(&mut pace, NOTHING);
        let second = settings.idle_interval;
        assert_eq!(idle, Wait { at_least: Duration::ZERO, at_most: second, longest: second });
        pace.quicken();
        let after_one = pace.wait_after(NOTHING);
        assert!(after_one.at_most <= 2 * settings.shortest_interval);
        assert_eq!(after_one.at_least, settings.shortest_interval, "the next notification has to wait");
        pace.quicken();
        assert_eq!(pace.wait_after(CALM).at_least, Duration::ZERO, "it has led to something");
        assert_eq!(pace.wait_after(NOTHING).at_least, Duration::ZERO);
    }

    #[test]
    fn looks_are_rare_after_a_quiet_time_where_writers_ring_until_an_event_comes_unannounced() {
        let settings = WatcherSettings::default();
        let quiet = Look { is_bell_set: true, elapsed: Duration::from_secs(1), ..NOTHING };
        let mut pace = Pace::new(&settings);
        let at_rest = settle(&mut pace, quiet);
        assert_eq!((at_rest.at_most, at_rest.longest), (settings.idle_interval * 5, REST_MAX));
        let unrung = settle(&mut pace, Look { is_bell_set: false, ..quiet });
        assert_eq!((unrung.at_most, unrung.longest), (settings.idle_interval, settings.idle_interval));
        settle(&mut pace, quiet);
        pace.quicken();
        pace.wait_after(Look { moved: 1, ..quiet });
        assert_eq!(settle(&mut pace, quiet).at_most, settings.idle_interval * 5, "it was announced");
        pace.wait_after(Look { moved: 1, ..quiet });
        assert_eq!(settle(&mut pace, quiet).at_most, settings.idle_interval);
        pace.wait_after(Look { elapsed: SURPRISED_FOR, ..quiet });
        assert_eq!(settle(&mut pace, quiet).at_most, settings.idle_interval * 5);
    }

    #[test]
    fn ids_that_are_set_far_ahead_are_no_reason_to_look_more_seldom_than_busy() {
        let settings = WatcherSettings::default();
        let mut pace = Pace::new(&settings);
        let jump = Look { moved: i64::MAX, elapsed: Duration::ZERO, ..NOTHING };
        assert!(pace.wait_after(jump).at_most <= settings.busy_interval);
        assert_eq!(settle(&mut pace, NOTHING).at_most, settings.idle_interval);
    }

    #[test]
    fn it_looks_less_often_only_while_many_events_arrive() {
        let settings = WatcherSettings::default();
        let mut pace = Pace::new(&settings);
        // However fast the looks follow one another, and however little each of them finds.
        let quick = Look { moved: 8, elapsed: Duration::from_millis(1), ..HELD };
        assert!(settle(&mut pace, quick).at_least > settings.busy_interval / 2);
        assert_eq!(settle(&mut pace, CALM).at_most, settings.shortest_interval);
    }
}
