//! The one transaction in which a version goes live: tables change schemas, trackers change names.

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection};
use tokio::time::sleep;

use super::ddl::Made;
use super::moves::{Moves, Schemas, change, find_ddl_made, is_change_of_others};
use super::place::made_objects;
use super::rights::{give_to_owner, list_unmovable_tables};
use super::unmatched::{Unmatched, find_declared_alike};
use super::views::{NO_OPTION, View};
use super::{Beside, Rebuilds, SwapError};
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::sqlstate::is_lock_timeout;
use crate::processing::dead_letters::DeadLetters;
use crate::processing::processor::{
    Dependent, Dropped, ObjectId, find_made, list_planned_dependents, note_made, observe_planned,
    observe_with,
};
use crate::processing::tracker::{Claim, ProcessorKey, Trackers};

/// How long an attempt waits for the tables, again and again: whoever wants to read them meanwhile waits as well.
const LOCK_WAITS: [Duration; 4] =
    [Duration::from_millis(20), Duration::from_millis(20), Duration::from_millis(40), LOCK_TIMEOUT];

/// How long it waits at most for a lock.
const LOCK_TIMEOUT: Duration = Duration::from_millis(100);

/// Those who have waited behind it meanwhile read then.
const PAUSE: Duration = Duration::from_millis(50);

/// The longest `deadlock_timeout`, in milliseconds, that is waited for.
const VACUUM_WAIT_MS: u32 = 4_500;

/// How long what comes before the locks on the tables may wait for others.
const PREPARATION_LIMIT: &str = "5s";

/// What is found out before the tables are locked.
struct Prepared {
    /// What is on them.
    before: Dropped,
    /// What the former version has made besides tables.
    without_tables: Vec<ObjectId>,
    moves: Moves,
    locks: Vec<String>,
    /// What espd has made on the tables that serve again; `None`: that was not recorded, or they are new.
    coming: Option<BTreeSet<String>>,
    /// What the tables that are to serve have, and those that serve have not.
    added: Unmatched,
}

/// What changes places.
#[derive(Debug)]
pub(crate) struct Swap<'s> {
    pub(crate) trackers: &'s Trackers,
    /// The tracker of the version that serves.
    pub(crate) live: &'s ProcessorKey,
    /// The right to change the tracker of the version that is to serve.
    pub(crate) claim: &'s Claim,
    /// The schema of the tables that serve.
    pub(crate) schema: &'s str,
    /// The schema of the tables that are to serve.
    pub(crate) building_in: &'s str,
    /// Who wants it.
    pub(crate) operator: &'s str,
    /// Whether nobody but espd has made anything on the tables that are to serve. On those that have served before there is
    /// what others have made, which stays theirs.
    pub(crate) is_new: bool,
    /// Functions that are of no use afterwards.
    pub(crate) functions: Vec<String>,
}

