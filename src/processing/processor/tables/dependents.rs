//! What is on a processor's tables, and what depends on them.

use std::collections::BTreeSet;

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, PgConnection};

use super::run_behind_savepoint;
use crate::postgres::quote::quote_literal;
use crate::postgres::row::from_row;
use crate::postgres::sqlstate::{describe, is_infrastructure_error};

/// The query of [`list`].
const LIST: &str = include_str!("dependents.sql");

/// The name of the query in a session that has planned it.
const PLANNED: &str = "espd_dependents";

/// A view, a foreign key, an index, a policy, a right, a comment …
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dependent {
    /// What it is, in words, with its name.
    pub(crate) item: String,
    /// Makes it again on a table of the same name; `None`: only whoever has made it can.
    pub(crate) statement: Option<String>,
    /// Whether it is not a part of one of the tables.
    pub(crate) apart: bool,
    /// Whether it is a right, which is granted again whatever there is.
    is_right: bool,
}

from_row!(Dependent { item, statement, apart, is_right });

impl Dependent {
    /// A view of this qualified name.
    pub(crate) fn view(name: &str) -> Self {
        Self { item: format!("{VIEW}{name}"), statement: None, apart: true, is_right: false }
    }
}

/// Lists what is on the tables of a processor, and what depends on them. `schema` is quoted.
pub(crate) async fn list(
    connection: &mut PgConnection,
    schema: &str,
    processor: &str,
) -> Result<Vec<Dependent>, sqlx::Error> {
    list_with(connection, (schema, processor), &[]).await
}

/// As [`list`], of these tables alone.
pub(crate) async fn list_on(
    connection: &mut PgConnection,
    (schema, processor): (&str, &str),
    tables: &[String],
) -> Result<Vec<Dependent>, sqlx::Error> {
    let tables: Vec<String> = tables.iter().map(|table| quote_literal(table)).collect();
    let on_tables = format!(" and p.table_name in ({})", tables.join(", "));
    enter_path(connection).await?;
    let statement = statement((schema, processor), &arrays(&[]), &on_tables);
    sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await
}

/// As [`list`], with what depends on other objects that espd has made, by class and id.
pub(super) async fn list_with(
    connection: &mut PgConnection,
    of: (&str, &str),
    made: &[ObjectId],
) -> Result<Vec<Dependent>, sqlx::Error> {
    enter_path(connection).await?;
    plan_as_written(connection, true).await?;
    let statement = statement(of, &arrays(made), "");
    let listed =
        sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_all(&mut *connection).await?;
    plan_as_written(connection, false).await?;
    Ok(listed)
}

/// An object by its class and its id.
pub(crate) type ObjectId = (Oid, Oid);

/// The two arrays that [`LIST`] has as parameters.
fn arrays(made: &[ObjectId]) -> [String; 2] {
    let array = |of: fn(&ObjectId) -> Oid| {
        let ids: Vec<String> = made.iter().map(|object| of(object).0.to_string()).collect();
        format!("'{{{}}}'", ids.join(","))
    };
    [array(|object| object.0), array(|object| object.1)]
}

/// Names are written in quotes where they have to be, whatever the database's default: they are compared with those that were recorded
/// earlier. On this path every name in an expression is written with its schema. To compile the query would take seconds.
async fn enter_path(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let settings = "-- list_with_schemas
         set local search_path = pg_catalog, pg_temp; set local quote_all_identifiers = off; set local jit = off";
    sqlx::raw_sql(settings).execute(connection).await.map(drop)
}

/// Whether joins are carried out in the order in which they are written. [`LIST`] has a good one: to look for a better one
/// takes the server three times as long as the rest of its planning. What the author's statements need is for the server to find out.
async fn plan_as_written(connection: &mut PgConnection, is_on: bool) -> Result<(), sqlx::Error> {
    let limit = if is_on { "1" } else { "default" };
    let settings = format!(
        "-- plan_as_written
         set local join_collapse_limit = {limit}; set local from_collapse_limit = {limit}"
    );
    sqlx::raw_sql(AssertSqlSafe(settings)).execute(connection).await.map(drop)
}

/// `on_tables` is a condition on which tables of the processor are meant; empty: all.
fn statement((schema, processor): (&str, &str), [classes, objects]: &[String; 2], on_tables: &str) -> String {
    LIST.replace("{schema}", schema)
        .replace("{on_tables}", on_tables)
        .replace("{processor}", &quote_literal(processor))
        .replace("{classes}", classes)
        .replace("{objects}", objects)
}

