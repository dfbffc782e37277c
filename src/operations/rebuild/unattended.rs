//! Builds a version without anybody at hand, as a daemon does: it goes live where its declaration agrees, and otherwise says why
//! not, and what to do.

use sqlx::{AssertSqlSafe, PgConnection};

use super::beginning::{Prepared, unlock_session};
use super::checks::FailedCheck;
use super::preparation::By;
use super::{Beside, Difference, Effort, GoLive, Listener, Rebuilding, Rebuilds, Selection, Way};
use crate::operations::operator::{Operator, OperatorError};
use crate::postgres::literal::simple;
use crate::postgres::row::from_row;
use crate::processing::declaration::{Approve, ProcessorDeclaration};
use crate::processing::rebuild::{
    Blocked, DecidedAgainst, Declared, RebuildRow, Seen, Wish, decide, is_alive, write_blocked, write_failure,
};
use crate::processing::tracker::TrackerRow;

/// For how long a daemon with an older declaration leaves a version alone that nobody builds: whoever did may be starting again. One
/// that waits, for an operator or for another try, or that he has agreed to, is left alone for a day: nobody builds it meanwhile.
const LEFT_ALONE: (&str, &str) = ("1 minute", "1 day");

/// For how long whoever builds may have written nothing before it counts that his daemon is not among those that are alive: it may
/// have begun before it was.
const UNHEARD_OF: &str = "5 seconds";

/// What a daemon does about a build that has failed.
const TRIES_AGAIN: &str = "The daemon tries again by itself, at growing intervals";

/// What has come of a build.
#[derive(Debug)]
pub(crate) enum Built {
    /// The version serves.
    Live {
        /// The version.
        version: i32,
        /// How it has gone live.
        way: Way,
    },
    /// The version waits for an operator.
    Waits(Waits),
    /// Nothing was to be built any more.
    NotWanted,
    /// Somebody has given it up while it was built; that may not be recorded yet.
    GivenUp,
}

/// Why a version does not go live by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waits {
    pub(crate) because: String,
    pub(crate) remedy: String,
}

/// What a daemon does about a projector.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) processor: String,
    pub(crate) wish: Wish,
    /// Whether an operator has agreed to what is built now.
    pub(crate) is_approved: bool,
    /// Whether the declared version is there and waits, or somebody has worked on it just now.
    pub(crate) stands: bool,
}

/// Who has built a version, and whether that is long ago.
struct Trace {
    processor: String,
    has_next: bool,
    /// Whether there is a version that is only looked at: somebody does so now, or was killed.
    has_scratch: bool,
    builder: Option<String>,
    is_left: bool,
    /// Whether its builder is no daemon that is alive.
    is_orphaned: bool,
    is_blocked: bool,
    is_declined: bool,
}

from_row!(Trace { processor, has_next, has_scratch, builder, is_left, is_orphaned, is_blocked, is_declined });

