//! Negative controls: the verifier has to notice each of these changes of the evidence, every time.

use crate::beside::Beside;
use crate::handlers::Delivered;
use crate::ledger::{Append, GREETED, Outcome, REMINDED};
use crate::projectors::Projections;
use crate::verify::{Evidence, Verdict, verify};

/// A change of the evidence. `None`: there is nothing that could be changed in this way.
type Change = fn(&mut Evidence) -> Option<()>;

/// How the verdict on the changed evidence has to differ from that on the true one.
type Notice = fn(&Verdict, &Verdict) -> bool;

const CONTROLS: [(&str, Change, Notice); 25] = [
    ("an event not handled", drop_entry, |before, after| after.lost == before.lost + 1),
    ("an event handled twice", double_entry, |before, after| after.doubled == before.doubled + 1),
    ("two events handled in the wrong order", swap_entries, |before, after| {
        after.inverted == before.inverted + 1
    }),
    ("an event handled that is not stored", invent_entry, complains),
    ("a wrong balance", change_account, |before, after| after.rows_wrong == before.rows_wrong + 1),
    ("a wrong balance of a folded batch", change_folded_account, |before, after| {
        after.rows_wrong == before.rows_wrong + 1
    }),
    ("a wrong count of a folded batch", change_folded_count, |before, after| {
        after.rows_wrong == before.rows_wrong + 1
    }),
    ("a missing account", drop_account, |before, after| after.rows_wrong == before.rows_wrong + 1),
    ("a wrong count", change_count, |before, after| after.rows_wrong == before.rows_wrong + 1),
    ("an acknowledged event not stored", drop_event, |before, after| after.lost > before.lost),
    ("an event stored twice", double_event, |before, after| after.doubled > before.doubled),
    ("a rolled back event stored", revoke_append, complains),
    ("an emission lost", drop_emission, |before, after| after.emissions_lost == before.emissions_lost + 1),
    ("an emission doubled", double_emission, |before, after| {
        after.emissions_doubled == before.emissions_doubled + 1
    }),
    ("a wrong count in Rust", change_native_count, |before, after| after.rows_wrong == before.rows_wrong + 1),
    ("a wrong count of a program", change_program_count, |before, after| {
        after.rows_wrong == before.rows_wrong + 1
    }),
    ("a later emission lost", drop_reminder, |before, after| {
        after.emissions_lost == before.emissions_lost + 1
    }),
    ("an event not sent", drop_delivery, |before, after| after.undelivered == before.undelivered + 1),
    ("two events sent in the wrong order", swap_deliveries, |before, after| {
        after.delivered_late > before.delivered_late
    }),
    ("an append stored in part", tear_append, |before, after| after.torn == before.torn + 1),
    ("a version that nobody builds any more", leave_tracker, leaves_one),
    ("two versions that serve", double_version, leaves_one),
    ("tables without a version", leave_schema, leaves_one),
    ("a function without a version", leave_function, leaves_one),
    ("a former version without tables", drop_tables, leaves_one),
];

/// Applies every control. Returns how many there are, and those that went unnoticed.
pub fn run(evidence: &Evidence, verdict: &Verdict) -> (usize, Vec<&'static str>) {
    let unnoticed = |(_, change, notice): &&(&str, Change, Notice)| {
        let mut changed = evidence.clone();
        change(&mut changed).is_none() || !notice(verdict, &verify(&changed))
    };
    let missed = CONTROLS.iter().filter(unnoticed).map(|(name, ..)| *name).collect();
    (CONTROLS.len(), missed)
}

fn complains(before: &Verdict, after: &Verdict) -> bool {
    after.complaints.len() > before.complaints.len()
}

fn leaves_one(before: &Verdict, after: &Verdict) -> bool {
    after.left_behind == before.left_behind + 1
}

fn projections(evidence: &mut Evidence) -> Option<&mut Projections> {
    evidence.places.last_mut().map(|(_, projections)| projections)
}

fn drop_entry(evidence: &mut Evidence) -> Option<()> {
    let journal = &mut projections(evidence)?.journal;
    let middle = journal.len().checked_sub(1)? / 2;
    journal.remove(middle);
    Some(())
}

fn double_entry(evidence: &mut Evidence) -> Option<()> {
    let journal = &mut projections(evidence)?.journal;
    let entry = journal.get(journal.len() / 2)?.clone();
    journal.push(entry);
    Some(())
}

fn swap_entries(evidence: &mut Evidence) -> Option<()> {
    let journal = &mut projections(evidence)?.journal;
    let last = journal.len().checked_sub(2)?;
    journal.swap(last, last + 1);
    Some(())
}

fn invent_entry(evidence: &mut Evidence) -> Option<()> {
    let journal = &mut projections(evidence)?.journal;
    let last = journal.last_mut()?;
    last.event_id = last.event_id.next();
    Some(())
}

