//! The conformance suite: what every event store promises, as cases that any implementation can be held to.
//!
//! ```
//! # use std::sync::Arc;
//! # use espd::store::{EventStore, MemoryEventStore, conformance};
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! conformance::run(async || Arc::new(MemoryEventStore::new()) as Arc<dyn EventStore>).await;
//! # });
//! # Ok::<(), std::io::Error>(())
//! ```

mod appending;
mod claiming;
mod deciding;
mod expecting;
mod json;
mod racing;
mod reading;
mod repeating;
mod tagging;

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use chrono::{DateTime, TimeZone, Utc};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, TryStreamExt};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{EventStore, ReadError};
use crate::event::{AggregateId, Appended, Event, NewEvent, Position, Version};

/// A store under test. Cases with concurrent writers share it between tasks.
pub type Store = Arc<dyn EventStore>;

/// One promise. Its name is the promise in words.
pub struct Case {
    /// The promise: `an_empty_append_is_a_no_op`.
    pub name: &'static str,
    run: fn(Store) -> BoxFuture<'static, ()>,
}

impl Case {
    /// Holds `store` to the promise; it must be empty.
    ///
    /// # Panics
    ///
    /// When the store breaks the promise.
    pub async fn run(&self, store: Store) {
        (self.run)(store).await;
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Runs every case on a store of its own, which `make` makes, empty.
///
/// # Panics
///
/// After the last case, if the store broke a promise; the message lists the cases.
pub async fn run(make: impl AsyncFn() -> Store) {
    run_cases(cases(), make).await;
}

/// Runs every case of a store that keeps tags and unique keys, besides all of [`run`], each on a store of its own.
///
/// # Panics
///
/// After the last case, if the store broke a promise; the message lists the cases.
pub async fn run_with_tags(make: impl AsyncFn() -> Store) {
    run_cases(cases().into_iter().chain(tag_cases()), make).await;
}

async fn run_cases(cases: impl IntoIterator<Item = Case>, make: impl AsyncFn() -> Store) {
    let mut broken = Vec::new();
    for case in cases {
        let store = make().await;
        if AssertUnwindSafe(case.run(store)).catch_unwind().await.is_err() {
            broken.push(case.name);
        }
    }
    assert!(broken.is_empty(), "the store breaks these promises: {}", broken.join(", "));
}

macro_rules! cases {
    ($(#[$doc:meta])* $list:ident; $($module:ident: $($name:ident)+;)+) => {
        $(#[$doc])*
        pub fn $list() -> Vec<Case> {
            vec![$($(Case { name: stringify!($name), run: |store| Box::pin($module::$name(store)) },)+)+]
        }
    };
}

cases! {
    /// All cases, from the simplest promises to those about concurrent writers.
    cases;
    appending:
        an_event_is_read_back_whole
        what_is_left_out_gets_a_default
        ids_ascend_and_versions_count_from_one
        an_append_returns_places_in_the_order_given
        an_empty_append_is_a_no_op
        several_aggregates_are_appended_together
        an_append_is_stored_whole_or_not_at_all
        versions_go_on_past_9_and_99
        ten_thousand_events_go_into_one_append
        times_are_kept_to_the_microsecond
        types_may_be_any_text
        what_cannot_be_stored_is_refused_by_index
        an_aggregate_id_that_is_no_uuid_is_refused;
    expecting:
        an_expected_version_must_be_the_version
        a_conflict_stores_nothing
        expectations_are_judged_event_by_event
        the_first_conflict_in_the_order_given_is_reported
        expected_versions_have_64_bits;
    repeating:
        the_same_append_again_returns_what_is_stored
        an_append_is_the_same_whatever_version_it_expects
        json_that_means_the_same_is_the_same
        other_content_under_a_stored_uuid_is_refused
        an_append_of_stored_and_new_events_is_refused
        a_part_of_an_append_may_be_repeated
        a_huge_append_is_repeated_like_a_small_one
        a_uuid_may_not_come_twice;
    reading:
        reading_on_begins_after_the_position
        reading_on_stops_at_the_horizon
        reading_on_keeps_to_the_limit
        reading_on_keeps_to_the_types
        an_aggregate_is_read_by_version
        an_aggregate_is_read_up_to_a_time
        several_aggregates_are_read_each_once
        a_correlation_is_read_with_its_beginning
        a_range_is_exact
        a_range_is_exact_where_its_end_does_not_exist
        a_range_may_be_longer_than_a_batch
        the_position_at_a_time_is_exact
        the_latest_id_may_be_asked_for_by_type
        a_stream_may_be_dropped_early;
    json:
        a_body_may_be_any_json
        numbers_keep_every_digit
        numbers_out_of_range_are_refused
        text_that_no_database_keeps_is_refused
        text_is_kept_as_it_is
        deep_nesting_is_kept_or_refused
        a_body_may_have_five_megabytes;
    racing:
        of_many_who_create_an_aggregate_one_wins
        of_many_who_expect_a_version_one_wins
        appends_without_expectation_all_get_through
        the_same_append_at_the_same_time_is_stored_once
        appends_to_many_aggregates_all_get_through;
}

cases! {
    /// The cases of a store that keeps tags and unique keys, from the simplest promises to those about concurrent writers.
    tag_cases;
    tagging:
        events_are_read_by_tag_with_a_token
        only_what_came_since_a_token_is_read
        a_condition_excludes_what_came_since_its_token
        without_a_token_any_event_is_excluded
        items_and_types_are_alternatives_and_tags_go_together
        a_condition_may_name_tags_that_are_not_written
        a_condition_may_be_checked_alone
        a_condition_that_fails_stores_nothing
        a_repeated_append_is_recognised_before_its_condition
        a_repeated_append_moves_no_tag
        an_event_comes_with_the_tags_that_it_has
        a_tag_goes_on_past_9_and_99
        an_append_may_tag_many_events
        a_token_of_a_later_state_is_refused
        what_cannot_be_a_token_is_refused
        what_cannot_be_a_tag_is_refused
        a_version_and_a_condition_both_count;
    claiming:
        a_key_belongs_to_one_aggregate
        a_released_key_is_free
        two_aggregates_may_change_places
        who_claims_and_releases_has_released
        a_claim_is_checked_although_it_is_released_later
        the_keys_of_an_append_change_in_the_order_of_its_events
        a_repeated_claim_is_recognised
        of_many_who_claim_a_key_one_wins;
    deciding:
        of_many_who_decide_within_a_boundary_one_wins
        two_decisions_on_each_others_tags_are_not_both_stored
        writers_of_many_tags_all_get_through
        tags_are_numbered_without_holes;
}

/// An event without particulars.
fn happened(aggregate_id: impl Into<AggregateId>) -> NewEvent {
    NewEvent::new(aggregate_id, "Happened", json("{}"))
}

/// An event of a type.
fn event_of(event_type: &str) -> NewEvent {
    NewEvent::new(Uuid::new_v4(), event_type, json("{}"))
}

fn json(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).expect("the case has valid JSON")
}

/// A moment of a certain day, given in microseconds.
fn time(micros: i64) -> DateTime<Utc> {
    let noon = Utc.with_ymd_and_hms(2024, 2, 29, 12, 0, 0).single().expect("the day exists");
    noon + chrono::Duration::microseconds(micros)
}

async fn append(store: &Store, events: &[NewEvent]) -> Vec<Appended> {
    let appended = store.append(events).await.expect("the store takes the events");
    assert_eq!(appended.len(), events.len(), "one place for each event");
    appended
}

/// Appends each event on its own and returns the ids.
async fn append_each(store: &Store, events: impl IntoIterator<Item = NewEvent>) -> Vec<Position> {
    let mut ids = Vec::new();
    for event in events {
        ids.push(append(store, &[event]).await[0].id);
    }
    ids
}

async fn read_all(store: &Store) -> Vec<Event> {
    store.read_after(Position::START, None, None, i64::MAX).await.expect("the store reads")
}

async fn collect(stream: BoxStream<'_, Result<Event, ReadError>>) -> Vec<Event> {
    stream.try_collect().await.expect("the store reads")
}

async fn read_aggregate(store: &Store, aggregate_id: impl Into<AggregateId>) -> Vec<Event> {
    collect(store.read_aggregate(aggregate_id.into(), Version::FIRST, None)).await
}

fn ids(events: &[Event]) -> Vec<Position> {
    events.iter().map(|event| event.id).collect()
}

fn versions(events: &[Event]) -> Vec<Version> {
    events.iter().map(|event| event.version).collect()
}

fn types(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
