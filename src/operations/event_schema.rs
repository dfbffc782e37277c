//! What the events of a store look like, type by type, as JSON Schema: inferred from events that are stored.
//!
//! Nothing here says what events have to look like. A key that a schema calls required was in all the events that were looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use serde_json::{Map, Value, json};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row as _};

use crate::postgres::server_mark;
use crate::store::layout::Layout;

/// How long the store may be searched for the types, their numbers and their times.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many ids at the head are looked through for types where the whole store takes too long.
const RECENT: i64 = 100_000;

/// A body is looked at to this depth: what is deeper may be anything.
const DEPTH_MAX: usize = 8;

/// An object with more keys than this is a map, whose keys are data.
const KEYS_MAX: usize = 200;

/// SQLSTATE of a statement that has taken too long.
const CANCELLED: &str = "57014";

/// The schema of each type, and how many events stand behind it.
pub(crate) struct EventSchemas {
    /// JSON Schemas by type.
    pub(crate) by_type: BTreeMap<String, Value>,
    /// Whether only the newest events were searched for types, because the store is large.
    pub(crate) is_partial: bool,
}

/// What was counted of a type.
struct Counted {
    event_type: String,
    events: i64,
    since: Option<String>,
    until: Option<String>,
}

/// Infers the schemas of all types, or of one, from at most `sample` of the newest events of each.
///
/// # Errors
/// The store cannot be read.
pub(crate) async fn infer(
    events: &PgPool,
    layout: &Layout,
    only: Option<&str>,
    sample: i64,
) -> Result<EventSchemas, sqlx::Error> {
    let mut transaction = events.begin_with(server_mark::begin(None)).await?;
    let (counted, is_partial) = count(&mut transaction, layout, only).await?;
    let mut by_type = BTreeMap::new();
    for one in counted {
        let (shape, looked_at) = look_at(&mut transaction, layout, &one.event_type, sample).await?;
        let mut schema = shape.schema();
        let title = json!("https://json-schema.org/draft/2020-12/schema");
        schema.insert("$schema".to_owned(), title);
        schema.insert("title".to_owned(), json!(one.event_type));
        let origin = json!({
            "origin": "inferred", "events": one.events, "sampled": looked_at,
            "since": one.since, "until": one.until, "partial": is_partial,
        });
        schema.insert("x-espd".to_owned(), origin);
        by_type.insert(one.event_type, Value::Object(schema));
    }
    Ok(EventSchemas { by_type, is_partial })
}

/// Counts the events of each type: of the whole store, or of its newest ids where that takes too long.
async fn count(
    connection: &mut PgConnection,
    layout: &Layout,
    only: Option<&str>,
) -> Result<(Vec<Counted>, bool), sqlx::Error> {
    let limit = format!("savepoint espd_count; set local statement_timeout = {}", PATIENCE.as_millis());
    sqlx::raw_sql(AssertSqlSafe(limit)).execute(&mut *connection).await?;
    match count_from(connection, layout, only, 0).await {
        Ok(counted) => Ok((counted, false)),
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(CANCELLED) => {
            sqlx::raw_sql("rollback to savepoint espd_count").execute(&mut *connection).await?;
            Ok((count_from(connection, layout, only, RECENT).await?, true))
        }
        Err(error) => Err(error),
    }
}

/// Counts among the newest `recent` ids; 0: all.
async fn count_from(
    connection: &mut PgConnection,
    layout: &Layout,
    only: Option<&str>,
    recent: i64,
) -> Result<Vec<Counted>, sqlx::Error> {
    let statement = format!(
        "-- count_types
         select e.type, count(*) as events, min(e.created_at)::text as since, max(e.created_at)::text as until
         from {source} as e
         where ($1::text is null or e.type = $1)
           and ($2::bigint = 0 or e.id > (select max(id) from {table}) - $2::bigint)
         group by e.type order by e.type",
        source = layout.source(),
        table = layout.events_table()
    );
    let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(only).bind(recent);
    let rows = query.fetch_all(connection).await?;
    let counted = |row: sqlx::postgres::PgRow| {
        Ok(Counted {
            event_type: row.try_get("type")?,
            events: row.try_get("events")?,
            since: row.try_get("since")?,
            until: row.try_get("until")?,
        })
    };
    rows.into_iter().map(counted).collect()
}

