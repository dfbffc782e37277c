//! What points to a store is a store: a reference, an [`Arc`], a [`Box`], also of `dyn EventStore`.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use uuid::Uuid;

use super::{
    AppendCondition, AppendError, ConsistencyToken, EventStore, Kept, PostgresEventStore, ReadError,
    TagQuery, TaggedEvents,
};
use crate::event::{AggregateId, Appended, Event, NewEvent, Position, Version};

/// Every method is passed on, also those that have a default: it would be a slower one.
macro_rules! pass_on {
    ($($pointer:ty),*) => {$(
        #[async_trait]
        impl<S: EventStore + ?Sized> EventStore for $pointer {
            async fn append(&self, events: &[NewEvent]) -> Result<Vec<Appended>, AppendError> {
                (**self).append(events).await
            }

            async fn append_keeping(
                &self,
                kept: &mut Kept,
                events: &[NewEvent],
            ) -> Result<Vec<Appended>, AppendError> {
                (**self).append_keeping(kept, events).await
            }

            async fn append_if(
                &self,
                events: &[NewEvent],
                condition: &AppendCondition,
            ) -> Result<Vec<Appended>, AppendError> {
                (**self).append_if(events, condition).await
            }

            async fn read_tagged(
                &self,
                query: &TagQuery,
                since: Option<&ConsistencyToken>,
            ) -> Result<TaggedEvents, ReadError> {
                (**self).read_tagged(query, since).await
            }

            async fn read_after(
                &self,
                position: Position,
                upto: Option<Position>,
                event_types: Option<&[String]>,
                limit: i64,
            ) -> Result<Vec<Event>, ReadError> {
                (**self).read_after(position, upto, event_types, limit).await
            }

            fn read_aggregate(
                &self,
                aggregate_id: AggregateId,
                from: Version,
                to: Option<Version>,
            ) -> BoxStream<'_, Result<Event, ReadError>> {
                (**self).read_aggregate(aggregate_id, from, to)
            }

            fn read_aggregate_keeping<'s>(
                &'s self,
                kept: &'s mut Kept,
                aggregate_id: AggregateId,
                from: Version,
                to: Option<Version>,
            ) -> BoxStream<'s, Result<Event, ReadError>> {
                (**self).read_aggregate_keeping(kept, aggregate_id, from, to)
            }

            fn read_aggregate_until(
                &self,
                aggregate_id: AggregateId,
                time: DateTime<Utc>,
            ) -> BoxStream<'_, Result<Event, ReadError>> {
                (**self).read_aggregate_until(aggregate_id, time)
            }

            fn read_aggregates(
                &self,
                aggregate_ids: Vec<AggregateId>,
            ) -> BoxStream<'_, Result<Event, ReadError>> {
                (**self).read_aggregates(aggregate_ids)
            }

            fn read_correlation(&self, correlation_id: Uuid) -> BoxStream<'_, Result<Event, ReadError>> {
                (**self).read_correlation(correlation_id)
            }

            fn read_range(
                &self,
                from: Position,
                to: Position,
                event_types: Option<Vec<String>>,
            ) -> BoxStream<'_, Result<Event, ReadError>> {
                (**self).read_range(from, to, event_types)
            }

            async fn read_uuids(&self, uuids: &[Uuid]) -> Result<Vec<Event>, ReadError> {
                (**self).read_uuids(uuids).await
            }

            async fn position_at(&self, time: DateTime<Utc>) -> Result<Position, ReadError> {
                (**self).position_at(time).await
            }

            async fn latest_id(&self, event_types: Option<&[String]>) -> Result<Position, ReadError> {
                (**self).latest_id(event_types).await
            }

            fn as_postgres(&self) -> Option<&PostgresEventStore> {
                (**self).as_postgres()
            }
        }
    )*};
}

pass_on!(&S, Arc<S>, Box<S>);
