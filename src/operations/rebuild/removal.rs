//! Gives up a version that is built, and removes versions that are kept.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::{Beside, Finding, Rebuilds, drop_place, function_names};
use crate::handlers::sql::share_function_names;
use crate::operations::operator::{Operator, OperatorError};
use crate::operations::other_stores::list_other_stores;
use crate::postgres::quote::quote_literal;
use crate::postgres::server_mark::READ_COMMITTED;
use crate::processing::rebuild::{forget_progress, list_beyond};

/// What was given up and removed.
#[derive(Debug, Default)]
pub(crate) struct GivenUp {
    /// The version that was being built.
    pub(crate) version: Option<i32>,
    /// What was left of others, which were broken off.
    pub(crate) left: Vec<Beside>,
}

impl Operator<'_> {
    /// Gives up the version that is built beside the serving one, with what a killed dry run or verification has left. Returns
    /// what that was.
    ///
    /// # Errors
    /// [`OperatorError::Blocked`] if there is none of these; or the database does not answer.
    pub(crate) async fn abort_rebuild(&self, name: &str) -> Result<GivenUp, OperatorError> {
        let given_up = self.give_up(name, true).await?;
        if given_up.version.is_none() && given_up.left.is_empty() {
            return Err(OperatorError::Blocked(format!("no version of {name} is being built")));
        }
        Ok(given_up)
    }

    /// As [`Self::abort_rebuild`], also if there is none. `is_final`: no daemon builds the same again.
    pub(super) async fn give_up(&self, name: &str, is_final: bool) -> Result<GivenUp, OperatorError> {
        let mut connection = self.databases.projections.acquire().await?;
        let rebuilds = Rebuilds::new(self.trackers().schema());
        let mut left = Vec::new();
        for beside in Beside::TO_LOOK_AT {
            if let Some(version) = self.find_version(&mut connection, &beside.name(name)).await? {
                self.remove_version(&mut connection, name, beside, version).await?;
                left.push(beside);
            }
        }
        let row = rebuilds.find(&mut *connection, name).await?;
        if !row.as_ref().is_some_and(|row| row.state().is_under_way())
            && let Some(version) = self.find_version(&mut connection, &Beside::Next.name(name)).await?
        {
            // A kill after the last step.
            self.remove_version(&mut connection, name, Beside::Next, version).await?;
            left.push(Beside::Next);
        }
        let Some(row) = row.filter(|row| row.state().after(Finding::Abandoned).is_some()) else {
            // One that could not be begun has left nothing but the reason.
            forget_progress(&mut *connection, self.trackers().schema(), Beside::Next, name).await?;
            return Ok(GivenUp { version: None, left });
        };
        // Whoever builds it finds out at the next batch.
        self.remove_version(&mut connection, name, Beside::Next, row.version).await?;
        // An exchange that was under way has been waited for.
        if !rebuilds.abandon(&mut *connection, name, row.version).await? {
            return Err(OperatorError::Blocked(format!(
                "version {} of {name} has gone live meanwhile, or somebody else has given it up: `espctl status {name}` says which \
                 one serves",
                row.version
            )));
        }
        let fingerprint = is_final.then_some(row.fingerprint.as_str());
        self.log_abort(&mut connection, name, row.version, fingerprint).await?;
        Ok(GivenUp { version: Some(row.version), left })
    }

    pub(super) async fn log_abort(
        &self,
        connection: &mut PgConnection,
        name: &str,
        version: i32,
        fingerprint: Option<&str>,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- log_abort
             select {}.log_act($1, 'abort_rebuild', $2, 0, null, null,
               jsonb_strip_nulls(jsonb_build_object('version', $3::integer, 'fingerprint', $4::text)))",
            self.trackers().schema()
        );
        let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
        query.bind(self.name).bind(name).bind(version).bind(fingerprint).execute(connection).await.map(drop)
    }

    /// Removes the versions that have served before. Returns which those were.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn drop_archived(&self, name: &str) -> Result<Vec<i32>, OperatorError> {
        let mut connection = self.databases.projections.acquire().await?;
        let versions = self.list_archived(&mut connection, name).await?;
        for version in &versions {
            self.remove_version(&mut connection, name, Beside::Archived(*version), *version).await?;
        }
        self.drop_former_functions(&mut connection, name).await?;
        Ok(versions)
    }

    /// Whether a version is kept that has served before.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn has_former(&self, name: &str) -> Result<bool, OperatorError> {
        let mut connection = self.databases.projections.acquire().await?;
        Ok(!self.list_archived(&mut connection, name).await?.is_empty())
    }

    /// Drops the functions of every version but the one that serves: those of merged versions have no schema that they go with.
    async fn drop_former_functions(
        &self,
        connection: &mut PgConnection,
        name: &str,
    ) -> Result<(), OperatorError> {
        let Some(live) = self.find_version(connection, name).await? else { return Ok(()) };
        let of_any = function_names(name, 1).map(|one| quote_literal(one.trim_end_matches('1')));
        let of_live = function_names(name, live).map(|one| quote_literal(&one));
        let statement = format!(
            "-- drop_former_functions
             do $drop$ declare one regprocedure; begin
               for one in select p.oid from pg_proc as p where p.pronamespace = to_regnamespace({schema})
                            and rtrim(p.proname, '0123456789') in ({of_any}) and p.proname not in ({of_live}) loop
                 execute 'drop function ' || one;
               end loop;
             end $drop$",
            schema = quote_literal(self.trackers().schema()),
            of_any = of_any.join(", "),
            of_live = of_live.join(", ")
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *connection).await?;
        Ok(())
    }

    /// The versions beside the serving one, whatever they are there for.
    pub(in crate::operations) async fn list_beside(
        &self,
        connection: &mut PgConnection,
        name: &str,
    ) -> Result<Vec<(Beside, i32)>, OperatorError> {
        let statement = format!(
            "-- list_versions_beside
             select distinct name::text, version from {} where starts_with(name, $1 || '$') order by 1, 2",
            self.trackers().table()
        );
        let query = sqlx::query_as(AssertSqlSafe(statement)).persistent(false).bind(name);
        let found: Vec<(String, i32)> = query.fetch_all(connection).await?;
        let known = |(own_name, version): (String, i32)| {
            let kinds =
                [Beside::Next, Beside::DryRun, Beside::Verification, Beside::Part, Beside::Archived(version)];
            kinds.into_iter().find(|beside| beside.name(name) == own_name).map(|beside| (beside, version))
        };
        Ok(found.into_iter().filter_map(known).collect())
    }

    /// Removes everything beside the serving version, and what is recorded of it, in the caller's transaction.
    pub(in crate::operations) async fn remove_beside(
        &self,
        transaction: &mut PgConnection,
        name: &str,
        cascade: bool,
    ) -> Result<(), OperatorError> {
        for beside in self.list_beside(transaction, name).await? {
            self.remove_within(transaction, name, beside, cascade).await?;
        }
        let statement = format!(
            "-- forget_rebuilds
             delete from {schema}.rebuilds where processor = {name}; delete from {schema}.verifications where processor = {name};
             delete from {schema}.build_progress where starts_with(tracker, {name} || '$')",
            schema = self.trackers().schema(),
            name = quote_literal(name)
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(transaction).await?;
        Ok(())
    }

    /// The versions that have served before, the newest last.
    pub(super) async fn list_archived(
        &self,
        connection: &mut PgConnection,
        name: &str,
    ) -> Result<Vec<i32>, OperatorError> {
        let statement = format!(
            "-- list_archived
             select version from {} where name = $1 || '$' || version order by version",
            self.trackers().table()
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).bind(name);
        Ok(query.fetch_all(connection).await?)
    }

    pub(super) async fn find_version(
        &self,
        connection: &mut PgConnection,
        name: &str,
    ) -> Result<Option<i32>, OperatorError> {
        let statement =
            format!("-- find_version\nselect version from {} where name = $1", self.trackers().table());
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).bind(name);
        Ok(query.fetch_optional(connection).await?)
    }

    /// Removes a version beside the serving one, if there is one.
    ///
    /// # Errors
    /// [`OperatorError::Blocked`] if something of others would go with it; or the database does not answer.
    pub(super) async fn remove_version(
        &self,
        connection: &mut PgConnection,
        name: &str,
        beside: Beside,
        version: i32,
    ) -> Result<(), OperatorError> {
        let mut transaction = connection.begin_with(READ_COMMITTED).await?;
        sqlx::raw_sql("-- limit_waits\nset local lock_timeout = '10s'").execute(&mut *transaction).await?;
        self.remove_within(&mut transaction, name, (beside, version), false).await?;
        Ok(transaction.commit().await?)
    }

    /// As [`Self::remove_version`], in the caller's transaction, which has a `lock_timeout`. `cascade`: with what others have made.
    pub(super) async fn remove_within(
        &self,
        connection: &mut PgConnection,
        name: &str,
        (beside, version): (Beside, i32),
        cascade: bool,
    ) -> Result<(), OperatorError> {
        let (trackers, own_name) = (self.trackers(), beside.name(name));
        let schema = beside.schema(&self.databases.scope.schema, name);
        let known = self.find_version(connection, &own_name).await?;
        if known.is_none() && self.has_schema(connection, &schema).await? {
            return Err(self.refuse_schema(connection, name, &schema).await?);
        }
        let beyond = if cascade { Vec::new() } else { list_beyond(&mut *connection, &schema).await? };
        if !beyond.is_empty() {
            return Err(OperatorError::Blocked(format!(
                "others have made on the tables in schema {schema}, which are to go: {}. Drop it before, or make it on the tables of \
                 {name} that serve",
                beyond.join("; ")
            )));
        }
        let mut functions = function_names(&own_name, version).to_vec();
        functions.extend(share_function_names(&own_name, version));
        functions.extend(known.into_iter().flat_map(|known| function_names(&own_name, known)));
        Ok(drop_place(connection, &trackers, &own_name, &schema, &functions).await?)
    }

    /// Why a schema that this store has not made is left alone. Another store in the database has versions under the same names where it has
    /// a projector of the same name with tables in the same schema, and nobody must drop these.
    async fn refuse_schema(
        &self,
        connection: &mut PgConnection,
        name: &str,
        schema: &str,
    ) -> Result<OperatorError, OperatorError> {
        let (mut owner, mut hidden) = (None, Vec::new());
        for (store, is_readable) in list_other_stores(connection, self.databases.layout.schema()).await? {
            if !is_readable {
                hidden.push(store);
            } else if let Some(other) = find_processor_in(connection, &store, schema).await? {
                owner = Some((store, other));
            }
        }
        let apart = "its versions and those of this one have their tables in schemas of the same names: give one of the two projectors \
             another name, or its tables another schema (`schema` in [projections])";
        Ok(OperatorError::Blocked(match owner {
            Some((store, other)) => format!(
                "schema {schema} has a version of the projector {other} of another store, which is in schema {store} of this database: {apart}"
            ),
            None if hidden.is_empty() => {
                format!("there is a schema {schema} that espd has not made: rename or drop it")
            }
            None => format!(
                "there is a schema {schema} that this store has not made. Other stores are in this database, which may not be looked into \
                 (schema {}): if one of them has a projector {name}, {apart}; otherwise rename or drop the schema",
                hidden.join(", ")
            ),
        }))
    }

    async fn has_schema(&self, connection: &mut PgConnection, schema: &str) -> Result<bool, OperatorError> {
        let statement = "-- find_schema\nselect exists (select from pg_namespace where nspname = $1)";
        let query = sqlx::query_scalar(statement).persistent(false).bind(schema);
        Ok(query.fetch_one(connection).await?)
    }
}

/// The projector whose version has tables in a schema, according to the store in this quoted schema.
async fn find_processor_in(
    connection: &mut PgConnection,
    store: &str,
    schema: &str,
) -> Result<Option<String>, sqlx::Error> {
    let statement = format!(
        "-- find_processor_of_other_store
         select min(split_part(processor, '$', 1)) from {store}.projection_tables where table_schema = $1"
    );
    let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).bind(schema);
    query.fetch_one(connection).await
}