impl Operator<'_> {
    /// What is to be done about the declared projectors.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn list_wanted(&self) -> Result<Vec<Wanted>, OperatorError> {
        let mut connection = self.databases.projections.acquire().await?;
        self.list_wanted_of(&mut connection, None).await
    }

    /// As [`Self::list_wanted`], about one projector.
    async fn list_wanted_of(
        &self,
        connection: &mut PgConnection,
        only: Option<&str>,
    ) -> Result<Vec<Wanted>, OperatorError> {
        let trackers = self.trackers().list(&mut *connection, only).await?;
        let traces = self.list_traces(connection).await?;
        let decided = DecidedAgainst::read(&mut *connection, self.trackers().schema()).await?;
        let rebuilds = Rebuilds::new(self.trackers().schema());
        let mut wanted = Vec::new();
        for declaration in self.declared {
            let name = &declaration.name;
            let Some(tracker) = trackers.iter().find(|tracker| tracker.name == *name) else { continue };
            let trace = traces.iter().find(|trace| trace.processor == *name);
            let has_scratch = trace.is_some_and(|trace| trace.has_scratch);
            let has_traces = has_scratch || trace.is_some_and(|trace| trace.has_next);
            if declaration.version <= tracker.version && !has_traces {
                continue;
            }
            let row = rebuilds.find(&mut *connection, name).await?;
            let fingerprint = self.whole_fingerprint(declaration);
            let is_left_out = decided.find(name, declaration.version, &fingerprint).is_some();
            let wish = self.wish((declaration, &fingerprint), tracker, (row.as_ref(), is_left_out), trace);
            let under_way = row.as_ref().filter(|row| row.state().is_under_way());
            let is_under_way = under_way.is_some();
            let wish = if has_scratch && !is_under_way && wish == Wish::Nothing { Wish::Tidy } else { wish };
            let is_same = under_way.is_some_and(|row| {
                (row.version, row.fingerprint.as_str()) == (declaration.version, fingerprint.as_str())
            });
            let stands = is_same && trace.is_some_and(|trace| trace.is_blocked || !trace.is_left);
            let is_approved = row.is_some_and(|row| row.is_approved);
            // What waits for an operator is looked at as often as what is built: he may agree.
            if wish != Wish::Nothing || is_under_way {
                wanted.push(Wanted { processor: name.clone(), wish, is_approved, stands });
            }
        }
        Ok(wanted)
    }

    fn wish(
        &self,
        (declaration, fingerprint): (&ProcessorDeclaration, &str),
        tracker: &TrackerRow,
        (row, is_left_out): (Option<&RebuildRow>, bool),
        trace: Option<&Trace>,
    ) -> Wish {
        let seen = Seen {
            serves: tracker.version,
            row,
            has_next: trace.is_some_and(|trace| trace.has_next),
            is_mine: trace.and_then(|trace| trace.builder.as_deref()) == Some(self.name),
            is_left: trace.is_none_or(|trace| trace.is_left),
            is_orphaned: trace.is_none_or(|trace| trace.is_orphaned),
            is_declined: trace.is_some_and(|trace| trace.is_declined),
            is_left_out,
        };
        let declared = Declared {
            version: declaration.version,
            fingerprint,
            can_be_built: self.refuse_unsuitable(tracker, declaration, Beside::Next).is_ok(),
        };
        decide(&seen, declared)
    }

    async fn list_traces(&self, connection: &mut PgConnection) -> Result<Vec<Trace>, sqlx::Error> {
        let statement = format!(
            "-- list_traces
             select t.name as processor,
               n.name is not null or b.tracker is not null or coalesce(r.state not in ('live', 'merged', 'aborted'), false) as has_next,
               exists (select from {trackers} as s where s.name in ({scratch}) and s.partition = 0) as has_scratch,
               b.builder,
               coalesce(greatest(b.updated_at, r.approved_at) < clock_timestamp()
                 - case when b.blocked_because is null and not coalesce(r.approved_at >= r.started_at, false)
                        then interval '{}' else interval '{}' end, true) as is_left,
               coalesce(b.updated_at < clock_timestamp() - interval '{UNHEARD_OF}' and not {lives}, true) as is_orphaned,
               b.blocked_because is not null as is_blocked,
               coalesce(not r.automatic and b.blocked_because is not null, false) as is_declined
             from {trackers} as t left join {trackers} as n on n.name = t.name || '$next' and n.partition = 0
               left join {schema}.rebuilds as r on r.processor = t.name
               left join {schema}.build_progress as b on b.tracker = t.name || '$next'
             where strpos(t.name, '$') = 0",
            LEFT_ALONE.0,
            LEFT_ALONE.1,
            trackers = self.trackers().table(),
            schema = self.trackers().schema(),
            lives = is_alive(self.trackers().schema(), "b.builder"),
            scratch = Beside::TO_LOOK_AT.map(|beside| format!("t.name || '{}'", beside.name(""))).join(", ")
        );
        sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await
    }

    /// Gives up what is being built, or removes what a kill has left, unless somebody works on it. Returns the version that was
    /// given up; `None`: only what was left was removed.
    ///
    /// # Errors
    /// [`OperatorError::Building`] if somebody works on it; [`OperatorError::Blocked`] if something is in the way; or the database
    /// does not answer.
    pub(crate) async fn clear_rebuild(
        &self,
        name: &str,
        listener: Listener<'_>,
    ) -> Result<Option<i32>, OperatorError> {
        let mut connection = self.lock_versions_of_living(name, listener).await?;
        let cleared = self.clear_locked(name, &mut connection).await;
        unlock_session(&mut connection, name).await?;
        cleared
    }

    async fn clear_locked(
        &self,
        name: &str,
        connection: &mut PgConnection,
    ) -> Result<Option<i32>, OperatorError> {
        // An operator may have decided otherwise since.
        let wanted = self.list_wanted_of(connection, Some(name)).await?;
        if !wanted.iter().any(|one| matches!(one.wish, Wish::Abandon | Wish::Tidy)) {
            return Ok(None);
        }
        let version = self.give_up(name, false).await?.version;
        if version.is_some() {
            // No operator has decided against it: the same declaration may come back.
            Rebuilds::new(self.trackers().schema()).forget_fingerprint(connection, name).await?;
        }
        Ok(version)
    }

    /// Builds the declared version of a projector, and lets it go live where its declaration agrees. `effort`: how much of
    /// what there is it may take. What keeps it from going on is written down.
    ///
    /// # Errors
    /// As for [`Rebuilding::begin`] and what follows it; the serving version serves as before.
    pub(crate) async fn build_unattended(
        self,
        name: &str,
        effort: Effort,
        listener: Listener<'_>,
    ) -> Result<Built, OperatorError> {
        let mut worker = self.lock_versions_of_living(name, listener).await?;
        // An operator may have given it up since this daemon has decided to build it.
        let wanted = self.list_wanted_of(&mut worker, Some(name)).await;
        let is_wanted = wanted.map(|wanted| wanted.iter().any(|one| one.wish == Wish::Build));
        if !matches!(is_wanted, Ok(true)) {
            unlock_session(&mut worker, name).await?;
            return is_wanted.map(|_| Built::NotWanted);
        }
        let everything = Selection::default();
        let what = (Beside::Next, &everything, By::Daemon);
        self.note_automatic(&mut worker, name).await?;
        match Prepared::find(self, name, what, listener, &mut worker).await {
            Ok(prepared) => {
                let next = prepared.begin(self, Beside::Next, listener, worker);
                let mut next = next.with_effort(effort);
                let built = next.bring_live().await;
                if built.is_err() && self.is_given_up(name).await {
                    let _ = next.end().await;
                    return Ok(Built::GivenUp);
                }
                let remedy = format!("{TRIES_AGAIN}; `espctl rebuild abort {name}` gives it up.");
                let told = match &built {
                    Err(_) if !has_session(&mut next.worker).await => {
                        self.note_blocked_anew(name, &built, remedy).await
                    }
                    _ => self.note_blocked(name, &built, remedy).await,
                };
                let ended = next.end().await;
                // What follows a lost connection says less than why it was lost.
                let built = built?;
                told.and(ended).map(|()| built)
            }
            Err(error) => {
                let built = Err(error);
                let _ = self.note_blocked(name, &built, format!("{TRIES_AGAIN}.")).await;
                let _ = unlock_session(&mut worker, name).await;
                built
            }
        }
    }

    /// Whether somebody has given up what this daemon was building: whatever has failed then is no failure.
    async fn is_given_up(&self, name: &str) -> bool {
        let Ok(mut connection) = self.databases.projections.acquire().await else { return false };
        let found = self.find_version(&mut connection, &Beside::Next.name(name)).await;
        matches!(found, Ok(None))
    }

    /// Records that this daemon goes on by itself with what somebody else may have begun. A failure that is written down otherwise looks
    /// as if an operator had not agreed, and nobody would go on.
    async fn note_automatic(&self, worker: &mut PgConnection, name: &str) -> Result<(), OperatorError> {
        let declaration = self.declaration(name)?;
        let declared = (declaration.version, self.whole_fingerprint(declaration));
        let rebuilds = Rebuilds::new(self.trackers().schema());
        Ok(rebuilds.note_automatic(worker, name, (declared.0, &declared.1)).await?)
    }

    /// As [`Self::note_blocked`], where the session that had the lock is gone, unless somebody else goes on with the version meanwhile.
    async fn note_blocked_anew(
        &self,
        name: &str,
        built: &Result<Built, OperatorError>,
        remedy: String,
    ) -> Result<(), OperatorError> {
        let mut connection = match self.lock_versions(name).await {
            Err(OperatorError::Building { .. }) => return Ok(()),
            locked => locked?,
        };
        let wanted = self.list_wanted_of(&mut connection, Some(name)).await?;
        let told = match wanted.iter().any(|one| one.wish == Wish::Build) {
            true => self.note_blocked(name, built, remedy).await,
            false => Ok(()),
        };
        unlock_session(&mut connection, name).await?;
        told
    }

    /// Writes down why a version does not go on by itself. Whoever writes it has the lock. `remedy` is that of errors.
    async fn note_blocked(
        &self,
        name: &str,
        built: &Result<Built, OperatorError>,
        remedy: String,
    ) -> Result<(), OperatorError> {
        let Waits { because, remedy } = match built {
            Ok(Built::Live { .. } | Built::NotWanted | Built::GivenUp) => return Ok(()),
            Ok(Built::Waits(waits)) => waits.clone(),
            Err(error) => Waits { because: error.to_string(), remedy },
        };
        let blocked = Blocked {
            processor: name,
            version: self.declaration(name)?.version,
            builder: self.name,
            because: &because,
            remedy: &remedy,
        };
        let trackers = self.trackers();
        let tables = (trackers.schema(), trackers.table());
        Ok(write_blocked(&self.databases.projections, tables, &blocked).await?)
    }
}

