//! The one transaction in which a version goes live: tables change schemas, trackers change names.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection};

use super::ddl::made_by_ddl;
use super::place::{OBJECTS, made_objects};
use super::replay::find_declared;
use super::views::View;
use super::{Beside, Rebuilds, SwapError};
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::row::from_row;
use crate::processing::processor::{Dropped, list_dependents, note_made, observe};
use crate::processing::tracker::{Claim, ProcessorKey, Trackers};

/// How long an attempt waits for the tables: whoever wants to read them meanwhile waits as well.
const LOCK_TIMEOUT: Duration = Duration::from_millis(100);

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

/// When a version beside was complete.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Complete {
    at: DateTime<Utc>,
    /// A snapshot that waits for no transaction below it has seen the version complete.
    next_xid: i64,
}

from_row!(Complete { at, next_xid });

impl Complete {
    /// Before it was, nobody could be told to be late.
    pub(crate) fn unknown() -> Self {
        Self { at: Utc::now(), next_xid: 0 }
    }

    /// Now, by the server's clock.
    pub(crate) async fn now(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let statement = "-- read_clock
            select clock_timestamp() as at, txid_snapshot_xmax(txid_current_snapshot()) as next_xid";
        sqlx::query_as(statement).persistent(false).fetch_one(connection).await
    }
}

/// A session whose transaction began before the new tables were complete, and would see them so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewerSnapshot {
    pub(crate) pid: i32,
    application_name: Option<String>,
    /// `None`: it is of a role whose activity this one may not see.
    begun_at: Option<DateTime<Utc>>,
}

from_row!(NewerSnapshot { pid, application_name, begun_at });

impl NewerSnapshot {
    /// The sessions whose snapshot is older than `complete`. Of those of other roles only the right `pg_read_all_stats` shows since
    /// when they are; which transactions a snapshot still waits for, everybody sees.
    pub(crate) async fn list_older(
        connection: &mut PgConnection,
        complete: Complete,
    ) -> Result<Vec<Self>, sqlx::Error> {
        let statement = "-- list_older_snapshots
            select pid, application_name, xact_start as begun_at from pg_stat_activity
            where backend_xmin is not null and datname = current_database() and pid <> pg_backend_pid()
              and (backend_type = 'client backend' and xact_start < $1
                   or backend_type is null and usesysid is not null
                     and age(backend_xmin) > age(($2::bigint % 4294967296)::text::xid))
            order by xact_start";
        let query = sqlx::query_as(statement).persistent(false).bind(complete.at).bind(complete.next_xid);
        query.fetch_all(connection).await
    }

    /// As a person reads it.
    pub(crate) fn describe(&self) -> String {
        let program = self.application_name.as_deref().filter(|name| !name.is_empty());
        let program = program.map_or(String::new(), |name| format!(" ({name})"));
        let since = self.begun_at.map_or_else(
            || ", of another role (with pg_read_all_stats it is seen since when)".to_owned(),
            |begun_at| format!(", since {}", begun_at.format("%Y-%m-%d %H:%M:%S UTC")),
        );
        format!("pid {}{program}{since}", self.pid)
    }
}

