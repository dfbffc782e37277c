//! Goes back to a version that has served before: the same step with the roles exchanged.

use std::collections::BTreeSet;

use sqlx::{AssertSqlSafe, PgConnection};

use super::beginning::{Prepared, unlock_session};
use super::preparation::refuse_synchronous;
use super::publications;
use super::{Beside, Finding, Listener, Rebuilding, failed};
use crate::operations::operator::{Operator, OperatorError};
use crate::processing::declaration::{Handling, OnHandlerChange, ProcessorDeclaration, Unsuitable};
use crate::processing::processor::Processor;
use crate::processing::rebuild::{
    LeftAside, LeftOut, Rebuilds, Replay, find_declared, find_missing_on_place,
};
use crate::processing::tracker::{ProcessorKey, TrackerRow};

impl<'o> Rebuilding<'o> {
    /// Prepares a version that has served before for what it has not handled since. `to`: which one; otherwise the one that
    /// served last.
    ///
    /// # Errors
    /// There is none; or as for [`Rebuilding::begin`].
    pub(crate) async fn begin_rollback(
        operator: Operator<'o>,
        name: &str,
        to: Option<i32>,
        listener: Listener<'o>,
    ) -> Result<Self, OperatorError> {
        let row = operator.find(name).await?;
        if row.synchronous.is_some() {
            return Err(refuse_synchronous(name));
        }
        if let Some(unsuitable) = Unsuitable::find(operator.declaration(name)?, false) {
            return Err(OperatorError::Blocked(format!(
                "{}, so no former version of {name} is kept: declare version {} again, or `espctl reset {name}` has the declared one \
                 take its place",
                unsuitable.because(name),
                row.version
            )));
        }
        let mut worker = operator.lock_versions_after_slice(name, listener).await?;
        let prepared = async {
            operator.refuse_moved_tables(&mut worker, name).await?;
            let version = operator.choose_former(&mut worker, name, row.version, to).await?;
            let beside = Beside::Archived(version);
            let declaration = operator.read_declared(&mut worker, name, version).await?;
            let processor = operator.beside(&declaration, beside, None)?;
            operator.refuse_former(name, &*processor, version).await?;
            let kept_in = beside.schema(&operator.databases.scope.schema, name);
            if let Some(missing) = find_missing_on_place(&mut worker, &kept_in).await? {
                return Err(OperatorError::Blocked(format!(
                    "version {version} of {name} cannot serve again: {missing}"
                )));
            }
            operator.refuse_taken_names(&mut worker, name, version).await?;
            let start = processor.base().beginning(&mut worker, &row.key()).await?;
            let live_tables = operator.list_tables(&mut worker, name).await?;
            publications::tell(&mut worker, (&operator.databases.scope.schema, &live_tables), listener)
                .await?;
            let replay = Replay::begin(processor, &mut worker, start).await.map_err(failed)?;
            let start = replay.position();
            let (live, left_aside) = (row.key(), LeftAside::default());
            Ok((beside, Prepared { live, declaration, replay, start, live_tables, part: None, left_aside }))
        }
        .await;
        match prepared {
            Ok((beside, prepared)) => Ok(prepared.begin(operator, beside, listener, worker)),
            Err(error) => {
                unlock_session(&mut worker, name).await?;
                Err(error)
            }
        }
    }
}

