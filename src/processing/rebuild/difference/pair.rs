//! One table in two versions, and the statements that compare them and bring one to the other.

use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};

use super::columns::{Column, is_volatile, key_of, list_columns, lone, names, shared_key, twin};
use super::{ChangedKey, Columns, Example, Part, TableDifference};
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::row::from_row;

/// How many buckets the keys of a table are divided into.
const BUCKETS: i32 = 1_024;

/// How many keys are shown for each table.
const EXAMPLES: i64 = 100;

/// A row that differs, as the database returns it.
struct Found {
    key: Json<Columns>,
    old: Option<Json<Columns>>,
    new: Option<Json<Columns>>,
}

from_row!(Found { key, old, new });

/// A table in both versions.
#[derive(Debug)]
pub(super) struct Pair {
    table: String,
    pub(super) old: String,
    pub(super) new: String,
    /// The condition on rows `t` of the old table that count; `None`: all do.
    counting: Option<String>,
    pub(super) key: Vec<String>,
    /// Columns that are compared, without the key.
    pub(super) columns: Vec<String>,
    generated: Vec<String>,
    other_columns: Vec<String>,
    gone_columns: Vec<String>,
    retyped_columns: Vec<String>,
    changed_key: Option<ChangedKey>,
    not_compared: Vec<String>,
    same_shape: bool,
}

impl Pair {
    pub(super) async fn of(
        connection: &mut PgConnection,
        table: &str,
        (old, new): (&str, &str),
        part: Option<&Part>,
    ) -> Result<Self, sqlx::Error> {
        let qualified = |schema: &str| format!("{}.{}", quote_identifier(schema), quote_identifier(table));
        let (old, new) = (qualified(old), qualified(new));
        let (before, after) = (list_columns(connection, &old).await?, list_columns(connection, &new).await?);
        let counting = part.map(|part| part.of_row(table, "t"));
        Ok(Self { counting, ..Self::matched(table, (old, before), (new, after)) })
    }

    fn matched(table: &str, old: (String, Vec<Column>), new: (String, Vec<Column>)) -> Self {
        let ((old, before), (new, after)) = (old, new);
        let (key, own_key, new_key) = (shared_key(&before, &after), key_of(&before), key_of(&after));
        let changed_key =
            (own_key != new_key).then(|| ChangedKey { old: own_key.clone(), new: new_key.clone() });
        let (volatile, stable): (Vec<&Column>, Vec<&Column>) = before
            .iter()
            .filter(|column| twin(column, &after).is_some())
            .partition(|column| is_volatile(column, &after));
        let columns = stable.into_iter().filter(|column| !key.contains(&column.name));
        let gone_columns = lone(&before, &after);
        let is_retyped = |name: &&String| after.iter().any(|column| column.name == **name);
        let mut other_columns = [gone_columns.as_slice(), &lone(&after, &before)].concat();
        other_columns.sort();
        other_columns.dedup();
        Self {
            table: table.to_owned(),
            counting: None,
            columns: names(columns),
            generated: names(before.iter().filter(|column| column.generated)),
            not_compared: names(volatile),
            same_shape: !key.is_empty() && before == after,
            retyped_columns: gone_columns.iter().filter(is_retyped).cloned().collect(),
            other_columns,
            gone_columns,
            changed_key,
            key,
            old,
            new,
        }
    }

    pub(super) async fn compare(
        &self,
        connection: &mut PgConnection,
    ) -> Result<TableDifference, sqlx::Error> {
        let rows: i64 = sqlx::query_scalar(AssertSqlSafe(format!(
            "-- count_rows\nselect count(*) from {}",
            self.rows(&self.old)
        )))
        .persistent(false)
        .fetch_one(&mut *connection)
        .await?;
        let mut found = TableDifference {
            table: self.table.clone(),
            rows,
            added: 0,
            gone: 0,
            changed: 0,
            changed_columns: Vec::new(),
            other_columns: self.other_columns.clone(),
            gone_columns: self.gone_columns.clone(),
            retyped_columns: self.retyped_columns.clone(),
            changed_key: self.changed_key.clone(),
            not_compared: self.not_compared.clone(),
            same_shape: self.same_shape,
            key: self.key.clone(),
            examples: Vec::new(),
        };
        let buckets: Vec<i32> = sqlx::query_scalar(AssertSqlSafe(self.buckets_statement()))
            .persistent(false)
            .fetch_all(&mut *connection)
            .await?;
        if buckets.is_empty() {
            return Ok(found);
        }
        self.count(connection, &buckets, &mut found).await?;
        found.examples = self.examples(connection, &buckets).await?;
        Ok(found)
    }

    /// The columns that rows are matched by. Without a key, a row is matched as a whole, and counted.
    fn keys(&self) -> Vec<String> {
        if self.key.is_empty() { vec!["espd_row".to_owned()] } else { self.key.clone() }
    }