impl Swap<'_> {
    /// Why the tables cannot be exchanged, and what to do: what others have made on the serving tables would be lost. `None`: nothing
    /// is known that would.
    pub(crate) async fn find_obstacles(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Option<String>, sqlx::Error> {
        let made = find_ddl_made(connection, self.live, self.trackers.schema()).await?;
        let own = self.find_made_without_tables(connection, &made).await?;
        let observed =
            observe_with(&mut *connection, (self.trackers.schema(), &self.live.name), &own).await?;
        self.refuse_obstacles(connection, observed, &made).await.map(Result::err)
    }

    /// What is on the serving tables, if nothing of it would be lost; otherwise why the tables cannot be exchanged.
    async fn refuse_obstacles(
        &self,
        connection: &mut PgConnection,
        mut observed: Dropped,
        made: &[Made],
    ) -> Result<Result<Dropped, String>, sqlx::Error> {
        let (own, live, next) = (self.trackers.schema(), &self.live.name, &self.claim.key.name);
        observed.count_as_made(self.name_made(connection, made).await?);
        let gone = Unmatched::find(connection, own, (live, next), self.schema).await?;
        let left = gone.items(connection, (own, live), observed.before()).await?;
        observed.leave(left);
        // Definitions are read under a lock, which others may have, so only where there is something.
        if self.is_new && !observed.irreplaceable().is_empty() {
            let declared = find_declared_alike(connection, own, (live, next), self.building_in).await?;
            observed.count_as_declared(declared);
        }
        let lost = observed.irreplaceable();
        let mut others =
            View::find_obstacles(connection, &observed.views_of_others(), (own, live, next)).await?;
        others.extend(list_unmovable_tables(connection, own, live).await?);
        Ok(match (lost.is_empty(), others.is_empty()) {
            (true, true) => Ok(observed),
            (true, false) => Err(refusal_as_told(live, &others)),
            (false, _) if self.is_new => Err(refusal(live, &[lost, others].concat())),
            (false, _) => Err(refusal_to_go_back(live, &[lost, others].concat())),
        })
    }

    /// Those objects that DDL has made and that are no part of a table, with their own parts: the checks of a domain, the type of arrays, the
    /// functions of a range. Views and the like are among them where nothing of a table leads to them; the others are found by that.
    async fn find_made_without_tables(
        &self,
        connection: &mut PgConnection,
        made: &[Made],
    ) -> Result<Vec<ObjectId>, sqlx::Error> {
        if made.is_empty() {
            return Ok(Vec::new());
        }
        let statement = format!(
            "-- find_made_without_tables
             with recursive reached (classid, objid) as (
               select 'pg_class'::regclass::oid, r.oid from {own_schema}.owned_relations as r where r.processor = {processor} and r.oid is not null
               union
               select linked.classid, linked.objid from reached as c cross join lateral (
                 select d.classid, d.objid from pg_depend as d
                 where d.refclassid = c.classid and d.refobjid = c.objid and d.deptype in ('n', 'a', 'i')
                 union all
                 select d.refclassid, d.refobjid from pg_depend as d
                 where d.classid = c.classid and d.objid = c.objid and d.deptype = 'i') as linked
             ), own (classid, objid) as (
               select m.classid, m.objid from ({made}) as m
               where m.kind in ('routine', 'type', 'domain', 'sequence')
                 or m.kind in ('view', 'materialized view', 'foreign table', 'table')
                   and not exists (select from reached as r where r.classid = m.classid and r.objid = m.objid)
               union
               select linked.classid, linked.objid from own as c cross join lateral (
                 select d.classid, d.objid from pg_depend as d
                 where d.refclassid = c.classid and d.refobjid = c.objid and d.deptype in ('a', 'i')
                 union all
                 select d.refclassid, d.refobjid from pg_depend as d
                 where d.classid = c.classid and d.objid = c.objid and d.deptype = 'i') as linked
             ) select classid, objid from own order by classid, objid",
            own_schema = self.trackers.schema(),
            processor = quote_literal(&self.live.name),
            made = made_objects(made, self.schema, self.building_in)
        );
        sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await
    }

    /// What DDL has made, in the words of the list of dependents.
    async fn name_made(
        &self,
        connection: &mut PgConnection,
        made: &[Made],
    ) -> Result<Vec<String>, sqlx::Error> {
        if made.is_empty() {
            return Ok(Vec::new());
        }
        let statement = format!(
            "-- name_made
             select i.type || ' ' || i.identity
             from ({}) as m cross join lateral pg_identify_object(m.classid, m.objid, 0) as i",
            made_objects(made, self.schema, self.building_in)
        );
        sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await
    }

    /// Exchanges the versions in the caller's transaction, which has locked the tracker that serves. Returns the schema of the
    /// former tables.
    pub(crate) async fn run(&self, transaction: &mut PgConnection) -> Result<String, SwapError> {
        if !self.trackers.lock_claimed(&mut *transaction, self.claim).await? {
            return Err(SwapError::MovedOn);
        }
        self.keep_out_vacuum(transaction).await?;
        let prepared = self.prepare(transaction).await?;
        self.lock_tables(transaction, &prepared.locks).await?;
        // What was found out before holds as long as nobody has changed anything.
        let now = list_planned_dependents(transaction, &prepared.without_tables).await?;
        if prepared.before.differs_from(&now) {
            return Err(SwapError::Changed);
        }
        self.exchange(transaction, &prepared).await?;
        Ok(prepared.moves.archive)
    }

    /// Waits until nobody vacuums the tables, or makes indexes, while they are read and written as always. Whoever waits for autovacuum ends
    /// it after `deadlock_timeout`, unless it keeps numbers of transactions from wrapping around.
    async fn keep_out_vacuum(&self, transaction: &mut PgConnection) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- keep_out_vacuum
             select set_config('lock_timeout', (least(setting::integer, {VACUUM_WAIT_MS}) + 500) || 'ms', true)
             from pg_catalog.pg_settings where name = 'deadlock_timeout';
             do $lock$ declare one text; begin
               for one in select format('%I.%I', p.table_schema, p.table_name) from {}.projection_tables as p
                          where p.processor = {} order by p.table_schema, p.table_name loop
                 execute 'lock table ' || one || ' in share update exclusive mode';
               end loop;
             end $lock$;
             set local lock_timeout = '{PREPARATION_LIMIT}'",
            self.trackers.schema(),
            quote_literal(&self.live.name)
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(transaction).await.map(drop)
    }

    /// Everything that can be done while the tables are read as always: what is made of the new ones alone, and what is asked for. What a
    /// session does for the first time takes longest, so it is done here once.
    async fn prepare(&self, transaction: &mut PgConnection) -> Result<Prepared, SwapError> {
        let (own, name) = (self.trackers.schema(), &self.live.name);
        // A schema that is made, or dropped, would have everything planned anew.
        let archive = Beside::Archived(self.live.version).schema(self.schema, name);
        let make = format!("-- make_archive\ncreate schema {}", quote_identifier(&archive));
        change(transaction, name, make).await?;
        give_to_owner(transaction, (own, name), &archive).await?;
        let made = find_ddl_made(transaction, self.live, own).await?;
        let without_tables = self.find_made_without_tables(transaction, &made).await?;
        let observed = observe_planned(transaction, (own, name), &without_tables).await?;
        let before =
            self.refuse_obstacles(transaction, observed, &made).await?.map_err(SwapError::Refused)?;
        if self.is_new {
            self.grant_defaults(transaction).await?;
        }
        self.drop_functions(transaction).await?;
        let schemas = Schemas { own, live: self.schema, building_in: self.building_in };
        let moves = Moves::find(transaction, self.live, schemas, (&before, &made)).await?;
        let next = &self.claim.key.name;
        let coming = if self.is_new { None } else { find_made(transaction, own, next).await? };
        let added = Unmatched::find(transaction, own, (next, name), self.schema).await?;
        let locks = self.list_locks(transaction, &before).await?;
        self.rehearse(transaction).await?;
        Ok(Prepared { before, without_tables, moves, locks, coming, added })
    }

    /// The statements that keep others from using and changing what changes places. Views come first, as for whoever reads by them. Rights are
    /// granted without a lock: whoever does so waits for the entries in the catalog, which are written as they are.
    async fn list_locks(
        &self,
        transaction: &mut PgConnection,
        before: &Dropped,
    ) -> Result<Vec<String>, sqlx::Error> {
        let views = before.views();
        let views = if views.is_empty() { Vec::new() } else { View::read(transaction, &views).await? };
        let views = views.iter().rev().map(View::lock);
        let statement = format!(
            "-- list_locks
             with owned as (
               select distinct c.oid, c.oid::regclass::text as name
               from {schema}.owned_relations as o join pg_class as c on c.oid = o.oid and c.relkind in ('r', 'p')
               where o.processor = {processor}
             )
             (select 'lock table ' || o.name || ' in access exclusive mode' from owned as o order by o.name)
             union all
             (select 'alter table ' || o.name || ' reset ({NO_OPTION})' || string_agg(
                format(', alter column %I reset ({NO_OPTION})', a.attname), '' order by a.attnum)
              from owned as o join pg_attribute as a on a.attrelid = o.oid and a.attnum > 0 and not a.attisdropped
              group by o.name order by o.name)",
            schema = self.trackers.schema(),
            processor = quote_literal(&self.live.name)
        );
        let tables: Vec<String> =
            sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).fetch_all(transaction).await?;
        Ok(views.chain(tables).collect())
    }

    /// Has the session plan what the functions do, for a processor that nobody can have.
    async fn rehearse(&self, transaction: &mut PgConnection) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- rehearse\nselect {0}.move_processor('', 0, ''), {0}.exchange_versions('', '', 0, '', 0, '')",
            self.trackers.schema()
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(transaction).await.map(drop)
    }

    /// What can be done only while nobody uses the tables.
    async fn exchange(
        &self,
        transaction: &mut PgConnection,
        Prepared { before, moves, coming, added, .. }: &Prepared,
    ) -> Result<(), SwapError> {
        let (own_schema, name, archive) = (self.trackers.schema(), &self.live.name, &moves.archive);
        let of_others = before.views_of_others();
        let views =
            if of_others.is_empty() { Vec::new() } else { View::read(transaction, &of_others).await? };
        View::drop_all(transaction, &views).await?;
        moves.run(transaction).await?;
        self.exchange_trackers(transaction, archive).await?;
        let mut now = list_planned_dependents(transaction, &[]).await?;
        if self.is_new {
            note_made(transaction, own_schema, name, &now).await?;
        }
        // Before what is on them is restored, and after espd's own was recorded.
        if !views.is_empty() {
            View::create_all(transaction, &views).await?;
            now = list_planned_dependents(transaction, &[]).await?;
            // Also those that only what DDL has made besides leads to.
            now.extend(of_others.iter().map(|view| Dependent::view(view)));
        }
        let replaced = match self.is_new {
            true => before.restore(transaction, &now).await?,
            false => {
                let only_there = added.items(transaction, (own_schema, name), &now).await?;
                before.restore_on_former(transaction, &now, coming.as_ref(), &only_there).await?
            }
        };
        if !replaced.lost.is_empty() {
            return Err(SwapError::Refused(refusal(name, &replaced.lost)));
        }
        self.take_from_publications(transaction, archive).await?;
        let versions = (self.claim.key.version, self.live.version);
        Rebuilds::new(own_schema).note_live(&mut *transaction, name, versions, archive).await?;
        let gone = format!("-- drop_place\ndrop schema {}", quote_identifier(self.building_in));
        change(transaction, name, gone).await
    }

    /// Locks the views and the tables that serve, in the order of their names. Whoever wants to read them waits behind this session, so it
    /// asks briefly at first, and lets them through in between.
    async fn lock_tables(&self, transaction: &mut PgConnection, locks: &[String]) -> Result<(), SwapError> {
        let mut waits = LOCK_WAITS.iter().peekable();
        while let Some(wait) = waits.next() {
            match try_lock_tables(transaction, locks, *wait).await {
                Err(error) if is_lock_timeout(&error) && waits.peek().is_some() => {
                    sqlx::raw_sql("-- let_through\nrollback to savepoint before_tables")
                        .execute(&mut *transaction)
                        .await?;
                    sleep(PAUSE).await;
                }
                Err(error) if is_change_of_others(&error) => return Err(SwapError::Changed),
                outcome => return Ok(outcome?),
            }
        }
        Ok(())
    }

    /// Tables that the former version does not have get the rights that are given by default where they are going.
    async fn grant_defaults(&self, transaction: &mut PgConnection) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- grant_defaults
             do $grant$ declare one record; begin
               for one in select c.oid::regclass as relation, a.*,
                            case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end as name
                          from {schema}.owned_relations as o join pg_class as c on c.oid = o.oid
                            join pg_default_acl as d on d.defaclnamespace = {live}::regnamespace and d.defaclrole = c.relowner
                              and d.defaclobjtype = 'r'
                            cross join lateral aclexplode(d.defaclacl) as a
                          where o.processor = {new} and a.grantee <> c.relowner
                            and not exists (select from {schema}.owned_relations as r join pg_class as f on f.oid = r.oid
                              where r.processor = {former} and f.relname = c.relname) loop
                 execute format('grant %s on table %s to %s%s', one.privilege_type, one.relation, one.name,
                   case when one.is_grantable then ' with grant option' else '' end);
               end loop;
             end $grant$",
            schema = self.trackers.schema(),
            live = quote_literal(&quote_identifier(self.schema)),
            new = quote_literal(&self.claim.key.name),
            former = quote_literal(&self.live.name)
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(transaction).await.map(drop)
    }

    async fn exchange_trackers(
        &self,
        transaction: &mut PgConnection,
        archive: &str,
    ) -> Result<(), SwapError> {
        let ProcessorKey { name, version, .. } = self.live;
        let Claim { key, .. } = self.claim;
        let own_schema = self.trackers.schema();
        let statement = format!(
            "-- move_records
             update {own_schema}.projection_tables set table_schema = {archive} where processor = {live};
             update {own_schema}.projection_tables set table_schema = {schema} where processor = {next};",
            archive = quote_literal(archive),
            schema = quote_literal(self.schema),
            live = quote_literal(name),
            next = quote_literal(&key.name)
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
        DeadLetters::new(self.trackers).keep_ages(transaction, self.live, key).await?;
        let statement =
            format!("-- exchange_versions\nselect {own_schema}.exchange_versions($1, $2, $3, $4, $5, $6)");
        let exchanged: bool = sqlx::query_scalar(AssertSqlSafe(statement))
            .persistent(false)
            .bind(self.operator)
            .bind(name)
            .bind(version)
            .bind(&key.name)
            .bind(key.version)
            .bind(Beside::Archived(*version).name(name))
            .fetch_one(transaction)
            .await?;
        if exchanged { Ok(()) } else { Err(SwapError::MovedOn) }
    }

    /// Publications go with the name: what was published is still, and the former tables are not.
    async fn take_from_publications(
        &self,
        transaction: &mut PgConnection,
        archive: &str,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- take_from_publications
             do $take$ declare one record; begin
               for one in select p.pubname, c.oid::regclass as relation from pg_publication_rel as m
                          join pg_publication as p on p.oid = m.prpubid join pg_class as c on c.oid = m.prrelid
                          where c.relnamespace = {}::regnamespace loop
                 execute format('alter publication %I drop table %s', one.pubname, one.relation);
               end loop;
             end $take$",
            quote_literal(&quote_identifier(archive))
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(transaction).await.map(drop)
    }

    async fn drop_functions(&self, transaction: &mut PgConnection) -> Result<(), sqlx::Error> {
        let functions: Vec<String> = self.functions.iter().map(|function| quote_literal(function)).collect();
        let statement = format!(
            "-- drop_functions
             do $drop$ declare one regprocedure; begin
               for one in select p.oid from pg_proc as p
                          where p.pronamespace = to_regnamespace({}) and p.proname in ({}) loop
                 execute 'drop function ' || one;
               end loop;
             end $drop$",
            quote_literal(self.trackers.schema()),
            functions.join(", ")
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(transaction).await.map(drop)
    }
}

async fn try_lock_tables(
    transaction: &mut PgConnection,
    locks: &[String],
    wait: Duration,
) -> Result<(), sqlx::Error> {
    let statement = format!(
        "-- lock_tables
         savepoint before_tables;
         set local lock_timeout = '{}ms';
         {};
         release savepoint before_tables;
         set local lock_timeout = '{}ms'",
        wait.as_millis(),
        locks.join(";\n"),
        LOCK_TIMEOUT.as_millis()
    );
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(transaction).await.map(drop)
}

/// Why something of others stands in the way, and what to do.
fn refusal(name: &str, lost: &[String]) -> String {
    format!(
        "the tables of {name} cannot be exchanged, because this would stay with the former ones: {}. Declare what belongs to the \
         tables in the new version; drop the rest before and make it again afterwards; or, where the tables are declared alike, \
         --go-live merge changes their rows and leaves it alone",
        lost.join("; ")
    )
}

/// As [`refusal`], where the version has served before: there is no other way, and nothing more to declare.
fn refusal_to_go_back(name: &str, lost: &[String]) -> String {
    format!(
        "the tables of {name} cannot be exchanged, because this would stay with the ones that serve now: {}. Drop it before, and make it \
         again afterwards",
        lost.join("; ")
    )
}

/// As [`refusal`], where each obstacle says what to do.
fn refusal_as_told(name: &str, obstacles: &[String]) -> String {
    format!("the tables of {name} cannot be exchanged: {}", obstacles.join("; "))
}
