//! The layout of event_sourcery-postgres. espd reads such a store and changes nothing in it.

use serde::{Deserialize, Serialize};

use super::{Bodies, CreatedBy, EspdNames, Framework, Layout, Order, Positions, Source};
use crate::postgres::name::{InvalidName, SchemaName, identifier, qualify};

/// The names in a database of event_sourcery-postgres. The defaults are the framework's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventSourceryNames {
    /// The schema of its tables. Default: `public`.
    pub schema: String,
    /// The table of events. Default: `events`.
    pub events_table: String,
    /// The sequence that ids are drawn from; `None`: the table's name with `_id_seq`.
    pub sequence: Option<String>,
    /// The channel that `writeEvents` notifies. Default: `new_event`.
    pub channel: String,
    /// The table of its processors' positions, in the database of the projections. Default: `projector_tracker`.
    pub tracker_table: String,
}

impl Default for EventSourceryNames {
    fn default() -> Self {
        Self {
            schema: "public".into(),
            events_table: "events".into(),
            sequence: None,
            channel: "new_event".into(),
            tracker_table: "projector_tracker".into(),
        }
    }
}

/// What may be absent in older versions of the framework, or is in none, is left out.
const COLUMNS: [(&str, &str); 7] = [
    ("id", "bigint"),
    ("uuid", "uuid"),
    ("aggregate_id", "uuid"),
    ("type", "text or character varying"),
    ("body", "jsonb or json"),
    ("version", "bigint or integer"),
    ("created_at", "timestamp without time zone"),
];

impl Layout {
    /// The layout of event_sourcery-postgres, with espd's own tables in `schema`.
    ///
    /// The framework's writers take turns, by an advisory lock. espd does not rely on that: `writeEvents` inserts, and the
    /// insert draws the id.
    pub fn event_sourcery(schema: &str, names: &EventSourceryNames) -> Result<Self, InvalidName> {
        let schema = SchemaName::new(schema)?;
        let sequence = names.sequence.clone().unwrap_or_else(|| format!("{}_id_seq", names.events_table));
        let table = qualify(&names.schema, &names.events_table)?;
        Ok(Self {
            events: Source {
                sql: source(&table, "jsonb"),
                plain: source(&table, "jsonb"),
                as_stored: source(&table, "json"),
                table: table.clone(),
                columns: &COLUMNS,
                upcasts: Vec::new(),
                is_whole: true,
            },
            order: Order::DrawnInTransaction {
                sequence: qualify(&names.schema, &sequence)?,
                tables: vec![table],
            },
            bodies: Bodies::Json,
            append: None,
            channel: Some(identifier(&names.channel)?.to_owned()),
            created_by: CreatedBy::Framework(Framework {
                name: "event_sourcery-postgres",
                schema: names.schema.clone(),
                section: "[event_store.event_sourcery]",
            }),
            positions: Some(positions(names)?),
            names: EspdNames::default(),
            schema,
        })
    }
}

/// The events of event_sourcery-postgres with the columns that espd's own table has.
///
/// Older versions of the framework have no `correlation_id` or `causation_id`, none has `metadata`. A name that the
/// inner query does not find in the table means the column of the same name beside it, which holds the default.
/// So the query needs no knowledge of which columns there are. `json` is the type that bodies are read as.
fn source(table: &str, json: &str) -> String {
    format!(
        "(select of_table.* \
          from (select null::uuid as correlation_id, null::uuid as causation_id, '{{}}'::jsonb as metadata) as absent \
          cross join lateral (\
            select id, uuid, aggregate_id, type::text as type, version::bigint as version, body::{json} as body, metadata::{json} as metadata, \
              correlation_id, causation_id, created_at at time zone 'UTC' as created_at \
            from {table}) as of_table)"
    )
}

/// The framework's trackers. A processor that runs holds an advisory lock on the number of its row.
fn positions(names: &EventSourceryNames) -> Result<Positions, InvalidName> {
    let table = qualify(&names.schema, &names.tracker_table)?;
    let query = format!(
        "select t.name::text as name, t.last_processed_event_id as position,
                (select l.pid from pg_locks l
                  where l.locktype = 'advisory' and l.granted and l.objsubid = 1
                    and l.database = (select oid from pg_database where datname = current_database())
                    and (l.classid::bigint << 32 | l.objid::bigint) = t.id limit 1) as pid
           from {table} as t where t.name is not null"
    );
    Ok(Positions { table: names.tracker_table.clone(), qualified: table, query })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_others_keep_their_case() {
        let names = EventSourceryNames { events_table: "myEvents".into(), ..EventSourceryNames::default() };
        let layout = Layout::event_sourcery("espd", &names).unwrap();
        assert_eq!(layout.events_table(), r#""public"."myEvents""#);
        let Order::DrawnInTransaction { sequence, tables } = &layout.order;
        assert_eq!(sequence, r#""public"."myEvents_id_seq""#);
        assert_eq!(tables, &[r#""public"."myEvents""#]);
        assert_eq!(
            (layout.channel(), layout.control_channel()),
            (Some("new_event"), "espd_events".to_owned())
        );
        assert!(layout.append.is_none());
        for name in ["", "1a", "a\"b", "a'b", "a b", &"a".repeat(64)] {
            let names = EventSourceryNames { events_table: name.into(), ..EventSourceryNames::default() };
            assert!(Layout::event_sourcery("espd", &names).is_err(), "{name:?}");
        }
    }
}