impl Rebuilding<'_> {
    async fn bring_live(&mut self) -> Result<Built, OperatorError> {
        let name = self.live.name.clone();
        if !self.is_declared_alike().await? {
            // Found out before the work, not after it.
            self.foresee(GoLive::Swap).await?;
        }
        self.catch_up().await?;
        let was_approved = self.is_approved().await?;
        let difference = self.compare().await?;
        let failed = self.run_checks().await?;
        let is_approved = self.is_approved().await?;
        if was_approved && !is_approved {
            (self.listener.note)("what differs now is not what was approved: it has to be approved again");
        }
        let way = self.choose_way(GoLive::Auto, &difference).await?;
        if let Some(waits) = judge((&name, way), self.declaration.approve, is_approved, &difference, &failed)
        {
            return Ok(Built::Waits(waits));
        }
        let way = self.go_live(way, GoLive::Auto).await?;
        Ok(Built::Live { version: self.declaration.version, way })
    }

    /// Whether an operator has agreed to what the last comparison has found.
    async fn is_approved(&mut self) -> Result<bool, OperatorError> {
        let row = self.rebuilds().find(&mut *self.worker, &self.live.name).await?;
        Ok(row.is_some_and(|row| row.is_approved))
    }
}

impl Rebuilding<'_> {
    /// Leaves the version where it is, because the operator has not agreed that it goes live, and writes that down. `way`: how it would.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn decline(&mut self, way: GoLive) -> Result<(), OperatorError> {
        let (trackers, name) = (self.operator.trackers(), self.live.name.clone());
        let because = format!("{} was asked whether it goes live, and has not agreed", self.operator.name);
        let remedy = format!(
            "`espctl rebuild {name}` shows what differs and asks again, `espctl rebuild approve {name}` lets it go live{}, `espctl \
             rebuild abort {name}` gives it up.",
            way.describe(&name)
        );
        let blocked = Blocked {
            processor: &name,
            version: self.declaration.version,
            builder: self.operator.name,
            because: &because,
            remedy: &remedy,
        };
        write_blocked(&mut *self.worker, (trackers.schema(), trackers.table()), &blocked).await?;
        Ok(())
    }

    /// Ends an operator's build that did not succeed, and writes down why, as far as the database takes it.
    pub(crate) async fn end_failed(mut self, because: &str) {
        let schema = self.operator.trackers().schema().to_owned();
        let tracker = self.beside.name(&self.live.name);
        let _ = write_failure(&mut *self.worker, &schema, &tracker, because).await;
        let _ = self.end().await;
    }
}