/// Looks at the newest events of a type, one after another, so that large bodies are not in memory together.
async fn look_at(
    connection: &mut PgConnection,
    layout: &Layout,
    event_type: &str,
    sample: i64,
) -> Result<(Shape, u64), sqlx::Error> {
    let statement = format!(
        "-- sample_bodies
         select e.body::text from {} as e where e.type = $1 order by e.id desc limit $2",
        layout.clone().reading_as_stored().source()
    );
    let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).bind(event_type).bind(sample);
    let mut bodies = query.fetch(connection);
    let (mut shape, mut looked_at) = (Shape::default(), 0);
    while let Some(body) = bodies.try_next().await? {
        let body: String = body;
        // A body that is no text or number of this program, such as one with a lone surrogate, says nothing of the others.
        if let Ok(value) = serde_json::from_str(&body) {
            shape.add(&value, 0);
        }
        looked_at += 1;
    }
    Ok((shape, looked_at))
}

/// What values have been seen in one place.
#[derive(Debug, Default)]
struct Shape {
    kinds: BTreeSet<&'static str>,
    objects: u64,
    /// The keys of objects, each with how often it was there.
    keys: BTreeMap<String, (u64, Shape)>,
    items: Option<Box<Shape>>,
    /// Whether the objects have so many keys that these are data.
    is_map: bool,
}

impl Shape {
    fn add(&mut self, value: &Value, depth: usize) {
        self.kinds.insert(kind(value));
        if depth == DEPTH_MAX {
            return;
        }
        match value {
            Value::Object(object) => self.add_object(object, depth),
            Value::Array(items) => {
                let shape = self.items.get_or_insert_default();
                items.iter().for_each(|item| shape.add(item, depth + 1));
            }
            _ => {}
        }
    }

    fn add_object(&mut self, object: &Map<String, Value>, depth: usize) {
        self.objects += 1;
        for (key, value) in object {
            if self.is_map || self.keys.len() == KEYS_MAX && !self.keys.contains_key(key) {
                self.is_map = true;
                self.keys.clear();
                return;
            }
            let (times, shape) = self.keys.entry(key.clone()).or_default();
            *times += 1;
            shape.add(value, depth + 1);
        }
    }

    fn schema(&self) -> Map<String, Value> {
        let mut schema = Map::new();
        // Every integer is a number.
        let kinds: Vec<&str> = self.kinds.iter().copied().collect();
        let kinds: Vec<&str> =
            kinds.iter().copied().filter(|kind| *kind != "integer" || !kinds.contains(&"number")).collect();
        match kinds.as_slice() {
            [] => {}
            [kind] => _ = schema.insert("type".to_owned(), json!(kind)),
            kinds => _ = schema.insert("type".to_owned(), json!(kinds)),
        }
        if !self.keys.is_empty() {
            let properties = self.keys.iter().map(|(key, (_, shape))| (key.clone(), shape.schema().into()));
            schema.insert("properties".to_owned(), Value::Object(properties.collect()));
            let required = self.keys.iter().filter(|(_, (times, _))| *times == self.objects);
            schema.insert("required".to_owned(), required.map(|(key, _)| json!(key)).collect());
        }
        if let Some(items) = self.items.as_ref().filter(|items| !items.kinds.is_empty()) {
            schema.insert("items".to_owned(), items.schema().into());
        }
        schema
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_i64() || number.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_have_is_required_and_every_type_is_told() {
        let mut shape = Shape::default();
        for value in [
            json!({ "title": "a", "price": 1, "tags": ["x"], "by": { "id": 1 } }),
            json!({ "title": null, "price": 1.5, "tags": [], "by": { "id": 2, "name": "jo" } }),
        ] {
            shape.add(&value, 0);
        }
        shape.add(&json!({ "title": "b" }), 0);
        assert_eq!(
            Value::Object(shape.schema()),
            json!({
                "type": "object", "required": ["title"],
                "properties": {
                    "title": { "type": ["null", "string"] }, "price": { "type": "number" },
                    "tags": { "type": "array", "items": { "type": "string" } },
                    "by": { "type": "object", "required": ["id"],
                            "properties": { "id": { "type": "integer" }, "name": { "type": "string" } } },
                },
            })
        );
    }

    #[test]
    fn keys_that_are_data_are_not_listed() {
        let mut shape = Shape::default();
        for number in 0..=KEYS_MAX {
            shape.add(&json!({ number.to_string(): 1 }), 0);
        }
        assert_eq!(Value::Object(shape.schema()), json!({ "type": "object" }));
    }
}
