//! The verifier: what the appenders know, what the store has, what the projectors made of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;

use espd::event::{Position, Version};
use uuid::Uuid;

use crate::beside::Beside;
use crate::fold::{StoredEvent, fold};
use crate::handlers::{Notified, is_cursed};
use crate::ledger::{Append, CLOSED, Draft, GREETED, Ledger, OPENED, Outcome, REMINDED};
use crate::projectors::{COUNTED, Entry, Projections};

/// All that is left when the storm is over.
#[derive(Debug, Clone)]
pub struct Evidence {
    pub events: Vec<StoredEvent>,
    pub ledger: Ledger,
    /// The projections, by the name of the place where they are.
    pub places: Vec<(&'static str, Projections)>,
    /// What the receiver of the webhook has got.
    pub notified: Notified,
    /// The versions of projectors, by place, with the former ones and after these were dropped.
    pub beside: Vec<(&'static str, Beside)>,
}

/// What the evidence says. All numbers are of events, unless they say otherwise.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    pub stored: u64,
    /// The server has said that they are stored.
    pub acknowledged: u64,
    /// The server has not said whether they are stored …
    pub unknown: u64,
    /// … and they are.
    pub unknown_stored: u64,
    /// Refused or rolled back.
    pub absent: u64,
    /// Acknowledged and not stored, or stored and not handled, once for each place.
    pub lost: u64,
    /// Stored or handled more than once.
    pub doubled: u64,
    /// Handled after a later one.
    pub inverted: u64,
    /// Appends that are stored in part.
    pub torn: u64,
    /// By the reactor.
    pub emitted: u64,
    /// That the reactor should have emitted.
    pub emissions_lost: u64,
    pub emissions_doubled: u64,
    /// Requests that the receiver has accepted, repeated ones included.
    pub delivered: u64,
    /// Set aside because the receiver refuses their aggregate.
    pub set_aside: u64,
    /// Neither accepted nor set aside.
    pub undelivered: u64,
    /// Accepted for the first time after a later one of the aggregate.
    pub delivered_late: u64,
    /// What is left of versions that nobody builds any more.
    pub left_behind: u64,
    pub tables_compared: u64,
    pub rows_compared: u64,
    pub rows_wrong: u64,
    /// Everything that is wrong, in words.
    pub complaints: Vec<String>,
}

/// Judges the evidence.
pub fn verify(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict { stored: evidence.events.len() as u64, ..Verdict::default() };
    verdict.complaints.extend(evidence.ledger.complaints.iter().cloned());
    verdict.check_store(&evidence.events, &evidence.ledger);
    verdict.check_versions(&evidence.events);
    verdict.check_emissions(&evidence.events, GREETED);
    verdict.check_emissions(&evidence.events, REMINDED);
    verdict.check_webhook(&evidence.events, &evidence.notified);
    for (place, beside) in &evidence.beside {
        verdict.left_behind += beside.complaints().len() as u64;
        verdict.complaints.extend(beside.complaints().iter().map(|what| format!("{place} is {what}")));
    }
    let expected = fold(&evidence.events);
    for (place, projections) in &evidence.places {
        verdict.check_journal(place, &evidence.events, &projections.journal);
        verdict.compare(&format!("accounts {place}"), &expected.accounts, &projections.accounts);
        let (folded, found) = (&expected.folded_accounts, &projections.folded_accounts);
        verdict.compare(&format!("folded_accounts {place}"), folded, found);
        for (table, (expected, found)) in COUNTED.iter().zip(expected.counts.iter().zip(&projections.counts))
        {
            verdict.compare(&format!("{table} {place}"), expected, found);
        }
        verdict.tables_compared += 3 + COUNTED.len() as u64;
    }
    verdict
}

impl Verdict {
    /// The store against the ledgers: what was acknowledged is there, what was refused is not.
    fn check_store(&mut self, events: &[StoredEvent], ledger: &Ledger) {
        let mut stored = HashMap::new();
        for event in events {
            if stored.insert(event.uuid, event).is_some() {
                self.doubled += 1;
                self.complaints.push(format!("stored twice: {event:?}"));
            }
        }
        let mut known = HashSet::new();
        for append in &ledger.appends {
            known.extend(append.drafts.iter().map(|draft| draft.uuid));
            self.check_append(append, &stored);
        }
        let emitted = |event: &&StoredEvent| [GREETED, REMINDED].contains(&event.event_type.as_str());
        for stranger in events.iter().filter(|event| !known.contains(&event.uuid) && !emitted(event)) {
            self.complaints.push(format!("stored, but no client has appended it: {stranger:?}"));
        }
    }

    fn check_append(&mut self, append: &Append, stored: &HashMap<Uuid, &StoredEvent>) {
        let found: Vec<Option<&StoredEvent>> =
            append.drafts.iter().map(|draft| stored.get(&draft.uuid).copied()).collect();
        let (size, present) = (append.drafts.len() as u64, found.iter().flatten().count() as u64);
        match &append.outcome {
            Outcome::Acknowledged(answer) => {
                self.acknowledged += size;
                self.lost += size - present;
                if present < size {
                    self.complaints
                        .push(format!("acknowledged, but {present} of {size} are stored: {append:?}"));
                }
                for (found, answered) in found.iter().zip(answer.iter().flatten()) {
                    if found.is_some_and(|event| {
                        (event.id, event.uuid, event.version)
                            != (answered.id, answered.uuid, answered.version)
                    }) {
                        self.complaints.push(format!("acknowledged as {answered:?}, stored as {found:?}"));
                    }
                }
            }
            Outcome::Unknown => {
                self.unknown += size;
                self.unknown_stored += present;
                if present != 0 && present != size {
                    self.torn += 1;
                    self.complaints.push(format!("torn: {present} of {size} are stored: {append:?}"));
                }
            }
            Outcome::Absent => {
                self.absent += size;
                if present > 0 {
                    self.complaints.push(format!("refused or rolled back, but stored: {append:?}"));
                }
            }
        }
        for (draft, event) in append.drafts.iter().zip(found) {
            if let Some(event) = event.filter(|event| !is_as_drafted(draft, event)) {
                self.complaints.push(format!("stored otherwise than appended: {draft:?}, {event:?}"));
            }
        }
    }

