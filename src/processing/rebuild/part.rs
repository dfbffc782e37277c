//! A part of a projector's tables: the rows of some aggregates, where each row is written by the events of one aggregate alone.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::postgres::quote::{quote_identifier, quote_literal};

/// How many hashes of aggregates are told apart; a power of two.
pub(super) const HASHES: i64 = 1 << 20;

/// Which aggregates are meant.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Aggregates {
    /// These.
    Listed(Vec<Uuid>),
    /// Those whose hash is among so many percent, always the same ones.
    Sampled {
        /// From 0 to 100.
        percent: f64,
    },
    /// Those behind one, up to another one, in the order of their ids. `None`: without an end.
    Between {
        /// The last one that is not meant.
        after: Option<Uuid>,
        /// The last one that is meant.
        upto: Option<Uuid>,
    },
}

impl Aggregates {
    /// Whether none is left out, and so no row.
    fn are_all(&self) -> bool {
        match self {
            Self::Listed(_) => false,
            Self::Sampled { percent } => *percent >= 100.0,
            Self::Between { after, upto } => after.is_none() && upto.is_none(),
        }
    }

    /// Whether rows without an aggregate, which the events of none have written, are looked at together with theirs: once in a round,
    /// with the last slice.
    fn take_rows_of_none(&self) -> bool {
        matches!(self, Self::Between { upto: None, .. })
    }

    /// The condition that an expression is the id of one of them.
    pub(crate) fn condition(&self, expression: &str, is_uuid: bool) -> String {
        let (operand, literal): (String, fn(&Uuid) -> String) = if is_uuid {
            (expression.to_owned(), |id| format!("'{id}'::uuid"))
        } else {
            (format!("({expression}::text collate \"C\")"), |id| quote_literal(&id.to_string()))
        };
        match self {
            Self::Listed(ids) if ids.is_empty() => "false".to_owned(),
            Self::Listed(ids) => {
                format!("{operand} in ({})", ids.iter().map(literal).collect::<Vec<_>>().join(", "))
            }
            Self::Sampled { .. } if self.are_all() => "true".to_owned(),
            Self::Sampled { percent } => format!(
                "(hashtextextended({expression}::text, 0) & {}) < {}",
                HASHES - 1,
                (percent / 100.0 * HASHES as f64).round() as i64
            ),
            Self::Between { after, upto } => {
                let after = after.as_ref().map(|id| format!("{operand} > {}", literal(id)));
                let upto = upto.as_ref().map(|id| format!("{operand} <= {}", literal(id)));
                let both: Vec<String> = after.into_iter().chain(upto).collect();
                if both.is_empty() { "true".to_owned() } else { format!("({})", both.join(" and ")) }
            }
        }
    }
}

/// The column of a table that has the aggregate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AggregateColumn {
    pub(crate) name: String,
    /// Whether it has the ids as such; otherwise as text.
    pub(crate) is_uuid: bool,
}

/// The rows of some aggregates in the tables of a projector.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Part {
    pub(crate) aggregates: Aggregates,
    /// By the table's own name. Every table of the projector is here.
    pub(crate) columns: BTreeMap<String, AggregateColumn>,
}

impl Part {
    /// The condition on an event `e`.
    pub(crate) fn of_event(&self) -> String {
        self.aggregates.condition("e.aggregate_id", true)
    }

    /// The condition on a row of a table that has this alias: it is of one of the aggregates, or looked at together with theirs.
    pub(crate) fn of_row(&self, table: &str, alias: &str) -> String {
        match self.columns.get(table) {
            Some(column) if self.aggregates.take_rows_of_none() => {
                let column = quote_identifier(&column.name);
                format!("({} or {alias}.{column} is null)", self.of_own_row(table, alias))
            }
            _ => self.of_own_row(table, alias),
        }
    }

    /// The condition on a row of a table that has this alias: it is of one of the aggregates.
    pub(crate) fn of_own_row(&self, table: &str, alias: &str) -> String {
        self.columns.get(table).map_or_else(
            || "false".to_owned(),
            |column| {
                let expression = format!("{alias}.{}", quote_identifier(&column.name));
                self.aggregates.condition(&expression, column.is_uuid)
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_says_the_same_of_an_event_and_of_a_row() {
        let one = Uuid::from_u128(1);
        let listed = Aggregates::Listed(vec![one]);
        assert_eq!(listed.condition("e.a", true), "e.a in ('00000000-0000-0000-0000-000000000001'::uuid)");
        assert_eq!(
            listed.condition("t.a", false),
            "(t.a::text collate \"C\") in ('00000000-0000-0000-0000-000000000001')"
        );
        assert_eq!(Aggregates::Listed(Vec::new()).condition("t.a", true), "false");
        let half = Aggregates::Sampled { percent: 50.0 };
        assert_eq!(half.condition("t.a", true), half.condition("t.a", false));
        assert!(half.condition("t.a", true).ends_with("& 1048575) < 524288"));
        let all = Aggregates::Between { after: None, upto: None };
        assert_eq!(all.condition("t.a", true), "true");
        let rest = Aggregates::Between { after: Some(one), upto: None };
        assert_eq!(rest.condition("t.a", true), "(t.a > '00000000-0000-0000-0000-000000000001'::uuid)");
        assert_eq!(Aggregates::Sampled { percent: 100.0 }.condition("t.a", true), "true");
    }

    #[test]
    fn rows_of_no_aggregate_are_looked_at_once_in_a_round() {
        let one = Some(Uuid::from_u128(1));
        let of_row = |aggregates: Aggregates| {
            let column = AggregateColumn { name: "a".to_owned(), is_uuid: true };
            Part { aggregates, columns: BTreeMap::from([("notes".to_owned(), column)]) }.of_row("notes", "t")
        };
        let first = of_row(Aggregates::Between { after: None, upto: one });
        let last = of_row(Aggregates::Between { after: one, upto: None });
        assert!(last.ends_with(" or t.\"a\" is null)") && !first.contains("is null"), "{first} {last}");
    }
}