fn change_account(evidence: &mut Evidence) -> Option<()> {
    projections(evidence)?.accounts.values_mut().next()?.balance += 1;
    Some(())
}

fn drop_account(evidence: &mut Evidence) -> Option<()> {
    projections(evidence)?.accounts.pop_first().map(drop)
}

fn change_folded_account(evidence: &mut Evidence) -> Option<()> {
    projections(evidence)?.folded_accounts.values_mut().next()?.1 += 1;
    Some(())
}

fn change_count(evidence: &mut Evidence) -> Option<()> {
    change_count_of(evidence, 0)
}

fn change_native_count(evidence: &mut Evidence) -> Option<()> {
    change_count_of(evidence, 1)
}

fn change_program_count(evidence: &mut Evidence) -> Option<()> {
    change_count_of(evidence, 2)
}

fn change_folded_count(evidence: &mut Evidence) -> Option<()> {
    change_count_of(evidence, 3)
}

fn change_count_of(evidence: &mut Evidence, table: usize) -> Option<()> {
    projections(evidence)?.counts[table].values_mut().next()?.events -= 1;
    Some(())
}

fn drop_delivery(evidence: &mut Evidence) -> Option<()> {
    let delivered = &mut evidence.notified.delivered;
    let uuid = delivered.last()?.event_uuid;
    delivered.retain(|delivered| delivered.event_uuid != uuid);
    Some(())
}

/// Two that were sent once each, the later one of the same aggregate.
fn swap_deliveries(evidence: &mut Evidence) -> Option<()> {
    let delivered = &mut evidence.notified.delivered;
    let once = |delivered: &[Delivered], place: usize| {
        delivered.iter().filter(|other| other.event_uuid == delivered[place].event_uuid).count() == 1
    };
    let (first, second) = (0..delivered.len()).find_map(|first| {
        let second = (first + 1..delivered.len())
            .find(|second| delivered[*second].aggregate_id == delivered[first].aggregate_id)?;
        (once(delivered, first) && once(delivered, second)).then_some((first, second))
    })?;
    delivered.swap(first, second);
    Some(())
}

fn acknowledged(evidence: &mut Evidence) -> Option<&mut Append> {
    let mut appends = evidence.ledger.appends.iter_mut();
    appends.find(|append| append.drafts.len() > 1 && matches!(append.outcome, Outcome::Acknowledged(_)))
}

fn drop_event(evidence: &mut Evidence) -> Option<()> {
    let uuid = acknowledged(evidence)?.drafts.last()?.uuid;
    evidence.events.retain(|event| event.uuid != uuid);
    Some(())
}

fn double_event(evidence: &mut Evidence) -> Option<()> {
    let event = evidence.events.last()?.clone();
    evidence.events.push(event);
    Some(())
}

fn drop_emission(evidence: &mut Evidence) -> Option<()> {
    drop_event_of(evidence, GREETED)
}

fn drop_reminder(evidence: &mut Evidence) -> Option<()> {
    drop_event_of(evidence, REMINDED)
}

fn drop_event_of(evidence: &mut Evidence, event_type: &str) -> Option<()> {
    let emission = evidence.events.iter().position(|event| event.event_type == event_type)?;
    evidence.events.remove(emission);
    Some(())
}

fn double_emission(evidence: &mut Evidence) -> Option<()> {
    let emission = evidence.events.iter().find(|event| event.event_type == GREETED)?.clone();
    evidence.events.push(emission);
    Some(())
}

fn revoke_append(evidence: &mut Evidence) -> Option<()> {
    acknowledged(evidence)?.outcome = Outcome::Absent;
    Some(())
}

fn tear_append(evidence: &mut Evidence) -> Option<()> {
    let append = acknowledged(evidence)?;
    append.outcome = Outcome::Unknown;
    let uuid = append.drafts.last()?.uuid;
    evidence.events.retain(|event| event.uuid != uuid);
    Some(())
}

fn beside(evidence: &mut Evidence) -> Option<&mut Beside> {
    evidence.beside.first_mut().map(|(_, beside)| beside)
}

fn leave_tracker(evidence: &mut Evidence) -> Option<()> {
    beside(evidence)?.trackers.push(("counts$next".to_owned(), 1));
    Some(())
}

fn double_version(evidence: &mut Evidence) -> Option<()> {
    beside(evidence)?.trackers.push(("counts".to_owned(), i32::MAX));
    Some(())
}

fn leave_schema(evidence: &mut Evidence) -> Option<()> {
    beside(evidence)?.schemas.insert("public_counts_next".to_owned()).then_some(())
}

fn leave_function(evidence: &mut Evidence) -> Option<()> {
    beside(evidence)?.functions.push("handle_counts$next_v1".to_owned());
    Some(())
}

fn drop_tables(evidence: &mut Evidence) -> Option<()> {
    beside(evidence)?.trackers.push((format!("counts${}", i32::MAX), i32::MAX));
    Some(())
}
