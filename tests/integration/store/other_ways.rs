//! The conformance suite through the other ways in: inside a caller's transaction, and by JSON.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use espd::event::{
    AggregateId, Appended, Event, ExpectedVersion, KeyChange, NewEvent, Position, Tag, Version,
};
use espd::store::{
    AppendCondition, AppendError, ConsistencyToken, EventStore, ExcludingEvent, MemoryEventStore,
    PostgresEventStore, ReadError, TagQuery, TaggedEvents, conformance,
};
use futures_util::stream::BoxStream;
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::PgPool;
use uuid::Uuid;

use super::{empty, refusal, store};

#[tokio::test(flavor = "multi_thread")]
async fn an_append_inside_a_transaction_keeps_all_promises() {
    let (pool, store) = store().await;
    conformance::run(async || {
        empty(&pool).await;
        Arc::new(InTransaction { pool: pool.clone(), store: store.clone() }) as Arc<dyn EventStore>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_by_json_keeps_all_promises() {
    let (pool, store) = store().await;
    // Text that is no jsonb as a whole is refused before any function sees which event it is about.
    let out_of_reach = [
        "what_cannot_be_stored_is_refused_by_index",
        "numbers_out_of_range_are_refused",
        "text_that_no_database_keeps_is_refused",
        "deep_nesting_is_kept_or_refused",
        "what_cannot_be_a_tag_is_refused",
    ];
    let cases = conformance::cases().into_iter().chain(conformance::tag_cases());
    for case in cases.filter(|case| !out_of_reach.contains(&case.name)) {
        empty(&pool).await;
        case.run(Arc::new(ByJson { pool: pool.clone(), store: store.clone() })).await;
    }
}

/// Reads as the inner store does; the implementor gives `append`.
macro_rules! impl_event_store {
    ($store:ty, $($append:item),+) => {
        #[async_trait]
        impl EventStore for $store {
            $($append)+

            async fn read_after(
                &self,
                position: Position,
                upto: Option<Position>,
                event_types: Option<&[String]>,
                limit: i64,
            ) -> Result<Vec<Event>, ReadError> {
                self.store.read_after(position, upto, event_types, limit).await
            }

            fn read_aggregate(
                &self,
                aggregate_id: AggregateId,
                from: Version,
                to: Option<Version>,
            ) -> BoxStream<'_, Result<Event, ReadError>> {
                self.store.read_aggregate(aggregate_id, from, to)
            }

            fn read_aggregate_until(
                &self,
                aggregate_id: AggregateId,
                time: DateTime<Utc>,
            ) -> BoxStream<'_, Result<Event, ReadError>> {
                self.store.read_aggregate_until(aggregate_id, time)
            }

            fn read_range(
                &self,
                from: Position,
                to: Position,
                event_types: Option<Vec<String>>,
            ) -> BoxStream<'_, Result<Event, ReadError>> {
                self.store.read_range(from, to, event_types)
            }

            async fn position_at(&self, time: DateTime<Utc>) -> Result<Position, ReadError> {
                self.store.position_at(time).await
            }

            async fn latest_id(&self, event_types: Option<&[String]>) -> Result<Position, ReadError> {
                self.store.latest_id(event_types).await
            }
        }
    };
}

struct InTransaction {
    pool: PgPool,
    store: PostgresEventStore,
}

impl_event_store!(
    InTransaction,
    async fn append(&self, events: &[NewEvent]) -> Result<Vec<Appended>, AppendError> {
        loop {
            let mut transaction = self.pool.begin().await?;
            match self.store.append_in(&mut transaction, events).await {
                // The transaction is the caller's, and so is retrying it.
                Err(AppendError::Database(error)) if refusal(&error).0 == "40P01" => continue,
                outcome => {
                    let appended = outcome?;
                    transaction.commit().await?;
                    return Ok(appended.to_vec());
                }
            }
        }
    }
);

struct ByJson {
    pool: PgPool,
    store: PostgresEventStore,
}

#[derive(Serialize)]
struct JsonEvent<'a> {
    aggregate_id: &'a AggregateId,
    #[serde(rename = "type")]
    event_type: &'a str,
    body: &'a RawValue,
    metadata: &'a RawValue,
    expected_version: Option<Version>,
    uuid: Uuid,
    correlation_id: Option<Uuid>,
    causation_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "<[Tag]>::is_empty")]
    tags: &'a [Tag],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    claims: BTreeMap<&'a str, Vec<&'a str>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    releases: BTreeMap<&'a str, Vec<&'a str>>,
}

impl<'a> From<&'a NewEvent> for JsonEvent<'a> {
    fn from(event: &'a NewEvent) -> Self {
        let (mut claims, mut releases) = (BTreeMap::<&str, Vec<&str>>::new(), BTreeMap::new());
        for change in &event.keys {
            let changes = if matches!(change, KeyChange::Claim(_)) { &mut claims } else { &mut releases };
            changes.entry(&change.key().scope).or_default().push(&change.key().key);
        }
        Self {
            tags: &event.tags,
            claims,
            releases,
            aggregate_id: &event.aggregate_id,
            event_type: &event.event_type,
            body: &event.body,
            metadata: &event.metadata,
            expected_version: event.expected_version.version(),
            uuid: event.uuid,
            correlation_id: event.correlation_id,
            causation_id: event.causation_id,
            // The text would be rounded by the server, not cut.
            created_at: event
                .created_at
                .map(|time| DateTime::from_timestamp_micros(time.timestamp_micros()).unwrap()),
        }
    }
}

