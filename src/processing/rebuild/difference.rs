//! What differs between the tables of two versions: by key, with the old and the new columns beside each other.
//!
//! Each table is read twice, as hashes of its rows in buckets by key. Only buckets that differ are looked into.

mod columns;
mod lost_ddl;
mod pair;
mod row_reader;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, PgConnection};

use super::{Part, SetAside, Since};
pub(crate) use lost_ddl::{describe_lost, list_lost};
use pair::Pair;
pub(crate) use row_reader::RowReader;

/// What differs. The field names are an interface: `--json` prints them.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Difference {
    /// The tables that both versions have.
    pub(crate) tables: Vec<TableDifference>,
    /// Tables of the new version alone.
    pub(crate) new_tables: Vec<String>,
    /// Tables of the old version alone.
    pub(crate) gone_tables: Vec<String>,
    /// Events that the new version alone has set aside.
    pub(crate) dead_letters: SetAside,
    /// Statements of `ddl` that the new version lacks, each by its beginning: what they have made is gone, or another.
    pub(crate) changed_ddl: Vec<String>,
}

/// What differs in one table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct TableDifference {
    /// The table's own name.
    pub(crate) table: String,
    /// How many rows the old table has.
    pub(crate) rows: i64,
    /// How many keys are in the new table alone.
    pub(crate) added: i64,
    /// How many keys are in the old table alone.
    pub(crate) gone: i64,
    /// How many rows have the same key and other columns.
    pub(crate) changed: i64,
    /// In how many rows each column is another one, if it is in any.
    pub(crate) changed_columns: Vec<(String, i64)>,
    /// Columns that one side lacks, or that have another type there.
    pub(crate) other_columns: Vec<String>,
    /// Those of them that the new table lacks, or has with another type.
    pub(crate) gone_columns: Vec<String>,
    /// Those that both have, with different types.
    pub(crate) retyped_columns: Vec<String>,
    /// The columns of the primary keys of both tables, where these are not the same.
    pub(crate) changed_key: Option<ChangedKey>,
    /// Columns that no replay can make again, such as numbers from a sequence.
    pub(crate) not_compared: Vec<String>,
    /// Whether both tables have the same primary key and the same columns.
    pub(crate) same_shape: bool,
    /// The columns of the key that rows were matched by; empty: whole rows were counted.
    pub(crate) key: Vec<String>,
    /// Some of the keys that differ.
    pub(crate) examples: Vec<Example>,
}

/// Primary keys that are not the same. Empty: there is none.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ChangedKey {
    /// The columns of the old one.
    pub(crate) old: Vec<String>,
    /// Those of the new one.
    pub(crate) new: Vec<String>,
}

/// As people read it: `(owner, id) instead of (id)`.
impl fmt::Display for ChangedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |key: &[String]| match key {
            [] => "none".to_owned(),
            key => format!("({})", key.join(", ")),
        };
        write!(f, "{} instead of {}", shown(&self.new), shown(&self.old))
    }
}

/// A key with what differs. `None`: the row is not there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Example {
    /// The columns of the key.
    pub(crate) key: Columns,
    /// The columns that differ, as they are in the old table.
    pub(crate) old: Option<Columns>,
    /// The columns that differ, as they are in the new table.
    pub(crate) new: Option<Columns>,
    /// Since which event the row differs, where that was looked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) since: Option<Since>,
}

/// Columns of a row, by name, as the database writes them: people decide by what they see, and a number may have more digits than those of
/// a programming language.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Columns(BTreeMap<String, Box<RawValue>>);

impl PartialEq for Columns {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Columns {
    /// The names, and the values as JSON.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.get()))
    }

    /// The text in a column; `None`: it has another type, or is not there.
    pub(crate) fn text(&self, column: &str) -> Option<String> {
        serde_json::from_str(self.0.get(column)?.get()).ok()
    }
}

/// Where the tables of two versions are, each under its own name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Versions<'v> {
    /// The schema and the tables of the version that serves.
    pub(crate) old: (&'v str, &'v [String]),
    /// Those of the other one.
    pub(crate) new: (&'v str, &'v [String]),
    /// What of the serving version was built again; `None`: all of it.
    pub(crate) part: Option<&'v Part>,
}