    fn compared(&self) -> Vec<String> {
        if self.key.is_empty() { vec!["espd_count".to_owned()] } else { self.columns.clone() }
    }

    /// The rows of one of the tables that count, as `t`. Nothing but what counts was built.
    fn rows(&self, table: &str) -> String {
        let counting = self.counting.as_ref().filter(|_| table == self.old);
        let condition = counting.map_or(String::new(), |counting| format!(" where {counting}"));
        format!("{table} as t{condition}")
    }

    /// The rows of one of the tables, each with its key.
    fn source(&self, table: &str) -> String {
        if self.key.is_empty() {
            let row = row_text("t", &self.columns);
            return format!(
                "(select {row} as espd_row, count(*) as espd_count from {} group by 1)",
                self.rows(table)
            );
        }
        format!("(select * from {})", self.rows(table))
    }

    fn buckets_statement(&self) -> String {
        let hashes = |table: &str| {
            let all: Vec<String> = self.keys().into_iter().chain(self.compared()).collect();
            format!(
                "select hashtext({key}) & {mask} as bucket, count(*) as rows,
                        sum(hashtextextended({row}, 0)::numeric) as hash
                 from {source} as t group by 1",
                key = row_text("t", &self.keys()),
                mask = BUCKETS - 1,
                row = row_text("t", &all),
                source = self.source(table)
            )
        };
        format!(
            "-- find_differing_buckets
             select bucket from ({}) as o full join ({}) as n using (bucket)
             where (o.rows, o.hash) is distinct from (n.rows, n.hash) order by 1",
            hashes(&self.old),
            hashes(&self.new)
        )
    }

    /// The rows that differ, of these buckets: `o` and `n` are the sides.
    fn joined(&self) -> String {
        let side = |table: &str| {
            format!(
                "(select * from {} as t where hashtext({}) & {} = any ($1))",
                self.source(table),
                row_text("t", &self.keys()),
                BUCKETS - 1
            )
        };
        let on: Vec<String> =
            self.keys().iter().map(|key| format!("o.{0} = n.{0}", quote_identifier(key))).collect();
        format!(
            "{} as o full join {} as n on {} where {}",
            side(&self.old),
            side(&self.new),
            on.join(" and "),
            self.differs()
        )
    }

    /// Keys that are equal to the database may be different to whoever reads them: `1.0` and `1.00`, or letters under a collation
    /// that ignores their case.
    fn differs(&self) -> String {
        let all: Vec<String> = self.keys().into_iter().chain(self.compared()).collect();
        let (old, new) = (row_text("o", &all), row_text("n", &all));
        format!("({} or {} or {old} is distinct from {new})", self.lacks("o"), self.lacks("n"))
    }

    /// Whether a side has no such row.
    fn lacks(&self, side: &str) -> String {
        format!("{side}.{} is null", quote_identifier(&self.keys()[0]))
    }

    async fn count(
        &self,
        connection: &mut PgConnection,
        buckets: &[i32],
        found: &mut TableDifference,
    ) -> Result<(), sqlx::Error> {
        let compared: Vec<String> = self.key.iter().cloned().chain(self.compared()).collect();
        let by_column: Vec<String> = compared
            .iter()
            .map(|column| {
                format!(
                    "count(*) filter (where not {} and not {} and {})",
                    self.lacks("o"),
                    self.lacks("n"),
                    is_other(column)
                )
            })
            .collect();
        let statement = format!(
            "-- count_differences
             select count(*) filter (where {o}), count(*) filter (where {n}), count(*) filter (where not {o} and not {n}),
                    array[{by_column}]::bigint[]
             from {joined}",
            o = self.lacks("o"),
            n = self.lacks("n"),
            by_column = by_column.join(", "),
            joined = self.joined()
        );
        let (added, gone, changed, columns): (i64, i64, i64, Vec<i64>) =
            sqlx::query_as(AssertSqlSafe(statement))
                .persistent(false)
                .bind(buckets)
                .fetch_one(connection)
                .await?;
        (found.added, found.gone, found.changed) = (added, gone, changed);
        if !self.key.is_empty() {
            found.changed_columns =
                compared.into_iter().zip(columns).filter(|(_, count)| *count > 0).collect();
        }
        Ok(())
    }

