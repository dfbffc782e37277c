//! Processors that are no longer wanted, or wanted under another name.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::lock_patience::name_session;
use super::{Operator, OperatorError};
use crate::handlers::sql::function_names;
use crate::postgres::name::is_name;
use crate::postgres::quote::quote_literal;
use crate::postgres::server_mark;
use crate::postgres::sqlstate::is_lock_timeout;
use crate::processing::declaration::ProcessorKind;
use crate::processing::processor::drop_tables;
use crate::processing::tracker::TrackerRow;

/// What a processor leaves when it is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remains {
    /// The tracker, as it was.
    pub(crate) position: crate::event::Position,
    /// Its tables, with their schemas.
    pub(crate) tables: Vec<String>,
    /// How many events are set aside for it.
    pub(crate) dead_letters: i64,
    /// How many events a reactor has emitted that are not in the event store yet.
    pub(crate) pending_emissions: i64,
    /// What others have made and goes with the tables.
    pub(crate) others: Vec<String>,
}

/// Whether something is done, or only tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retirement {
    /// Everything is rolled back.
    Preview,
    /// Nothing is done where something of others would go.
    Careful,
    /// What others have made on the tables goes as well.
    Cascade,
}

/// How long to wait for the tracker, and for each table. Nobody runs the processor meanwhile.
const LOCK_WAIT: Duration = Duration::from_secs(5);

