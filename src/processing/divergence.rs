//! A divergence: how an event store differs from what a tracker remembers of it, in words for operators.
//!
//! The rules are pure. `history` reads what they are about.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::event::Position;
use crate::process::hook::DivergenceFacts;
use crate::processing::partitions::PartitionChange;
use crate::processing::triggers::UnmetTriggers;
use crate::store::witness::{Standing, StoredEvent, Witness};

/// How a store differs from the one that a processor has followed. The field names are an interface: `espctl status --json`
/// prints them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// What was found.
    pub kind: DivergenceKind,
    /// The processor's position.
    pub position: Position,
    /// The last event that the processor has read, whatever its type; `None`: not known.
    pub event_id: Option<Position>,
    /// The uuid of that event.
    pub event_uuid: Option<Uuid>,
    /// The last event that is known to be in the store as it was read; 0 if none is known.
    pub last_common: Position,
    /// The last id of the store, when that was found.
    pub head: Position,
    /// The partition of the table of events that is gone or was added.
    #[serde(default)]
    pub partition: Option<String>,
    /// When that was found.
    #[serde(default)]
    pub at: Option<DateTime<Utc>>,
}

/// How a store differs from the one that was followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DivergenceKind {
    /// The last event that was read is gone. The store has gone back, or the event was deleted.
    EventGone,
    /// The last event that was read is gone, but later ones that others have read are there. So the event was deleted.
    EventDeleted,
    /// Other events are where the last events were that were read.
    EventReplaced,
    /// Events that nobody has handled have appeared at or below the position.
    EventsAppeared,
    /// The position is beyond the last id of the store.
    BeyondHead,
    /// A partition of the table of events was taken out that has events beyond the position.
    PartitionGone,
    /// A partition of the table of events was added that has events at or below the position.
    PartitionAdded,
    /// A trigger of a synchronous projector is not there, so events beyond the position may not have been handled.
    TriggerMissing,
    /// A trigger of a synchronous projector does not run, or not in all sessions, so events beyond the position may not have been
    /// handled.
    TriggerDisabled,
    /// A trigger of a synchronous projector was disabled or missing for a while, so events beyond the position may not have been
    /// handled.
    TriggerChanged,
}

impl DivergenceKind {
    /// Whether it is the triggers of a synchronous projector that may have missed events, in the store that was followed.
    pub(crate) fn is_of_triggers(self) -> bool {
        matches!(self, Self::TriggerMissing | Self::TriggerDisabled | Self::TriggerChanged)
    }
}

/// What is known of one tracker and of the store that it follows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'f> {
    pub(crate) position: Position,
    /// What the store has to say still.
    pub(crate) witness: Option<Witness>,
    /// What it says.
    pub(crate) standing: Standing,
    pub(crate) head: Position,
    /// Events that processors have read at or below the position.
    pub(crate) earlier: &'f [StoredEvent],
    /// Those events of the store that have the ids of `earlier`.
    pub(crate) stored: &'f [StoredEvent],
}

impl Divergence {
    /// Describes a store that contradicts what is remembered of it.
    pub(crate) fn of(facts: Facts<'_>) -> Self {
        let Facts { position, witness, head, earlier, .. } = facts;
        let last_read = witness.map_or(position, |witness| witness.id);
        let witness = witness.and_then(|witness| witness.event());
        let common = earlier.iter().filter(|event| facts.has(event)).map(|event| event.id);
        Self {
            kind: facts.kind(),
            position,
            event_id: witness.map(|witness| witness.id),
            event_uuid: witness.map(|witness| witness.uuid),
            last_common: common.filter(|id| *id <= last_read.min(head)).max().unwrap_or_default(),
            head,
            partition: None,
            at: None,
        }
    }

    /// Describes a change of the partitions of the table of events.
    pub(crate) fn of_partitions(
        position: Position,
        witness: Option<Witness>,
        head: Position,
        change: &PartitionChange,
    ) -> Self {
        let (kind, name, last_common) = match change {
            PartitionChange::Gone { name } => (DivergenceKind::PartitionGone, name, position),
            PartitionChange::Added { name, first } => {
                (DivergenceKind::PartitionAdded, name, first.previous())
            }
        };
        Self {
            kind,
            position,
            event_id: witness.map(|witness| witness.id),
            event_uuid: witness.map(|witness| witness.uuid),
            last_common,
            head,
            partition: Some(name.clone()),
            at: None,
        }
    }

    /// Describes triggers that may have missed events behind the position.
    pub(crate) fn of_triggers(
        position: Position,
        witness: Option<Witness>,
        head: Position,
        unmet: UnmetTriggers,
    ) -> Self {
        let kind = match unmet {
            UnmetTriggers::Missing => DivergenceKind::TriggerMissing,
            UnmetTriggers::Disabled => DivergenceKind::TriggerDisabled,
            UnmetTriggers::Changed | UnmetTriggers::Restored => DivergenceKind::TriggerChanged,
        };
        Self {
            kind,
            position,
            event_id: witness.map(|witness| witness.id),
            event_uuid: witness.map(|witness| witness.uuid),
            last_common: position,
            head,
            partition: None,
            at: None,
        }
    }