/// Has the session plan what [`list_with`] asks for, for [`list_planned`] in the same transaction: to plan it takes five times as long as to
/// run it. A schema that is made or dropped meanwhile has it planned anew.
pub(super) async fn plan(connection: &mut PgConnection, of: (&str, &str)) -> Result<(), sqlx::Error> {
    enter_path(connection).await?;
    forget_planned(connection).await?;
    let statement = statement(of, &["$1".to_owned(), "$2".to_owned()], "");
    plan_as_written(connection, true).await?;
    let prepare = format!(
        "set local plan_cache_mode = force_generic_plan; prepare {PLANNED} as {statement}; explain execute {PLANNED}('{{}}', '{{}}')"
    );
    sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut *connection).await?;
    plan_as_written(connection, false).await
}

/// What [`list_with`] returns.
pub(crate) async fn list_planned(
    connection: &mut PgConnection,
    made: &[ObjectId],
) -> Result<Vec<Dependent>, sqlx::Error> {
    let statement = format!("-- list_dependents\nexecute {PLANNED}({})", arrays(made).join(", "));
    sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await
}

/// Leaves no plan in a session that others may get. A transaction that was rolled back has left it.
pub(crate) async fn forget_planned(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let statement = format!(
        "-- forget_plan
         do $forget$ begin
           if exists (select from pg_catalog.pg_prepared_statements where name = {0}) then deallocate {PLANNED}; end if;
         end $forget$",
        quote_literal(PLANNED)
    );
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
}

/// What espd had made with the tables, in the words of [`list`]; `None`: that was not recorded.
pub(crate) async fn find_made(
    connection: &mut PgConnection,
    schema: &str,
    processor: &str,
) -> Result<Option<BTreeSet<String>>, sqlx::Error> {
    let statement = format!(
        "-- find_made
         select case when bool_and(made is not null)
                then array(select unnest(made) from {schema}.declarations where processor = $1) end
         from {schema}.declarations where processor = $1"
    );
    let made: Option<Vec<String>> = sqlx::query_scalar(AssertSqlSafe(statement))
        .persistent(false)
        .bind(processor)
        .fetch_one(connection)
        .await?;
    Ok(made.map(|made| made.into_iter().collect()))
}

/// What has become of what others had made on tables that were dropped and made again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Replaced {
    /// It is there again.
    pub(crate) carried_over: Vec<String>,
    /// It is gone.
    pub(crate) lost: Vec<String>,
}

impl Replaced {
    /// Why the tables of a processor are not replaced without being told to; `None`: nothing is lost.
    pub(crate) fn refusal(&self, name: &str) -> Option<String> {
        let lost = self.lost.join("; ");
        (!lost.is_empty()).then(|| {
            format!(
                "the tables of {name} cannot be replaced without losing what others have made: {lost}. With --cascade it \
                 is dropped, for them to make it again"
            )
        })
    }
}

/// What was on tables, or depended on them, when they were dropped.
#[derive(Debug)]
pub(crate) struct Dropped {
    pub(super) before: Vec<Dependent>,
    /// What espd itself had made; `None`: made by an espd that did not record it.
    pub(super) made: Option<BTreeSet<String>>,
    /// What is on tables and columns that have no successor, and stays with them.
    pub(super) left: BTreeSet<String>,
    /// What the tables that take their place have as well, whoever has made it here.
    declared: BTreeSet<String>,
}

impl Dropped {
    pub(super) fn new(before: Vec<Dependent>, made: Option<BTreeSet<String>>) -> Self {
        Self { before, made, left: BTreeSet::new(), declared: BTreeSet::new() }
    }

    /// What was there.
    pub(crate) fn before(&self) -> &[Dependent] {
        &self.before
    }

    /// Leaves these items where they are, as far as they are parts of tables.
    pub(crate) fn leave(&mut self, items: BTreeSet<String>) {
        self.left = items;
    }

    /// Takes these for parts of what is declared, whoever has made them.
    pub(crate) fn count_as_declared(&mut self, items: Vec<String>) {
        self.declared.extend(items);
    }

    /// What others have made: it is not the author's to take away.
    fn of_others(&self) -> impl Iterator<Item = &Dependent> {
        let goes_on = |dependent: &&Dependent| dependent.apart || !self.left.contains(&dependent.item);
        let is_undeclared = |dependent: &&Dependent| !self.declared.contains(&dependent.item);
        self.before.iter().filter(goes_on).filter(is_undeclared).filter(|dependent| match &self.made {
            // An espd of before has not recorded how a table was logged, and what it had from its declaration.
            Some(made) if is_logging(&dependent.item) => {
                made.iter().any(|item| is_logging(item)) && !made.contains(&dependent.item)
            }
            Some(made) if is_recorded_late(&dependent.item) => {
                made.iter().any(|item| item.starts_with(TABLESPACE)) && !made.contains(&dependent.item)
            }
            Some(made) => dependent.is_right || !made.contains(&dependent.item),
            None if is_logging(&dependent.item) || is_recorded_late(&dependent.item) => false,
            None => !["column ", "default value ", "sequence "]
                .iter()
                .any(|kind| dependent.item.starts_with(kind)),
        })
    }

