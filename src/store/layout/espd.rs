//! espd's own layout, as `migrations/event_store` creates it.

use super::{Append, Bodies, CreatedBy, Layout, Order, Source, own_channel};
use crate::postgres::name::{InvalidName, SchemaName};

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
        let schema = SchemaName::new(schema)?;
        let table = format!("{schema}.\"events\"");
        let channel = own_channel(&schema);
        Ok(Self {
            events: Source {
                sql: table.clone(),
                table: table.clone(),
                columns: &COLUMNS,
                upcasts: Vec::new(),
            },
            order: Order::DrawnInTransaction {
                sequence: format!("{schema}.\"events_id_seq\""),
                tables: vec![table],
            },
            bodies: Bodies::Jsonb,
            append: Some(Append {
                function: format!("{schema}.\"append_events\""),
                channel: channel.clone(),
                event_schemas: format!("{schema}.\"event_schemas\""),
            }),
            channel: Some(channel),
            created_by: CreatedBy::Migrations,
            positions: None,
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
}