/// Whether a session is there still, with its lock.
async fn has_session(worker: &mut PgConnection) -> bool {
    simple("-- find_session\nselect 1".to_owned()).execute(worker).await.is_ok()
}

/// Whether a version may go live: `None` if so. `way`: how it would.
fn judge(
    (name, way): (&str, GoLive),
    approve: Approve,
    is_approved: bool,
    difference: &Difference,
    failed: &[FailedCheck],
) -> Option<Waits> {
    if !failed.is_empty() {
        let failed: Vec<String> = failed.iter().map(FailedCheck::describe).collect();
        return Some(Waits {
            because: failed.join("; "),
            remedy: format!(
                "Correct the handlers or the check, then `espctl reload`; `espctl rebuild abort {name}` gives it up."
            ),
        });
    }
    let because = match approve {
        _ if is_approved => return None,
        Approve::Always => return None,
        Approve::WhenVerified if difference.is_as_expected() => return None,
        Approve::WhenVerified => difference.summarise(),
        Approve::Manual => {
            let differs = difference.summarise();
            let but = if differs.is_empty() { "" } else { "; " };
            format!("its declaration says approve = \"manual\"{but}{differs}")
        }
    };
    let remedy = format!(
        "`espctl rebuild {name}` shows what differs, `espctl rebuild approve {name}` lets it go live{}, `espctl rebuild abort {name}` \
         gives it up.",
        way.describe(name)
    );
    Some(Waits { because, remedy })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processing::rebuild::TableDifference;

    fn difference(changed: i64, gone_columns: &[&str]) -> Difference {
        let table = TableDifference {
            table: "orders".into(),
            rows: 10,
            added: 0,
            gone: 0,
            changed,
            changed_columns: vec![],
            other_columns: vec!["twice".into()],
            gone_columns: gone_columns.iter().map(ToString::to_string).collect(),
            retyped_columns: vec![],
            changed_key: None,
            not_compared: vec![],
            same_shape: false,
            key: vec!["id".into()],
            examples: vec![],
        };
        Difference { tables: vec![table], ..Difference::default() }
    }

    #[test]
    fn a_version_goes_live_by_itself_as_its_declaration_says_and_never_with_a_failing_check() {
        let goes = |approve, approved, difference: &Difference| {
            judge(("orders", GoLive::Merge), approve, approved, difference, &[]).is_none()
        };
        let (wider, changed, narrower) = (difference(0, &[]), difference(3, &[]), difference(0, &["n"]));
        assert!(goes(Approve::WhenVerified, false, &wider), "a new column is meant");
        assert!(
            !goes(Approve::WhenVerified, false, &changed) && !goes(Approve::WhenVerified, false, &narrower)
        );
        assert!(goes(Approve::WhenVerified, true, &changed) && goes(Approve::Always, false, &changed));
        assert!(!goes(Approve::Manual, false, &wider) && goes(Approve::Manual, true, &wider));
        let failed = [FailedCheck { name: "no gaps".into(), rows: vec![serde_json::json!({"id": 3})] }];
        let waits = judge(("orders", GoLive::Merge), Approve::Always, true, &wider, &failed).unwrap();
        assert!(waits.because.contains("the check `no gaps` returns id = 3"), "{waits:?}");
    }
}
