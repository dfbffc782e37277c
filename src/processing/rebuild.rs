//! A new version of a projector is built beside the one that serves, and goes live in one transaction.
//!
//! [`State`] is where a rebuild is, and what may follow: a pure table. Its row says so to whoever goes on after a kill. The
//! version that is built has tables in a schema of its own and a tracker under a name of its own ([`Beside`]), so to everything
//! that keeps processors apart it is another processor: it can write no table of the version that serves.

mod approval;
mod commit_times;
mod ddl;
mod difference;
mod indexes;
mod left_aside;
mod left_out;
mod moves;
mod outside;
mod part;
mod place;
mod progress;
mod replay;
mod rights;
mod set_aside;
mod shares;
mod since;
mod snapshots;
mod swap;
mod throttle;
mod unmatched;
mod verification;
mod views;
mod wish;

use std::fmt;

use chrono::{DateTime, Utc};
use serde_json::Value;
use serde_json::value::RawValue;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgExecutor};
use thiserror::Error;

use crate::postgres::name::fitting;
use crate::postgres::row::from_row;

pub(crate) use approval::Compared;
pub(crate) use commit_times::CommitTimes;
pub(crate) use difference::{
    ChangedKey, Columns, Difference, Example, Merged, RowReader, TableDifference, Versions, compare,
    describe_lost, list_lost, merge,
};
pub(crate) use indexes::{defer_indexes, list_deferred_indexes, make_first_index};
pub(crate) use left_aside::LeftAside;
pub(crate) use left_out::{DecidedAgainst, LeftOut, list_left_out, whole_fingerprint};
pub(crate) use part::{AggregateColumn, Aggregates, Part};
pub(crate) use place::{create, drop_place, list_beyond, refuse_qualified_names};
pub(crate) use progress::{
    Blocked, Build, Pace, Phase, Progress, Written, forget_progress, is_alive, key_of_lock, list_builds,
    write_blocked, write_failure, write_progress, write_rest,
};
pub(crate) use replay::{Replay, ReplayError, find_declared};
pub(crate) use rights::{LacksSchemas, RUNS_NO_PROCESSORS, find_missing_on_place, give_to_owner};
pub(crate) use set_aside::{SetAside, SetAsideEvent, count_dead_letters, find_set_aside};
pub(crate) use shares::{
    SHARES_MAX, Share, create_shares, find_obstacle_to_division, join_shares, list_shares,
};
pub(crate) use since::{EventAt, Since, Trace};
pub(crate) use snapshots::{Complete, NewerSnapshot};
pub(crate) use swap::Swap;
pub(crate) use throttle::Throttle;
pub(crate) use verification::{
    KEYS_MAX, Slice, Unverified, Verification, clear_found, forget_unverified, list_unverified,
    list_verifications, note_slice, note_unverified, pace,
};
pub(crate) use views::list_populated_views;
pub(crate) use wish::{Declared, Seen, Wish, decide};

/// Where a rebuild is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Events are handled from the beginning on.
    Building,
    /// The new version was where the serving one was.
    CaughtUp,
    /// The planner has statistics of the new tables.
    Analyzed,
    /// It was compared with the serving version, and nothing differs.
    Verified,
    /// It was compared with the serving version, and something differs.
    Differs,
    /// The new version serves; the former one is kept.
    Live,
    /// What differed was brought into the serving tables.
    Merged,
    /// An operator has given it up.
    Aborted,
}

/// What has happened to a rebuild.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Every event that the serving version has handled is handled.
    CaughtUp,
    /// The new tables were analyzed.
    Analyzed,
    /// The versions were compared.
    Compared {
        /// Whether nothing differs.
        equal: bool,
    },
    /// Names and schemas were exchanged.
    Swapped,
    /// The serving tables were changed to what the new ones are.
    Merged,
    /// An operator has given it up.
    Abandoned,
}

impl State {
    const ALL: [(Self, &str); 8] = [
        (Self::Building, "building"),
        (Self::CaughtUp, "caught_up"),
        (Self::Analyzed, "analyzed"),
        (Self::Verified, "verified"),
        (Self::Differs, "differs"),
        (Self::Live, "live"),
        (Self::Merged, "merged"),
        (Self::Aborted, "aborted"),
    ];

