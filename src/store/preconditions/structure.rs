//! Reads what the catalog says of the table of events and its sequence, and judges it.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::{Unmet, UnmetKind};
use crate::store::layout::{CreatedBy, Framework, Layout, Order};

/// What the catalog says of a store. Facts about a table or a sequence that does not exist are `false`, or the default.
pub(super) struct Structure {
    table: String,
    sequence: String,
    /// The role that is connected, quoted.
    role: String,
    /// What the relation with the table's name is, as in `pg_class.relkind`; `None`: there is none.
    kind: Option<String>,
    is_sequence: bool,
    table_is_readable: bool,
    sequence_is_readable: bool,
    is_unlogged: bool,
    hides_rows: bool,
    /// The subscriptions of logical replication that write into the table, by name.
    subscriptions: Option<String>,
    is_owned: bool,
    is_identity: bool,
    is_drawn: bool,
    /// Whether an event may be without a uuid, and whether an index finds such events.
    uuid_may_be_null: bool,
    uuid_is_indexed: bool,
    /// For each column that the table lacks, or has with another type: what is wrong with it.
    wrong_columns: Vec<String>,
    cache: i64,
    increment: i64,
    cycles: bool,
    /// Who creates the table.
    created_by: CreatedBy,
}

/// What the facts are looked up in: the partitions of the table, its column of ids, how that column is tied to the
/// sequence, and its default where that depends on the sequence. `named` has the oids of table and sequence as `t` and `s`; both are null where there is no such relation.
const CATALOG: &str = "\
    heirs (oid) as (
       select t::oid from named
        union
       select i.inhrelid from pg_inherits i join heirs on i.inhparent = heirs.oid
     ),
     id_column as (
       select a.* from pg_attribute a join named on a.attrelid = t where a.attname = 'id'
     ),
     ties as (
       select d.deptype
         from pg_depend d
         join named on d.classid = 'pg_class'::regclass and d.objid = s
         join id_column c on d.refclassid = 'pg_class'::regclass
                         and d.refobjid = c.attrelid
                         and d.refobjsubid = c.attnum
     ),
     -- Materialized: `pg_get_expr` locks the table of a default, and a condition beside the joins may be tried on all defaults
     -- of the database first, and wait for a lock on a table that has nothing to do with the store.
     id_default as materialized (
       select e.adbin, e.adrelid
         from pg_attrdef e
         join id_column c on e.adrelid = c.attrelid and e.adnum = c.attnum
         join named on true
         join pg_depend d on d.classid = 'pg_attrdef'::regclass and d.objid = e.oid
                         and d.refclassid = 'pg_class'::regclass and d.refobjid = s
     )";

/// The facts. `wanted` has the columns that the layout needs, each with the types that it may have.
const FACTS: &str = "\
    quote_ident(current_user) as role,
    (select relkind::text from pg_class where oid = t) as kind,
    coalesce((select relkind = 'S' from pg_class where oid = s), false) as is_sequence,
    coalesce(has_table_privilege(t, 'select'), false) as table_is_readable,
    coalesce((select has_sequence_privilege(oid, 'select') from pg_class
               where oid = s and relkind = 'S'), false) as sequence_is_readable,
    exists (select from pg_class c join heirs on c.oid = heirs.oid where c.relpersistence <> 'p')
      or exists (select from pg_class where oid = s and relpersistence <> 'p') as is_unlogged,
    coalesce(row_security_active(t), false) as hides_rows,
    (select string_agg(distinct coalesce(n.subname::text, r.srsubid::text), ', ')
       from pg_subscription_rel r
       join heirs on r.srrelid = heirs.oid
       left join pg_stat_subscription n on n.subid = r.srsubid) as subscriptions,
    exists (select from ties where deptype = 'a') as is_owned,
    exists (select from ties where deptype = 'i') as is_identity,
    exists (select from id_default where pg_get_expr(adbin, adrelid) like 'nextval(%') as is_drawn,
    exists (select from pg_attribute where attrelid = t and attname = 'uuid' and not attnotnull) as uuid_may_be_null,
    exists (select from pg_index i
              join pg_attribute a on a.attrelid = t and a.attname = 'uuid' and a.attnum = i.indkey[0]
             where i.indrelid = t and i.indisvalid and i.indpred is null) as uuid_is_indexed,
    array(select format('column %s should be %s, %s', n.name, n.type_name,
                        coalesce('is ' || translate(format_type(a.atttypid, null), chr(34), ''), 'is missing'))
            from wanted n
            left join pg_attribute a on a.attrelid = t and a.attname = n.name and not a.attisdropped
           -- Under `quote_all_identifiers`, types are written in quotes.
           where coalesce(translate(format_type(a.atttypid, null), chr(34), '') <> all (string_to_array(n.type_name, ' or ')), true)
         ) as wrong_columns,
    coalesce(q.seqcache, 1) as cache,
    coalesce(q.seqincrement, 1) as increment,
    coalesce(q.seqcycle, false) as cycles";