    /// What is wrong, in a few words.
    pub(crate) fn summary(&self) -> &'static str {
        match self.kind.is_of_triggers() {
            true => "events may not have met the trigger that handles them",
            false => "the event store is not the one that was followed",
        }
    }

    /// What hooks are told about the processor `name`.
    pub(crate) fn facts(&self, name: &str) -> DivergenceFacts {
        let kind = serde_json::to_value(self.kind).unwrap_or_default();
        DivergenceFacts {
            kind: kind.as_str().unwrap_or_default().to_owned(),
            error: self.describe(name),
            remedy: self.remedy(name),
            position: self.position.get(),
            event_id: self.event_id.map(Position::get),
            event_uuid: self.event_uuid,
            last_common: self.last_common.get(),
            head: self.head.get(),
        }
    }

    /// What is wrong, in a few sentences.
    pub(crate) fn describe(&self, name: &str) -> String {
        let Self { position, head, .. } = self;
        let event = self.event_id.unwrap_or(*position);
        let partition = self.partition.as_deref().unwrap_or("?");
        match self.kind {
            DivergenceKind::PartitionGone => format!(
                "Partition {partition} is no longer part of the table of events, and has or had events beyond position \
                 {position}, which {name} has not handled."
            ),
            DivergenceKind::PartitionAdded => format!(
                "Partition {partition} has become part of the table of events (again), with events between {} and position \
                 {position} that {name} may not have handled.",
                self.last_common.next()
            ),
            DivergenceKind::TriggerMissing => self.describe_missed(name, "is not there"),
            DivergenceKind::TriggerDisabled => {
                self.describe_missed(name, "is disabled, or enabled for some sessions only")
            }
            DivergenceKind::TriggerChanged => self.describe_missed(
                name,
                "was disabled, or dropped and made again, and somebody has changed that since",
            ),
            DivergenceKind::EventDeleted => format!(
                "Event {event}, the last one that {name} has read, is not in the event store any more, and events before \
                 and behind it are: it was deleted."
            ),
            DivergenceKind::EventsAppeared => format!(
                "Events have appeared between event {event}, the last one that {name} has read, and its position \
                 {position}. {name} has handled none of them."
            ),
            DivergenceKind::BeyondHead => format!(
                "{name} is at position {position}, and the event store has drawn ids up to {head} only: the next events \
                 would be taken for ones that it has handled. {}",
                self.describe_lost(name)
            ),
            DivergenceKind::EventGone => format!(
                "Event {event}, the last one that {name} has read, is not in the event store any more (last id {head}): \
                 after a failover, a restore or a truncation the store has gone back, or the event was deleted. {}",
                self.describe_lost(name)
            ),
            DivergenceKind::EventReplaced => format!(
                "Event {event}, the last one that {name} has read, is another event now (last id {head}): the event store \
                 has gone back and was written to since. {}",
                self.describe_lost(name)
            ),
        }
    }

    fn describe_missed(&self, name: &str, what: &str) -> String {
        format!(
            "The trigger on the table of events by which {name}, which is synchronous, handles events {what}. Events from {} on may \
             have been inserted without it: then their rows are missing.",
            self.position.next()
        )
    }

    fn describe_lost(&self, name: &str) -> String {
        let Self { position, last_common, .. } = self;
        if self.event_id == Some(*last_common) {
            return format!("No event that {name} has handled is missing: the last one is {last_common}.");
        }
        let common = match last_common.get() {
            0 => "No event is known to be as it was".to_owned(),
            id => format!("Event {id} is the last one that is known to be as it was"),
        };
        let (first, last) = (last_common.next(), self.event_id.unwrap_or(*position));
        format!("{common}; what {name} has done for events {first} to {last} is not undone.")
    }

    /// What an operator can do.
    pub(crate) fn remedy(&self, name: &str) -> String {
        let Self { position, last_common, .. } = self;
        let accept = format!("`espctl resume {name} --accept-history`");
        let reset = format!("`espctl reset {name} --to {last_common}`");
        match self.kind {
            DivergenceKind::PartitionGone => format!(
                "Attach it again, then {accept} continues from position {position} and leaves nothing out. Without it, the same \
                 command leaves its events out."
            ),
            DivergenceKind::PartitionAdded => format!(
                "`espctl reset {name}` rebuilds it; {reset} keeps its tables and handles everything behind event \
                 {last_common} (again). If it has handled these events before, {accept} continues from position {position}."
            ),
            DivergenceKind::TriggerMissing
            | DivergenceKind::TriggerDisabled
            | DivergenceKind::TriggerChanged => format!(
                "`espctl reset {name}` rebuilds it, and makes the trigger again. If no event was inserted meanwhile, or the rows are right, \
                 {accept} continues behind the last event, and makes the trigger again as well."
            ),
            DivergenceKind::EventDeleted => format!("{accept} continues from position {position}."),
            DivergenceKind::EventsAppeared => format!(
                "{reset} handles them; {accept} leaves them out and continues from position {position}."
            ),
            DivergenceKind::BeyondHead => format!(
                "`espctl reset {name}` rebuilds it from the store as it is; {reset} keeps its tables and continues behind \
                 event {last_common}."
            ),
            DivergenceKind::EventGone | DivergenceKind::EventReplaced => format!(
                "`espctl reset {name}` rebuilds it from the store as it is; {reset} keeps its tables and continues behind \
                 event {last_common}. Where nothing but that event has changed, {accept} continues from position {position}."
            ),
        }
    }
}

