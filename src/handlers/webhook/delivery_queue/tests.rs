use chrono::DateTime;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::*;
use crate::retry::OnFailure;

/// An event of the only aggregate.
fn delivery(id: i64) -> Delivery {
    let event = Event {
        id: id.into(),
        uuid: Uuid::from_u128(id.unsigned_abs().into()),
        aggregate_id: Uuid::nil().into(),
        event_type: "A".into(),
        version: id.into(),
        body: RawValue::NULL.to_owned(),
        metadata: RawValue::NULL.to_owned(),
        correlation_id: None,
        causation_id: None,
        created_at: DateTime::UNIX_EPOCH.into(),
    };
    Delivery { event, replaying: false }
}

#[test]
fn an_event_that_is_read_before_its_predecessor_is_committed_as_given_up_waits_behind_it() {
    let retry = RetryPolicy { max_attempts: Some(1), on_failure: OnFailure::Park, ..RetryPolicy::default() };
    let mut queue = DeliveryQueue::new(retry);
    queue.enqueue(vec![delivery(1)], 1.into(), Trail::default());
    assert_eq!(queue.next(8).map(|event| event.id), Some(1.into()));
    queue.record_failure(1.into(), Failure::of_processor("no"), None);
    // The database does not know yet, so it gives the next one to be sent.
    queue.enqueue(vec![delivery(2)], 2.into(), Trail::default());
    let plan = queue.plan_commit();
    assert_eq!(plan.given_up.len(), 1);
    assert_eq!(plan.waiting.iter().map(|event| event.id).collect::<Vec<_>>(), [2]);
    assert_eq!(queue.next(8).map(|event| event.id), None);
}

#[test]
fn an_outage_is_over_when_the_receiver_has_answered_or_nothing_is_left_to_send() {
    let mut queue = DeliveryQueue::new(RetryPolicy::default());
    queue.enqueue(vec![delivery(1)], 1.into(), Trail::default());
    assert!(queue.take_reached(), "there is no outage");
    let attempts = [
        (SendAttempt::Unreachable("away".into()), false),
        (SendAttempt::NotBegun, false),
        (SendAttempt::Concluded(DeliveryResult::Busy { message: "429".into(), wait: None }), false),
        (SendAttempt::Concluded(DeliveryResult::Accepted(Vec::new())), true),
    ];
    for (attempt, is_reached) in attempts {
        let sent = queue.next(8).unwrap();
        queue.record_result(sent.id, sent.uuid, attempt);
        let _ = queue.take_outage();
        assert_eq!((queue.take_reached(), queue.is_probing()), (is_reached, !is_reached));
    }
    queue.probing = true;
    assert!(!queue.take_reached(), "an answer counts once");
    queue.schedule.remove(&[1.into()]);
    assert!(queue.take_reached());
}

#[test]
fn the_first_of_the_events_that_fail_is_told_also_while_it_is_under_way_again() {
    let mut queue = DeliveryQueue::new(RetryPolicy::default());
    let of = |id: i64| {
        let mut delivery = delivery(id);
        delivery.event.aggregate_id = Uuid::from_u128(id.unsigned_abs().into()).into();
        delivery
    };
    queue.enqueue(vec![of(1), of(2), of(3)], 3.into(), Trail::default());
    let told = |queue: &DeliveryQueue| queue.first_pending_retry().and_then(|told| told.failure.event_id());
    while queue.next(8).is_some() {}
    queue.record_failure(3.into(), Failure::of_processor("no"), None);
    assert_eq!(told(&queue), Some(3.into()));
    queue.record_failure(2.into(), Failure::of_processor("no"), None);
    assert_eq!(told(&queue), Some(2.into()));
    queue.retry_now();
    while queue.next(8).is_some() {}
    assert_eq!((queue.next_pending_retry(), told(&queue)), (None, Some(2.into())));
    queue.complete(2.into(), Completion::Received(Vec::new()));
    assert_eq!(told(&queue), Some(3.into()));
}
