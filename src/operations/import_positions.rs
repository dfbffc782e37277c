//! Imports the positions that the processors of another framework have reached.
//!
//! After the import a processor continues after the last event that its predecessor handled, with the tables that the
//! predecessor filled. So three things are checked before anything is changed: the predecessor has stopped, the tables
//! exist, and the predecessor's position is settled.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use thiserror::Error;

use crate::event::Position;
use crate::handlers::sql::adopt_tables;
use crate::operations::databases::Databases;
use crate::operations::operator::PATIENCE;
use crate::operations::other_stores::list_other_stores;
use crate::postgres::error::explain;
use crate::postgres::quote::quote_identifier;
use crate::postgres::row::from_row;
use crate::postgres::server_mark;
use crate::postgres::sqlstate::is_missing_right;
use crate::processing::declaration::{ProcessorDeclaration, ProcessorKind};
use crate::processing::processor::find_obstacle_to_emit;
use crate::processing::tracker::{ProcessorKey, Reset, TrackerRow, Trackers};
use crate::store::horizon::{Horizon, ObserveError, observe_once};
use crate::store::layout::Positions;

/// One processor and the predecessor whose position it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImportedPosition {
    pub(crate) processor: String,
    pub(crate) predecessor: String,
    /// The position of the processor.
    pub(crate) from: Position,
    /// The position of the predecessor.
    pub(crate) to: Position,
    /// The tables that become the processor's own.
    pub(crate) tables: Vec<String>,
    /// Why the position cannot be imported.
    pub(crate) obstacle: Option<String>,
}

/// What an import would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) imports: Vec<ImportedPosition>,
    /// Names in the framework's table that no declared processor has.
    pub(crate) left_out: Vec<String>,
}

/// Why nothing was imported.
#[derive(Debug, Error)]
pub(crate) enum ImportError {
    #[error("no processor {0} is declared: name the configuration that declares it with --config")]
    NotDeclared(String),
    #[error("failed to observe the event store")]
    Observe(#[from] ObserveError),
    #[error("a position has changed in the meantime: nothing was done, try again")]
    Changed,
    #[error("the database does not answer, or refuses: {}", explain(.0))]
    Database(sqlx::Error),
    /// `table` is the framework's.
    #[error("the positions in {table} cannot be read: {}{}", explain(.source), if is_missing_right(.source) { GRANT } else { "" })]
    Predecessors { table: String, source: sqlx::Error },
    #[error("nothing was done: {0}")]
    Tables(String),
}

/// The end of the message about a table that the role may not read.
const GRANT: &str = ": `espctl roles` prints the SQL that does so for espd_daemon";

impl From<sqlx::Error> for ImportError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

/// A row of the framework's table of trackers.
#[derive(Debug)]
struct Predecessor {
    name: String,
    /// `None`: the framework's table does not say.
    position: Option<Position>,
    /// The session that holds the lock of a running processor; `None`: it does not run.
    pid: Option<i32>,
}

from_row!(Predecessor { name, position, pid });

/// An import of the framework's positions by declared projectors.
#[derive(Debug)]
pub(crate) struct PositionImport<'t> {
    pub(crate) databases: &'t Databases,
    pub(crate) declared: &'t [ProcessorDeclaration],
    /// Where the framework keeps its positions.
    pub(crate) positions: &'t Positions,
    /// Predecessor by processor; empty: every processor with a predecessor of the same name.
    pub(crate) wanted: BTreeMap<String, String>,
    /// Whether to move also processors that have moved already.
    pub(crate) overwrite: bool,
}