impl_event_store!(
    ByJson,
    async fn append(&self, events: &[NewEvent]) -> Result<Vec<Appended>, AppendError> {
        self.call("select id, uuid, version from espd.append($1::text::jsonb)", events, None).await
    },
    async fn append_if(
        &self,
        events: &[NewEvent],
        condition: &AppendCondition,
    ) -> Result<Vec<Appended>, AppendError> {
        let condition = serde_json::to_value(condition).unwrap();
        let append = "select id, uuid, version from espd.append($1::text::jsonb, $2)";
        self.call(append, events, Some(condition)).await
    },
    async fn read_tagged(
        &self,
        query: &TagQuery,
        since: Option<&ConsistencyToken>,
    ) -> Result<TaggedEvents, ReadError> {
        let read = "select events::text, token from espd.read_tagged($1, $2)";
        let (items, since) = (serde_json::to_value(query).unwrap(), since.map(serde_json::to_value));
        let read = sqlx::query_as::<_, (String, serde_json::Value)>(read);
        let found = read.bind(items).bind(since.map(Result::unwrap)).fetch_one(&self.pool).await;
        let (events, token) = match found {
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("ES003") => {
                return Err(ReadError::Refused { reason: error.message().to_owned() });
            }
            found => found?,
        };
        let events = serde_json::from_str(&events).unwrap();
        Ok(TaggedEvents { events, token: serde_json::from_value(token).unwrap() })
    }
);

impl ByJson {
    async fn call(
        &self,
        append: &'static str,
        events: &[NewEvent],
        condition: Option<serde_json::Value>,
    ) -> Result<Vec<Appended>, AppendError> {
        // One event as an object, several as an array.
        let list: Vec<JsonEvent> = events.iter().map(JsonEvent::from).collect();
        let text = match &list[..] {
            [event] => serde_json::to_string(event).unwrap(),
            events => serde_json::to_string(events).unwrap(),
        };
        loop {
            let query = sqlx::query_as(append).bind(&text);
            let query = if condition.is_some() { query.bind(&condition) } else { query };
            match query.fetch_all(&self.pool).await {
                Ok(rows) => {
                    let place = |(id, uuid, version)| Appended { id, uuid, version };
                    return Ok(rows.into_iter().map(place).collect());
                }
                Err(error) if refusal(&error).0 == "40P01" => continue,
                Err(error) => return Err(translate(error)),
            }
        }
    }
}

fn translate(error: sqlx::Error) -> AppendError {
    let (code, _, detail) = refusal(&error);
    match &code[..] {
        "ES001" => AppendError::Conflict {
            aggregate_id: serde_json::from_value(detail["aggregate_id"].clone()).unwrap(),
            expected: detail["expected"].as_i64().unwrap().into(),
            actual: detail["actual"].as_i64().unwrap().into(),
        },
        "ES002" => AppendError::UuidReused { uuid: serde_json::from_value(detail["uuid"].clone()).unwrap() },
        "ES003" => AppendError::Invalid {
            index: detail["event"].as_u64().map(|number| usize::try_from(number).unwrap() - 1),
            reason: error.to_string(),
        },
        "ES008" => AppendError::ConditionFailed {
            item: usize::try_from(detail["item"].as_u64().unwrap()).unwrap() - 1,
            tag: detail["tag"].as_str().unwrap().into(),
            came: detail["id"].as_i64().map(|id| ExcludingEvent {
                id: id.into(),
                event_type: detail["type"].as_str().unwrap().to_owned(),
                aggregate_id: serde_json::from_value(detail["aggregate_id"].clone()).unwrap(),
            }),
        },
        "ES009" => AppendError::KeyTaken {
            index: usize::try_from(detail["event"].as_u64().unwrap()).unwrap() - 1,
            key: serde_json::from_value(detail.clone()).unwrap(),
            owner: serde_json::from_value(detail["owner"].clone()).unwrap(),
        },
        _ => AppendError::Database(error),
    }
}

/// Takes an append that it has seen for a new one.
#[derive(Default)]
pub(super) struct Forgetful {
    store: MemoryEventStore,
}

impl_event_store!(
    Forgetful,
    async fn append(&self, events: &[NewEvent]) -> Result<Vec<Appended>, AppendError> {
        let forgotten = |event: &NewEvent| NewEvent { uuid: Uuid::new_v4(), ..event.clone() };
        match self.store.append(events).await {
            Ok(appended)
                if self.store.latest_id(None).await.unwrap()
                    > appended.last().map_or(Position::START, |last| last.id) =>
            {
                let events: Vec<_> =
                    events.iter().map(forgotten).map(|event| event.expecting(ExpectedVersion::Any)).collect();
                self.store.append(&events).await
            }
            outcome => outcome,
        }
    }
);
