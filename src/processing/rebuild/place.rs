//! The schema that a version is built in: what may be made there, and how it goes away.

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::ddl::{Made, made_by_ddl};
use super::outside::Outside;
use super::replay::find_declared;
use super::rights::LacksSchemas;
use crate::postgres::lexer;
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::row::from_row;
use crate::postgres::server_mark::READ_COMMITTED;
use crate::processing::declaration::{ProcessorDeclaration, SourceText};
use crate::processing::processor::{Dropped, ProcessorBase, ProcessorError, is_only_looked_at, observe};
use crate::processing::tracker::{ProcessorKey, Trackers};

/// What is in a schema and moves by a statement of its own. Parts of tables move with them. `own_name` is the name without the
/// schema, with the arguments of a routine.
pub(super) const OBJECTS: &str = "
    select case c.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'S' then 'sequence'
             when 'f' then 'foreign table' else 'table' end as kind,
           c.relname::text as name, c.relname::text as own_name, 'pg_class'::regclass::oid as classid, c.oid as objid
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
    where n.nspname = {schema} and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
      and not exists (select from pg_depend as d
        where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype in ('a', 'i') and c.relkind = 'S')
    union all
    select 'routine', p.proname, replace(p.oid::regprocedure::text, quote_ident(n.nspname) || '.', ''),
           'pg_proc'::regclass, p.oid
    from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace where n.nspname = {schema}
    union all
    select case t.typtype when 'd' then 'domain' else 'type' end, t.typname, t.typname, 'pg_type'::regclass, t.oid
    from pg_type as t join pg_namespace as n on n.oid = t.typnamespace left join pg_class as c on c.oid = t.typrelid
    where n.nspname = {schema}
      and (t.typtype in ('e', 'd', 'r') or t.typtype = 'c' and c.relkind = 'c')
    union all
    select 'statistics', s.stxname, s.stxname, 'pg_statistic_ext'::regclass, s.oid
    from pg_statistic_ext as s join pg_namespace as n on n.oid = s.stxnamespace where n.nspname = {schema}";

/// What is in a schema and stays there when the tables go.
const UNMOVABLE: &str = "-- find_unmovable
    select i.type || ' ' || i.identity from pg_depend as d cross join lateral pg_identify_object(d.classid, d.objid, 0) as i
    where d.refclassid = 'pg_namespace'::regclass and d.refobjid = to_regnamespace($1) and d.deptype = 'n'
      and d.classid not in ('pg_class'::regclass, 'pg_proc'::regclass, 'pg_type'::regclass, 'pg_statistic_ext'::regclass,
                            'pg_default_acl'::regclass)
    limit 1";

/// The rows of [`OBJECTS`] in the schema `live` that the DDL of the version that serves has made, besides its tables. Of several
/// routines of one name, it is one that has a counterpart in the schema `of`.
pub(super) fn made_objects(made: &[Made], live: &str, of: &str) -> String {
    let objects = |schema: &str| OBJECTS.replace("{schema}", &quote_literal(schema));
    let mut pairs: Vec<String> = made
        .iter()
        .map(|Made { kind, name }| format!("({}, {})", quote_literal(kind), quote_literal(name)))
        .collect();
    pairs.push("('', '')".to_owned());
    format!(
        "select o.* from (select o.*, count(*) over (partition by o.kind, o.name) as namesakes from ({}) as o) as o
         where (o.kind, o.name) in ({})
           and (o.namesakes = 1 or exists (select from ({}) as b where b.kind = o.kind and b.own_name = o.own_name))",
        objects(live),
        pairs.join(", "),
        objects(of)
    )
}

/// Refuses texts that name a table of the processor with the schema of the serving version: they would read that one's rows, or
/// be true of them.
pub(crate) fn refuse_qualified_names(
    declaration: &ProcessorDeclaration,
    schema: &str,
) -> Result<(), ProcessorError> {
    let handlers = declaration.handlers().iter().map(|handler| &handler.sql);
    let texts = declaration.tables.iter().flat_map(|table| table.texts()).chain(&declaration.ddl);
    let checks = declaration.checks.iter().map(|check| &check.sql);
    match texts
        .chain(handlers)
        .chain(checks)
        .find_map(|text| qualified_in(text, schema, &declaration.table_names()))
    {
        None => Ok(()),
        Some((place, name)) => Err(ProcessorError::Blocked(format!(
            "{place}: {schema}.{name} is a table of the version that serves, which the new one must not read: write {name} \
             without the schema, which means the right one in both"
        ))),
    }
}

