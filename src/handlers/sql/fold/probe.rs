//! Asks the database about everything that the statements depend on, behind a savepoint.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Postgres, Row as _, Transaction};

use super::expression::{self, Used};
use super::statement::{Change, Kind, Statement};
use super::table::{Column, Table, kinds};
use crate::handlers::sql::event_source::COLUMNS;
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::sql_scope::SqlScope;
use crate::postgres::sqlstate::{describe, is_no_answer};

pub(super) struct Probe<'c> {
    savepoint: Transaction<'c, Postgres>,
    /// A row with the types of an event, all of whose fields are null.
    event: String,
    schema: String,
    /// Why nothing can be folded.
    refusal: Option<String>,
}

/// What an expression is for.
enum Purpose<'t> {
    /// It is assigned to a column.
    Value(&'t Column),
    /// It is compared with a column of the key.
    Key(&'t Column),
    /// It is added to a column.
    Sum(&'t Column),
    Condition,
}

/// Begins the class of SQLSTATEs for errors of syntax and access rules.
const SYNTAX_OR_ACCESS: &str = "42";

impl<'c> Probe<'c> {
    pub(super) async fn open(
        connection: &'c mut PgConnection,
        scope: &SqlScope,
        source: &str,
    ) -> Result<Self, sqlx::Error> {
        let mut savepoint = connection.begin().await?;
        let statement = format!(
            "-- open_probe\nselect {}, set_config('lock_timeout', '2s', true), set_config('jit', 'off', true)",
            scope.set_local()
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *savepoint).await?;
        let event = format!(
            "(select true) as one left join (select {COLUMNS} from {source} as e limit 0) as event on true"
        );
        let mut probe = Self { savepoint, event, schema: scope.schema.clone(), refusal: None };
        probe.refusal = probe.refuse_store().await?;
        Ok(probe)
    }

    /// Undoes everything.
    pub(super) async fn close(self) -> Result<(), sqlx::Error> {
        self.savepoint.rollback().await
    }

    pub(super) async fn table(&mut self, name: &str) -> Result<Option<Table>, sqlx::Error> {
        let qualified = format!("{}.{}", quote_identifier(&self.schema), quote_identifier(name));
        Table::read(&mut self.savepoint, name, qualified).await
    }

    /// Why no expression over these events can be folded: their texts compare in another way than the loop's variables, or
    /// someone has changed how PostgreSQL's own types are cast.
    async fn refuse_store(&mut self) -> Result<Option<String>, sqlx::Error> {
        let statement = format!(
            "-- probe_store
             select coalesce(pg_collation_for(event.type), '\"default\"') <> '\"default\"'
                 or coalesce(pg_collation_for(event.aggregate_id::text), '\"default\"') <> '\"default\"' as collates,
               exists (select from pg_cast as c where c.oid >= 16384 and c.castsource < 16384 and c.casttarget < 16384) as casts
             from {}",
            self.event
        );
        let row = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_one(&mut *self.savepoint).await?;
        let (collates, casts): (bool, bool) = (row.try_get("collates")?, row.try_get("casts")?);
        Ok(if collates {
            Some("the texts of the events have a collation of their own".to_owned())
        } else {
            casts.then(|| {
                "there is a cast between two of PostgreSQL's own types that is not its own".to_owned()
            })
        })
    }

    /// Why a handler with these statements is not folded.
    pub(super) async fn refuse(
        &mut self,
        statements: &[Statement],
        tables: &BTreeMap<String, Table>,
    ) -> Result<Option<String>, sqlx::Error> {
        if let Some(refusal) = &self.refusal {
            return Ok(Some(refusal.clone()));
        }
        for statement in statements {
            let Some(table) = tables.get(&statement.table) else {
                return Ok(Some(format!("{} does not exist yet", statement.table)));
            };
            if let Some(obstacle) = table.obstacles.first() {
                return Ok(Some(obstacle.clone()));
            }
            let purposes = match purposes(statement, table) {
                Ok(purposes) => purposes,
                Err(refusal) => return Ok(Some(refusal)),
            };
            if let Some(shadow) = self.find_shadow(&statement.used).await? {
                return Ok(Some(shadow));
            }
            if let Some(refusal) = self.refuse_types(&purposes).await? {
                return Ok(Some(refusal));
            }
            if let Some(refusal) = self.try_statement(statement).await? {
                return Ok(Some(refusal));
            }
        }
        Ok(None)
    }

    /// A function or operator that might be meant instead of PostgreSQL's own.
    async fn find_shadow(&mut self, used: &Used) -> Result<Option<String>, sqlx::Error> {
        let statement = "-- find_shadow
            select case when shadow.is_operator then 'operator ' else 'function ' end || shadow.name
              || ' might be that of schema ' || n.nspname
            from (
              select p.proname::text as name, p.pronamespace as namespace, false as is_operator
              from pg_proc as p where p.proname = any ($1)
              union all
              select o.oprname::text, o.oprnamespace, true
              from pg_operator as o where o.oprname = any ($2)
                and (o.oprleft < 16384 and o.oprright < 16384
                  or exists (select from pg_cast as c where c.castcontext = 'i' and c.castsource < 16384
                    and c.casttarget >= 16384 and c.casttarget in (o.oprleft, o.oprright)))
            ) as shadow join pg_namespace as n on n.oid = shadow.namespace
            where n.nspname <> 'pg_catalog' and n.nspname = any (current_schemas(true))
            order by 1 limit 1";
        let functions: Vec<String> = used.functions.iter().cloned().collect();
        let operators: Vec<String> = used.operators.iter().cloned().collect();
        let query = sqlx::query_scalar(statement).persistent(false).bind(functions).bind(operators);
        query.fetch_optional(&mut *self.savepoint).await
    }

    /// Has PostgreSQL say which types the expressions have.
    async fn refuse_types(
        &mut self,
        purposes: &[(String, Purpose<'_>)],
    ) -> Result<Option<String>, sqlx::Error> {
        if purposes.is_empty() {
            return Ok(None);
        }
        let types: Vec<String> =
            purposes.iter().map(|(text, _)| format!("pg_typeof(({text}))::oid::bigint")).collect();
        let statement = format!("-- probe_types\nselect array[{}] from {}", types.join(",\n"), self.event);
        let found: Vec<i64> = match self.attempt(&statement).await? {
            Ok(Some(row)) => row.try_get(0)?,
            Ok(None) => return Ok(Some("its expressions have no type".to_owned())),
            Err(refusal) => return Ok(Some(refusal)),
        };
        let refusals =
            purposes.iter().zip(found).filter_map(|((text, purpose), kind)| purpose.refuse(text, kind));
        Ok(refusals.into_iter().next())
    }

    /// Runs the statement for an event whose fields are null: PostgreSQL has to accept it, or the loop would fail.
    async fn try_statement(&mut self, statement: &Statement) -> Result<Option<String>, sqlx::Error> {
        let written = &statement.text;
        let code = format!(
            "#variable_conflict use_column\ndeclare event record;\nbegin\nselect event.* into event from {};\n{written}\n;\nend",
            self.event
        );
        let code = format!("-- try_statement\ndo {}", quote_literal(&code));
        let mut inner = self.savepoint.begin().await?;
        let outcome = sqlx::raw_sql(AssertSqlSafe(code)).execute(&mut *inner).await;
        let refusal = match &outcome {
            Err(error) if is_no_answer(error) => None,
            Err(error) => {
                let code = error.as_database_error().and_then(|answer| answer.code()).unwrap_or_default();
                // The values are null, so that a constraint may refuse them; 0A000 is what the server cannot do.
                (code.starts_with(SYNTAX_OR_ACCESS) || !(code.starts_with("22") || code.starts_with("23")))
                    .then(|| describe(error))
            }
            Ok(_) => None,
        };
        match outcome {
            Err(error) if is_no_answer(&error) => Err(error),
            _ => inner.rollback().await.map(|()| refusal),
        }
    }

    /// Runs a query; an answer that refuses it is a value.
    async fn attempt(
        &mut self,
        statement: &str,
    ) -> Result<Result<Option<sqlx::postgres::PgRow>, String>, sqlx::Error> {
        let mut inner = self.savepoint.begin().await?;
        let outcome = sqlx::query(AssertSqlSafe(statement.to_owned()))
            .persistent(false)
            .fetch_optional(&mut *inner)
            .await;
        match outcome {
            Err(error) if is_no_answer(&error) => Err(error),
            Err(error) => inner.rollback().await.map(|()| Err(describe(&error))),
            Ok(row) => inner.rollback().await.map(|()| Ok(row)),
        }
    }
}

/// The expressions of a statement with what they are for; an error says why the statement is not folded.
fn purposes<'t>(statement: &Statement, table: &'t Table) -> Result<Vec<(String, Purpose<'t>)>, String> {
    let column =
        |name: &str| table.column(name).ok_or_else(|| format!("{} has no column {name}", table.name));
    let names_key = |names: Vec<&String>| {
        let mut names: Vec<&str> = names.into_iter().map(String::as_str).collect();
        let mut key: Vec<&str> = table.key().map(|column| column.name.as_str()).collect();
        names.sort_unstable();
        key.sort_unstable();
        names == key
    };
    let mut purposes = Vec::new();
    for (name, value) in &statement.values {
        let column = column(name)?;
        column.refuse_values().map_or(Ok(()), Err)?;
        purposes.push((value.clone(), Purpose::Value(column)));
    }
    if matches!(statement.kind, Kind::Update | Kind::Delete) {
        for (name, value) in &statement.key {
            purposes.push((value.clone(), Purpose::Key(column(name)?)));
        }
    } else {
        let is_listed = |name: &str| statement.values.iter().any(|(listed, _)| listed == name);
        if let Some(missing) = table.key().find(|column| !is_listed(&column.name)) {
            return Err(format!("it does not name the key column {}", missing.name));
        }
        // Rows that are born in a batch may be written whole.
        for missing in table.columns.iter().filter(|column| !is_listed(&column.name)) {
            missing.constant_default()?;
        }
    }
    if statement.kind != Kind::Insert && !names_key(statement.key.iter().map(|(name, _)| name).collect()) {
        return Err(format!("it does not name the primary key of {}", table.name));
    }
    purposes.extend(statement.conditions.iter().map(|condition| (condition.clone(), Purpose::Condition)));
    for (name, change) in &statement.sets {
        let column = column(name)?;
        column.refuse_values().map_or(Ok(()), Err)?;
        if column.is_key {
            return Err(format!("it changes the key column {name}"));
        }
        let is_listed = statement.values.iter().any(|(listed, _)| listed == name);
        match change {
            Change::To(value) | Change::Present(value) => {
                purposes.push((value.clone(), Purpose::Value(column)))
            }
            Change::When { condition, value } => {
                purposes.push((condition.clone(), Purpose::Condition));
                purposes.push((value.clone(), Purpose::Value(column)));
            }
            Change::Add { value, .. } => purposes.push((value.clone(), Purpose::Sum(column))),
            Change::Excluded | Change::AddExcluded { .. } if !is_listed => {
                return Err(format!("excluded.{name} is a default"));
            }
            Change::AddExcluded { .. } if !kinds::INTEGERS.contains(&column.kind) => {
                return Err(format!("column {name} is added to and no integer"));
            }
            Change::Excluded | Change::AddExcluded { .. } => {}
        }
    }
    Ok(purposes)
}

impl Purpose<'_> {
    /// Why an expression of this type does not become what the loop makes of it by a cast.
    fn refuse(&self, text: &str, kind: i64) -> Option<String> {
        let is_literal = kind == kinds::UNKNOWN && expression::is_literal(text);
        let among = |kinds: &[i64], column: &Column| kinds.contains(&kind) && kinds.contains(&column.kind);
        let texts = [kinds::TEXT, kinds::VARCHAR];
        match self {
            Self::Value(column) => {
                let fits = kind == column.kind
                    || is_literal
                    || among(&texts, column)
                    || among(&kinds::INTEGERS, column)
                    || kinds::INTEGERS.contains(&kind) && column.kind == kinds::NUMERIC;
                (!fits).then(|| {
                    format!("column {} is of type {}, and {text} is not", column.name, column.full_type)
                })
            }
            Self::Key(column) => {
                let fits = kind == column.kind
                    || is_literal
                    || among(&texts, column)
                    || among(&kinds::INTEGERS, column);
                (!fits).then(|| {
                    format!("key column {} is of type {}, and {text} is not", column.name, column.full_type)
                })
            }
            Self::Sum(column) => (!among(&kinds::INTEGERS, column))
                .then(|| format!("only integers can be added to column {}", column.name)),
            Self::Condition => {
                (kind != kinds::BOOLEAN).then(|| format!("the condition {text} is no boolean"))
            }
        }
    }
}