impl Swap<'_> {
    /// What others have made on the serving tables and what would be lost; empty: nothing.
    pub(crate) async fn list_obstacles(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Vec<String>, sqlx::Error> {
        Ok(observe(connection, self.trackers.schema(), &self.live.name).await?.irreplaceable())
    }

    /// Exchanges the versions in the caller's transaction, which has locked the tracker that serves. Returns the schema of the
    /// former tables.
    pub(crate) async fn run(&self, transaction: &mut PgConnection) -> Result<String, SwapError> {
        if !self.trackers.lock_claimed(&mut *transaction, self.claim).await? {
            return Err(SwapError::MovedOn);
        }
        self.lock_tables(transaction).await?;
        let own_schema = self.trackers.schema();
        let before = observe(transaction, own_schema, &self.live.name).await?;
        let obstacles = before.irreplaceable();
        if !obstacles.is_empty() {
            return Err(SwapError::Refused(refusal(&self.live.name, &obstacles)));
        }
        let views = View::read(transaction, &before.views_of_others()).await?;
        View::drop_all(transaction, &views).await?;
        let archive = self.move_tables(transaction, &before).await?;
        self.exchange_trackers(transaction, &archive).await?;
        if self.is_new {
            self.grant_defaults(transaction, &archive).await?;
        }
        let mut now = list_dependents(transaction, own_schema, &self.live.name).await?;
        if self.is_new {
            note_made(transaction, own_schema, &self.live.name, &now).await?;
        }
        // Before what is on them is restored, and after espd's own was recorded.
        if !views.is_empty() {
            View::create_all(transaction, &views).await?;
            now = list_dependents(transaction, own_schema, &self.live.name).await?;
        }
        let replaced = before.restore(transaction, &now).await?;
        if !replaced.lost.is_empty() {
            return Err(SwapError::Refused(refusal(&self.live.name, &replaced.lost)));
        }
        self.take_from_publications(transaction, &archive).await?;
        self.drop_functions(transaction).await?;
        let versions = (self.claim.key.version, self.live.version);
        let rebuilds = Rebuilds::new(own_schema);
        rebuilds.note_live(&mut *transaction, &self.live.name, versions, &archive).await?;
        Ok(archive)
    }

    /// Locks the tables that serve, in the order of their names.
    async fn lock_tables(&self, transaction: &mut PgConnection) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- lock_tables
             set local lock_timeout = '{}ms';
             do $lock$ declare one text; begin
               for one in select format('%I.%I', p.table_schema, p.table_name) from {}.projection_tables as p
                          where p.processor = {} order by p.table_schema, p.table_name loop
                 execute 'lock table ' || one || ' in access exclusive mode';
               end loop;
             end $lock$",
            LOCK_TIMEOUT.as_millis(),
            self.trackers.schema(),
            quote_literal(&self.live.name)
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(transaction).await.map(drop)
    }

    /// Moves the serving tables to the archive, and the new ones to where they were, with the owners that those had.
    async fn move_tables(
        &self,
        transaction: &mut PgConnection,
        before: &Dropped,
    ) -> Result<String, SwapError> {
        let archived = Beside::Archived(self.live.version);
        let archive = archived.schema(self.schema, &self.live.name);
        let former = format!(
            "select distinct r.oid from {}.owned_relations as r where r.processor = {}",
            self.trackers.schema(),
            quote_literal(&self.live.name)
        );
        let live = &self.live;
        let declared =
            find_declared(&mut *transaction, self.trackers.schema(), &live.name, live.version).await?;
        let made = declared.as_ref().map(made_by_ddl).unwrap_or_default();
        let views: Vec<String> = before.made_apart().into_iter().filter(|item| has_schema(item)).collect();
        let new = OBJECTS.replace("{schema}", &quote_literal(self.building_in));
        let statement = format!(
            "-- move_tables
             create schema {archive_name};
             do $move$ declare one record; owners jsonb; former oid[] := array({former}); begin
               select jsonb_object_agg(c.relname, quote_ident(pg_get_userbyid(c.relowner))) into owners
                 from pg_class as c where c.oid = any (former);
               for one in select oid from unnest(former) as f (oid) loop
                 execute format('alter table %s set schema %I', one.oid::regclass, {archive});
               end loop;
               {views}
               for one in select o.kind, o.classid, o.objid from ({made}) as o union
                          select o.kind, o.classid, o.objid from ({old}) as o join pg_statistic_ext as s on s.oid = o.objid
                          where o.kind = 'statistics' and s.stxrelid = any (former) loop
                 execute format('alter %s %s set schema %I', one.kind,
                   (pg_identify_object(one.classid, one.objid, 0)).identity, {archive});
               end loop;
               for one in {new} loop
                 execute format('alter %s %s set schema %I', one.kind,
                   (pg_identify_object(one.classid, one.objid, 0)).identity, {live});
               end loop;
               for one in select c.oid::regclass as relation, owners ->> c.relname as owner from pg_class as c
                          where c.relnamespace = {live_quoted}::regnamespace and owners ? c.relname
                            and quote_ident(pg_get_userbyid(c.relowner)) <> owners ->> c.relname loop
                 execute format('alter table %s owner to %s', one.relation, one.owner);
               end loop;
             end $move$;
             drop schema {building_in};",
            archive_name = quote_identifier(&archive),
            archive = quote_literal(&archive),
            live = quote_literal(self.schema),
            made = made_objects(&made, self.schema, self.building_in),
            old = OBJECTS.replace("{schema}", &quote_literal(self.schema)),
            live_quoted = quote_literal(&quote_identifier(self.schema)),
            building_in = quote_identifier(self.building_in),
            views = views
                .iter()
                .map(|item| format!("execute {};", quote_literal(&move_item(item, &archive))))
                .collect::<String>()
        );
        match sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *transaction).await {
            Ok(_) => Ok(archive),
            Err(error) if crate::postgres::sqlstate::is_infrastructure_error(&error) => Err(error.into()),
            Err(error) => Err(SwapError::Refused(format!(
                "the tables of {} could not change places: {}",
                self.live.name,
                crate::postgres::sqlstate::describe(&error)
            ))),
        }
    }

    /// Tables that the former version did not have get the rights that are given by default where they are now.
    async fn grant_defaults(&self, transaction: &mut PgConnection, archive: &str) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- grant_defaults
             do $grant$ declare one record; begin
               for one in select c.oid::regclass as relation, a.*,
                            case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end as name
                          from {schema}.owned_relations as o join pg_class as c on c.oid = o.oid
                            join pg_default_acl as d on d.defaclnamespace = c.relnamespace and d.defaclrole = c.relowner
                              and d.defaclobjtype = 'r'
                            cross join lateral aclexplode(d.defaclacl) as a
                          where o.processor = {processor} and a.grantee <> c.relowner
                            and not exists (select from pg_class as f join pg_namespace as n on n.oid = f.relnamespace
                              where n.nspname = {archive} and f.relname = c.relname) loop
                 execute format('grant %s on table %s to %s%s', one.privilege_type, one.relation, one.name,
                   case when one.is_grantable then ' with grant option' else '' end);
               end loop;
             end $grant$",
            schema = self.trackers.schema(),
            processor = quote_literal(&self.live.name),
            archive = quote_literal(archive)
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

/// Why something of others stands in the way, and what to do.
pub(crate) fn refusal(name: &str, lost: &[String]) -> String {
    format!(
        "the tables of {name} cannot be exchanged, because this would stay with the former ones: {}. Drop it before and make it \
         again afterwards; or, where the tables are declared alike, --go-live merge changes their rows and leaves it alone",
        lost.join("; ")
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