/// The columns that the layout needs, as rows of `values`.
fn columns(layout: &Layout) -> String {
    let row = |(name, types): &(&str, &str)| format!("('{name}', '{types}')");
    layout.events.columns.iter().map(row).collect::<Vec<_>>().join(", ")
}

impl Structure {
    /// Reads the facts, in one row whatever is missing: names are looked up, not cast.
    pub(super) async fn read(connection: &mut PgConnection, layout: &Layout) -> Result<Self, sqlx::Error> {
        let Order::DrawnInTransaction { sequence, .. } = &layout.order;
        let statement = format!(
            "-- read_structure
             with recursive
             named as (select to_regclass('{table}') as t, to_regclass('{sequence}') as s),
             wanted (name, type_name) as (values {columns}),
             {CATALOG}
             select {FACTS}
               from named
               left join pg_sequence q on q.seqrelid = s",
            table = layout.events_table(),
            columns = columns(layout),
        );
        let row = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_one(connection).await?;
        Self::in_row(&row, layout, sequence)
    }

    fn in_row(row: &PgRow, layout: &Layout, sequence: &str) -> Result<Self, sqlx::Error> {
        Ok(Self {
            table: layout.events_table().to_owned(),
            sequence: sequence.to_owned(),
            role: row.try_get("role")?,
            kind: row.try_get("kind")?,
            is_sequence: row.try_get("is_sequence")?,
            table_is_readable: row.try_get("table_is_readable")?,
            sequence_is_readable: row.try_get("sequence_is_readable")?,
            is_unlogged: row.try_get("is_unlogged")?,
            hides_rows: row.try_get("hides_rows")?,
            subscriptions: row.try_get("subscriptions")?,
            is_owned: row.try_get("is_owned")?,
            is_identity: row.try_get("is_identity")?,
            is_drawn: row.try_get("is_drawn")?,
            uuid_may_be_null: row.try_get("uuid_may_be_null")?,
            uuid_is_indexed: row.try_get("uuid_is_indexed")?,
            wrong_columns: row.try_get("wrong_columns")?,
            created_by: layout.created_by.clone(),
            cache: row.try_get("cache")?,
            increment: row.try_get("increment")?,
            cycles: row.try_get("cycles")?,
        })
    }

    /// Whether events without a uuid are to be looked for.
    pub(super) fn may_lack_uuids(&self) -> bool {
        self.uuid_may_be_null && self.uuid_is_indexed
    }

    /// Every precondition that the store does not meet.
    pub(super) fn unmet(&self) -> Vec<Unmet> {
        let Self { sequence, .. } = self;
        if !matches!(self.kind.as_deref(), Some("r" | "p")) {
            return vec![self.no_table()];
        }
        if !self.is_sequence {
            let problem = format!("there is no sequence {sequence}");
            let repair = "create it, or set `layout` (and for another framework's store `sequence`) to what this store has";
            return vec![Unmet::new(UnmetKind::SequenceMissing, problem, repair)];
        }
        [self.unmet_by_table(), self.unmet_by_ids(), self.unmet_by_sequence()].concat()
    }

    fn no_table(&self) -> Unmet {
        let Self { table, .. } = self;
        let what = match self.kind.as_deref() {
            Some("v" | "m") => "view",
            Some("f") => "foreign table",
            Some(_) => "relation of another kind",
            None => {
                return Unmet::new(
                    UnmetKind::TableMissing,
                    format!("there is no table {table}"),
                    self.creation(),
                );
            }
        };
        let problem = format!("{table} is a {what}, whose writers hold no lock on it, and not a table");
        let repair = "name the table of events itself: espd reads it and the sequence of its ids";
        Unmet::new(UnmetKind::TableMissing, problem, repair)
    }