    /// What others have made, is no part of the tables, and goes with them.
    pub(crate) fn apart(&self) -> Vec<String> {
        let apart = self.of_others().filter(|dependent| dependent.apart);
        apart.map(|dependent| dependent.item.clone()).collect()
    }

    /// What espd has made that is no part of the tables, such as declared views.
    pub(crate) fn made_apart(&self) -> Vec<String> {
        let made = |item: &String| self.made.as_ref().is_some_and(|made| made.contains(item));
        let apart = self.before.iter().filter(|dependent| dependent.apart && made(&dependent.item));
        apart.map(|dependent| dependent.item.clone()).collect()
    }

    /// Whether something else is there `now`.
    pub(crate) fn differs_from(&self, now: &[Dependent]) -> bool {
        self.before != now
    }

    /// Something that is there now and was not there before.
    pub(crate) fn first_beyond(&self, earlier: &Self) -> Option<&str> {
        let is_new = |dependent: &&Dependent| !earlier.before.contains(dependent);
        self.before.iter().find(is_new).map(|dependent| dependent.item.as_str())
    }

    /// What others have made and nobody can make again from what the catalog says, but for views.
    pub(crate) fn irreplaceable(&self) -> Vec<String> {
        let lost = self.of_others().filter(|dependent| dependent.statement.is_none());
        let lost = lost.filter(|dependent| !dependent.item.starts_with(VIEW));
        lost.map(|dependent| dependent.item.clone()).collect()
    }

    /// The qualified names of all views.
    pub(crate) fn views(&self) -> Vec<String> {
        let items = self.before.iter().filter_map(|dependent| dependent.item.strip_prefix(VIEW));
        items.map(str::to_owned).collect()
    }

    /// Takes these for made by espd as well, where it is known what espd has made.
    pub(crate) fn count_as_made(&mut self, items: Vec<String>) {
        if let Some(made) = &mut self.made {
            made.extend(items);
        }
    }

    /// The qualified names of views that others have made.
    pub(crate) fn views_of_others(&self) -> Vec<String> {
        self.of_others()
            .filter_map(|dependent| dependent.item.strip_prefix(VIEW))
            .map(str::to_owned)
            .collect()
    }

    /// Makes again on the new tables what is not there, as far as that can be done. `now` is what is there.
    pub(crate) async fn restore(
        &self,
        connection: &mut PgConnection,
        now: &[Dependent],
    ) -> Result<Replaced, sqlx::Error> {
        let mut replaced = Replaced::default();
        let now: BTreeSet<&str> = now.iter().map(|dependent| dependent.item.as_str()).collect();
        self.make_again(connection, |dependent| now.contains(dependent.item.as_str()), &mut replaced).await?;
        Ok(replaced)
    }

    /// As [`Self::restore`], on tables that have served before: what others had made on them, and have taken away or changed since, goes.
    /// `made`: what espd had made on them; `None`: that was not recorded, so nothing is taken away, and what would have to be counts as lost.
    /// `only_there`: the items of tables and columns that the version did not have which goes.
    pub(crate) async fn restore_on_former(
        &self,
        connection: &mut PgConnection,
        now: &[Dependent],
        made: Option<&BTreeSet<String>>,
        only_there: &BTreeSet<String>,
    ) -> Result<Replaced, sqlx::Error> {
        let mut replaced = Replaced::default();
        let outdated = now
            .iter()
            .filter(|dependent| self.is_outdated(dependent) && !only_there.contains(&dependent.item));
        // What is on something goes before it.
        for dependent in outdated.rev() {
            let Some(removal) = removal(&dependent.item) else { continue };
            match made {
                Some(made) if made.contains(&dependent.item) => {}
                Some(_) => match attempt(connection, &removal).await? {
                    None => {}
                    Some(reason) => replaced.lost.push(format!("no {} ({reason})", dependent.item)),
                },
                None => replaced.lost.push(format!("no {}", dependent.item)),
            }
        }
        self.make_again(connection, |dependent| now.contains(dependent), &mut replaced).await?;
        // Whoever takes the rights on a table takes those on its columns.
        let of_columns = now.iter().filter(|dependent| {
            dependent.is_right && only_there.contains(&dependent.item) && !dependent.item.starts_with(RIGHTS)
        });
        for statement in of_columns.filter_map(|dependent| dependent.statement.as_deref()) {
            attempt(connection, statement).await?;
        }
        Ok(replaced)
    }

