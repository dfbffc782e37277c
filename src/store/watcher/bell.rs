//! Asks the functions that append to wake a watcher that waits for long (migrations/event_store, `set_bell`).
//!
//! A notification of every append would make writers take turns at their commits. So they notify only while the bell is set,
//! and the first few of them only. Whoever sets it has to look at the store once more before waiting: a writer draws the ids of its
//! events before it looks at the bell.

use std::time::{Duration, Instant};

use super::WatcherSettings;
use super::pace::Wait;
use crate::store::layout::Layout;

/// Shorter waits are not worth a statement.
const WAIT_MIN: Duration = Duration::from_millis(10);

/// How much longer than the longest wait the bell stays set. It is not set again before each look, because that would be a
/// statement for each of them while nothing happens. A watcher that has died costs eight notifications at most, however long that is.
const MARGIN: Duration = Duration::from_secs(599);

/// What one connection knows of the bell.
#[derive(Debug)]
pub(super) struct Bell {
    /// Sets the bell. `None`: there is none for this watcher.
    statement: Option<String>,
    /// How long it stays set.
    term: Duration,
    /// When it was set last, unless it may have been rung since.
    set: Option<Instant>,
}

impl Bell {
    /// The bell of this store, where there is one.
    pub(super) fn new(layout: &Layout, settings: &WatcherSettings) -> Self {
        let longest = settings.idle_interval.max(settings.held_interval).max(settings.shortest_interval);
        let term = longest.saturating_add(MARGIN);
        let statement = layout.append.as_ref().map(|append| {
            format!("-- set_bell\nselect {}({}::float8) as is_set", append.set_bell, term.as_secs_f64())
        });
        Self { statement, term, set: None }
    }

    /// Whether it has to be set before a wait as long as this one.
    pub(super) fn is_wanted(&self, wait: Wait) -> bool {
        let is_set = self.set.is_some_and(|set| set.elapsed().saturating_add(wait.longest) <= self.term);
        self.statement.is_some() && wait.at_most >= WAIT_MIN && wait.at_least < wait.at_most && !is_set
    }

    /// Whether writers ring it now, as far as is known.
    pub(super) fn is_set(&self) -> bool {
        self.set.is_some_and(|set| set.elapsed() <= self.term)
    }

    pub(super) fn statement(&self) -> Option<String> {
        self.statement.clone()
    }

    /// Takes that the statement was carried out. Where it cannot set the bell, it is not tried again.
    pub(super) fn note(&mut self, is_set: bool) {
        self.set = is_set.then(Instant::now);
        if !is_set {
            self.statement = None;
        }
    }

    /// Takes that writers may have rung: only the first ones do.
    pub(super) fn forget(&mut self) {
        self.set = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bell() -> Bell {
        Bell::new(&Layout::espd("espd").unwrap(), &WatcherSettings::default())
    }

    fn wait(milliseconds: u64) -> Wait {
        let time = Duration::from_millis(milliseconds);
        Wait { at_least: Duration::ZERO, at_most: time, longest: time }
    }

    #[test]
    fn it_is_set_once_before_long_waits_and_again_after_it_may_have_been_rung() {
        let mut bell = bell();
        assert!(!bell.is_wanted(wait(5)) && bell.is_wanted(wait(1000)));
        bell.note(true);
        assert!(!bell.is_wanted(wait(900)));
        bell.forget();
        assert!(bell.is_wanted(wait(900)));
    }

    #[test]
    fn it_covers_the_whole_of_the_wait_and_ends_ten_minutes_after_its_setting() {
        let mut bell = bell();
        assert_eq!(bell.term, Duration::from_mins(10));
        bell.set = Instant::now().checked_sub(Duration::from_millis(599_500));
        assert!(bell.is_wanted(wait(1000)) && !bell.is_wanted(wait(100)));
        let at_rest = Wait { longest: Duration::from_mins(5), ..wait(100) };
        assert!(bell.is_wanted(at_rest), "it may last as long");
    }

    #[test]
    fn it_is_not_set_where_it_cannot_be_rung_or_no_notification_ends_the_wait() {
        let mut bell = bell();
        assert!(!bell.is_wanted(Wait { at_least: Duration::from_secs(1), ..wait(1000) }));
        bell.note(false);
        assert!(!bell.is_wanted(wait(1000)));
    }
}
