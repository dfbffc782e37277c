//! What may be said when in a batch: a state machine without I/O.

use chrono::Utc;
use serde_json::value::RawValue;

use super::protocol::{Message, Wrong};
use crate::event::Position;
use crate::handlers::batch::Action;

/// The answers to one batch, as far as they have come.
#[derive(Debug)]
pub(super) struct Conversation<'b> {
    batch: u64,
    /// The events of the batch, in order.
    events: &'b [Position],
    /// How many of them are answered.
    answered: usize,
}

/// What a message means.
#[derive(Debug)]
pub(super) enum Heard<'l> {
    /// The event that was due is handled.
    Done(Vec<Action>),
    /// The event that was due cannot be handled. Nothing more is said.
    Failed { error: String, detail: Option<String> },
    /// It waits for a row.
    Read { table: String, key: &'l RawValue },
    /// It has something to say to people.
    Log { message: String, level: tracing::Level },
    /// All events are handled, and nothing more is said.
    End,
}

impl<'b> Conversation<'b> {
    pub(super) fn new(batch: u64, events: &'b [Position]) -> Self {
        Self { batch, events, answered: 0 }
    }

    /// How many events are answered: the first ones.
    pub(super) fn answered(&self) -> usize {
        self.answered
    }

    /// Whether all events are answered.
    pub(super) fn is_complete(&self) -> bool {
        self.answered == self.events.len()
    }

    /// What a line means now.
    pub(super) fn hear<'l>(&mut self, line: &'l str) -> Result<Heard<'l>, Wrong> {
        match Message::parse(line)? {
            Message::Done { event, actions } => {
                self.require_due(event, "answered")?;
                let now = Utc::now();
                let actions =
                    actions.into_iter().map(|said| said.understand(now)).collect::<Result<_, _>>()?;
                self.answered += 1;
                Ok(Heard::Done(actions))
            }
            Message::Failed { event, error, detail } => {
                self.require_due(event, "gave up")?;
                Ok(Heard::Failed { error, detail })
            }
            Message::Read { .. } if self.is_complete() => Err(Wrong::new("asked for a row: `end` was due")),
            Message::Read { table, key } => Ok(Heard::Read { table, key }),
            Message::Log { message, level } => Ok(Heard::Log { message, level }),
            Message::End(batch) => self.end(batch),
            Message::Ready(_) => Err(Wrong::new("wrote `ready` again")),
        }
    }

    fn require_due(&self, event: Position, did: &str) -> Result<(), Wrong> {
        let due = self.events.get(self.answered);
        if due == Some(&event) {
            return Ok(());
        }
        let standing = match self.events.iter().position(|known| *known == event) {
            Some(place) if place < self.answered => "which it has answered before",
            Some(_) => "out of order",
            None => "which is not in the batch",
        };
        Err(Wrong(match due {
            Some(due) => format!("{did} event {event}, {standing}: event {due} was due"),
            None => format!("{did} event {event}, {standing}: `end` was due"),
        }))
    }

    fn end(&self, batch: u64) -> Result<Heard<'static>, Wrong> {
        if batch != self.batch {
            return Err(Wrong(format!("ended batch {batch}, but this is batch {}", self.batch)));
        }
        match self.events.get(self.answered) {
            Some(due) => Err(Wrong(format!("ended the batch without an answer to event {due}"))),
            None => Ok(Heard::End),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a batch of events 5, 6 and 9 comes to: how many are answered, and what the last line was.
    fn hold(lines: &[&str]) -> (usize, Result<String, String>) {
        let mut conversation = Conversation::new(7, &[5, 6, 9]);
        let mut last = Ok(String::new());
        for line in lines {
            last = match conversation.hear(line) {
                Ok(heard) => Ok(format!("{heard:?}").split([' ', '(']).next().unwrap_or_default().to_owned()),
                Err(wrong) => Err(wrong.0),
            };
            if last.is_err() {
                break;
            }
        }
        (conversation.answered(), last)
    }

    #[test]
    fn a_batch_is_answered_event_by_event_and_ended() {
        let (answered, last) = hold(&[
            r#"{"done":5}"#,
            r#"{"log":"half way"}"#,
            r#"{"read":"todos","key":{}}"#,
            r#"{"done":6,"actions":[]}"#,
            r#"{"done":9}"#,
            r#"{"end":7}"#,
        ]);
        assert_eq!((answered, last), (3, Ok("End".into())));
    }

    #[test]
    fn an_event_that_cannot_be_handled_ends_it() {
        let (answered, last) = hold(&[r#"{"done":5}"#, r#"{"failed":6,"error":"no"}"#]);
        assert_eq!((answered, last), (1, Ok("Failed".into())));
    }

    #[test]
    fn every_wrong_answer_is_told_by_what_was_due() {
        let cases: [(&[&str], usize, &str); 13] = [
            (&[r#"{"done":5,"actions":[{"upsert":"t"}]}"#], 0, "wrote an action `upsert` without `row`"),
            (
                &[r#"{"done":5}"#, r#"{"done":6}"#, r#"{"done":9}"#, r#"{"read":"t","key":{}}"#],
                3,
                "asked for a row: `end` was due",
            ),
            (&[r#"{"done":6}"#], 0, "answered event 6, out of order: event 5 was due"),
            (
                &[r#"{"done":5}"#, r#"{"done":5}"#],
                1,
                "answered event 5, which it has answered before: event 6 was due",
            ),
            (&[r#"{"done":7}"#], 0, "answered event 7, which is not in the batch: event 5 was due"),
            (&[r#"{"failed":9,"error":"x"}"#], 0, "gave up event 9, out of order: event 5 was due"),
            (&[r#"{"done":5}"#, r#"{"end":7}"#], 1, "ended the batch without an answer to event 6"),
            (&[r#"{"end":6}"#], 0, "ended batch 6, but this is batch 7"),
            (&[r#"{"ready":1}"#], 0, "wrote `ready` again"),
            (
                &[r#"{"done":5}"#, r#"{"done":6}"#, r#"{"done":9}"#, r#"{"done":9}"#],
                3,
                "answered event 9, which it has answered before: `end` was due",
            ),
            (&["{}"], 0, "wrote a line that is no message: {}"),
            (&["[1]"], 0, "wrote a line that is no message: "),
            (&[r#"{"done":5}"#, "not json"], 1, "wrote a line that is no message: not json"),
        ];
        for (lines, answered, message) in cases {
            let (counted, last) = hold(lines);
            let wrong = last.expect_err(&format!("{lines:?}"));
            assert_eq!(counted, answered, "{lines:?}");
            assert!(wrong.starts_with(message), "{lines:?}: {wrong}");
        }
    }
}