    /// Whether something is not so any more, on the tables that serve.
    fn is_outdated(&self, dependent: &Dependent) -> bool {
        !self.before.contains(dependent)
            && (self.before.iter().all(|other| other.item != dependent.item)
                || self.of_others().any(|other| other.item == dependent.item))
    }

    async fn make_again(
        &self,
        connection: &mut PgConnection,
        is_there: impl Fn(&Dependent) -> bool,
        replaced: &mut Replaced,
    ) -> Result<(), sqlx::Error> {
        for dependent in self.of_others() {
            let Dependent { item, statement, is_right, .. } = dependent;
            let is_there = is_there(dependent);
            match statement {
                _ if is_there && !is_right => {}
                None => replaced.lost.push(item.clone()),
                Some(statement) => match attempt(connection, statement).await? {
                    // What was on a view that is lost goes with it.
                    Some(_) if is_on_one_of(item, &replaced.lost) => {}
                    Some(reason) => replaced.lost.push(format!("{item} ({reason})")),
                    None if !is_there && !item.starts_with(RIGHTS) => {
                        replaced.carried_over.push(item.clone())
                    }
                    None => {}
                },
            }
        }
        Ok(())
    }

    /// Divides what others have made into what can be made again later, on tables that are not there yet, and what is lost.
    /// Without a record of what espd has made, parts of the tables count as made by espd.
    pub(super) fn divide(&self) -> (Vec<&Dependent>, Replaced) {
        let can_be_declared = |dependent: &&Dependent| self.made.is_none() && !dependent.apart;
        let (later, others): (Vec<&Dependent>, Vec<&Dependent>) =
            self.of_others().partition(|dependent| dependent.statement.is_some());
        let lost = others.into_iter().filter(|dependent| !can_be_declared(dependent));
        let told = later.iter().filter(|dependent| !dependent.item.starts_with(RIGHTS));
        let replaced = Replaced {
            carried_over: told.map(|dependent| dependent.item.clone()).collect(),
            lost: lost.map(|dependent| dependent.item.clone()).collect(),
        };
        (later, replaced)
    }
}

/// How the item of a view begins.
const VIEW: &str = "view ";

/// How the item begins that takes away what is not granted.
const RIGHTS: &str = "rights on ";

/// How an item begins that each table has.
const TABLESPACE: &str = "tablespace ";

/// Whether it is of a kind that is listed since each table has an item of its tablespace.
fn is_recorded_late(item: &str) -> bool {
    [TABLESPACE, "toast option ", "not null of ", "security label ", "type "]
        .iter()
        .any(|kind| item.starts_with(kind))
}

/// What takes away something that is no object apart.
fn removal(item: &str) -> Option<String> {
    let of = |kind: &str| item.strip_prefix(kind);
    if let Some(table) = of("row level security of ") {
        Some(format!("alter table {table} disable row level security"))
    } else if let Some(table) = of("forced row level security of ") {
        Some(format!("alter table {table} no force row level security"))
    } else if of("policy ").is_some() {
        Some(format!("drop {item}"))
    } else if of("comment on ").is_some() {
        Some(format!("{item} is null"))
    } else if let Some((on, provider)) = of("security label of ").and_then(|rest| rest.rsplit_once(" for ")) {
        Some(format!("security label for {provider} on {on} is null"))
    } else {
        None
    }
}

/// Whether it says that a table is logged or unlogged.
fn is_logging(item: &str) -> bool {
    item.starts_with("logged state ") || item.starts_with("unlogged state ")
}

/// Whether something is on one of these, of which the last word is the name.
fn is_on_one_of(item: &str, objects: &[String]) -> bool {
    let names = objects.iter().filter_map(|object| object.rsplit(' ').next());
    names.into_iter().any(|name| item.split(' ').any(|word| word == name))
}

/// Runs a statement behind a savepoint. Returns why the database refuses it.
pub(super) async fn attempt(
    connection: &mut PgConnection,
    statement: &str,
) -> Result<Option<String>, sqlx::Error> {
    match run_behind_savepoint(connection, statement.to_owned()).await {
        Ok(()) => Ok(None),
        Err(error) if is_infrastructure_error(&error) => Err(error),
        Err(error) => Ok(Some(describe(&error))),
    }
}
