//! The tables that a processor owns: made at its first start, dropped and made anew by a reset.
//!
//! Nothing is prepared for longer than a statement: behind a transaction pooler it would be left to strangers.

mod altering;
mod dependents;
mod missing;

use sqlx::{AssertSqlSafe, PgConnection};
use tracing::warn;
use uuid::Uuid;

pub(crate) use altering::{Fit, HandledBy, foresee_fit};
pub(crate) use dependents::{
    Dependent, Dropped, ObjectId, Replaced, find_made, forget_planned as forget_planned_dependents,
    list_planned as list_planned_dependents,
};
pub(crate) use missing::{describe_missing, find_missing, list_missing};

use crate::diagnostic::Diagnostic;
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::sql_scope::SqlScope;
use crate::postgres::sqlstate::is_no_answer;
use crate::processing::declaration::{
    CreateTable, ProcessorDeclaration, SourceText, TableDeclaration, Unsuitable,
};
use crate::processing::processor::ProcessorError;
use crate::store::upcast::Upcast;

/// One projector's tables in one database.
#[derive(Debug)]
pub(crate) struct Tables<'a> {
    declaration: &'a ProcessorDeclaration,
    schema: String,
    scope: &'a SqlScope,
}

impl<'a> Tables<'a> {
    pub(crate) fn new(declaration: &'a ProcessorDeclaration, schema: &str, scope: &'a SqlScope) -> Self {
        Self { declaration, schema: quote_identifier(schema), scope }
    }

    /// Refuses to run on tables that were made from something else than is declared now, unless the handlers do with them.
    pub(crate) async fn compare(
        &self,
        connection: &mut PgConnection,
        version: i32,
        upcasts: &[Upcast],
        handled_by: HandledBy<'_>,
    ) -> Result<Fit, ProcessorError> {
        let ProcessorDeclaration { name, version: declared, .. } = self.declaration;
        if version != *declared {
            // Who is synchronous is so no more, or its function goes on.
            return Err(match Unsuitable::find(self.declaration, false) {
                Some(unsuitable) => ProcessorError::Blocked(format!(
                    "{name} stands at version {version}, and the declaration is version {declared}, which nobody builds, because {}: {}",
                    unsuitable.because(name),
                    unsuitable.remedy(name, *declared)
                )),
                None => ProcessorError::AwaitsVersion { serves: version, declared: *declared },
            });
        }
        match self.fit(connection, upcasts, handled_by).await? {
            Fit::Other(reason) => Err(ProcessorError::Blocked(self.describe_other(reason.as_deref()))),
            fit => Ok(fit),
        }
    }

    /// What to do about tables that are not as declared and need a replay.
    fn describe_other(&self, reason: Option<&str>) -> String {
        let name = &self.declaration.name;
        let because =
            reason.map_or(String::new(), |reason| format!("; a replay is needed, because {reason}"));
        let is_synchronous = self.declaration.synchronous.is_some();
        let built = match Unsuitable::find(self.declaration, is_synchronous) {
            Some(_) => String::new(),
            None => format!(", or raise `version`, or run `espctl rebuild {name}` as it is"),
        };
        format!(
            "the declared tables of {name} have changed since they were made: take the change back{built}; `espctl reset {name} \
             --in-place` drops and rebuilds them{because}"
        )
    }