/// The first of these tables that a text names with this schema, and where.
fn qualified_in(text: &SourceText, schema: &str, tables: &[String]) -> Option<(String, String)> {
    let tokens = lexer::tokens(&text.text).ok()?;
    let is = |written: &str, name: &str| written.trim_matches('"').eq_ignore_ascii_case(name);
    let found = tokens.windows(3).find_map(|three| {
        let table = tables.iter().find(|table| is(three[2].text, table))?;
        (is(three[0].text, schema) && three[1].text == ".").then_some((three[0].start, table))
    });
    let (offset, table) = found?;
    let (line, _) = text.locate(text.text[..offset].chars().count());
    Some((format!("{}:{line}", text.file), table.clone()))
}

/// Finds out, in a transaction that is rolled back, whether the tables of a version can be made beside the serving one, and move
/// to where that is. `base` is the version beside; `live` and `live_schema` are the key and the schema of the serving one.
pub(crate) async fn create(
    connection: &mut PgConnection,
    base: &ProcessorBase,
    (live, live_schema): (&ProcessorKey, &str),
) -> Result<(), ProcessorError> {
    let building_in = &base.scope.schema;
    require_schemas(connection, building_in).await?;
    let mut transaction = connection.begin_with(READ_COMMITTED).await?;
    let outside = Outside::look(&mut transaction, &base.schema, building_in).await?;
    let schema = quote_identifier(&base.schema);
    let serving = list_owned(&mut transaction, &schema, &live.name).await?;
    let before = observe(&mut transaction, &schema, &live.name).await?;
    base.tables().try_out(&mut transaction).await?;
    let after = observe(&mut transaction, &schema, &live.name).await?;
    if list_owned(&mut transaction, &schema, &live.name).await? != serving {
        return Err(ProcessorError::Blocked(format!(
            "the tables of {} were made anew meanwhile, by a reset for example: try again",
            live.name
        )));
    }
    refuse_ddl_beyond(&mut transaction, (live, live_schema), (&before, &after), &outside).await?;
    // What is only looked at need not be able to go live.
    if !is_only_looked_at(base.name()) {
        refuse_unmovable(&mut transaction, &live.name, building_in).await?;
        let taken = find_taken(&mut transaction, &schema, building_in, (live, live_schema), &before).await?;
        refuse_taken(&live.name, &taken)?;
    }
    Ok(transaction.rollback().await?)
}

/// The tables that serve, by their object ids.
async fn list_owned(
    connection: &mut PgConnection,
    own_schema: &str,
    processor: &str,
) -> Result<Vec<Oid>, sqlx::Error> {
    let statement = format!(
        "-- list_owned
         select distinct oid from {own_schema}.owned_relations where processor = $1 and oid is not null order by 1"
    );
    sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).bind(processor).fetch_all(connection).await
}

/// Refuses to begin without the right to make the schema, in words that say what to do.
async fn require_schemas(connection: &mut PgConnection, building_in: &str) -> Result<(), ProcessorError> {
    let query =
        sqlx::query_scalar("-- find_schema\nselect to_regnamespace($1) is not null").persistent(false);
    let is_there: bool = query.bind(quote_identifier(building_in)).fetch_one(&mut *connection).await?;
    match LacksSchemas::find(connection).await? {
        Some(lacks) if !is_there => Err(ProcessorError::Blocked(lacks.to_string())),
        _ => Ok(()),
    }
}

