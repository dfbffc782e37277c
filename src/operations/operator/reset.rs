//! Resets: a processor starts over, or moves to another position.

use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;

use super::{LockPatience, Operator, OperatorError, moved_on};
use crate::event::Position;
use crate::handlers::sql::SqlProcessor;
use crate::operations::databases::Databases;
use crate::postgres::{server_mark, transaction};
use crate::processing::declaration::{Handling, ProcessorDeclaration, ProcessorKind};
use crate::processing::processor::{Events, OthersObjects, ProcessorBase, Replaced};
use crate::processing::tracker::{ReplayEffects, Reset};
use crate::store::EventStore as _;
use crate::store::witness::Witness;

/// What a reset does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destination {
    /// Drop the processor's tables, create them again, and start over from where the processor begins.
    Start,
    /// Only move the position; the tables stay as they are.
    Position(Position),
}

impl Operator<'_> {
    /// The destination of a reset of a processor that stands at `from`: the position `to`, or the last position at or
    /// before the time `at`, or the start if there is neither. Going back is always possible; going forward ends at the
    /// settled horizon.
    ///
    /// # Errors
    /// [`OperatorError::NotSettled`], or the database does not answer.
    pub(crate) async fn destination(
        &self,
        from: Position,
        to: Option<Position>,
        at: Option<DateTime<Utc>>,
    ) -> Result<Destination, OperatorError> {
        if to.is_none() && at.is_none() {
            return Ok(Destination::Start);
        }
        let horizon = self.horizon().await?;
        let settled = horizon.settled.max(from.min(horizon.head));
        let position = match (to, at) {
            (_, Some(time)) => self.store().position_at(time).await?.min(settled),
            (to, None) => to.unwrap_or(Position::START),
        };
        if position > settled {
            return Err(OperatorError::NotSettled { to: position, settled });
        }
        Ok(Destination::Position(position))
    }

    /// The tables that a reset to the start drops and creates again, with their schemas.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn owned_tables(&self, name: &str) -> Result<Vec<String>, OperatorError> {
        let statement = format!(
            "-- list_owned_tables
             select table_schema || '.' || table_name from {}.projection_tables where processor = $1 order by 1",
            self.databases.layout.quoted_schema()
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).bind(name);
        Ok(query.fetch_all(&self.databases.projections).await?)
    }

    /// Refuses to repeat effects of a declared projector in SQL, which has none: an operator who asks for that expects something.
    ///
    /// # Errors
    /// [`OperatorError::NoEffects`].
    pub(crate) fn require_effects(&self, name: &str, effects: ReplayEffects) -> Result<(), OperatorError> {
        let has_none = |declared: &ProcessorDeclaration| {
            declared.name == name
                && declared.kind() == ProcessorKind::Projector
                && matches!(declared.handling, Handling::Sql(_))
        };
        if effects == ReplayEffects::Repeat && self.declared.iter().any(has_none) {
            return Err(OperatorError::NoEffects { name: name.to_owned() });
        }
        Ok(())
    }

    /// Resets a processor. `effects` matters for reactors and handlers in Rust only. Returns what has become of what others had made on the
    /// tables.
    ///
    /// # Errors
    /// The destination is the start and the processor is not declared, its tables cannot be created, or something of others
    /// would be lost that `others` keeps; or the database refuses. Nothing has changed then.
    pub(crate) async fn reset(
        &self,
        name: &str,
        to: Destination,
        effects: ReplayEffects,
        others: OthersObjects,
        patience: LockPatience<'_>,
    ) -> Result<Replaced, OperatorError> {
        self.require_effects(name, effects)?;
        let replaced = match to {
            Destination::Start => self.start_over(name, effects, others, patience).await?,
            Destination::Position(position) => {
                self.move_position(name, position, effects).await?;
                Replaced::default()
            }
        };
        self.databases.notify_runners().await;
        Ok(replaced)
    }

    async fn move_position(
        &self,
        name: &str,
        to: Position,
        effects: ReplayEffects,
    ) -> Result<(), OperatorError> {
        let row = self.find(name).await?;
        let last_common = self.find_divergence(&row).await?.map(|found| found.last_common);
        let Databases { events, layout, .. } = self.databases;
        let witness = Witness::examine(None, to, events, layout).await?.end;
        let begin = server_mark::begin(None);
        let mut transaction = transaction::begin(&self.databases.projections, begin).await?;
        let reset = Reset { effects, witness: Some(witness), last_common, ..Reset::to(to) };
        if !self.trackers().reset(&mut transaction, &row.key(), self.name, reset).await? {
            return Err(moved_on(name));
        }
        Ok(transaction.commit().await?)
    }

    /// Drops and creates the tables of a processor, as soon as nobody else uses them. With [`OthersObjects::Preview`], nothing
    /// is changed.
    ///
    /// # Errors
    /// As for [`Self::reset`].
    pub(crate) async fn start_over(
        &self,
        name: &str,
        effects: ReplayEffects,
        others: OthersObjects,
        patience: LockPatience<'_>,
    ) -> Result<Replaced, OperatorError> {
        let Databases { layout, scope, .. } = self.databases;
        let declaration = self.declaration(name)?.clone();
        let row = self.find(name).await?;
        let last_common = self.find_divergence(&row).await?.map(|found| found.last_common);
        let (schema, events) = (layout.schema(), Events::SameDatabase(layout.clone()));
        if let Handling::Sql(_) = declaration.handling {
            let events = Events::SameDatabase(layout.clone());
            SqlProcessor::new(declaration.clone(), schema, scope.clone(), events)
                .map_err(|fault| OperatorError::Declaration(Box::new(fault)))?;
        }
        let base = ProcessorBase::new(declaration, schema, scope.clone(), events);
        let reset = Reset { effects, last_common, ..Reset::to(Position::START) };
        self.rebuild(&base, &row.key(), reset, others, patience).await
    }
}