    async fn examples(
        &self,
        connection: &mut PgConnection,
        buckets: &[i32],
    ) -> Result<Vec<Example>, sqlx::Error> {
        let keys = self.keys();
        let key: Vec<String> = keys
            .iter()
            .map(|key| format!("{}, coalesce(o.{1}, n.{1})", quote_literal(key), quote_identifier(key)))
            .collect();
        let other = |side: &str| {
            let is_both = format!("not {} and not {}", self.lacks("o"), self.lacks("n"));
            let of_key =
                self.key.iter().map(|column| (column.clone(), format!("{is_both} and {}", is_other(column))));
            let others = self.compared().into_iter().map(|column| (column.clone(), is_other(&column)));
            let pairs = of_key.chain(others).map(|(column, is_shown)| {
                format!(
                    "case when {is_shown} then jsonb_build_object({}, {}) else '{{}}' end",
                    quote_literal(&column),
                    self.shown(side, &column)
                )
            });
            let pairs: Vec<String> = pairs.collect();
            let object = if pairs.is_empty() { "'{}'::jsonb".to_owned() } else { pairs.join(" || ") };
            format!("case when not {} then {object} end", self.lacks(side))
        };
        let order: Vec<String> =
            keys.iter().map(|key| format!("coalesce(o.{0}, n.{0})", quote_identifier(key))).collect();
        let statement = format!(
            "-- list_differences
             select jsonb_build_object({}) as key, {} as old, {} as new from {} order by {} limit {EXAMPLES}",
            key.join(", "),
            other("o"),
            other("n"),
            self.joined(),
            order.join(", ")
        );
        let rows: Vec<Found> = sqlx::query_as(AssertSqlSafe(statement))
            .persistent(false)
            .bind(buckets)
            .fetch_all(connection)
            .await?;
        let value = |json: Option<Json<Columns>>| json.map(|Json(value)| value);
        let example = |found: Found| Example {
            key: found.key.0,
            old: value(found.old),
            new: value(found.new),
            since: None,
        };
        Ok(rows.into_iter().map(example).collect())
    }

    /// The value of a column as it is shown: in JSON, or as the database writes it where JSON would be the same on both sides, such
    /// as of `-0` and `0`, of arrays with other bounds, and of the spaces in a `json`.
    fn shown(&self, side: &str, column: &str) -> String {
        let column = quote_identifier(column);
        let json = |side: &str| format!("coalesce(to_jsonb({side}.{column})::text, 'null')");
        format!(
            "case when not {} and not {} and {} = {} then to_jsonb({side}.{column}::text) else to_jsonb({side}.{column}) end",
            self.lacks("o"),
            self.lacks("n"),
            json("o"),
            json("n")
        )
    }

    /// Removes what the new table lacks, changes what is other there, and adds what it has beyond.
    pub(super) fn merge_statements(&self) -> MergeStatements {
        let Self { old, new, .. } = self;
        let (on, on_removal) = (self.is_same_key("o"), self.is_same_key("t"));
        let is_written = |column: &&String| !self.generated.contains(column);
        let quoted = |columns: Vec<&String>| {
            columns.into_iter().map(|column| quote_identifier(column)).collect::<Vec<_>>()
        };
        let columns = quoted(self.columns.iter().filter(is_written).collect());
        let set: Vec<String> = columns.iter().map(|column| format!("{column} = n.{column}")).collect();
        let all = quoted(self.key.iter().chain(&self.columns).filter(is_written).collect()).join(", ");
        let update = if set.is_empty() {
            "-- nothing_to_change\nselect 1 where false".to_owned()
        } else {
            format!(
                "-- change_rows\nupdate {old} as o set {} from {new} as n
                 where {on} and {} is distinct from {}",
                set.join(", "),
                row_text("o", &self.columns),
                row_text("n", &self.columns)
            )
        };
        let counting = self.counting.as_ref().map_or(String::new(), |counting| format!("{counting} and "));
        MergeStatements {
            remove: format!(
                "-- remove_rows
                 delete from {old} as t where {counting}not exists (select from {new} as n where {on_removal})"
            ),
            change: update,
            add: format!(
                "-- add_rows\ninsert into {old} ({all}) select {all} from {new} as n
                 where not exists (select from {old} as o where {on})"
            ),
        }
    }

    /// Whether the row `side` of the old table has the key of `n`, to the letter.
    fn is_same_key(&self, side: &str) -> String {
        let equal = self.key.iter().map(|key| format!("{side}.{0} = n.{0}", quote_identifier(key)));
        let alike = format!("{} = {}", row_text(side, &self.key), row_text("n", &self.key));
        equal.chain([alike]).collect::<Vec<_>>().join(" and ")
    }

    /// Whether any row differs, by a look at all of them.
    pub(super) async fn has_differences(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let statement = format!("select exists ({})", self.buckets_statement());
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
        query.fetch_one(connection).await
    }
}

/// What brings a table to what another one is.
#[derive(Debug)]
pub(super) struct MergeStatements {
    pub(super) remove: String,
    pub(super) change: String,
    pub(super) add: String,
}

/// Whether a column differs. The text of a row has no collation that would hold different letters to be equal.
fn is_other(column: &str) -> String {
    let column = quote_identifier(column);
    format!("row(o.{column})::text is distinct from row(n.{column})::text")
}

/// The columns of a row as one text.
pub(super) fn row_text(side: &str, columns: &[String]) -> String {
    let columns: Vec<String> =
        columns.iter().map(|column| format!("{side}.{}", quote_identifier(column))).collect();
    format!("row({})::text", columns.join(", "))
}