impl Rebuilding<'_> {
    /// What a daemon would put in the place of a version that is to serve again, as it is declared or built: each version with its
    /// fingerprint. The one that serves now is known as one that an operator has gone back from.
    pub(super) async fn find_later(&mut self) -> Result<BTreeSet<(i32, String)>, OperatorError> {
        let Beside::Archived(version) = self.beside else { return Ok(BTreeSet::new()) };
        let name = &self.live.name;
        let declared = self.operator.declaration(name).ok();
        let declared = declared.map(|one| (one.version, self.operator.whole_fingerprint(one)));
        let row = Rebuilds::new(self.operator.trackers().schema()).find(&mut *self.worker, name).await?;
        let built = row.filter(|row| row.state().after(Finding::Abandoned).is_some());
        let built = built.map(|row| (row.version, row.fingerprint));
        let is_later = |(later, _): &(i32, String)| *later > version && *later != self.live.version;
        Ok(declared.into_iter().chain(built).filter(is_later).collect())
    }

    /// Gives these versions up, as an operator does who wants the one that serves.
    pub(super) async fn give_up_later(
        &mut self,
        later: BTreeSet<(i32, String)>,
    ) -> Result<(), OperatorError> {
        let (operator, name) = (self.operator, &self.live.name);
        for (version, fingerprint) in later {
            operator.remove_version(&mut self.worker, name, Beside::Next, version).await?;
            operator.log_abort(&mut self.worker, name, version, Some(&fingerprint)).await?;
            (self.listener.note)(&LeftOut::GivenUp.describe(name, version));
        }
        Ok(())
    }
}