impl Operator<'_> {
    /// Removes a processor that no daemon runs: its tables, its functions, its tracker, and what was set aside or is to be
    /// emitted for it. What it has emitted stays.
    ///
    /// # Errors
    /// As for [`Self::find`]; [`OperatorError::Owned`] while a daemon runs it; [`OperatorError::Locked`] if others use the
    /// tables; [`OperatorError::Blocked`] if others have made
    /// something on the tables and `retirement` is careful.
    pub(crate) async fn drop_processor(
        &self,
        name: &str,
        retirement: Retirement,
    ) -> Result<Remains, OperatorError> {
        let row = self.find(name).await?;
        let mut connection = self.databases.projections.acquire().await?;
        name_session(&mut connection, Some(name)).await?;
        let (outcome, wait) = self.observe(name, self.drop_all(&mut connection, &row, retirement)).await;
        // The session goes back to the pool.
        name_session(&mut connection, None).await?;
        match outcome {
            Err(OperatorError::Database(error)) if is_lock_timeout(&error) => {
                let (name, wait) = (name.to_owned(), wait.map(Box::new));
                Err(OperatorError::Locked { name, limit: LOCK_WAIT, wait })
            }
            outcome => outcome,
        }
    }

    async fn drop_all(
        &self,
        connection: &mut PgConnection,
        row: &TrackerRow,
        retirement: Retirement,
    ) -> Result<Remains, OperatorError> {
        let name = row.name.as_str();
        let mut tables = self.owned_tables(name).await?;
        let mut transaction = connection.begin_with(server_mark::begin(None)).await?;
        self.lock_unowned(&mut transaction, row).await?;
        for (beside, _) in self.list_beside(&mut transaction, name).await? {
            tables.extend(self.owned_tables(&beside.name(name)).await?);
        }
        self.remove_beside(&mut transaction, name, retirement != Retirement::Careful).await?;
        let schema = self.databases.layout.quoted_schema();
        let dropped = drop_tables(&mut transaction, &schema, name).await?;
        let remains = Remains {
            position: row.position,
            tables,
            dead_letters: row.dead_letters,
            pending_emissions: row.pending_emissions,
            others: dropped.apart(),
        };
        if retirement == Retirement::Careful && !remains.others.is_empty() {
            return Err(OperatorError::Blocked(format!(
                "others have made on the tables of {name}: {}. With --cascade it is dropped as well",
                remains.others.join("; ")
            )));
        }
        self.drop_functions(&mut transaction, row).await?;
        self.trackers().remove(&mut transaction, &row.key(), self.name).await?;
        match retirement {
            Retirement::Preview => transaction.rollback().await?,
            Retirement::Careful | Retirement::Cascade => transaction.commit().await?,
        }
        Ok(remains)
    }

    /// Gives a projector that no daemon runs another name. It keeps its position, its tables and its dead letters. With
    /// [`Retirement::Preview`], nothing is changed.
    ///
    /// # Errors
    /// As for [`Self::find`]; [`OperatorError::Owned`] while a daemon runs it; [`OperatorError::Blocked`] if the name is taken
    /// or none, or for a reactor: the identity of what that emits follows from its name.
    pub(crate) async fn rename(
        &self,
        name: &str,
        new: &str,
        retirement: Retirement,
    ) -> Result<TrackerRow, OperatorError> {
        let row = self.find(name).await?;
        if !is_name(new) {
            return Err(OperatorError::Blocked(format!(
                "{new:?} is no name of a processor: use a-z, 0-9 and _"
            )));
        }
        if row.kind != ProcessorKind::Projector.as_str() {
            return Err(OperatorError::Blocked(refuse_reactor(&row, new)));
        }
        let mut connection = self.databases.projections.acquire().await?;
        let mut transaction = connection.begin_with(server_mark::begin(None)).await?;
        self.lock_unowned(&mut transaction, &row).await?;
        let beside = self.list_beside(&mut transaction, name).await?;
        if let Some((_, version)) = beside.first() {
            return Err(OperatorError::Blocked(format!(
                "version {version} of {name} is beside the one that serves, and belongs to this name: `espctl rebuild drop {name}` \
                 drops former versions, `espctl rebuild abort {name}` gives up one that is built"
            )));
        }
        if !self.trackers().rename(&mut transaction, &row.key(), new, self.name).await? {
            return Err(OperatorError::Blocked(format!(
                "there is a processor {new} already, which has handled something or has tables"
            )));
        }
        self.drop_functions(&mut transaction, &row).await?;
        match retirement {
            Retirement::Preview => transaction.rollback().await?,
            Retirement::Careful | Retirement::Cascade => transaction.commit().await?,
        }
        Ok(row)
    }

    /// Locks the tracker for the rest of the transaction, unless a daemon runs the processor.
    async fn lock_unowned(
        &self,
        transaction: &mut PgConnection,
        row: &TrackerRow,
    ) -> Result<(), OperatorError> {
        // A batch that is at work holds the row.
        let limit = format!("-- limit_waits\nset local lock_timeout = '{}ms'", LOCK_WAIT.as_millis());
        sqlx::raw_sql(AssertSqlSafe(limit)).execute(&mut *transaction).await?;
        self.trackers().lock(transaction, &row.key()).await?;
        let statement = format!(
            "-- find_owner
             select coalesce(owner_label, owner::text) from {}
             where {} and lease_until > clock_timestamp()",
            self.trackers().table(),
            row.key().is_tracker()
        );
        let owner: Option<String> = sqlx::query_scalar(AssertSqlSafe(statement))
            .persistent(false)
            .fetch_optional(&mut *transaction)
            .await?;
        if let Some(owner) = owner {
            return Err(OperatorError::Owned { name: row.name.clone(), owner });
        }
        // Before anything of it is gone that whoever appends may need.
        Ok(self.trackers().end_synchronous(transaction, &row.key(), None).await?)
    }

    /// Drops the functions that were made from the processor's handlers.
    async fn drop_functions(
        &self,
        transaction: &mut PgConnection,
        row: &TrackerRow,
    ) -> Result<(), OperatorError> {
        let names = function_names(&row.name, row.version).map(|name| quote_literal(&name)).join(", ");
        let schema = self.databases.layout.quoted_schema();
        let statement = format!(
            "-- list_functions
             select oid::regprocedure::text from pg_proc
             where pronamespace = to_regnamespace({}) and proname in ({names})",
            quote_literal(&schema)
        );
        let functions: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
            .persistent(false)
            .fetch_all(&mut *transaction)
            .await?;
        for function in functions {
            // A trigger that could only be disabled while somebody was reading goes with what it calls.
            let drop = format!("-- drop_function\ndrop function {function} cascade");
            sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut *transaction).await?;
        }
        Ok(())
    }
}

/// Why a reactor keeps its name, and what to do instead.
fn refuse_reactor(row: &TrackerRow, new: &str) -> String {
    let TrackerRow { name, position, .. } = row;
    let first = match row.pending_emissions {
        0 => String::new(),
        1 => "wait until its 1 pending emission is in the event store, then ".to_owned(),
        pending => format!("wait until its {pending} pending emissions are in the event store, then "),
    };
    format!(
        "{name} is a reactor and keeps its name: the identity of each event that it emits follows from the name, so under \
         another one it would emit again what it has emitted. Instead, {first}declare {new} with `start = {position}`, its \
         position, in place of {name}, reload, and run `espctl drop {name}`"
    )
}
