//! Since which event a row differs from what its events say: its events are handled again, one after the other, and after each of
//! them the row is compared with the one that was found.

use serde::Serialize;

use crate::event::Position;

/// An event, for people to look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct EventAt {
    /// Its position.
    pub(crate) id: Position,
    /// Its type.
    #[serde(rename = "type")]
    pub(crate) event_type: String,
    /// When it happened, as RFC 3339; or `infinity`.
    pub(crate) created_at: String,
}

/// What is known of how a row has come to differ. The field names are an interface: `--json` prints them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Since {
    /// The first event whose effect is not in the row: the row is what it was before. `None`: after no event was it ever so.
    pub(crate) event: Option<EventAt>,
    /// How many events after that one have changed the row.
    pub(crate) later: i64,
    /// How many events have changed the row.
    pub(crate) changes: i64,
    /// The last one of them.
    pub(crate) last: Option<EventAt>,
    /// Where the handlers have changed since: rows of events at or below it were made by others.
    pub(crate) handlers_changed_at: Option<Position>,
}

/// A row, while its events are handled again.
#[derive(Debug)]
pub(crate) struct Trace {
    found: Option<String>,
    now: Option<String>,
    /// Whether the row was ever as it was found.
    was_ever: bool,
    /// The first event after which it was not so any more.
    left_at: Option<EventAt>,
    later: i64,
    changes: i64,
    last: Option<EventAt>,
}

impl Trace {
    /// `found`: the row in the serving table; `now`: the row before the first event. `None`: there is none.
    pub(crate) fn new(found: Option<String>, now: Option<String>) -> Self {
        Self { was_ever: found == now, found, now, left_at: None, later: 0, changes: 0, last: None }
    }

    /// What the row is after an event.
    pub(crate) fn observe(&mut self, event: &EventAt, now: Option<String>) {
        if now == self.now {
            return;
        }
        self.changes += 1;
        self.last = Some(event.clone());
        if now == self.found {
            (self.was_ever, self.left_at, self.later) = (true, None, 0);
        } else if self.left_at.is_none() {
            self.left_at = Some(event.clone());
        } else {
            self.later += 1;
        }
        self.now = now;
    }

    /// What follows from all of it.
    pub(crate) fn conclude(self, handlers_changed_at: Option<Position>) -> Since {
        let event = self.left_at.filter(|_| self.was_ever);
        let later = if event.is_some() { self.later } else { 0 };
        Since { event, later, changes: self.changes, last: self.last, handlers_changed_at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(found: &str, states: &[&str]) -> (Option<i64>, i64, i64) {
        let row = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let mut trace = Trace::new(row(found), None);
        for (place, state) in states.iter().enumerate() {
            let event = EventAt {
                id: Position::new(place as i64 + 1),
                event_type: "A".to_owned(),
                created_at: String::new(),
            };
            trace.observe(&event, row(state));
        }
        let since = trace.conclude(None);
        (since.event.map(|event| event.id.get()), since.later, since.changes)
    }

    #[test]
    fn a_row_differs_since_the_event_after_which_it_was_last_as_it_was_found() {
        assert_eq!(trace("b", &["a", "b", "c", "c", "d"]), (Some(3), 1, 4));
        assert_eq!(trace("b", &["b", "c", "b", "d"]), (Some(4), 0, 4), "what it has left and come back to");
        assert_eq!(trace("", &["a", "b"]), (Some(1), 1, 2), "a row that is not there");
        assert_eq!(trace("x", &["a", "b"]), (None, 0, 2), "what no event has made");
        assert_eq!(trace("x", &[]), (None, 0, 0));
    }
}