impl PositionImport<'_> {
    /// Examines everything and changes nothing.
    pub(crate) async fn plan(&self) -> Result<Plan, ImportError> {
        if let Some(unknown) = self.wanted.keys().find(|name| self.declaration(name).is_none()) {
            return Err(ImportError::NotDeclared(unknown.clone()));
        }
        let mut connection = self.databases.projections.acquire().await?;
        let predecessors = self.list_predecessors(&mut connection).await?;
        let mut events = self.databases.events.acquire().await?;
        let horizon = observe_once(&mut events, &self.databases.layout, PATIENCE).await?;
        let mut imports = Vec::new();
        for (declaration, wanted) in self.candidates() {
            let predecessor = predecessors.iter().find(|row| row.name == wanted);
            // A processor without a predecessor matters only if it was named.
            if predecessor.is_some() || !self.wanted.is_empty() {
                imports
                    .push(self.examine(&mut connection, declaration, &wanted, predecessor, &horizon).await?);
            }
        }
        let taken = |name: &String| imports.iter().any(|import| import.predecessor == *name);
        let left_out = predecessors.into_iter().map(|row| row.name).filter(|name| !taken(name)).collect();
        Ok(Plan { imports, left_out })
    }

    /// Does what the plan says, all or nothing.
    ///
    /// # Errors
    /// [`ImportError::Changed`] if the plan is outdated.
    pub(crate) async fn carry_out(&self, plan: &Plan, operator: &str) -> Result<(), ImportError> {
        if self.plan().await? != *plan {
            return Err(ImportError::Changed);
        }
        let Databases { layout, projections, scope, .. } = self.databases;
        let trackers = Trackers::of(layout);
        let mut connection = projections.acquire().await?;
        let mut transaction = connection.begin_with(server_mark::begin(None)).await?;
        for import in &plan.imports {
            let Some(declaration) = self.declaration(&import.processor) else { continue };
            let mut key = ProcessorKey::new(&declaration.name, declaration.version);
            trackers.register(&mut *transaction, &key, ProcessorKind::Projector, Position::START).await?;
            // The processor may have run before, with tables of another version or none.
            if let Some(row) = self.find_tracker(&mut transaction, declaration).await? {
                key = row.key();
            }
            let rebuilt_as = (!import.tables.is_empty()).then_some(declaration.version);
            let reset = Reset { rebuilt_as, ..Reset::to(import.to) };
            trackers.reset(&mut transaction, &key, operator, reset).await?;
            if !import.tables.is_empty() {
                adopt_tables(declaration, layout.schema(), scope, &mut transaction)
                    .await
                    .map_err(|error| ImportError::Tables(error.to_string()))?;
            }
        }
        transaction.commit().await?;
        self.databases.notify_runners().await;
        Ok(())
    }

    /// The processors to examine, each with the name of its predecessor.
    fn candidates(&self) -> impl Iterator<Item = (&ProcessorDeclaration, String)> {
        self.declared.iter().filter_map(|declaration| match self.wanted.get(&declaration.name) {
            Some(predecessor) => Some((declaration, predecessor.clone())),
            None => self.wanted.is_empty().then(|| (declaration, declaration.name.clone())),
        })
    }

    /// The only tracker of a processor, or that of its declared version; `None`: there is none.
    async fn find_tracker(
        &self,
        connection: &mut PgConnection,
        declaration: &ProcessorDeclaration,
    ) -> Result<Option<TrackerRow>, sqlx::Error> {
        let trackers = Trackers::of(&self.databases.layout);
        let mut rows = trackers.list(connection, Some(&declaration.name)).await?;
        if rows.len() > 1 {
            let declared = ProcessorKey::new(&declaration.name, declaration.version);
            rows.retain(|row| row.key() == declared);
        }
        Ok(rows.pop())
    }

    fn declaration(&self, name: &str) -> Option<&ProcessorDeclaration> {
        self.declared.iter().find(|declaration| declaration.name == name)
    }

    async fn examine(
        &self,
        connection: &mut PgConnection,
        declaration: &ProcessorDeclaration,
        wanted: &str,
        predecessor: Option<&Predecessor>,
        horizon: &Horizon,
    ) -> Result<ImportedPosition, ImportError> {
        let schema = &self.databases.scope.schema;
        let row = self.find_tracker(connection, declaration).await?;
        let from = row.as_ref().map_or(Position::START, |row| row.position);
        let of_tables = self.find_obstacle_of_tables(connection, declaration).await?;
        let to = predecessor.and_then(|row| row.position).unwrap_or_default();
        let is_made = row.is_some_and(|row| row.handled > 0 || row.position > Position::START);
        let obstacle = match predecessor {
            None => Some(format!("{} has no row for {wanted}", self.positions.table)),
            Some(Predecessor { pid: Some(pid), .. }) => {
                Some(format!("{wanted} is still running (database session {pid}): stop it first"))
            }
            Some(Predecessor { position: None, .. }) => {
                Some(format!("{} has no position for {wanted} (it is null)", self.positions.table))
            }
            Some(_) if is_made && !self.overwrite => {
                Some(format!("it has moved already, to {from}: add --overwrite to move it all the same"))
            }
            Some(_) if to < Position::START => {
                Some(format!("{} has a position below 0, {to}", self.positions.table))
            }
            Some(_) if to > horizon.head => Some(format!(
                "{to} is beyond {}, the last event that there ever was: it is the position of another store",
                horizon.head
            )),
            Some(_) if to > horizon.settled => {
                Some(format!("{to} is not settled yet, only {} is: try again later", horizon.settled))
            }
            Some(_) => find_obstacle_to_emit(declaration, &self.databases.layout).or(of_tables),
        };
        let tables = declaration.tables.iter().map(|table| format!("{schema}.{}", table.name)).collect();
        let (processor, predecessor) = (declaration.name.clone(), wanted.to_owned());
        Ok(ImportedPosition { processor, predecessor, from, to, tables, obstacle })
    }

    /// Why the declared tables cannot be taken over.
    async fn find_obstacle_of_tables(
        &self,
        connection: &mut PgConnection,
        declaration: &ProcessorDeclaration,
    ) -> Result<Option<String>, sqlx::Error> {
        let schema = &self.databases.scope.schema;
        if let Some(table) = find_missing_table(connection, schema, declaration).await? {
            return Ok(Some(format!(
                "its table {schema}.{table} does not exist: it would start empty in the middle of the events"
            )));
        }
        let own = self.databases.layout.schema();
        if let Some(kept) = find_kept_table(connection, own, schema, declaration).await? {
            return Ok(Some(kept));
        }
        let foreign = find_foreign_table(connection, schema, declaration).await?;
        Ok(foreign.map(|table| table.describe(schema)))
    }

    async fn list_predecessors(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Vec<Predecessor>, ImportError> {
        let statement =
            format!("-- list_predecessors\nselect * from ({}) as t order by name", self.positions.query);
        let table = || self.positions.table.clone();
        let read = sqlx::query_as(AssertSqlSafe(statement)).fetch_all(connection).await;
        read.map_err(|source| ImportError::Predecessors { table: table(), source })
    }
}

