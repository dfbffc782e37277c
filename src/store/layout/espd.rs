//! espd's own layout, as `migrations/event_store` creates it.

use super::{Append, Bodies, CreatedBy, EspdNames, Layout, Order, Source, own_channel};
use crate::postgres::name::{InvalidName, SchemaName};
use crate::postgres::quote::quote_identifier;
use crate::schema::names::Name;

/// The columns that the migrations create.
const COLUMNS: [(&str, &str); 10] = [
    ("id", "bigint"),
    ("uuid", "uuid"),
    ("aggregate_id", "uuid"),
    ("type", "text"),
    ("version", "bigint"),
    ("body", "jsonb"),
    ("metadata", "jsonb"),
    ("causation_id", "uuid"),
    ("correlation_id", "uuid"),
    ("created_at", "timestamp with time zone"),
];

impl Layout {
    /// The layout that `migrations/event_store` creates in `schema`.
    pub fn espd(schema: &str) -> Result<Self, InvalidName> {
        Self::espd_named(schema, &EspdNames::default())
    }

    /// The same layout with other names of tables and functions.
    pub fn espd_named(schema: &str, names: &EspdNames) -> Result<Self, InvalidName> {
        names.validate()?;
        let schema = SchemaName::new(schema)?;
        let qualified = |name: Name| format!("{schema}.{}", quote_identifier(&names.get(name)));
        let table = qualified(Name::EventsTable);
        let channel = own_channel(&schema);
        Ok(Self {
            events: Source {
                sql: table.clone(),
                plain: table.clone(),
                as_stored: table.clone(),
                table: table.clone(),
                columns: &COLUMNS,
                upcasts: Vec::new(),
                is_whole: true,
            },
            order: Order::DrawnInTransaction { sequence: qualified(Name::Sequence), tables: vec![table] },
            bodies: Bodies::Jsonb,
            append: Some(Append {
                function: qualified(Name::AppendEvents),
                append_at: qualified(Name::AppendAt),
                departing: ["find_departing", "refuse_departing"].map(|name| format!("{schema}.\"{name}\"")),
                cancel_scheduled: qualified(Name::CancelScheduled),
                set_bell: format!("{schema}.\"set_bell\""),
                keys: names.event_keys(),
                channel: channel.clone(),
                event_schemas: format!("{schema}.\"event_schemas\""),
                snapshots: format!("{schema}.\"snapshots\""),
                commands: format!("{schema}.\"commands\""),
            }),
            channel: Some(channel),
            created_by: CreatedBy::Migrations,
            positions: None,
            names: names.clone(),
            schema,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_qualified_and_quoted() {
        let layout = Layout::espd("shop_2").unwrap();
        assert_eq!(layout.schema(), "shop_2");
        assert_eq!(layout.quoted_schema(), r#""shop_2""#);
        assert_eq!(layout.events_table(), r#""shop_2"."events""#);
        let sequence = r#""shop_2"."events_id_seq""#.to_owned();
        let tables = vec![r#""shop_2"."events""#.to_owned()];
        assert_eq!(layout.order, Order::DrawnInTransaction { sequence, tables });
        assert_eq!(layout.append.as_ref().unwrap().function, r#""shop_2"."append_events""#);
        assert_eq!(layout.channel(), Some("shop_2_events"));
        assert_eq!(layout.control_channel(), "shop_2_events");
    }

    #[test]
    fn chosen_names_are_quoted_and_what_belongs_to_a_table_is_called_after_it() {
        let names =
            EspdNames { events_table: "My Events".into(), append_at: "later".into(), ..EspdNames::default() };
        let layout = Layout::espd_named("shop", &names).unwrap();
        assert_eq!(layout.events_table(), r#""shop"."My Events""#);
        let Order::DrawnInTransaction { sequence, .. } = &layout.order;
        assert_eq!(sequence, r#""shop"."My Events_id_seq""#);
        let append = layout.append.unwrap();
        assert_eq!(
            (append.append_at.as_str(), append.function.as_str()),
            (r#""shop"."later""#, r#""shop"."append_events""#)
        );
        assert_eq!(append.keys, ["My Events_uuid_key", "My Events_aggregate_id_version_key"]);
    }
}
