//! What changes schemas when a version goes live: it is found out while the tables are read as always, because to ask takes longer
//! than to move, and moved while everybody waits for them.

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, PgConnection};

use super::ddl::{Made, made_by_ddl};
use super::place::{OBJECTS, made_objects};
use super::replay::find_declared;
use super::{Beside, SwapError};
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::row::from_row;
use crate::postgres::sqlstate::{describe, is_infrastructure_error};
use crate::processing::processor::Dropped;
use crate::processing::tracker::ProcessorKey;

/// The schemas that are concerned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schemas<'s> {
    /// The quoted schema of the trackers.
    pub(super) own: &'s str,
    /// That of the tables that serve.
    pub(super) live: &'s str,
    /// That of the tables that are to serve.
    pub(super) building_in: &'s str,
}

/// What changes schemas.
#[derive(Debug)]
pub(super) struct Moves {
    name: String,
    /// Where the former tables go.
    pub(super) archive: String,
    live: String,
    /// Statements that move what the former version has made apart from its tables.
    views: Vec<String>,
    objects: Vec<Moved>,
    pairs: Vec<Pair>,
}

/// An object with a schema, in the words of [`OBJECTS`].
#[derive(Debug)]
struct Moved {
    kind: String,
    classid: Oid,
    objid: Oid,
    /// Whether it goes to the archive, and not to where the former tables were.
    is_former: bool,
}

from_row!(Moved { kind, classid, objid, is_former });

/// A new table, and the former one, whose owner it gets.
#[derive(Debug)]
struct Pair {
    new: Oid,
    former: Oid,
}

from_row!(Pair { new, former });

impl Moves {
    /// Finds out what is to be moved, and makes the schema for what goes to the archive. `before`: what is on the tables that serve.
    pub(super) async fn find(
        connection: &mut PgConnection,
        live: &ProcessorKey,
        schemas: Schemas<'_>,
        (before, made): (&Dropped, &[Made]),
    ) -> Result<Self, SwapError> {
        let archive = Beside::Archived(live.version).schema(schemas.live, &live.name);
        let views = before.made_apart().into_iter().filter(|item| has_schema(item));
        let views = views.map(|item| move_item(&item, &archive)).collect();
        let objects = find_objects(&mut *connection, live, schemas, made).await?;
        let pairs = find_pairs(connection, live, schemas).await?;
        Ok(Self { name: live.name.clone(), archive, live: schemas.live.to_owned(), views, objects, pairs })
    }

    /// Moves everything.
    pub(super) async fn run(&self, connection: &mut PgConnection) -> Result<(), SwapError> {
        let objects: Vec<String> = self
            .objects
            .iter()
            .enumerate()
            .map(|(place, Moved { kind, classid, objid, is_former })| {
                let target = if *is_former { &self.archive } else { &self.live };
                let (kind, target) = (quote_literal(kind), quote_literal(target));
                format!("({place}, {kind}, {}::oid, {}::oid, {target})", classid.0, objid.0)
            })
            .collect();
        let views = self.views.iter().map(|view| format!("execute {};", quote_literal(view)));
        let pairs: Vec<String> = self
            .pairs
            .iter()
            .map(|Pair { new, former }| format!("({}::oid, {}::oid)", new.0, former.0))
            // Where all tables are new, the types of the columns would not be known.
            .chain(["(null::oid, null::oid)".to_owned()])
            .collect();
        // The name is asked for at each step: one that has moved may be in the name of the next one.
        let statement = format!(
            "-- move_tables
             do $move$ declare one record; named record; begin
               {views}
               for one in select * from (values {objects}) as o (place, kind, classid, objid, target) order by place loop
                 named := pg_identify_object(one.classid, one.objid, 0);
                 if named.schema <> quote_ident(one.target) then
                   execute format('alter %s %s set schema %I', one.kind, named.identity, one.target);
                 end if;
               end loop;
               for one in select c.oid::regclass as relation, pg_get_userbyid(f.relowner) as owner
                          from (values {pairs}) as o (new, former) join pg_class as c on c.oid = o.new
                            join pg_class as f on f.oid = o.former
                          where c.relowner <> f.relowner loop
                 execute format('alter table %s owner to %I', one.relation, one.owner);
               end loop;
             end $move$",
            views = views.collect::<String>(),
            objects = objects.join(", "),
            pairs = pairs.join(", ")
        );
        change(connection, &self.name, statement).await
    }
}

