//! What the database says about a table that handlers write: its columns, its key, and what could see the difference between
//! a batch that is folded and one that is not.

use sqlx::{AssertSqlSafe, PgConnection};

use super::expression;
use crate::postgres::row::from_row;

/// A column, with the type that values of it are cast to.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    /// The oid of the type.
    pub(super) kind: i64,
    /// The type without its length.
    pub(super) type_name: String,
    pub(super) full_type: String,
    modifier: i32,
    pub(super) is_required: bool,
    pub(super) default_value: Option<String>,
    pub(super) is_key: bool,
    is_deterministic: bool,
    /// How many columns of variable length the widest index over it has, so that a very long value would be an error; 0: no index has
    /// it.
    indexed_among: i64,
}

from_row!(Column {
    name,
    kind,
    type_name,
    full_type,
    modifier,
    is_required,
    default_value,
    is_key,
    is_deterministic,
    indexed_among
});

#[derive(Debug)]
struct Facts {
    oid: i64,
    obstacles: Vec<String>,
    fingerprint: String,
}

from_row!(Facts { oid, obstacles, fingerprint });

/// A table as it is in the catalog.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) name: String,
    /// Quoted, with the schema.
    pub(super) qualified: String,
    pub(super) oid: i64,
    pub(super) columns: Vec<Column>,
    /// Why no statement on it is folded.
    pub(super) obstacles: Vec<String>,
    /// All that the obstacles depend on, as it was when they were read.
    pub(super) fingerprint: String,
}

/// The oids of types.
pub(super) mod kinds {
    pub(in super::super) const BOOLEAN: i64 = 16;
    pub(in super::super) const INTEGERS: [i64; 3] = [20, 21, 23];
    pub(in super::super) const TEXT: i64 = 25;
    pub(in super::super) const VARCHAR: i64 = 1043;
    pub(in super::super) const NUMERIC: i64 = 1700;
    pub(in super::super) const UNKNOWN: i64 = 705;
    /// Whose equal values are the same bytes: boolean, bytea, integers, text, varchar, date, timestamps, uuid.
    pub(super) const OF_KEYS: [i64; 11] = [16, 17, 20, 21, 23, 25, 1043, 1082, 1114, 1184, 2950];
    /// Besides: json, real, double precision, time, interval, numeric, jsonb.
    pub(super) const OF_VALUES: [i64; 7] = [114, 700, 701, 1083, 1186, 1700, JSONB];
    pub(super) const JSONB: i64 = 3802;
    /// Whose length is limited by a rounding that a cast and an assignment share.
    pub(super) const ROUNDED: [i64; 4] = [1083, 1114, 1184, 1700];
}

/// All that the obstacles of a table depend on, as an expression over `c`, its row of `pg_class`. One that is equal means that
/// nothing has changed, so whatever may be written here is compared and not understood.
pub(super) const FINGERPRINT: &str = "concat_ws('/', c.relkind, c.relispartition, c.relhassubclass, c.relhasrules, c.relrowsecurity,
    c.relreplident, c.relnamespace, c.relname,
    (select string_agg(concat_ws(',', a.attname, a.atttypid, a.atttypmod, a.attnotnull, a.atthasdef, a.attidentity,
       a.attgenerated, a.attcollation, a.attisdropped), ';' order by a.attnum)
     from pg_attribute as a where a.attrelid = c.oid and a.attnum > 0),
    '/', (select string_agg(concat_ws(',', d.oid, d.xmin), ';' order by d.oid) from pg_attrdef as d where d.adrelid = c.oid),
    '/', (select string_agg(concat_ws(',', i.indexrelid, i.indisunique, i.indisprimary, i.indimmediate, i.indisvalid), ';'
       order by i.indexrelid) from pg_index as i where i.indrelid = c.oid),
    '/', (select string_agg(concat_ws(',', k.oid, k.contype), ';' order by k.oid)
     from pg_constraint as k where k.conrelid = c.oid),
    '/', (select string_agg(t.oid::text, ';' order by t.oid) from pg_trigger as t where t.tgrelid = c.oid))";

