//! Comparing the version beside with the serving one, both at the same position.

use sqlx::{Connection as _, PgConnection};

use super::{GoLive, Rebuilding};
use crate::operations::operator::OperatorError;
use crate::postgres::server_mark::READ_COMMITTED;
use crate::processing::rebuild::{
    Beside, Compared, Difference, Finding, Phase, Versions, compare, find_declared, find_set_aside, list_lost,
};

impl Rebuilding<'_> {
    /// Compares both versions at the same position.
    ///
    /// # Errors
    /// As for [`Self::catch_up`].
    pub(crate) async fn compare(&mut self) -> Result<Difference, OperatorError> {
        self.enter(Phase::Comparing).await?;
        let projections = self.operator.databases.projections.clone();
        let mut reading = projections.acquire().await?;
        let mut held = projections.acquire().await?;
        let mut snapshot = {
            // Nobody moves either version while the snapshot is taken.
            let mut hold = held.begin_with(READ_COMMITTED).await?;
            self.hold_live(&mut hold).await?;
            let snapshot = reading.begin_with("begin isolation level repeatable read, read only").await?;
            let mut snapshot = snapshot;
            sqlx::raw_sql("-- take_snapshot\nselect 1").execute(&mut *snapshot).await?;
            hold.rollback().await?;
            snapshot
        };
        let (old, new) = (self.live_tables.clone(), self.declaration.table_names());
        let schema = &self.operator.databases.scope.schema;
        let dead_letters = {
            let own_schema = self.operator.trackers().schema().to_owned();
            find_set_aside(&mut snapshot, &own_schema, (&self.live, &self.replay.claim().key)).await?
        };
        let difference = {
            let versions =
                Versions { old: (schema, &old), new: (&self.building_in, &new), part: self.part.as_ref() };
            let changed_ddl = self.list_lost_ddl(&mut snapshot).await?;
            Difference { dead_letters, changed_ddl, ..compare(&mut snapshot, versions).await? }
        };
        self.refuse_rows_of_others(&mut snapshot).await?;
        if self.beside == Beside::Verification && difference.has_rows() {
            self.refuse_changed_dead_letters(&mut snapshot).await?;
        }
        snapshot.rollback().await?;
        self.note_compared(&difference).await?;
        Ok(difference)
    }

    /// Refuses to tell of rows that differ where the serving version has handled a dead letter meanwhile that was left aside here, or has
    /// set aside what was handled here.
    async fn refuse_changed_dead_letters(&self, connection: &mut PgConnection) -> Result<(), OperatorError> {
        let schema = self.operator.trackers().schema().to_owned();
        let versions = (&self.live, &self.replay.claim().key);
        if self.left_aside.has_changed(connection, &schema, versions, self.part.as_ref()).await? {
            return Err(OperatorError::Rebuild(format!(
                "dead letters of {} have come or gone while it was verified: try again",
                self.live.name
            )));
        }
        Ok(())
    }

    /// The statements of `ddl` that made something of the serving version and are not declared any more.
    async fn list_lost_ddl(&self, connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
        if !matches!(self.beside, Beside::Next | Beside::DryRun) {
            return Ok(Vec::new());
        }
        let (schema, live) = (self.operator.trackers().schema().to_owned(), &self.live);
        let former = find_declared(connection, &schema, &live.name, live.version).await?;
        Ok(former.map(|former| list_lost(&former.ddl, &self.declaration.ddl)).unwrap_or_default())
    }

    /// Records what a comparison has found, and ends an approval of something else.
    async fn note_compared(&mut self, difference: &Difference) -> Result<(), OperatorError> {
        let (rebuilds, name) = (self.rebuilds(), self.live.name.clone());
        let former = rebuilds.find(&mut *self.worker, &name).await?.and_then(|row| row.difference);
        if self.note(Finding::Compared { equal: difference.is_none() }).await?.is_none() {
            return Ok(());
        }
        let way = self.choose_way(GoLive::Auto, difference).await?.as_str();
        let kept = difference.without_rows();
        let compared = Compared { position: self.replay.position(), way, difference: &kept };
        let stays_approved = compared.is_covered_by(former.as_deref());
        let found =
            serde_json::value::to_raw_value(&compared).map_err(|error| sqlx::Error::Encode(error.into()))?;
        Ok(rebuilds.note_compared(&mut *self.worker, &name, &found, stays_approved).await?)
    }
}