/// Runs a statement that moves something. The error says that the tables could not change places.
pub(super) async fn change(
    connection: &mut PgConnection,
    name: &str,
    statement: String,
) -> Result<(), SwapError> {
    match sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await {
        Ok(_) => Ok(()),
        Err(error) if is_infrastructure_error(&error) => Err(error.into()),
        Err(error) if is_change_of_others(&error) => Err(SwapError::Changed),
        Err(error) => Err(SwapError::Refused(format!(
            "the tables of {name} could not change places: {}",
            describe(&error)
        ))),
    }
}

/// Whether somebody has changed the same entry of the catalog at the same time, which takes no lock where it is about rights, or has taken
/// away what is meant.
pub(super) fn is_change_of_others(error: &sqlx::Error) -> bool {
    let Some(answer) = error.as_database_error() else { return false };
    match answer.code().as_deref() {
        Some("XX000") => answer.message().contains("concurrently"),
        Some("42P01" | "42703" | "42809") => true,
        _ => false,
    }
}

/// What the DDL of the version that serves has made.
pub(super) async fn find_ddl_made(
    connection: &mut PgConnection,
    live: &ProcessorKey,
    own_schema: &str,
) -> Result<Vec<Made>, sqlx::Error> {
    let declared = find_declared(connection, own_schema, &live.name, live.version).await?;
    Ok(declared.as_ref().map(made_by_ddl).unwrap_or_default())
}

/// The former tables, what their version has made besides, and everything of the new version.
async fn find_objects(
    connection: &mut PgConnection,
    live: &ProcessorKey,
    schemas: Schemas<'_>,
    made: &[Made],
) -> Result<Vec<Moved>, sqlx::Error> {
    let statement = format!(
        "-- find_moves
         with former as materialized ({former})
         select kind, classid, objid, is_former from (
           select 1 as place, 'table' as kind, 'pg_class'::regclass::oid as classid, f.oid as objid, true as is_former
             from former as f
           union all
           select distinct 2, o.kind, o.classid, o.objid, true from (
             select m.kind, m.classid, m.objid from ({made}) as m
             union all
             select s.kind, s.classid, s.objid from ({old}) as s join pg_statistic_ext as x on x.oid = s.objid
               where s.kind = 'statistics' and x.stxrelid in (select oid from former)) as o
           union all
           select 3, n.kind, n.classid, n.objid, false from ({new}) as n
         ) as moved order by place, objid",
        former = former(live, schemas),
        made = made_objects(made, schemas.live, schemas.building_in),
        old = OBJECTS.replace("{schema}", &quote_literal(schemas.live)),
        new = OBJECTS.replace("{schema}", &quote_literal(schemas.building_in)),
    );
    sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await
}

async fn find_pairs(
    connection: &mut PgConnection,
    live: &ProcessorKey,
    schemas: Schemas<'_>,
) -> Result<Vec<Pair>, sqlx::Error> {
    let statement = format!(
        "-- find_pairs
         select c.oid as new, f.oid as former from pg_class as c join pg_class as f on f.relname = c.relname and f.oid in ({former})
         where c.relnamespace = to_regnamespace({building_in})",
        former = former(live, schemas),
        building_in = quote_literal(&quote_identifier(schemas.building_in)),
    );
    sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await
}

/// The tables that serve, with their partitions.
fn former(live: &ProcessorKey, schemas: Schemas<'_>) -> String {
    format!(
        "select distinct r.oid from {}.owned_relations as r where r.processor = {} and r.oid is not null",
        schemas.own,
        quote_literal(&live.name)
    )
}

/// Whether an item of the list of dependents is an object with a schema of its own.
fn has_schema(item: &str) -> bool {
    ["view ", "materialized view ", "function ", "procedure "].iter().any(|kind| item.starts_with(kind))
}

/// The statement that moves such an object.
fn move_item(item: &str, schema: &str) -> String {
    format!("alter {item} set schema {}", quote_identifier(schema))
}
