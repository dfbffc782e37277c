//! Says since which event rows differ, where the rows of an aggregate can be told apart.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, Connection as _};
use uuid::Uuid;

use super::{Listener, Rebuilding, Selection};
use crate::event::Position;
use crate::operations::operator::{Operator, OperatorError};
use crate::postgres::row::from_row;
use crate::postgres::server_mark::READ_COMMITTED;
use crate::processing::rebuild::{Beside, Difference, EventAt, RowReader, Since, Trace};

/// For how many aggregates it is found out.
const AGGREGATES_MAX: usize = 10;

/// How many events of an aggregate are handled one by one. Those before are handled at once.
const EVENTS_MAX: i64 = 1_000;

/// An event of the aggregate.
struct Listed {
    id: Position,
    event_type: String,
    created_at: String,
}

from_row!(Listed { id, event_type, created_at });

/// A row that differs: its table, and its place among the examples.
type Place = (usize, usize);

/// Says of the rows that differ since which event, for some of them. Returns why it is not known of any.
///
/// # Errors
/// As for [`Rebuilding::begin`].
pub(crate) async fn find_since(
    operator: Operator<'_>,
    name: &str,
    difference: &mut Difference,
    listener: Listener<'_>,
) -> Result<Option<String>, OperatorError> {
    let declaration = operator.declaration(name)?;
    let columns = {
        let mut connection = operator.databases.projections.acquire().await?;
        operator.find_aggregate_columns(&mut connection, declaration).await?
    };
    let columns = match columns {
        Ok(columns) => columns,
        Err(reason) => return Ok(Some(reason)),
    };
    let mut places: BTreeMap<Uuid, Vec<Place>> = BTreeMap::new();
    for (at, table) in difference.tables.iter().enumerate() {
        let Some(column) = columns.get(&table.table) else { continue };
        for (place, example) in table.examples.iter().enumerate() {
            let id = example.key.text(&column.name);
            if let Some(id) = id.and_then(|id| Uuid::parse_str(&id).ok()) {
                places.entry(id).or_default().push((at, place));
            }
        }
    }
    for (aggregate, places) in places.into_iter().take(AGGREGATES_MAX) {
        let selection = Selection::of(aggregate);
        let begun = Rebuilding::begin_with(operator, name, Beside::Verification, &selection, listener).await;
        let mut scratch = match begun {
            Err(OperatorError::Blocked(reason) | OperatorError::NotApart { reason, .. }) => {
                return Ok(Some(reason));
            }
            begun => begun?,
        };
        let traced = scratch.trace(aggregate, &places, difference).await;
        scratch.remove().await?;
        for ((table, place), since) in traced? {
            difference.tables[table].examples[place].since = Some(since);
        }
    }
    Ok(None)
}

impl Rebuilding<'_> {
    /// Handles the events of one aggregate one after the other, and compares some of its rows after each.
    async fn trace(
        &mut self,
        aggregate: Uuid,
        places: &[Place],
        difference: &Difference,
    ) -> Result<Vec<(Place, Since)>, OperatorError> {
        let projections = self.operator.databases.projections.clone();
        let mut reading = projections.acquire().await?;
        let mut held = projections.acquire().await?;
        let schema = self.operator.databases.scope.schema.clone();
        let mut rows = Vec::new();
        let upto = {
            // The rows are those of this position.
            let mut hold = held.begin_with(READ_COMMITTED).await?;
            let position = self.operator.trackers().lock(&mut hold, &self.live).await?;
            for (table, place) in places {
                let (table_name, key) =
                    (&difference.tables[*table].table, &difference.tables[*table].examples[*place].key);
                let reader = RowReader::of(&mut reading, table_name, (&schema, &self.building_in)).await?;
                let found = reader.read_old(&mut reading, key).await?;
                rows.push(((*table, *place), reader, key, found));
            }
            hold.rollback().await?;
            position.unwrap_or(Position::START)
        };
        let events = self.list_events(aggregate, upto).await?;
        if let Some(first) = events.first() {
            let before = first.id.previous();
            self.replay.reach(&mut self.worker, before).await.map_err(|error| self.failed(error))?;
        }
        self.replay.one_by_one();
        let mut traces = Vec::new();
        for (place, reader, key, found) in rows {
            let now = reader.read_new(&mut reading, key).await?;
            traces.push((place, reader, key, Trace::new(found, now)));
        }
        for event in events {
            self.replay.reach(&mut self.worker, event.id).await.map_err(|error| self.failed(error))?;
            for (_, reader, key, trace) in &mut traces {
                trace.observe(&event, reader.read_new(&mut reading, key).await?);
            }
        }
        let row = self.operator.find(&self.live.name).await?;
        let changed_at = row.handler_change.map(|change| change.0.position);
        Ok(traces.into_iter().map(|(place, _, _, trace)| (place, trace.conclude(changed_at))).collect())
    }

    /// The last events of an aggregate that the projector handles, in order.
    async fn list_events(&self, aggregate: Uuid, upto: Position) -> Result<Vec<EventAt>, OperatorError> {
        let statement = format!(
            "-- list_events_of_aggregate
             select e.id, e.type as event_type, to_jsonb(e.created_at) #>> '{{}}' as created_at from {} as e
             where e.aggregate_id = $1 and e.id > $2 and e.id <= $3 and ($4::text[] is null or e.type = any ($4))
             order by e.id desc limit {EVENTS_MAX}",
            self.operator.databases.layout.source()
        );
        let types: Option<Vec<String>> =
            self.declaration.event_types().map(|types| types.into_iter().map(str::to_owned).collect());
        let query = sqlx::query_as(AssertSqlSafe(statement)).persistent(false);
        let query = query.bind(aggregate).bind(self.replay.position()).bind(upto).bind(types);
        let listed: Vec<Listed> = query.fetch_all(&self.operator.databases.events).await?;
        let event = |Listed { id, event_type, created_at }| EventAt { id, event_type, created_at };
        Ok(listed.into_iter().rev().map(event).collect())
    }
}