impl Facts<'_> {
    fn kind(&self) -> DivergenceKind {
        let Some(witness) = self.witness else { return DivergenceKind::BeyondHead };
        // Where no event was read, none of them is gone.
        let stands = witness.event().is_none_or(|last_read| self.has(&last_read));
        if stands {
            let appeared = self.standing == Standing::Overtaken;
            return if appeared { DivergenceKind::EventsAppeared } else { DivergenceKind::BeyondHead };
        }
        let has_later = self.earlier.iter().any(|event| event.id > witness.id && self.has(event));
        match self.standing {
            Standing::Replaced | Standing::Overtaken => DivergenceKind::EventReplaced,
            Standing::Gone | Standing::Stands if has_later => DivergenceKind::EventDeleted,
            Standing::Gone | Standing::Stands => DivergenceKind::EventGone,
        }
    }

    fn has(&self, event: &StoredEvent) -> bool {
        self.stored.contains(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: i64) -> StoredEvent {
        StoredEvent { id: id.into(), uuid: Uuid::from_u128(u128::from(id.unsigned_abs())) }
    }

    /// A processor at 20 that has read event 18 last, in a store in which `stored` is left of what it knows.
    fn find(standing: Standing, head: i64, stored: &[i64]) -> (DivergenceKind, i64) {
        let earlier: Vec<StoredEvent> = [3, 9, 14, 18, 19].map(event).to_vec();
        let stored: Vec<StoredEvent> = stored.iter().copied().map(event).collect();
        let witness = Some(Witness { at: 20.into(), id: 18.into(), uuid: event(18).uuid });
        let (position, head) = (20.into(), head.into());
        let facts = Facts { position, witness, standing, head, earlier: &earlier, stored: &stored };
        let divergence = Divergence::of(facts);
        (divergence.kind, divergence.last_common.get())
    }

    #[test]
    fn what_is_left_of_the_store_tells_what_has_happened() {
        use DivergenceKind::{BeyondHead, EventDeleted, EventGone, EventReplaced, EventsAppeared};
        let cases = [
            (Standing::Gone, 11, &[3, 9][..], (EventGone, 9)),
            (Standing::Gone, 0, &[], (EventGone, 0)),
            (Standing::Gone, 40, &[3, 9, 14, 19], (EventDeleted, 14)),
            (Standing::Replaced, 40, &[3, 9], (EventReplaced, 9)),
            (Standing::Overtaken, 40, &[3], (EventReplaced, 3)),
            (Standing::Overtaken, 40, &[3, 9, 14, 18], (EventsAppeared, 18)),
            (Standing::Stands, 18, &[3, 9, 14, 18], (BeyondHead, 18)),
        ];
        for (standing, head, stored, expected) in cases {
            assert_eq!(find(standing, head, stored), expected, "{standing:?} {head} {stored:?}");
        }
    }

    #[test]
    fn without_a_witness_only_the_head_can_contradict() {
        let (position, head) = (20.into(), 5.into());
        let earlier = [event(4), event(14)];
        let facts = Facts {
            position,
            witness: None,
            standing: Standing::Stands,
            head,
            earlier: &earlier,
            stored: &[event(4)],
        };
        let divergence = Divergence::of(facts);
        assert_eq!((divergence.kind, divergence.last_common.get()), (DivergenceKind::BeyondHead, 4));
        let text = divergence.describe("notes");
        assert!(text.contains("ids up to 5 only") && text.contains("events 5 to 20 is not undone"), "{text}");
    }

    #[test]
    fn the_words_name_the_last_common_event_and_what_was_done_beyond_it() {
        let divergence = Divergence {
            kind: DivergenceKind::EventGone,
            position: 131.into(),
            event_id: Some(130.into()),
            event_uuid: Some(Uuid::nil()),
            last_common: 33.into(),
            head: 33.into(),
            partition: None,
            at: None,
        };
        let (problem, remedy) = (divergence.describe("notes"), divergence.remedy("notes"));
        assert!(problem.contains("Event 33 is the last one that is known to be as it was"), "{problem}");
        assert!(problem.contains("events 34 to 130 is not undone"), "{problem}");
        assert!(remedy.contains("`espctl reset notes --to 33` keeps its tables"), "{remedy}");
        assert!(
            remedy.contains("`espctl resume notes --accept-history` continues from position 131"),
            "{remedy}"
        );
    }
}
