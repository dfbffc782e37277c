//! How far the rebuild of a projector is, whoever carries it out.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::operations::operator::{Operator, OperatorError};
use crate::operations::status::RebuildStatus;
use crate::postgres::sqlstate::is_missing_right;
use crate::processing::rebuild::{
    Beside, Build, LeftOut, RebuildRow, Rebuilds, State, list_builds, list_left_out,
};
use crate::processing::tracker::TrackerRow;

/// What has become of the last rebuild of a projector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// There was none.
    None,
    /// A version is to go live.
    UnderWay,
    /// It is over.
    Ended {
        /// The version that was built.
        version: i32,
        /// Whether it serves.
        is_live: bool,
    },
}

/// What there is to see of the rebuild of a projector.
#[derive(Debug)]
pub(crate) struct Look {
    /// How far the version is that is to go live.
    pub(crate) build: Option<RebuildStatus>,
    /// What has become of the last rebuild.
    pub(crate) outcome: Outcome,
    /// The declared version, where an older one serves and no build of what is declared has begun, as far as the last one tells.
    pub(crate) unbegun: Option<i32>,
    /// Why no daemon builds it, where an operator has decided so.
    pub(crate) left_out: Option<LeftOut>,
    /// The version that serves, where just that one is declared: nothing else is to be built.
    pub(crate) settled: Option<i32>,
    /// Whether that version has gone live from another declaration than the one of the configuration, as far as is known.
    pub(crate) is_live_otherwise: bool,
    /// Whether a daemon has followed another configuration just now, and the version has waited since before.
    pub(crate) is_from_before_reload: bool,
}

impl Operator<'_> {
    /// How far the version is that is to go live, what has become of the last rebuild, and whether that is about what is declared.
    ///
    /// # Errors
    /// No processor of this name has run, or the database does not answer.
    pub(crate) async fn look_at_rebuild(&self, name: &str) -> Result<Look, OperatorError> {
        let tracker = self.find(name).await?;
        let serves = tracker.version;
        let schema = self.trackers().schema().to_owned();
        let mut connection = self.databases.projections.acquire().await?;
        let builds = list_builds(&mut *connection, &schema).await?;
        let build = builds.into_iter().find(|build| build.tracker == Beside::Next.name(name));
        let row = Rebuilds::new(&schema).find(&mut *connection, name).await?;
        let outcome = match row.as_ref().map(|row| (row.version, row.state())) {
            None => Outcome::None,
            Some((_, state)) if state.is_under_way() => Outcome::UnderWay,
            Some((version, state)) => Outcome::Ended { version, is_live: state != State::Aborted },
        };
        let waits = build.as_ref().filter(|build| build.blocked_because.is_some());
        let is_from_before_reload = match waits {
            Some(build) => self.has_reloaded_since(&mut connection, build.updated_at).await?,
            None => false,
        };
        let unbegun = self.find_unbegun(name, serves, (row.as_ref(), build.as_ref()));
        let declared = self.declaration(name).ok();
        let raised: Vec<_> = declared.into_iter().filter(|declared| declared.version > serves).collect();
        let left_out = {
            let layout = &self.databases.layout;
            list_left_out(&mut connection, (layout, layout.upcasts()), &raised).await?.remove(name)
        };
        let settled = declared.filter(|declared| declared.version == serves).map(|_| serves);
        let is_live_otherwise = self.is_live_otherwise(&tracker, row.as_ref());
        let build = build.map(RebuildStatus::from);
        Ok(Look { build, outcome, unbegun, left_out, settled, is_live_otherwise, is_from_before_reload })
    }

    /// Whether the version that serves, which was built beside another one, has other handlers than are declared of it, or had when it
    /// went live. What was altered since by a daemon, whose handlers stay the same, is as it is declared.
    fn is_live_otherwise(&self, tracker: &TrackerRow, row: Option<&RebuildRow>) -> bool {
        let declared = self.declaration(&tracker.name).ok().filter(|one| one.version == tracker.version);
        let Some((declared, row)) = declared.zip(row.filter(|row| row.version == tracker.version)) else {
            return false;
        };
        if !row.has_served() || self.is_built_from(row, declared) {
            return false;
        }
        let handlers = declared.handler_fingerprint(self.databases.layout.upcasts());
        let has_others = tracker.handlers.is_some() && handlers.is_some() && tracker.handlers != handlers;
        let has_changed = tracker.handler_change.as_ref().is_some_and(|change| change.0.at >= row.updated_at);
        has_others || has_changed
    }

    fn find_unbegun(
        &self,
        name: &str,
        serves: i32,
        (row, build): (Option<&RebuildRow>, Option<&Build>),
    ) -> Option<i32> {
        let declaration = self.declaration(name).ok().filter(|declaration| declaration.version > serves)?;
        let is_it = |version: i32| version == declaration.version;
        let is_begun = match row.filter(|row| is_it(row.version)) {
            Some(row) => self.is_built_from(row, declaration),
            // One that cannot begin has no row, and says why.
            None => build.is_some_and(|build| is_it(build.version)),
        };
        (!is_begun).then_some(declaration.version)
    }

    /// Whether a daemon has followed another configuration since, and that is so short ago that it may not have begun yet.
    async fn has_reloaded_since(
        &self,
        connection: &mut PgConnection,
        since: DateTime<Utc>,
    ) -> Result<bool, sqlx::Error> {
        let statement = format!(
            "-- has_reloaded
             select exists (select from {}.reload_requests
               where outcome = 'changed' and answered_at > $1 and answered_at > clock_timestamp() - interval '10 seconds')",
            self.trackers().schema()
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).bind(since);
        match query.fetch_one(connection).await {
            Err(error) if is_missing_right(&error) => Ok(false),
            answer => answer,
        }
    }
}