    /// As the table `rebuilds` has it.
    pub(crate) fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(state, _)| *state == self).map_or("", |(_, text)| text)
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == text).map(|(state, _)| *state)
    }

    /// Whether there is a version beside the serving one that has yet to go live.
    pub(crate) fn is_under_way(self) -> bool {
        !matches!(self, Self::Live | Self::Merged | Self::Aborted)
    }

    /// What follows from a finding; `None`: it cannot happen in this state.
    pub(crate) fn after(self, finding: Finding) -> Option<Self> {
        use State::{Aborted, Analyzed, Building, CaughtUp, Differs, Live, Merged, Verified};
        match (self, finding) {
            (Building | CaughtUp, Finding::CaughtUp) => Some(CaughtUp),
            // Whoever goes on after a kill catches up again, which undoes nothing.
            (Analyzed | Verified | Differs, Finding::CaughtUp) => Some(self),
            (CaughtUp | Analyzed | Verified | Differs, Finding::Analyzed) => Some(Analyzed),
            (Analyzed | Verified | Differs, Finding::Compared { equal }) => {
                Some(if equal { Verified } else { Differs })
            }
            (Verified | Differs, Finding::Swapped) => Some(Live),
            (Verified | Differs, Finding::Merged) => Some(Merged),
            // The former version goes live again, and this one is kept: a swap with the roles exchanged.
            (Live, Finding::Swapped) => Some(Live),
            (state, Finding::Abandoned) if state.is_under_way() => Some(Aborted),
            _ => None,
        }
    }
}

/// As people read it, behind `which`.
impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Building => "is being built",
            Self::CaughtUp | Self::Analyzed => "has caught up",
            Self::Verified => "was compared and is equal",
            Self::Differs => "differs",
            Self::Live => "is live",
            Self::Merged => "was merged",
            Self::Aborted => "was given up",
        })
    }
}

/// What a version beside the serving one is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beside {
    /// It is to go live.
    Next,
    /// It shows what a declaration would change.
    DryRun,
    /// It shows whether the serving version is what its events say.
    Verification,
    /// Rows of some aggregates are computed anew in it.
    Part,
    /// It has served before.
    Archived(i32),
}

impl Beside {
    /// Those that are there for as long as somebody looks.
    pub(crate) const TO_LOOK_AT: [Self; 3] = [Self::DryRun, Self::Verification, Self::Part];

    fn suffix(self) -> String {
        match self {
            Self::Next => "next".to_owned(),
            Self::DryRun => "dry".to_owned(),
            Self::Verification => "check".to_owned(),
            Self::Part => "part".to_owned(),
            Self::Archived(version) => format!("{version}"),
        }
    }

    /// The name of its tracker. No declared processor can have it.
    pub(crate) fn name(self, processor: &str) -> String {
        format!("{processor}${}", self.suffix())
    }

    /// The schema of its tables, where those of the serving version are in `schema`.
    pub(crate) fn schema(self, schema: &str, processor: &str) -> String {
        let v = if matches!(self, Self::Archived(_)) { "v" } else { "" };
        fitting(format!("{schema}_{processor}_{v}{}", self.suffix()))
    }
}

/// Why the versions were not exchanged. Nothing has changed then.
#[derive(Debug, Error)]
pub(crate) enum SwapError {
    /// It would take something from others.
    #[error("{0}")]
    Refused(String),
    /// Somebody else has taken over, or the serving version has moved on.
    #[error("the versions have moved on meanwhile")]
    MovedOn,
    /// While it waited for the tables, somebody has changed what is on them.
    #[error("others have changed what is on the tables that serve: try again")]
    Changed,
    /// The database could not do it; 55P03 if others use the tables.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// The row of a rebuild.
#[derive(Debug, Clone)]
pub(crate) struct RebuildRow {
    /// The version that is built, or that has gone live.
    pub(crate) version: i32,
    /// The version that served before.
    pub(crate) from_version: i32,
    state: String,
    /// Fingerprint of tables and handlers.
    pub(crate) fingerprint: String,
    /// Who has started it.
    pub(crate) started_by: String,
    /// Whether a daemon has begun it, or gone on with it, by itself.
    pub(crate) automatic: bool,
    /// Whether an operator has agreed that it goes live.
    pub(crate) is_approved: bool,
    /// What the last comparison has found.
    pub(crate) difference: Option<Json<Value>>,
    /// When that was, or when it went live.
    pub(crate) updated_at: DateTime<Utc>,
}

from_row!(RebuildRow {
    version,
    from_version,
    state,
    fingerprint,
    started_by,
    automatic,
    is_approved,
    difference,
    updated_at
});

impl RebuildRow {
    /// Where the rebuild is. A state that this program does not know counts as given up.
    pub(crate) fn state(&self) -> State {
        State::parse(&self.state).unwrap_or(State::Aborted)
    }