/// Why a declared table is that of another processor, which goes on writing it, of this store or of another one in the database; `None`:
/// none is, as far as this role may read. `own`: the schema of the trackers.
async fn find_kept_table(
    connection: &mut PgConnection,
    own: &str,
    schema: &str,
    declaration: &ProcessorDeclaration,
) -> Result<Option<String>, sqlx::Error> {
    let others = list_other_stores(&mut *connection, own).await?;
    let others = others.into_iter().filter_map(|(store, is_readable)| is_readable.then_some(store));
    let (own, names) = (quote_identifier(own), declaration.table_names());
    for store in [own.clone()].into_iter().chain(others) {
        let statement = format!(
            "-- find_kept_table
             select processor, table_name from {store}.projection_tables
             where table_schema = $1 and table_name = any ($2) and (not $3 or processor <> $4) order by 2 limit 1"
        );
        let found = sqlx::query_as(AssertSqlSafe(statement)).persistent(false).bind(schema).bind(&names);
        let found: Option<(String, String)> =
            found.bind(store == own).bind(&declaration.name).fetch_optional(&mut *connection).await?;
        if let Some((keeper, table)) = found {
            let whose = if store == own { String::new() } else { format!(" of the store in schema {store}") };
            return Ok(Some(format!(
                "its table {schema}.{table} belongs to processor {keeper}{whose}: declare another name, or drop that processor first"
            )));
        }
    }
    Ok(None)
}

/// A table that the projector could not write.
struct ForeignTable {
    name: String,
    owner: String,
    role: String,
}

from_row!(ForeignTable { name, owner, role });

impl ForeignTable {
    fn describe(&self, schema: &str) -> String {
        let Self { name, owner, role } = self;
        let [table, new_owner] = [name, role].map(|name| quote_identifier(name));
        format!(
            "its table {schema}.{name} belongs to {owner}, and {role} may not write it: `alter table {}.{table} owner to {new_owner}`",
            quote_identifier(schema)
        )
    }
}

/// The first declared table that this role may not write.
async fn find_foreign_table(
    connection: &mut PgConnection,
    schema: &str,
    declaration: &ProcessorDeclaration,
) -> Result<Option<ForeignTable>, sqlx::Error> {
    let statement = "
        -- find_foreign_table
        select n.name, pg_get_userbyid(c.relowner)::text as owner, current_user::text as role
        from unnest($2::text[]) with ordinality as n (name, place)
          join pg_namespace as s on s.nspname = $1
          join pg_class as c on c.relnamespace = s.oid and c.relname = n.name
        where not (has_schema_privilege(s.oid, 'usage') and has_table_privilege(c.oid, 'select')
          and has_table_privilege(c.oid, 'insert') and has_table_privilege(c.oid, 'update')
          and has_table_privilege(c.oid, 'delete'))
        order by n.place limit 1";
    let names: Vec<&str> = declaration.tables.iter().map(|table| table.name.as_str()).collect();
    sqlx::query_as(statement).bind(schema).bind(names).fetch_optional(connection).await
}

/// The first declared table that does not exist.
async fn find_missing_table(
    connection: &mut PgConnection,
    schema: &str,
    declaration: &ProcessorDeclaration,
) -> Result<Option<String>, sqlx::Error> {
    let statement = "
        -- find_missing_table
        select n.name from unnest($2::text[]) with ordinality as n (name, place)
        where to_regclass(quote_ident($1) || '.' || quote_ident(n.name)) is null order by n.place limit 1";
    let names: Vec<&str> = declaration.tables.iter().map(|table| table.name.as_str()).collect();
    sqlx::query_scalar(statement).bind(schema).bind(names).fetch_optional(connection).await
}