    /// Records the whole declaration, so that this version can go on where the configuration has another one. Of tables that
    /// fit a newer declaration of the version, that one stays recorded.
    pub(crate) async fn note_declared(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- note_declared
             update {}.declarations set declared = $3
             where processor = $1 and version = $2 and declared is distinct from $3 and fingerprint = $4",
            self.schema
        );
        sqlx::query(AssertSqlSafe(statement))
            .persistent(false)
            .bind(&self.declaration.name)
            .bind(self.declaration.version)
            .bind(sqlx::types::Json(self.declaration.recorded()))
            .bind(fingerprint(self.declaration))
            .execute(connection)
            .await
            .map(drop)
    }

    /// Makes the tables, runs the extra DDL and records both in the caller's transaction.
    pub(crate) async fn create(&self, connection: &mut PgConnection) -> Result<(), ProcessorError> {
        self.enter_scope(connection).await?;
        for table in &self.declaration.tables {
            self.refuse_foreign(connection, &table.name).await?;
            let CreateTable { statement, places } = table.create(&self.qualified(&table.name));
            self.define(connection, statement, &places).await?;
            if let Some(comment) = table.comment_on(&self.qualified(&table.name)) {
                sqlx::raw_sql(AssertSqlSafe(comment)).execute(&mut *connection).await?;
            }
            self.record(connection, &table.name).await?;
        }
        let is_unpublished = is_unlogged(&self.declaration.name);
        let refers = |ddl: &SourceText| ddl.text.to_lowercase().contains("references");
        // Before the rows of its DDL, unless that makes tables which refer to these: a logged one cannot refer to one that is not.
        if is_unpublished && !self.declaration.ddl.iter().any(refers) {
            self.make_unlogged(connection).await?;
        }
        for ddl in &self.declaration.ddl {
            self.define(connection, ddl.text.clone(), &[(0, ddl)]).await?;
        }
        if is_unpublished {
            self.make_unlogged(connection).await?;
        }
        let made = dependents::list(connection, &self.schema, &self.declaration.name).await?;
        let made: Vec<String> = made.into_iter().map(|dependent| dependent.item).collect();
        self.record_declaration(connection, Some(&made)).await?;
        self.carry_over_kept(connection, &made).await?;
        self.enter_scope(connection).await
    }

    /// Keeps the rows of tables that go again out of publications of all tables, whose subscribers do not have them. Partitioned
    /// tables have no rows.
    async fn make_unlogged(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- make_unlogged
             do $unlogged$ declare one regclass; was_logged boolean; begin
               loop
                 was_logged := false;
                 -- One after the other: no logged table refers to it any more.
                 for one in select c.oid from pg_catalog.pg_class as c
                            where c.relnamespace = {schema}::regnamespace and c.relkind = 'r' and c.relpersistence = 'p'
                              and not exists (select from pg_catalog.pg_constraint as f
                                join pg_catalog.pg_class as r on r.oid = f.conrelid
                                where f.contype = 'f' and f.confrelid = c.oid and r.oid <> c.oid and r.relpersistence = 'p') loop
                   execute format('alter table %s set unlogged', one);
                   was_logged := true;
                 end loop;
                 exit when not was_logged;
               end loop;
             end $unlogged$",
            schema = quote_literal(&quote_identifier(&self.scope.schema))
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
    }

    /// Records tables that exist already as this projector's, in the caller's transaction.
    pub(crate) async fn adopt(&self, connection: &mut PgConnection) -> Result<(), ProcessorError> {
        for table in &self.declaration.tables {
            self.record(connection, &table.name).await?;
        }
        self.record_declaration(connection, None).await
    }

    /// Drops every table that is recorded as this processor's: see [`drop_tables`].
    pub(crate) async fn drop(&self, connection: &mut PgConnection) -> Result<Dropped, sqlx::Error> {
        drop_tables(connection, &self.schema, &self.declaration.name).await
    }

    /// Makes again on the tables of [`Self::create`] what others had made on those that were dropped.
    pub(crate) async fn restore(
        &self,
        connection: &mut PgConnection,
        dropped: &Dropped,
    ) -> Result<Replaced, sqlx::Error> {
        let now = dependents::list(connection, &self.schema, &self.declaration.name).await?;
        dropped.restore(connection, &now).await
    }

    /// Keeps what others had made on the dropped tables until [`Self::create`]. With `is_required`, the processor then waits
    /// for an operator where something cannot be made again.
    pub(crate) async fn keep(
        &self,
        connection: &mut PgConnection,
        dropped: &Dropped,
        is_required: bool,
    ) -> Result<Replaced, sqlx::Error> {
        let (later, replaced) = dropped.divide();
        if later.is_empty() {
            return Ok(replaced);
        }
        let items: Vec<&str> = later.iter().map(|dependent| dependent.item.as_str()).collect();
        let statements: Vec<Option<&str>> =
            later.iter().map(|dependent| dependent.statement.as_deref()).collect();
        let statement = format!(
            "-- keep_for_later
             with former as (delete from {schema}.carried_over where processor = $1 returning place)
             insert into {schema}.carried_over (processor, place, item, statement, is_required)
             select $1, place + coalesce((select max(place) from former), 0), item, statement, $4
             from unnest($2::text[], $3::text[]) with ordinality as later (item, statement, place)",
            schema = self.schema
        );
        sqlx::query(AssertSqlSafe(statement))
            .persistent(false)
            .bind(&self.declaration.name)
            .bind(items)
            .bind(statements)
            .bind(is_required)
            .execute(connection)
            .await?;
        Ok(replaced)
    }

    /// Makes again what [`Self::keep`] has kept. `made`: what is there.
    async fn carry_over_kept(
        &self,
        connection: &mut PgConnection,
        made: &[String],
    ) -> Result<(), ProcessorError> {
        let (schema, name) = (&self.schema, &self.declaration.name);
        let statement = format!(
            "-- take_kept
             with kept as (delete from {schema}.carried_over where processor = $1 returning *)
             select item, statement, is_required from kept order by place"
        );
        let kept: Vec<(String, String, bool)> = sqlx::query_as(AssertSqlSafe(statement))
            .persistent(false)
            .bind(name)
            .fetch_all(&mut *connection)
            .await?;
        for (item, statement, is_required) in kept {
            let is_right = ["grant ", "revoke ", "do "].iter().any(|word| statement.starts_with(word));
            if made.contains(&item) && !is_right {
                continue;
            }
            match dependents::attempt(connection, &statement).await? {
                Some(reason) if is_required => {
                    return Err(ProcessorError::Blocked(format!(
                        "{item} cannot be made again on the new tables of {name}: {reason}. Declare the tables so that it \
                         can, or give it up: delete from {schema}.carried_over where processor = {} and item = {}",
                        quote_literal(name),
                        quote_literal(&item)
                    )));
                }
                Some(reason) => {
                    warn!(processor = name, item, reason, "could not be carried over to the new tables")
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Lets the author's SQL mean what it means in the schema of the projections, which is made where it is missing.
    async fn enter_scope(&self, connection: &mut PgConnection) -> Result<(), ProcessorError> {
        let schema = quote_identifier(&self.scope.schema);
        let exists: bool = sqlx::query_scalar("-- find_schema\nselect to_regnamespace($1) is not null")
            .persistent(false)
            .bind(&schema)
            .fetch_one(&mut *connection)
            .await?;
        // Asking first: `if not exists` needs the right to create even where nothing is to be created. Asking again
        // under a lock: all projectors of a daemon come here at the same time.
        let create = format!(
            "select pg_advisory_xact_lock(hashtext('espd: create schema'));
             do $$ begin
               if to_regnamespace({name}) is null then create schema {schema}; end if;
             end $$;",
            name = quote_literal(&schema)
        );
        let create = if exists { "" } else { create.as_str() };
        let statement = format!("{create} select {}", self.scope.set_local());
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await?;
        Ok(())
    }

    fn qualified(&self, table: &str) -> String {
        format!("{}.{}", quote_identifier(&self.scope.schema), quote_identifier(table))
    }

    /// A table that somebody else made must never be dropped by a reset, so it is not taken over either.
    async fn refuse_foreign(&self, connection: &mut PgConnection, table: &str) -> Result<(), ProcessorError> {
        self.find_foreign(connection, table)
            .await?
            .map_or(Ok(()), |reason| Err(ProcessorError::Blocked(reason)))
    }

    /// Why a table is none that the processor may make; `None`: it may.
    async fn find_foreign(
        &self,
        connection: &mut PgConnection,
        table: &str,
    ) -> Result<Option<String>, sqlx::Error> {
        let statement = format!(
            "-- find_table
             select to_regclass($1) is not null,
               (select processor from {}.projection_tables where table_schema = $2 and table_name = $3)",
            self.schema
        );
        let query = sqlx::query_as(AssertSqlSafe(statement)).persistent(false).bind(self.qualified(table));
        let found: (bool, Option<String>) =
            query.bind(&self.scope.schema).bind(table).fetch_one(connection).await?;
        let (schema, name) = (&self.scope.schema, &self.declaration.name);
        Ok(Some(match found {
            (false, _) => return Ok(None),
            (true, Some(maker)) if maker != *name => format!(
                "table {schema}.{table} belongs to {maker}: if that is the former name of {name}, `espctl rename {maker} {name}` hands it \
                 over with its position; if nobody needs {maker} any more, `espctl drop {maker}` removes it; otherwise declare another name"
            ),
            (true, _) => format!(
                "table {schema}.{table} exists already and was not made by projector {name}: drop or rename it, or declare another name"
            ),
        }))
    }

    /// Runs one declared statement. If the database refuses it, the author has to fix it.
    async fn define(
        &self,
        connection: &mut PgConnection,
        statement: String,
        places: &[(usize, &SourceText)],
    ) -> Result<(), ProcessorError> {
        match sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(connection).await {
            Ok(_) => Ok(()),
            Err(error) if is_no_answer(&error) => Err(error.into()),
            Err(error) => {
                let mistake = Diagnostic::of_refusal_in(places, &statement, &error);
                Err(ProcessorError::Blocked(mistake.to_string()))
            }
        }
    }

    async fn record(&self, connection: &mut PgConnection, table: &str) -> Result<(), ProcessorError> {
        let statement = format!(
            "-- record_table
             insert into {}.projection_tables (table_schema, table_name, processor, version) values ($1, $2, $3, $4)
             on conflict (table_schema, table_name) do update
               set processor = excluded.processor, version = excluded.version",
            self.schema
        );
        sqlx::query(AssertSqlSafe(statement))
            .persistent(false)
            .bind(&self.scope.schema)
            .bind(table)
            .bind(&self.declaration.name)
            .bind(self.declaration.version)
            .execute(connection)
            .await?;
        Ok(())
    }

    /// Records from what the tables were made. `made`: what there is on them now; `None`: they were made by others.
    async fn record_declaration(
        &self,
        connection: &mut PgConnection,
        made: Option<&[String]>,
    ) -> Result<(), ProcessorError> {
        let statement = format!(
            "-- record_declaration
             insert into {}.declarations (processor, version, fingerprint, made) values ($1, $2, $3, $4)
             on conflict (processor, version) do update
               set fingerprint = excluded.fingerprint, made = excluded.made, altered_from = null",
            self.schema
        );
        sqlx::query(AssertSqlSafe(statement))
            .persistent(false)
            .bind(&self.declaration.name)
            .bind(self.declaration.version)
            .bind(fingerprint(self.declaration))
            .bind(made)
            .execute(connection)
            .await?;
        Ok(())
    }
}

/// Whether a processor is a version that is built to be looked at, and removed then: nothing of it need survive a crash.
pub(crate) fn is_unlogged(name: &str) -> bool {
    ["$dry", "$check", "$part"].iter().any(|suffix| name.ends_with(suffix))
}

/// Drops every table that is recorded as a processor's, with what depends on it. Returns what that was: what others have
/// made must not go without a word. `schema` is quoted. The caller has set a `lock_timeout`: everybody else who wants a table
/// waits behind the drop.
pub(crate) async fn drop_tables(
    connection: &mut PgConnection,
    schema: &str,
    processor: &str,
) -> Result<Dropped, sqlx::Error> {
    let before = dependents::list(connection, schema, processor).await?;
    let made = dependents::find_made(connection, schema, processor).await?;
    let statement = format!(
        "-- forget_tables
         with forgotten as (delete from {schema}.declarations where processor = $1)
         delete from {schema}.projection_tables where processor = $1 returning table_schema, table_name"
    );
    let owned: Vec<(String, String)> = sqlx::query_as(AssertSqlSafe(statement))
        .persistent(false)
        .bind(processor)
        .fetch_all(&mut *connection)
        .await?;
    for (schema, table) in owned {
        let table = format!("{}.{}", quote_identifier(&schema), quote_identifier(&table));
        sqlx::raw_sql(AssertSqlSafe(format!("-- drop_table\ndrop table if exists {table} cascade")))
            .execute(&mut *connection)
            .await?;
    }
    Ok(Dropped { before, made })
}

/// What is on the tables of a processor, and what espd has made of that. `schema` is quoted. The rest of the transaction has an
/// empty search path.
pub(crate) async fn observe(
    connection: &mut PgConnection,
    schema: &str,
    processor: &str,
) -> Result<Dropped, sqlx::Error> {
    observe_with(connection, (schema, processor), &[]).await
}

/// As [`observe`], with what depends on other objects that espd has made.
pub(crate) async fn observe_with(
    connection: &mut PgConnection,
    (schema, processor): (&str, &str),
    made: &[ObjectId],
) -> Result<Dropped, sqlx::Error> {
    let before = dependents::list_with(connection, (schema, processor), made).await?;
    let made = dependents::find_made(connection, schema, processor).await?;
    Ok(Dropped { before, made })
}

/// As [`observe_with`], and what is on the tables can be asked for again at little cost in the same transaction.
pub(crate) async fn observe_planned(
    connection: &mut PgConnection,
    (schema, processor): (&str, &str),
    made: &[ObjectId],
) -> Result<Dropped, sqlx::Error> {
    dependents::plan(connection, (schema, processor)).await?;
    let before = dependents::list_planned(connection, made).await?;
    let made = dependents::find_made(connection, schema, processor).await?;
    Ok(Dropped { before, made })
}

/// Records what is on the tables of a processor `now` as made by espd: it is under its final names.
pub(crate) async fn note_made(
    connection: &mut PgConnection,
    schema: &str,
    processor: &str,
    now: &[Dependent],
) -> Result<(), sqlx::Error> {
    let statement = format!("-- note_made\nupdate {schema}.declarations set made = $2 where processor = $1");
    let made: Vec<&str> = now.iter().map(|dependent| dependent.item.as_str()).collect();
    sqlx::query(AssertSqlSafe(statement))
        .persistent(false)
        .bind(processor)
        .bind(made)
        .execute(connection)
        .await
        .map(drop)
}

/// Why a table of a declaration cannot be made, because it is not the processor's; `None`: it is, or it is not there. `schema` is that of
/// the trackers.
pub(crate) async fn find_foreign_table(
    connection: &mut PgConnection,
    schema: &str,
    scope: &SqlScope,
    declaration: &ProcessorDeclaration,
) -> Result<Option<String>, sqlx::Error> {
    let tables = Tables::new(declaration, schema, scope);
    let statement = format!(
        "-- list_own_tables
         select table_name from {}.projection_tables where processor = $1 and table_schema = $2",
        quote_identifier(schema)
    );
    let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
    let own: Vec<String> =
        query.bind(&declaration.name).bind(&scope.schema).fetch_all(&mut *connection).await?;
    for table in declaration.table_names().iter().filter(|table| !own.contains(table)) {
        if let Some(reason) = tables.find_foreign(&mut *connection, table).await? {
            return Ok(Some(reason));
        }
    }
    Ok(None)
}

/// Whether the tables of a processor exist and were made from another declaration than this one. `schema` is that of the
/// trackers.
pub(crate) async fn were_made_from_other(
    connection: &mut PgConnection,
    schema: &str,
    declaration: &ProcessorDeclaration,
) -> Result<bool, sqlx::Error> {
    let statement = format!(
        "-- read_declaration
         select fingerprint from {}.declarations where processor = $1 and version = $2",
        quote_identifier(schema)
    );
    let made_from: Option<String> = sqlx::query_scalar(AssertSqlSafe(statement))
        .bind(&declaration.name)
        .bind(declaration.version)
        .persistent(false)
        .fetch_optional(connection)
        .await?;
    Ok(made_from.is_some_and(|made_from| made_from != fingerprint(declaration)))
}

/// Returns the fingerprint of everything in the declaration that shapes the tables.
pub(crate) fn fingerprint(declaration: &ProcessorDeclaration) -> String {
    let tables = declaration.tables.iter().map(TableDeclaration::identity);
    let ddl = declaration.ddl.iter().map(|sql| sql.text.clone());
    let text = tables.chain(ddl).collect::<Vec<_>>().join("\u{2}");
    Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()).simple().to_string()
}