impl Table {
    /// Reads the catalog; `None`: there is no such table yet.
    pub(super) async fn read(
        connection: &mut PgConnection,
        name: &str,
        qualified: String,
    ) -> Result<Option<Self>, sqlx::Error> {
        let facts = include_str!("table_facts.sql").replace("{{fingerprint}}", FINGERPRINT);
        let facts: Option<Facts> = sqlx::query_as(AssertSqlSafe(facts))
            .persistent(false)
            .bind(&qualified)
            .fetch_optional(&mut *connection)
            .await?;
        let Some(Facts { oid, mut obstacles, fingerprint }) = facts else { return Ok(None) };
        let columns: Vec<Column> = sqlx::query_as(include_str!("table_columns.sql"))
            .persistent(false)
            .bind(&qualified)
            .fetch_all(connection)
            .await?;
        obstacles.extend(columns.iter().filter_map(|column| column.obstacle(name)));
        Ok(Some(Self { name: name.to_owned(), qualified, oid, columns, obstacles, fingerprint }))
    }

    pub(super) fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    pub(super) fn key(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| column.is_key)
    }
}

impl Column {
    /// Why a key with this column cannot tell rows apart as an index does.
    fn obstacle(&self, table: &str) -> Option<String> {
        let is_exact = kinds::OF_KEYS.contains(&self.kind)
            && self.is_deterministic
            && (self.modifier < 0 || self.is_text());
        (self.is_key && !is_exact)
            .then(|| format!("the key column {} of {table} is of type {}", self.name, self.full_type))
    }

    /// Why values cannot be assigned to this column in a folded batch.
    pub(super) fn refuse_values(&self) -> Option<String> {
        let is_known = kinds::OF_KEYS.contains(&self.kind) || kinds::OF_VALUES.contains(&self.kind);
        let is_limit_known = self.modifier < 0 || self.is_text() || kinds::ROUNDED.contains(&self.kind);
        (!is_known || !is_limit_known).then(|| format!("column {} is of type {}", self.name, self.full_type))
    }

    fn is_text(&self) -> bool {
        [kinds::TEXT, kinds::VARCHAR].contains(&self.kind)
    }

    /// What a value is cast to: a `varchar(n)` would be cut off, where an assignment is an error.
    pub(super) fn cast(&self) -> &str {
        if self.is_text() { &self.type_name } else { &self.full_type }
    }

    /// The largest value of a column of integers.
    pub(super) const fn most(&self) -> i64 {
        match self.kind {
            21 => i16::MAX as i64,
            23 => i32::MAX as i64,
            _ => i64::MAX,
        }
    }

    /// The most characters, if they are limited.
    fn length_max(&self) -> Option<i32> {
        (self.kind == kinds::VARCHAR && self.modifier > 4).then(|| self.modifier - 4)
    }

    /// A condition under which a value might be refused by the table or by an index: the loop finds out.
    pub(super) fn doubt(&self, value: &str) -> Vec<String> {
        // Less than a row of an index may have, beside its columns of fixed length.
        const INDEX_ROW: i64 = 2_000;
        const INDEXED_MAX: i64 = 400;
        const FIXED: [i64; 8] = [16, 20, 21, 23, 1082, 1114, 1184, 2950];
        let length = self.length_max().map(|most| format!("char_length({value}) > {most}"));
        let indexed = (self.indexed_among > 0 && !FIXED.contains(&self.kind)).then(|| {
            let most = INDEXED_MAX.min(INDEX_ROW / self.indexed_among);
            if self.kind == kinds::JSONB {
                format!("pg_column_size({value}) > {most}")
            } else {
                format!("octet_length({value}::text) > {most}")
            }
        });
        length.into_iter().chain(indexed).collect()
    }

    /// The value of a row that does not name the column, as an expression; an error says why it is not constant.
    pub(super) fn constant_default(&self) -> Result<String, String> {
        let Some(text) = &self.default_value else {
            return if self.is_required {
                Err(format!("column {} needs a value", self.name))
            } else {
                Ok(format!("null::{}", self.full_type))
            };
        };
        if !expression::is_constant(text) {
            return Err(format!("the default of column {} is not constant: {text}", self.name));
        }
        if self.length_max().is_some() {
            return Err(format!("column {} has a limited length and a default", self.name));
        }
        Ok(format!("({text})::{}", self.full_type))
    }
}
