//! How long to wait before the next look. Pure: what was seen goes in, a wait comes out.

use std::time::Duration;

use super::WatcherSettings;

/// Ids that make a look a busy one: then events come faster than looks, and looking more often would
/// cost the writers more than it gives the readers.
const BUSY: i64 = 16;

/// What a look has found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    /// Ids that were drawn or settled since the look before.
    pub(super) moved: i64,
    /// Whether ids are drawn that are not settled yet.
    pub(super) held: bool,
}

/// A wait that a bell may end early, but not before `at_least`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wait {
    pub(super) at_least: Duration,
    pub(super) at_most: Duration,
}

/// The interval between looks: short while events arrive, growing when nothing happens.
#[derive(Debug)]
pub(super) struct Pace {
    settings: WatcherSettings,
    interval: Duration,
    /// Whether a bell has rung since the last wait was chosen.
    rung: bool,
}

impl Pace {
    pub(super) fn new(settings: &WatcherSettings) -> Self {
        Self { settings: settings.clone(), interval: settings.shortest_interval, rung: false }
    }

    /// A bell has rung: something may have happened.
    pub(super) fn quicken(&mut self) {
        self.interval = self.settings.shortest_interval;
        self.rung = true;
    }

    /// The wait after a look. A bell ends it at once, but no two waits in a row: writers that ring for
    /// every event must not make us look for every event.
    pub(super) fn wait_after(&mut self, look: Look) -> Wait {
        let rung = std::mem::take(&mut self.rung);
        let WatcherSettings { shortest_interval, busy_interval, held_interval, idle_interval, .. } =
            self.settings;
        if look.moved >= BUSY {
            // Bells are not worth an answer here: the next look comes soon and finds a lot.
            self.interval = self.grown(busy_interval);
            return Wait { at_least: self.interval, at_most: self.interval };
        }
        self.interval = match look {
            Look { moved: 1.., .. } => shortest_interval,
            Look { held: true, .. } => self.grown(held_interval),
            Look { held: false, .. } => self.grown(idle_interval),
        };
        Wait { at_least: if rung { shortest_interval } else { Duration::ZERO }, at_most: self.interval }
    }

    /// Half as long again as the last interval, up to `longest`.
    fn grown(&self, longest: Duration) -> Duration {
        (self.interval * 3 / 2).min(longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Look = Look { moved: 0, held: false };
    const HELD: Look = Look { moved: 0, held: true };

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
        let wait = pace.wait_after(Look { moved: 1, held: false });
        assert_eq!(wait.at_most, settings.shortest_interval);
    }

    #[test]
    fn a_held_horizon_is_looked_at_more_often_than_an_idle_store() {
        let settings = WatcherSettings::default();
        let mut pace = Pace::new(&settings);
        settle(&mut pace, NOTHING);
        assert_eq!(pace.wait_after(HELD).at_most, settings.held_interval);
    }

    #[test]
    fn a_bell_shortens_a_wait_unless_events_come_faster_than_looks() {
        let settings = WatcherSettings::default();
        let mut pace = Pace::new(&settings);
        let busy = settle(&mut pace, Look { moved: BUSY, held: true });
        assert_eq!(busy, Wait { at_least: settings.busy_interval, at_most: settings.busy_interval });
        let idle = settle(&mut pace, NOTHING);
        assert_eq!(idle, Wait { at_least: Duration::ZERO, at_most: settings.idle_interval });
        pace.quicken();
        let rung = pace.wait_after(NOTHING);
        assert!(rung.at_most <= 2 * settings.shortest_interval);
        assert_eq!(rung.at_least, settings.shortest_interval, "the next bell has to wait");
        assert_eq!(pace.wait_after(NOTHING).at_least, Duration::ZERO);
    }
}