impl Difference {
    /// The same without any value of a row or an event: nobody needs those but who is told of them at once, and what is kept of a
    /// person would have to be forgotten.
    pub(crate) fn without_rows(&self) -> Self {
        let mut kept = self.clone();
        kept.tables.iter_mut().for_each(|table| table.examples.clear());
        kept.dead_letters.examples.clear();
        kept
    }

    /// Whether the rows are the same, as far as they can be compared, and no more events were set aside.
    pub(crate) fn is_none(&self) -> bool {
        self.has_same_tables() && self.dead_letters.is_none() && self.changed_ddl.is_empty()
    }

    /// Whether the rows are the same, as far as they can be compared.
    pub(crate) fn has_same_tables(&self) -> bool {
        self.tables.iter().all(TableDifference::is_none)
            && self.new_tables.is_empty()
            && self.gone_tables.is_empty()
    }

    /// Whether the rows are the same, and nothing is gone: only columns or tables were added. What could not be compared may be
    /// another one: numbers that the database has given out, which others may have kept. Where events were set aside, later ones of
    /// their aggregates may have to wait. What a view or a function of another text gives, nobody has compared.
    pub(crate) fn is_as_expected(&self) -> bool {
        let is_expected = |table: &TableDifference| {
            table.number() == 0
                && table.gone_columns.is_empty()
                && table.changed_key.is_none()
                && table.not_compared.is_empty()
        };
        self.gone_tables.is_empty()
            && self.changed_ddl.is_empty()
            && self.dead_letters.is_none()
            && self.tables.iter().all(is_expected)
    }

    /// Whether rows differ that were compared, or a table is not on both sides. What has altered the tables without a replay, and what
    /// no replay makes again, is no difference.
    pub(crate) fn has_rows(&self) -> bool {
        self.tables.iter().any(|table| table.number() > 0)
            || !self.new_tables.is_empty()
            || !self.gone_tables.is_empty()
    }

    /// Whether whoever reads the tables would see other rows, or lack something, now or when more events come.
    pub(crate) fn changes_what_is_read(&self) -> bool {
        !self.gone_tables.is_empty()
            || !self.changed_ddl.is_empty()
            || !self.dead_letters.is_none()
            || self.tables.iter().any(|table| {
                table.number() > 0 || !table.gone_columns.is_empty() || table.changed_key.is_some()
            })
    }

    /// What differs, in a few words.
    pub(crate) fn summarise(&self) -> String {
        let mut parts: Vec<String> =
            self.gone_tables.iter().map(|table| format!("the table {table} is gone")).collect();
        for table in &self.tables {
            let TableDifference {
                table: name, rows, added, gone, changed, changed_key, not_compared, ..
            } = table;
            if table.number() > 0 {
                parts.push(format!(
                    "of {rows} rows of {name}, {added} would be added, {gone} gone, {changed} changed"
                ));
            }
            let lacked = table.lacked_columns();
            if !lacked.is_empty() {
                parts.push(format!("{name} would lack {}", lacked.join(", ")));
            }
            if !table.retyped_columns.is_empty() {
                parts.push(format!("{name} would have other types of {}", table.retyped_columns.join(", ")));
            }
            if let Some(key) = changed_key {
                parts.push(format!("the primary key of {name} would be {key}"));
            }
            if !not_compared.is_empty() {
                parts.push(format!(
                    "{} of {name} would have other values, because no replay makes them again",
                    not_compared.join(", ")
                ));
            }
        }
        parts.extend(self.changed_ddl.iter().map(|statement| describe_lost(statement)));
        if !self.dead_letters.is_none() {
            parts.push(self.dead_letters.describe());
        }
        parts.join("; ")
    }

    /// Whether both versions have the same tables with the same columns.
    pub(crate) fn same_shape(&self) -> bool {
        self.new_tables.is_empty()
            && self.gone_tables.is_empty()
            && self.tables.iter().all(|table| table.same_shape && table.not_compared.is_empty())
    }
}

impl TableDifference {
    /// How many rows differ.
    pub(crate) fn number(&self) -> i64 {
        self.added + self.gone + self.changed
    }