    /// Whether the version has gone live.
    pub(crate) fn has_served(&self) -> bool {
        matches!(self.state(), State::Live | State::Merged)
    }
}

/// The table of rebuilds in one schema.
#[derive(Debug, Clone)]
pub(crate) struct Rebuilds {
    /// The quoted schema.
    schema: String,
}

/// What a rebuild is begun with.
#[derive(Debug)]
pub(crate) struct Begun<'b> {
    pub(crate) processor: &'b str,
    pub(crate) version: i32,
    pub(crate) from_version: i32,
    pub(crate) fingerprint: &'b str,
    pub(crate) building_in: &'b str,
    pub(crate) operator: &'b str,
    /// Whether a daemon begins it by itself.
    pub(crate) automatic: bool,
}

impl Rebuilds {
    /// `schema`: the quoted schema of the trackers.
    pub(crate) fn new(schema: &str) -> Self {
        Self { schema: schema.to_owned() }
    }

    /// The last rebuild of a processor.
    pub(crate) async fn find(
        &self,
        connection: impl PgExecutor<'_>,
        processor: &str,
    ) -> Result<Option<RebuildRow>, sqlx::Error> {
        let statement = format!(
            "-- find_rebuild
             select version, from_version, state, fingerprint, started_by, automatic,
               coalesce(approved_at >= started_at, false) as is_approved, difference, updated_at
             from {}.rebuilds where processor = $1",
            self.schema
        );
        sqlx::query_as(AssertSqlSafe(statement))
            .persistent(false)
            .bind(processor)
            .fetch_optional(connection)
            .await
    }