/// Refuses DDL that has changed something beyond the schema that the version is built in: that would be so for a version that never
/// goes live, and would go with the schema.
async fn refuse_ddl_beyond(
    transaction: &mut PgConnection,
    (live, live_schema): (&ProcessorKey, &str),
    (before, after): (&Dropped, &Dropped),
    outside: &Outside,
) -> Result<(), ProcessorError> {
    let ProcessorKey { name, .. } = live;
    if let Some(item) = after.first_beyond(before) {
        return Err(ProcessorError::Blocked(format!(
            "ddl of {name} makes {item}, on a table of the version that serves: write names without the schema {live_schema}"
        )));
    }
    let gone = || before.first_beyond(after).map(|item| format!("drops {item}"));
    let change = outside.find_change(transaction).await?.or_else(gone);
    change.map_or(Ok(()), |change| {
        Err(ProcessorError::Blocked(format!(
            "ddl of {name} {change}, which the version that serves has, or others: write names of what {name} makes without a \
             schema, which means the right one in both versions, and leave `drop` and what belongs to others out"
        )))
    })
}

async fn refuse_unmovable(
    transaction: &mut PgConnection,
    name: &str,
    building_in: &str,
) -> Result<(), ProcessorError> {
    let query = sqlx::query_scalar(UNMOVABLE).persistent(false).bind(quote_identifier(building_in));
    let found: Option<String> = query.fetch_optional(transaction).await?;
    found.map_or(Ok(()), |item| {
        Err(ProcessorError::Blocked(format!(
            "ddl of {name} makes {item}, which cannot go live with the tables: make it once, in another schema, without espd"
        )))
    })
}

/// A name of the new version that something else has already where it is to be.
struct Taken {
    item: String,
    /// The processor whose it is; `None`: it is nobody's that espd knows.
    owner: Option<String>,
}

from_row!(Taken { item, owner });

fn refuse_taken(live: &str, taken: &[Taken]) -> Result<(), ProcessorError> {
    let reason = match taken {
        [] => return Ok(()),
        [Taken { item, owner: Some(owner) }, ..] => format!(
            "{item} belongs to {owner}, so the new version of {live} could not go live: declare another name"
        ),
        _ => format!(
            "{} exists already and does not belong to {live}, so the new version could not go live: drop or rename it, or declare \
             another name",
            taken.iter().map(|one| one.item.as_str()).collect::<Vec<_>>().join(", ")
        ),
    };
    Err(ProcessorError::Blocked(reason))
}

/// Which names of objects in the schema `of` are taken in that of the serving version, by others than the processor and what it has
/// made.
async fn find_taken(
    connection: &mut PgConnection,
    own_schema: &str,
    of: &str,
    (live, live_schema): (&ProcessorKey, &str),
    before: &Dropped,
) -> Result<Vec<Taken>, sqlx::Error> {
    let declared = find_declared(&mut *connection, own_schema, &live.name, live.version).await?;
    let made = declared.as_ref().map(made_by_ddl).unwrap_or_default();
    let objects = |schema: &str| OBJECTS.replace("{schema}", &quote_literal(schema));
    let statement = format!(
        "-- find_taken_names
         select o.kind || ' ' || i.identity as item,
           (select p.processor from {own_schema}.projection_tables as p
            where p.table_schema = $3 and p.table_name = o.own_name and p.processor <> $2 and o.kind = 'table') as owner
         from ({live}) as o join ({of_new}) as b on b.kind = o.kind and b.own_name = o.own_name
           cross join lateral pg_identify_object(o.classid, o.objid, 0) as i
         where not o.kind || ' ' || i.identity = any ($1) and not i.type || ' ' || i.identity = any ($1)
           and (o.classid, o.objid) not in (select m.classid, m.objid from ({own}) as m)
           and not exists (select from {own_schema}.owned_relations as r where r.processor = $2 and r.oid = o.objid)
         order by 2, 1",
        live = objects(live_schema),
        of_new = objects(of),
        own = made_objects(&made, live_schema, of)
    );
    let query = sqlx::query_as(AssertSqlSafe(statement)).persistent(false);
    query.bind(before.made_apart()).bind(&live.name).bind(live_schema).fetch_all(&mut *connection).await
}