    /// How the table comes to exist.
    fn creation(&self) -> String {
        match &self.created_by {
            CreatedBy::Migrations => "run `espctl migrate`".to_owned(),
            CreatedBy::Framework(Framework { section, .. }) => {
                format!("write the name of the table under {section}, or connect to the right database")
            }
        }
    }

    fn unmet_by_table(&self) -> Vec<Unmet> {
        let Self { table, sequence, role, .. } = self;
        filter_unmet([
            (
                self.table_is_readable,
                UnmetKind::NotReadable,
                format!("role {role} may not read table {table}"),
                format!("grant select on {table} to {role};"),
            ),
            (
                self.sequence_is_readable,
                UnmetKind::NotReadable,
                format!("role {role} may not read sequence {sequence}"),
                format!("grant select on sequence {sequence} to {role};"),
            ),
            (
                !self.hides_rows,
                UnmetKind::RowSecurity,
                format!("row security may hide events of {table} from role {role}"),
                format!("alter role {role} bypassrls; -- or connect as the owner of the table"),
            ),
            (
                !self.is_unlogged,
                UnmetKind::Unlogged,
                format!(
                    "table {table}, a partition of it or its sequence is unlogged, so a crash empties it"
                ),
                format!("alter table {table} set logged; -- and each partition that is unlogged"),
            ),
            (
                self.subscriptions.is_none(),
                UnmetKind::Replicated,
                format!(
                    "events arrive in {table} by logical replication (subscription {}): another server draws their ids",
                    self.subscriptions.as_deref().unwrap_or_default()
                ),
                "run espd on the publisher, or drop the subscription".to_owned(),
            ),
        ])
    }

    fn unmet_by_ids(&self) -> Vec<Unmet> {
        let Self { table, sequence, .. } = self;
        filter_unmet([
            (
                self.is_identity || self.is_owned,
                UnmetKind::SequenceNotOwned,
                format!("sequence {sequence} is not owned by column id of {table}"),
                format!("alter sequence {sequence} owned by {table}.id;"),
            ),
            (
                self.wrong_columns.is_empty(),
                UnmetKind::ColumnUnfit,
                format!(
                    "table {table} does not have the columns of its layout: {}",
                    self.wrong_columns.join(", ")
                ),
                "give the columns these types again, or set `layout` under [event_store] to the layout of this store"
                    .to_owned(),
            ),
            (
                !self.uuid_may_be_null || self.uuid_is_indexed,
                UnmetKind::UuidMissing,
                format!("an event of {table} may have no uuid, and no index finds those that have none"),
                repair_uuids(table),
            ),
            (
                self.is_identity || self.is_drawn,
                UnmetKind::IdNotDrawn,
                format!("an insert into {table} does not draw its id from sequence {sequence}"),
                format!("alter table {table} alter column id set default nextval('{sequence}');"),
            ),
        ])
    }

    fn unmet_by_sequence(&self) -> Vec<Unmet> {
        let Self { sequence, cache, increment, .. } = self;
        filter_unmet([
            (
                *cache == 1,
                UnmetKind::SequenceCached,
                format!("sequence {sequence} has cache {cache}: sessions draw ids before they insert them"),
                format!("alter sequence {sequence} cache 1; -- then end the sessions of all writers"),
            ),
            (
                *increment == 1,
                UnmetKind::SequenceIncrement,
                format!("sequence {sequence} counts by {increment}"),
                format!("alter sequence {sequence} increment by 1;"),
            ),
            (
                !self.cycles,
                UnmetKind::SequenceCycles,
                format!("sequence {sequence} begins again after its last value"),
                format!("alter sequence {sequence} no cycle;"),
            ),
        ])
    }
}

/// How every event gets a uuid.
pub(super) fn repair_uuids(table: &str) -> String {
    format!(
        "update {table} set uuid = gen_random_uuid() where uuid is null; alter table {table} alter column uuid set not null;"
    )
}

/// The unmet ones among preconditions: whether it is met, its kind, problem and repair.
fn filter_unmet<const N: usize>(facts: [(bool, UnmetKind, String, String); N]) -> Vec<Unmet> {
    let unmet = facts.into_iter().filter(|(holds, ..)| !holds);
    unmet.map(|(_, kind, problem, repair)| Unmet { kind, problem, repair }).collect()
}