    /// Records that a rebuild begins. It takes the place of an earlier one, which has ended.
    pub(crate) async fn begin(
        &self,
        connection: impl PgExecutor<'_>,
        begun: &Begun<'_>,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- begin_rebuild
             with logged as (
               select {schema}.log_act($6, 'rebuild', $1, 0, null, null, jsonb_build_object('version', $2::integer))
             )
             insert into {schema}.rebuilds (processor, version, from_version, state, fingerprint, building_in, started_by, automatic)
             select $1, $2, $3, 'building', $4, $5, $6, $7 from logged
             on conflict (processor) do update set version = $2, from_version = $3, state = 'building', fingerprint = $4,
               building_in = $5, archived_in = null, difference = null, started_at = clock_timestamp(), started_by = $6,
               automatic = $7, approved_at = null, approved_by = null,
               updated_at = clock_timestamp()",
            schema = self.schema
        );
        let Begun { processor, version, from_version, fingerprint, building_in, operator, automatic } = begun;
        sqlx::query(AssertSqlSafe(statement))
            .persistent(false)
            .bind(processor)
            .bind(version)
            .bind(from_version)
            .bind(fingerprint)
            .bind(building_in)
            .bind(operator)
            .bind(automatic)
            .execute(connection)
            .await
            .map(drop)
    }

    /// Records that a rebuild was given up, unless it has ended meanwhile. Returns whether it was.
    pub(crate) async fn abandon(
        &self,
        connection: impl PgExecutor<'_>,
        processor: &str,
        version: i32,
    ) -> Result<bool, sqlx::Error> {
        let statement = format!(
            "-- abandon_rebuild
             update {}.rebuilds set state = 'aborted', updated_at = clock_timestamp()
             where processor = $1 and version = $2 and state not in ('live', 'merged', 'aborted')",
            self.schema
        );
        let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(processor).bind(version);
        Ok(query.execute(connection).await?.rows_affected() > 0)
    }

    /// Has the declaration of a rebuild that was given up count as unknown, so that it may be built again.
    pub(crate) async fn forget_fingerprint(
        &self,
        connection: impl PgExecutor<'_>,
        processor: &str,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- forget_fingerprint\nupdate {}.rebuilds set fingerprint = '' where processor = $1 and state = 'aborted'",
            self.schema
        );
        let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(processor);
        query.execute(connection).await.map(drop)
    }

    /// Records that a daemon carries it out by itself, if it is of this version and fingerprint.
    pub(crate) async fn note_automatic(
        &self,
        connection: impl PgExecutor<'_>,
        processor: &str,
        (version, fingerprint): (i32, &str),
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- note_automatic
             update {}.rebuilds set automatic = true
             where processor = $1 and version = $2 and fingerprint = $3 and not automatic",
            self.schema
        );
        let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
        query.bind(processor).bind(version).bind(fingerprint).execute(connection).await.map(drop)
    }

    /// Records where a rebuild is now, unless somebody else has done so meanwhile. Returns whether it was recorded.
    pub(crate) async fn note(
        &self,
        connection: impl PgExecutor<'_>,
        processor: &str,
        (former, state): (State, State),
    ) -> Result<bool, sqlx::Error> {
        let statement = format!(
            "-- note_rebuild
             update {}.rebuilds set state = $2, updated_at = clock_timestamp() where processor = $1 and state = $3",
            self.schema
        );
        let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
        let query = query.bind(processor).bind(state.as_str()).bind(former.as_str());
        Ok(query.execute(connection).await?.rows_affected() > 0)
    }

    /// Records what a comparison has found. Unless `stays_approved`, an approval of what an earlier one has found ends.
    pub(crate) async fn note_compared(
        &self,
        connection: impl PgExecutor<'_>,
        processor: &str,
        found: &RawValue,
        stays_approved: bool,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- note_compared
             update {}.rebuilds set difference = $2, updated_at = clock_timestamp(),
               approved_at = case when $3 then approved_at end, approved_by = case when $3 then approved_by end
             where processor = $1",
            self.schema
        );
        let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
        query.bind(processor).bind(Json(found)).bind(stays_approved).execute(connection).await.map(drop)
    }

    /// Records that `version` serves instead of `former`, whose tables are in `archived_in` now.
    pub(crate) async fn note_live(
        &self,
        connection: impl PgExecutor<'_>,
        processor: &str,
        versions: (i32, i32),
        archived_in: &str,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- note_live
             with told as (delete from {0}.build_progress where processor = $1)
             update {0}.rebuilds set state = 'live', version = $2, from_version = $3, archived_in = $4,
               updated_at = clock_timestamp()
             where processor = $1",
            self.schema
        );
        sqlx::query(AssertSqlSafe(statement))
            .persistent(false)
            .bind(processor)
            .bind(versions.0)
            .bind(versions.1)
            .bind(archived_in)
            .execute(connection)
            .await
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_goes_live_only_after_it_was_compared_and_every_way_there_can_be_given_up() {
        let mut state = State::Building;
        assert_eq!(state.after(Finding::Swapped), None);
        for (finding, expected) in [
            (Finding::CaughtUp, State::CaughtUp),
            (Finding::CaughtUp, State::CaughtUp),
            (Finding::Analyzed, State::Analyzed),
            (Finding::Compared { equal: false }, State::Differs),
            (Finding::CaughtUp, State::Differs),
            (Finding::Analyzed, State::Analyzed),
            (Finding::Compared { equal: true }, State::Verified),
        ] {
            assert!(state.after(Finding::Abandoned) == Some(State::Aborted), "{state}");
            assert!(
                state.after(Finding::Swapped).is_none() == !matches!(state, State::Differs | State::Verified)
            );
            state = state.after(finding).unwrap();
            assert_eq!(state, expected);
        }
        assert_eq!(state.after(Finding::Swapped), Some(State::Live));
        assert_eq!(state.after(Finding::Merged), Some(State::Merged));
        for ended in [State::Live, State::Merged, State::Aborted] {
            assert!(ended.after(Finding::Abandoned).is_none() && !ended.is_under_way());
        }
    }

    #[test]
    fn every_state_is_read_as_it_is_written() {
        for (state, text) in State::ALL {
            assert_eq!((State::parse(text), state.as_str()), (Some(state), text));
        }
    }

    #[test]
    fn versions_beside_have_names_that_nobody_can_declare() {
        assert_eq!(Beside::Next.name("orders"), "orders$next");
        assert!(!crate::postgres::name::is_name(&Beside::Archived(1).name("orders")));
        let is_looked_at =
            |beside: Beside| crate::processing::processor::is_only_looked_at(&beside.name("orders"));
        assert!([Beside::DryRun, Beside::Verification, Beside::Part].into_iter().all(is_looked_at));
        assert!(!is_looked_at(Beside::Next) && !is_looked_at(Beside::Archived(1)));
        assert_eq!(Beside::Archived(1).schema("public", "orders"), "public_orders_v1");
        assert_eq!(Beside::Next.schema("public", &"o".repeat(48)).len(), 60);
    }
}