    /// Each aggregate's versions are 1, 2, 3 … in the order of the ids.
    fn check_versions(&mut self, events: &[StoredEvent]) {
        let mut versions: HashMap<Uuid, Version> = HashMap::new();
        for event in events {
            let version = versions.entry(event.aggregate_id).or_default();
            if event.version != version.next() {
                self.complaints.push(format!("not version {}: {event:?}", version.next()));
            }
            *version = event.version;
        }
    }

    /// A reactor's events: one for each account, in the aggregate that its opening names.
    fn check_emissions(&mut self, events: &[StoredEvent], emitted: &str) {
        let mut emissions: HashMap<Uuid, u64> = HashMap::new();
        for event in events.iter().filter(|event| event.event_type == emitted) {
            *emissions.entry(event.aggregate_id).or_default() += 1;
            self.emitted += 1;
        }
        for event in events.iter().filter(|event| event.event_type == OPENED) {
            match emissions.remove(&event.uuid) {
                Some(1) => {}
                Some(times) => {
                    self.emissions_doubled += times - 1;
                    self.complaints.push(format!("{emitted} {times} times for {event:?}"));
                }
                None => {
                    self.emissions_lost += 1;
                    self.complaints.push(format!("no {emitted} for {event:?}"));
                }
            }
        }
        self.complaints.extend(emissions.keys().map(|uuid| format!("{emitted} for nothing: {uuid}")));
    }

    /// The webhook: each event was accepted, in the order of its aggregate, or is set aside because the receiver refuses it.
    fn check_webhook(&mut self, events: &[StoredEvent], notified: &Notified) {
        self.delivered = notified.delivered.len() as u64;
        self.set_aside = notified.set_aside.len() as u64;
        let mut first: HashSet<Uuid> = HashSet::new();
        let mut highest: HashMap<Uuid, Position> = HashMap::new();
        for delivered in &notified.delivered {
            // A request that is repeated after a crash is no inversion.
            if !first.insert(delivered.event_uuid) {
                continue;
            }
            let highest = highest.entry(delivered.aggregate_id).or_default();
            if delivered.event_id < *highest {
                self.delivered_late += 1;
                self.complaints.push(format!("sent after event {highest}: {delivered:?}"));
            }
            *highest = delivered.event_id.max(*highest);
        }
        let sent = [OPENED, CLOSED];
        for event in events.iter().filter(|event| sent.contains(&event.event_type.as_str())) {
            let set_aside = notified.set_aside.contains(&event.uuid);
            // One whose answers were lost on the way is set aside as well, and those of its aggregate behind it.
            let accepted = !is_cursed(event.aggregate_id) && first.contains(&event.uuid);
            if !accepted && !set_aside {
                self.undelivered += 1;
                self.complaints.push(format!("neither accepted nor set aside: {event:?}"));
            }
        }
    }

    /// The journal against the store: each event once, in order, as it is.
    fn check_journal(&mut self, place: &str, events: &[StoredEvent], journal: &[Entry]) {
        let stored: HashMap<Uuid, &StoredEvent> = events.iter().map(|event| (event.uuid, event)).collect();
        let mut seen = HashSet::new();
        let mut highest = Position::START;
        for entry in journal {
            if !stored.get(&entry.event_uuid).is_some_and(|event| is_of(entry, event)) {
                self.complaints.push(format!("handled {place}, but not stored: {entry:?}"));
            }
            if !seen.insert(entry.event_uuid) {
                self.doubled += 1;
                self.complaints.push(format!("handled twice {place}: {entry:?}"));
            } else if entry.event_id < highest {
                self.inverted += 1;
                self.complaints.push(format!("handled {place} after event {highest}: {entry:?}"));
            }
            highest = highest.max(entry.event_id);
        }
        for event in events.iter().filter(|event| !seen.contains(&event.uuid)) {
            self.lost += 1;
            self.complaints.push(format!("not handled {place}: {event:?}"));
        }
        self.rows_compared += journal.len() as u64;
    }

    /// A projection against the fold, row by row.
    fn compare<K: Ord + Debug, R: PartialEq + Debug>(
        &mut self,
        name: &str,
        expected: &BTreeMap<K, R>,
        found: &BTreeMap<K, R>,
    ) {
        let missing = expected.keys().filter(|key| !found.contains_key(key));
        for key in found.keys().chain(missing) {
            self.rows_compared += 1;
            let (expected, found) = (expected.get(key), found.get(key));
            if expected != found {
                self.rows_wrong += 1;
                self.complaints.push(format!("{name}: {key:?} is {found:?}, the fold says {expected:?}"));
            }
        }
    }
}

fn is_as_drafted(draft: &Draft, event: &StoredEvent) -> bool {
    draft.aggregate_id == event.aggregate_id
        && draft.event_type == event.event_type
        && draft.amount == event.amount
        && draft.expected.is_none_or(|version| event.version == version.next())
}

fn is_of(entry: &Entry, event: &StoredEvent) -> bool {
    (entry.event_id, entry.aggregate_id, entry.version) == (event.id, event.aggregate_id, event.version)
}