/// Everything outside of a schema that goes with it. What it takes from a publication is listed as well.
const BEYOND: &str = "-- list_beyond
    with recursive closure (classid, objid) as (
      select d.classid, d.objid from pg_depend as d
      where d.refclassid = 'pg_namespace'::regclass and d.refobjid = to_regnamespace($1) and d.deptype = 'n'
      union
      select linked.classid, linked.objid from closure as c cross join lateral (
        select d.classid, d.objid from pg_depend as d
        where d.refclassid = c.classid and d.refobjid = c.objid and d.deptype in ('n', 'a', 'i', 'P', 'S')
        union all
        select d.refclassid, d.refobjid from pg_depend as d
        where d.classid = c.classid and d.objid = c.objid and d.deptype = 'i'
      ) as linked
    ), placed as (
      select c.classid, c.objid, case c.classid
          when 'pg_class'::regclass then (select relnamespace from pg_class where oid = c.objid)
          when 'pg_proc'::regclass then (select pronamespace from pg_proc where oid = c.objid)
          when 'pg_constraint'::regclass then (select connamespace from pg_constraint where oid = c.objid)
          when 'pg_statistic_ext'::regclass then (select stxnamespace from pg_statistic_ext where oid = c.objid)
          when 'pg_rewrite'::regclass then (select r.relnamespace from pg_rewrite as o join pg_class as r on r.oid = o.ev_class where o.oid = c.objid)
          when 'pg_trigger'::regclass then (select r.relnamespace from pg_trigger as o join pg_class as r on r.oid = o.tgrelid where o.oid = c.objid)
          when 'pg_policy'::regclass then (select r.relnamespace from pg_policy as o join pg_class as r on r.oid = o.polrelid where o.oid = c.objid)
          when 'pg_attrdef'::regclass then (select r.relnamespace from pg_attrdef as o join pg_class as r on r.oid = o.adrelid where o.oid = c.objid)
        end as schema
      from closure as c where c.classid not in ('pg_type'::regclass, 'pg_default_acl'::regclass, 'pg_namespace'::regclass)
        and not (c.classid = 'pg_trigger'::regclass and exists (select from pg_trigger where oid = c.objid and tgisinternal))
        and not (c.classid = 'pg_rewrite'::regclass
                 and exists (select from pg_rewrite where oid = c.objid and rulename = '_RETURN'))
    )
    select distinct i.type || ' ' || i.identity
    from placed as p cross join lateral pg_identify_object(p.classid, p.objid, 0) as i
    where p.schema is distinct from to_regnamespace($1)
      and p.schema is distinct from 'pg_toast'::regnamespace order by 1";

/// What is outside of a schema and would go with it, in words.
pub(crate) async fn list_beyond(
    connection: &mut PgConnection,
    schema: &str,
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(BEYOND).persistent(false).bind(quote_identifier(schema)).fetch_all(connection).await
}

/// Drops a version that does not serve: its schema with everything in it, its tracker and what refers to that, and its functions.
/// The caller has set a `lock_timeout`.
pub(crate) async fn drop_place(
    transaction: &mut PgConnection,
    trackers: &Trackers,
    name: &str,
    tables_in: &str,
    functions: &[String],
) -> Result<(), sqlx::Error> {
    let functions: Vec<String> = functions.iter().map(|function| quote_literal(function)).collect();
    let statement = format!(
        "-- drop_version
         set local client_min_messages = warning;
         delete from {trackers} where name = {name};
         delete from {schema}.dead_letters where processor = {name};
         delete from {schema}.declarations where processor = {name};
         delete from {schema}.projection_tables where processor = {name};
         delete from {schema}.build_progress where tracker = {name};
         drop schema if exists {tables_in} cascade;
         do $drop$ declare one regprocedure; begin
           for one in select p.oid from pg_proc as p
                      where p.pronamespace = to_regnamespace({own}) and p.proname in ({functions}) loop
             execute 'drop function ' || one;
           end loop;
         end $drop$",
        trackers = trackers.table(),
        schema = trackers.schema(),
        own = quote_literal(trackers.schema()),
        name = quote_literal(name),
        tables_in = quote_identifier(tables_in),
        functions = functions.join(", ")
    );
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(transaction).await.map(drop)
}
