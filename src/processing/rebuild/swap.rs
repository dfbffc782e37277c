//! The one transaction in which a version goes live: tables change schemas, trackers change names.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection};
use tokio::time::sleep;

use super::moves::{Moves, Schemas, change};
use super::views::View;
use super::{Beside, Rebuilds, SwapError};
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::sqlstate::is_lock_timeout;
use crate::processing::processor::{Dropped, list_planned_dependents, note_made, observe, observe_planned};
use crate::processing::tracker::{Claim, ProcessorKey, Trackers};

/// How long an attempt waits for the tables, again and again: whoever wants to read them meanwhile waits as well.
const LOCK_WAITS: [Duration; 4] =
    [Duration::from_millis(20), Duration::from_millis(20), Duration::from_millis(40), LOCK_TIMEOUT];

/// How long it waits at most for a lock.
const LOCK_TIMEOUT: Duration = Duration::from_millis(100);

/// Those who have waited behind it meanwhile read then.
const PAUSE: Duration = Duration::from_millis(50);

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
        let (before, moves) = self.prepare(transaction).await?;
        self.lock_tables(transaction).await?;
        // What was found out before holds as long as nobody has changed anything.
        if before.differs_from(&list_planned_dependents(transaction).await?) {
            return Err(SwapError::Changed);
        }
        self.exchange(transaction, &before, &moves).await?;
        Ok(moves.archive)
    }

    /// Everything that can be done while the tables are read as always: what is made of the new ones alone, and what is asked for. What a
    /// session does for the first time takes longest, so it is done here once.
    async fn prepare(&self, transaction: &mut PgConnection) -> Result<(Dropped, Moves), SwapError> {
        let (own, name) = (self.trackers.schema(), &self.live.name);
        // A schema that is made, or dropped, would have everything planned anew.
        let archive = Beside::Archived(self.live.version).schema(self.schema, name);
        let make = format!("-- make_archive\ncreate schema {}", quote_identifier(&archive));
        change(transaction, name, make).await?;
        let before = observe_planned(transaction, own, name).await?;
        let obstacles = before.irreplaceable();
        if !obstacles.is_empty() {
            return Err(SwapError::Refused(refusal(name, &obstacles)));
        }
        if self.is_new {
            self.grant_defaults(transaction).await?;
        }
        self.drop_functions(transaction).await?;
        let schemas = Schemas { own, live: self.schema, building_in: self.building_in };
        let moves = Moves::find(transaction, self.live, schemas, &before).await?;
        self.rehearse(transaction).await?;
        Ok((before, moves))
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
        before: &Dropped,
        moves: &Moves,
    ) -> Result<(), SwapError> {
        let (own_schema, name, archive) = (self.trackers.schema(), &self.live.name, &moves.archive);
        let of_others = before.views_of_others();
        let views =
            if of_others.is_empty() { Vec::new() } else { View::read(transaction, &of_others).await? };
        View::drop_all(transaction, &views).await?;
        moves.run(transaction).await?;
        self.exchange_trackers(transaction, archive).await?;
        let mut now = list_planned_dependents(transaction).await?;
        if self.is_new {
            note_made(transaction, own_schema, name, &now).await?;
        }
        // Before what is on them is restored, and after espd's own was recorded.
        if !views.is_empty() {
            View::create_all(transaction, &views).await?;
            now = list_planned_dependents(transaction).await?;
        }
        let replaced = before.restore(transaction, &now).await?;
        if !replaced.lost.is_empty() {
            return Err(SwapError::Refused(refusal(name, &replaced.lost)));
        }
        self.take_from_publications(transaction, archive).await?;
        let versions = (self.claim.key.version, self.live.version);
        Rebuilds::new(own_schema).note_live(&mut *transaction, name, versions, archive).await?;
        let gone = format!("-- drop_place\ndrop schema {}", quote_identifier(self.building_in));
        change(transaction, name, gone).await
    }

    /// Locks the tables that serve, in the order of their names. Whoever wants to read them waits behind this session, so it asks
    /// briefly at first, and lets them through in between.
    async fn lock_tables(&self, transaction: &mut PgConnection) -> Result<(), sqlx::Error> {
        let mut waits = LOCK_WAITS.iter().peekable();
        while let Some(wait) = waits.next() {
            match self.try_lock_tables(transaction, *wait).await {
                Err(error) if is_lock_timeout(&error) && waits.peek().is_some() => {
                    sqlx::raw_sql("-- let_through\nrollback to savepoint before_tables")
                        .execute(&mut *transaction)
                        .await?;
                    sleep(PAUSE).await;
                }
                outcome => return outcome,
            }
        }
        Ok(())
    }

    async fn try_lock_tables(
        &self,
        transaction: &mut PgConnection,
        wait: Duration,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- lock_tables
             savepoint before_tables;
             set local lock_timeout = '{}ms';
             do $lock$ declare one text; begin
               for one in select format('%I.%I', p.table_schema, p.table_name) from {}.projection_tables as p
                          where p.processor = {} order by p.table_schema, p.table_name loop
                 execute 'lock table ' || one || ' in access exclusive mode';
               end loop;
             end $lock$;
             release savepoint before_tables;
             set local lock_timeout = '{}ms'",
            wait.as_millis(),
            self.trackers.schema(),
            quote_literal(&self.live.name),
            LOCK_TIMEOUT.as_millis()
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(transaction).await.map(drop)
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
