//! The order of messages within a batch: a state machine without I/O.

use serde_json::value::RawValue;

use super::protocol::{ActionMessage, IncomingMessage, ProtocolViolation, READY_AGAIN};
use crate::event::Position;
use crate::handlers::batch::Action;

/// The state of one batch: which of its events the program has answered.
#[derive(Debug)]
pub(super) struct BatchProtocol<'b> {
    batch: u64,
    /// The events of the batch, in order.
    events: &'b [Position],
    /// The number of events that are answered, counted from the first.
    answered: usize,
}

/// A message that the protocol allows at this point of the batch.
#[derive(Debug)]
pub(super) enum Received<'l> {
    /// The program has handled the event that was due, and wants these actions.
    Done(Vec<Action>),
    /// The program could not handle the event that was due. This ends the batch.
    Failed { error: String, detail: Option<String> },
    /// The program waits for a row.
    Read { table: String, key: &'l RawValue },
    /// The program has said so before, and has answered nothing of the batch since.
    ReadyAgain,
    /// A line for espd's log.
    Log { message: String, level: tracing::Level },
    /// All events are answered and the batch is over.
    End,
}

impl<'b> BatchProtocol<'b> {
    pub(super) fn new(batch: u64, events: &'b [Position]) -> Self {
        Self { batch, events, answered: 0 }
    }

    /// The number of events that are answered, counted from the first.
    pub(super) fn answered(&self) -> usize {
        self.answered
    }

    /// Whether all events are answered.
    pub(super) fn is_complete(&self) -> bool {
        self.answered == self.events.len()
    }

    /// Interprets the next line.
    pub(super) fn receive<'l>(&mut self, line: &'l str) -> Result<Received<'l>, ProtocolViolation> {
        match IncomingMessage::parse(line)? {
            IncomingMessage::Done { event, actions } => {
                self.require_due(event, "answered")?;
                let actions =
                    actions.into_iter().map(ActionMessage::into_action).collect::<Result<_, _>>()?;
                self.answered += 1;
                Ok(Received::Done(actions))
            }
            IncomingMessage::Failed { event, error, detail } => {
                self.require_due(event, "gave up")?;
                Ok(Received::Failed { error, detail })
            }
            IncomingMessage::Read { .. } if self.is_complete() => {
                Err(ProtocolViolation::new("asked for a row: `end` was due"))
            }
            IncomingMessage::Read { table, key } => Ok(Received::Read { table, key }),
            IncomingMessage::Log { message, level } => Ok(Received::Log { message, level }),
            IncomingMessage::End(batch) => self.end(batch),
            IncomingMessage::Ready(_) if self.answered == 0 => Ok(Received::ReadyAgain),
            IncomingMessage::Ready(_) => Err(ProtocolViolation::new(READY_AGAIN)),
        }
    }

    /// Requires that `event` is the one that is to be answered next.
    fn require_due(&self, event: Position, did: &str) -> Result<(), ProtocolViolation> {
        let due = self.events.get(self.answered);
        if due == Some(&event) {
            return Ok(());
        }
        let standing = match self.events.iter().position(|known| *known == event) {
            Some(place) if place < self.answered => "which it has answered before",
            Some(_) => "out of order",
            None => "which is not in the batch",
        };
        Err(ProtocolViolation(match due {
            Some(due) => format!("{did} event {event}, {standing}: event {due} was due"),
            None => format!("{did} event {event}, {standing}: `end` was due"),
        }))
    }

    fn end(&self, batch: u64) -> Result<Received<'static>, ProtocolViolation> {
        if batch != self.batch {
            return Err(ProtocolViolation(format!("ended batch {batch}, but this is batch {}", self.batch)));
        }
        match self.events.get(self.answered) {
            Some(due) => Err(ProtocolViolation(format!("ended the batch without an answer to event {due}"))),
            None => Ok(Received::End),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a batch of events 5, 6 and 9. Returns how many were answered, and what the last line meant.
    fn run_batch(lines: &[&str]) -> (usize, Result<String, String>) {
        let events = [5, 6, 9].map(Position::new);
        let mut protocol = BatchProtocol::new(7, &events);
        let mut last = Ok(String::new());
        for line in lines {
            last = match protocol.receive(line) {
                Ok(received) => {
                    Ok(format!("{received:?}").split([' ', '(']).next().unwrap_or_default().to_owned())
                }
                Err(violation) => Err(violation.0),
            };
            if last.is_err() {
                break;
            }
        }
        (protocol.answered(), last)
    }

    #[test]
    fn a_batch_is_answered_event_by_event_and_ended() {
        let (answered, last) = run_batch(&[
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
    fn an_event_that_cannot_be_handled_ends_the_batch() {
        let (answered, last) = run_batch(&[r#"{"done":5}"#, r#"{"failed":6,"error":"no"}"#]);
        assert_eq!((answered, last), (1, Ok("Failed".into())));
    }

    #[test]
    fn a_violation_says_what_was_due() {
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
            (&[r#"{"done":5}"#, r#"{"ready":1}"#], 1, "wrote `ready` again"),
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
            let (counted, last) = run_batch(lines);
            let violation = last.expect_err(&format!("{lines:?}"));
            assert_eq!(counted, answered, "{lines:?}");
            assert!(violation.starts_with(message), "{lines:?}: {violation}");
        }
    }
}
