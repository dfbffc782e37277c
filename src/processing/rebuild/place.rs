//! The schema that a version is built in: what may be made there, and how it goes away.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::postgres::lexer;
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::server_mark;
use crate::processing::declaration::{ProcessorDeclaration, SourceText};
use crate::processing::processor::{ProcessorBase, ProcessorError, observe};
use crate::processing::tracker::Trackers;

/// What is in a schema and moves by a statement of its own: kind and qualified name. Parts of tables move with them.
pub(super) const OBJECTS: &str = "
    select case c.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'S' then 'sequence'
             when 'f' then 'foreign table' else 'table' end as kind,
           format('%I.%I', n.nspname, c.relname) as name, quote_ident(c.relname) as own_name
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
    where n.nspname = {schema} and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
      and not exists (select from pg_depend as d
        where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype in ('a', 'i') and c.relkind = 'S')
    union all
    select 'routine', p.oid::regprocedure::text, regexp_replace(p.oid::regprocedure::text, '^.*?\\.', '')
    from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace where n.nspname = {schema}
    union all
    select case t.typtype when 'd' then 'domain' else 'type' end, format('%I.%I', n.nspname, t.typname), quote_ident(t.typname)
    from pg_type as t join pg_namespace as n on n.oid = t.typnamespace left join pg_class as c on c.oid = t.typrelid
    where n.nspname = {schema}
      and (t.typtype in ('e', 'd', 'r') or t.typtype = 'c' and c.relkind = 'c')";

/// Refuses texts that name a table of the processor with the schema of the serving version: they would read that one's rows.
pub(crate) fn refuse_qualified_names(
    declaration: &ProcessorDeclaration,
    schema: &str,
) -> Result<(), ProcessorError> {
    let handlers = declaration.handlers().iter().map(|handler| &handler.sql);
    let texts = declaration.tables.iter().flat_map(|table| table.texts()).chain(&declaration.ddl);
    match texts.chain(handlers).find_map(|text| qualified_in(text, schema, &declaration.table_names())) {
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
/// to where that is. `base` is the version beside; `live` and `live_schema` are the name and the schema of the serving one.
pub(crate) async fn create(
    connection: &mut PgConnection,
    base: &ProcessorBase,
    live: &str,
    live_schema: &str,
) -> Result<(), ProcessorError> {
    let mut transaction = connection.begin_with(server_mark::begin(None)).await?;
    let schema = quote_identifier(&base.schema);
    let before = observe(&mut transaction, &schema, live).await?;
    base.tables().create(&mut transaction).await?;
    let after = observe(&mut transaction, &schema, live).await?;
    if let Some(item) = after.first_beyond(&before) {
        return Err(ProcessorError::Blocked(format!(
            "ddl of {live} makes {item}, on a table of the version that serves: write names without the schema {live_schema}"
        )));
    }
    let (building_in, made) = (&base.scope.schema, before.made_apart());
    let taken = find_taken(&mut transaction, &schema, building_in, (live, live_schema), &made).await?;
    transaction.rollback().await?;
    if taken.is_empty() {
        return Ok(());
    }
    Err(ProcessorError::Blocked(format!(
        "{} exists already and does not belong to {live}, so the new version could not go live: drop or rename it, or declare \
         another name",
        taken.join(", ")
    )))
}

/// Which names of objects in the schema `of` are taken in `live`, by others than the processor and what it has made.
async fn find_taken(
    connection: &mut PgConnection,
    own_schema: &str,
    of: &str,
    (live, live_schema): (&str, &str),
    made: &[String],
) -> Result<Vec<String>, sqlx::Error> {
    let objects = |schema: &str| OBJECTS.replace("{schema}", &quote_literal(schema));
    let statement = format!(
        "-- find_taken_names
         select o.kind || ' ' || o.name from ({live}) as o join ({of}) as b on b.kind = o.kind and b.own_name = o.own_name
         where not o.kind || ' ' || o.name = any ($1)
           and not exists (select from {own_schema}.owned_relations as r where r.processor = $2 and r.oid = to_regclass(o.name))",
        live = objects(live_schema),
        of = objects(of)
    );
    let taken: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
        .persistent(false)
        .bind(made)
        .bind(live)
        .fetch_all(&mut *connection)
        .await?;
    Ok(taken)
}

/// Drops a version that does not serve: its schema with everything in it, its tracker and what refers to that, and its functions.
pub(crate) async fn drop_place(
    connection: &mut PgConnection,
    trackers: &Trackers,
    name: &str,
    tables_in: &str,
    functions: &[String],
) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin_with(server_mark::begin(None)).await?;
    let functions: Vec<String> = functions.iter().map(|function| quote_literal(function)).collect();
    let statement = format!(
        "-- drop_version
         set local lock_timeout = '10s'; set local client_min_messages = warning;
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
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
    transaction.commit().await
}