impl Operator<'_> {
    /// Refuses to go back to a version one of whose tables would come to where another one is by now.
    async fn refuse_taken_names(
        &self,
        connection: &mut PgConnection,
        name: &str,
        version: i32,
    ) -> Result<(), OperatorError> {
        let schema = &self.databases.scope.schema;
        let statement = format!(
            "-- find_taken_names
             select f.table_name, (select o.processor from {own}.projection_tables as o
                 where o.table_schema = $3 and o.table_name = f.table_name limit 1)
             from {own}.projection_tables as f
               join pg_class as c on c.relname = f.table_name
               join pg_namespace as n on n.oid = c.relnamespace and n.nspname = $3
             where f.processor = $1 and not exists (
               select from {own}.projection_tables as o
               where o.processor = $2 and o.table_schema = $3 and o.table_name = f.table_name)
             order by 1 limit 1",
            own = self.trackers().schema()
        );
        let query = sqlx::query_as(AssertSqlSafe(statement)).persistent(false);
        let query = query.bind(Beside::Archived(version).name(name)).bind(name).bind(schema);
        let taken: Option<(String, Option<String>)> = query.fetch_optional(connection).await?;
        let Some((table, processor)) = taken else { return Ok(()) };
        let (whose, remedy) = match processor {
            Some(other) => (
                format!("projector {other} has made a table {table} of its own"),
                format!("declare that of {other} under another name and a higher version"),
            ),
            None => (format!("somebody has made another {table}"), "rename or drop that".to_owned()),
        };
        Err(OperatorError::Blocked(format!(
            "version {version} of {name} cannot serve again, because its table {table} has no place in schema {schema}: {whose} there \
             meanwhile. To go back nevertheless, {remedy}"
        )))
    }

    /// Refuses to go back to a version whose rows are of another event store, or would be continued by handlers that may not.
    async fn refuse_former(
        &self,
        name: &str,
        processor: &dyn Processor,
        version: i32,
    ) -> Result<(), OperatorError> {
        let key = ProcessorKey::new(processor.name(), version);
        let Some(former) = self.find_beside(&key).await? else { return Ok(()) };
        self.refuse_former_of_other_store(name, &former).await?;
        let present = processor.base().handler_fingerprint();
        match present.is_some_and(|present| former.was_handled_by_other(&present)) {
            true => self.refuse_other_handlers(name, &former),
            false => Ok(()),
        }
    }

    /// Refuses handlers that are not those which have made the rows of a former version, where the declaration wants that.
    fn refuse_other_handlers(&self, name: &str, former: &TrackerRow) -> Result<(), OperatorError> {
        let because = format!(
            "the handlers of version {} of {name} are not those that have handled the events up to {}",
            former.version, former.position
        );
        let (now, warn) = (
            format!("`espctl reset {name}` has the declared ones handle all events"),
            "on_handler_change = \"warn\" continues with both",
        );
        match self.declaration(name)?.on_handler_change {
            OnHandlerChange::Warn => Ok(()),
            OnHandlerChange::Refuse => Err(OperatorError::Blocked(format!(
                "{because}: deploy those again, and repeat `espctl rollback {name}`; {now}; {warn}"
            ))),
            OnHandlerChange::Rebuild => Err(OperatorError::Blocked(format!(
                "{because}, and on_handler_change = \"rebuild\" has the rows made anew instead: {now}; {warn}"
            ))),
        }
    }

    /// The version to go back to.
    async fn choose_former(
        &self,
        connection: &mut sqlx::PgConnection,
        name: &str,
        live: i32,
        to: Option<i32>,
    ) -> Result<i32, OperatorError> {
        let kept = self.list_archived(connection, name).await?;
        let last = Rebuilds::new(self.trackers().schema()).find(&mut *connection, name).await?;
        // A later build that has not gone live says nothing of the version before this one.
        let before = match last.filter(|row| row.version == live && row.has_served()) {
            Some(row) => Some(row.from_version),
            None => self.find_before(connection, name, live).await?,
        };
        if let (None, Some(before), [.., _]) = (to, before, &kept[..])
            && before != live
            && !kept.contains(&before)
        {
            let kept: Vec<String> = kept.iter().map(i32::to_string).collect();
            return Err(OperatorError::Blocked(format!(
                "version {before} of {name}, which served before, is not kept; with `--to` an earlier one serves again: {}",
                kept.join(", ")
            )));
        }
        if to == Some(live) && !kept.contains(&live) {
            return Err(OperatorError::Blocked(format!("version {live} of {name} serves already")));
        }
        let other = kept.iter().rev().find(|version| **version != live).or(kept.last());
        let version = to.or(before.filter(|before| kept.contains(before))).or(other.copied());
        match version.filter(|version| kept.contains(version)) {
            Some(version) if version == live => Err(OperatorError::Blocked(format!(
                "version {live} of {name} was rebuilt as version {live}: set the handlers back, and run `espctl rebuild {name}`"
            ))),
            Some(version) => Ok(version),
            None => Err(OperatorError::Blocked(format!(
                "no former version of {name} is kept{}: what was merged, reset in place or dropped leaves none; declare the former \
                 handlers under a higher version instead",
                to.map_or(String::new(), |to| format!(" that is version {to}"))
            ))),
        }
    }

    /// The version that served before the one that does went live, as the log of operators says.
    async fn find_before(
        &self,
        connection: &mut sqlx::PgConnection,
        name: &str,
        live: i32,
    ) -> Result<Option<i32>, OperatorError> {
        let statement = format!(
            "-- find_before
             select (detail ->> 'from_version')::integer from {}.operator_log
             where processor = $1 and action = 'go_live' and (detail ->> 'version')::integer = $2 order by id desc limit 1",
            self.trackers().schema()
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).bind(name).bind(live);
        let before: Option<Option<i32>> = query.fetch_optional(connection).await?;
        Ok(before.flatten())
    }

    /// How a former version was declared. A program is not in the database: it has to be there as it was.
    async fn read_declared(
        &self,
        connection: &mut sqlx::PgConnection,
        name: &str,
        version: i32,
    ) -> Result<ProcessorDeclaration, OperatorError> {
        let present = self.declaration(name)?;
        if let Some((because, remedy)) = self.find_missing_program(present) {
            return Err(OperatorError::Blocked(format!("{because}: {remedy}")));
        }
        if matches!(present.handling, Handling::Program(_) | Handling::Native(_)) {
            return match present.version == version {
                true => Ok(present.clone()),
                false => Err(OperatorError::Blocked(format!(
                    "version {version} of {name} was handled by a program, which is not recorded: deploy it as it was, declare \
                     version {version} again, and repeat `espctl rollback {name}`"
                ))),
            };
        }
        let (schema, own_name) = (self.trackers().schema().to_owned(), Beside::Archived(version).name(name));
        let found: Option<ProcessorDeclaration> =
            find_declared(connection, &schema, &own_name, version).await?;
        let declared = found.ok_or_else(|| {
            OperatorError::Blocked(format!(
                "how version {version} of {name} was declared is not recorded, because no espd of this version has run it: its \
                 tables are kept in schema {}",
                Beside::Archived(version).schema(&self.databases.scope.schema, name)
            ))
        })?;
        Ok(ProcessorDeclaration { name: name.to_owned(), ..declared })
    }
}