    fn is_none(&self) -> bool {
        self.number() == 0 && self.other_columns.is_empty() && self.changed_key.is_none()
    }

    /// The columns that the new table lacks.
    pub(crate) fn lacked_columns(&self) -> Vec<&str> {
        let is_retyped = |column: &&String| self.retyped_columns.contains(column);
        self.gone_columns.iter().filter(|column| !is_retyped(column)).map(String::as_str).collect()
    }

    /// The columns that the new table alone has.
    pub(crate) fn new_columns(&self) -> Vec<&str> {
        let is_of_old = |column: &&String| self.gone_columns.contains(column);
        self.other_columns.iter().filter(|column| !is_of_old(column)).map(String::as_str).collect()
    }
}

/// Has rows look the same on both sides, and say everything, for the rest of a transaction: they are compared as text.
async fn compare_alike(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let settings = "-- compare_alike
        set local search_path = pg_catalog, pg_temp; set local extra_float_digits = 3; set local datestyle = 'ISO, MDY';
        set local timezone = 'UTC'; set local intervalstyle = 'postgres'; set local bytea_output = 'hex';
        set local jit = off; set local row_security = off";
    sqlx::raw_sql(settings).execute(connection).await.map(drop)
}

/// Compares the tables of two versions in the caller's transaction.
pub(crate) async fn compare(
    connection: &mut PgConnection,
    Versions { old, new, part }: Versions<'_>,
) -> Result<Difference, sqlx::Error> {
    compare_alike(connection).await?;
    let mut difference = Difference {
        new_tables: new.1.iter().filter(|table| !old.1.contains(table)).cloned().collect(),
        gone_tables: old.1.iter().filter(|table| !new.1.contains(table)).cloned().collect(),
        ..Difference::default()
    };
    for table in old.1.iter().filter(|table| new.1.contains(table)) {
        let pair = Pair::of(connection, table, (old.0, new.0), part).await?;
        difference.tables.push(pair.compare(connection).await?);
    }
    Ok(difference)
}

/// What merging has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merged {
    /// So many rows were changed.
    Rows(u64),
    /// The tables are still not alike: a trigger, a rule or a foreign key on them has changed more.
    Differs,
}

/// Brings what differs from the new tables into the old ones, in the caller's transaction, which must be rolled back unless they are
/// alike then. All tables have the same columns and keys in both versions.
pub(crate) async fn merge(
    connection: &mut PgConnection,
    tables: &[String],
    (old, new): (&str, &str),
    part: Option<&Part>,
) -> Result<Merged, sqlx::Error> {
    let mut pairs = Vec::new();
    for table in tables {
        pairs.push(Pair::of(connection, table, (old, new), part).await?);
    }
    let mut changed = 0;
    let mut run = async |statement: String| {
        let outcome = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *connection).await;
        outcome.map(|done| changed += done.rows_affected())
    };
    // Rows that refer to others go before those, and come after them.
    for pair in pairs.iter().rev() {
        run(pair.merge_statements().remove).await?;
    }
    for pair in &pairs {
        let statements = pair.merge_statements();
        run(statements.change).await?;
        run(statements.add).await?;
    }
    if !may_change_more(connection, old, tables).await? {
        return Ok(Merged::Rows(changed));
    }
    sqlx::raw_sql("-- fire_deferred\nset constraints all immediate").execute(&mut *connection).await?;
    compare_alike(connection).await?;
    for pair in &pairs {
        if pair.has_differences(connection).await? {
            return Ok(Merged::Differs);
        }
    }
    Ok(Merged::Rows(changed))
}

/// Whether a statement on one of these tables may do more than it says, by triggers, among which are those of foreign keys, or rules.
async fn may_change_more(
    connection: &mut PgConnection,
    schema: &str,
    tables: &[String],
) -> Result<bool, sqlx::Error> {
    let statement = "-- find_triggers_and_rules
        select exists (
          select from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
          where n.nspname = $1 and c.relname = any ($2)
            and (c.relkind = 'p' or exists (select from pg_trigger as t where t.tgrelid = c.oid)
                 or exists (select from pg_rewrite as r where r.ev_class = c.oid)))";
    sqlx::query_scalar(statement).persistent(false).bind(schema).bind(tables).fetch_one(connection).await
}
