//! Has a version go live: by exchanging the tables, or by bringing what differs into those that serve.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::time::{Instant, sleep};

use super::{Beside, Finding, Phase, Rebuilding, function_names};
use crate::handlers::sql::share_function_names;
use crate::operations::operator::{OperatorError, name_session};
use crate::operations::status::LockWait;
use crate::postgres::quote::quote_literal;
use crate::postgres::server_mark::READ_COMMITTED;
use crate::postgres::sqlstate::{describe, is_lock_timeout};
use crate::processing::dead_letters::DeadLetters;
use crate::processing::processor::{forget_planned_dependents, were_made_from_other};
use crate::processing::rebuild::{
    Difference, Merged, NewerSnapshot, Swap, SwapError, list_populated_views, merge,
};

/// For how long locks, and older snapshots, may keep a version from going live.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pause after the first attempt; each one is longer than the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Likewise, where others have the tables.
const LONGEST_LOCK_PAUSE: Duration = Duration::from_millis(300);

/// How long the transaction that changes the serving tables may take: the processor stands still meanwhile.
pub(super) const MERGE_LIMIT: &str = "60s";

/// How many rows may differ where the difference is brought into the serving tables by itself.
const MERGED_ROWS: i64 = 50_000;

/// The time between two looks for older snapshots while the serving version stands still.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// How a version goes live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum GoLive {
    /// By merging where the tables are declared alike and little differs, by swapping otherwise
    #[default]
    Auto,
    /// By bringing what differs into the tables that serve
    Merge,
    /// By exchanging the tables
    Swap,
}

impl GoLive {
    /// As the table `rebuilds` has it, once it is decided.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Merge => "merge",
            Self::Auto | Self::Swap => "swap",
        }
    }

    /// What a comparison has kept; `None`: one of before, which has kept nothing of it.
    pub(crate) fn of_compared(found: &serde_json::Value) -> Option<Self> {
        [Self::Merge, Self::Swap].into_iter().find(|way| found["way"] == way.as_str())
    }

    /// How a version goes live, behind a verb.
    pub(crate) fn describe(self, name: &str) -> String {
        match self {
            Self::Merge => format!(
                " by changing what differs in the tables that serve, after which no rollback leads back (`espctl rebuild {name} \
                 --go-live swap` keeps the former ones)"
            ),
            Self::Auto | Self::Swap => String::new(),
        }
    }
}

/// What has come of an attempt to exchange the tables.
enum Tried {
    /// The former tables are in this schema.
    Exchanged(String),
    /// These transactions would see the new tables without rows.
    Older(Vec<NewerSnapshot>),
    /// Others have changed something meanwhile.
    Changed,
    /// Others have locks.
    Locked(Option<LockWait>),
}

/// How a version has gone live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    /// This many rows of the serving tables were changed.
    Merged(u64),
    /// The former tables are in this schema.
    Swapped(String),
}

impl Rebuilding<'_> {
    /// What others have made on the serving tables and what a swap would be refused for, in words, before anything is built.
    ///
    /// # Errors
    /// [`OperatorError::Rebuild`] if an operator wants to swap, and there is something.
    pub(crate) async fn foresee(&mut self, wanted: GoLive) -> Result<Option<String>, OperatorError> {
        let projections = self.operator.databases.projections.clone();
        let mut connection = projections.acquire().await?;
        let mut transaction = connection.begin_with(READ_COMMITTED).await?;
        let refusal = self.as_swap(self.replay.claim()).find_obstacles(&mut transaction).await?;
        transaction.rollback().await?;
        match refusal {
            Some(refusal) if wanted == GoLive::Swap => Err(OperatorError::Rebuild(refusal)),
            refusal => Ok(refusal),
        }
    }

    /// What a swap would be refused for, in words, where the tables are declared otherwise, so that nothing but a swap is left.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn foresee_swap(&mut self) -> Result<Option<String>, OperatorError> {
        if self.is_declared_alike().await? { Ok(None) } else { self.foresee(GoLive::Auto).await }
    }

    /// Which way a version goes live. `wanted` is what an operator has asked for.
    ///
    /// # Errors
    /// [`OperatorError::Blocked`] if the tables are not alike, and the operator wants to merge.
    pub(crate) async fn choose_way(
        &mut self,
        wanted: GoLive,
        difference: &Difference,
    ) -> Result<GoLive, OperatorError> {
        let alike = difference.same_shape() && self.is_declared_alike().await?;
        let few = |rows: i64, number: i64| number <= MERGED_ROWS.max(rows / 20);
        let little = difference.tables.iter().all(|table| few(table.rows, table.number()));
        match wanted {
            GoLive::Swap => Ok(GoLive::Swap),
            GoLive::Auto => Ok(if alike && little { GoLive::Merge } else { GoLive::Swap }),
            GoLive::Merge if alike => Ok(GoLive::Merge),
            GoLive::Merge => Err(OperatorError::Blocked(format!(
                "the tables of the two versions of {} are not declared alike, or have no primary key, or columns that no replay \
                 can make again: the difference cannot be merged; --go-live swap exchanges the tables",
                self.live.name
            ))),
        }
    }

    /// Whether the tables that serve were made from what is declared.
    pub(super) async fn is_declared_alike(&mut self) -> Result<bool, OperatorError> {
        let mut as_live = self.declaration.clone();
        as_live.version = self.live.version;
        let schema = self.operator.databases.layout.schema();
        Ok(!were_made_from_other(&mut self.worker, schema, &as_live).await?)
    }

    /// Has the version go live. The caller has compared it, and chosen the way for what was `wanted`. What cannot be merged is
    /// swapped, unless an operator wants to merge.
    ///
    /// # Errors
    /// [`OperatorError::Locked`] if others had the tables for the whole time; [`OperatorError::Rebuild`] if something of others would
    /// be lost, or somebody's snapshot is too old. The former version serves as before then.
    pub(crate) async fn go_live(&mut self, way: GoLive, wanted: GoLive) -> Result<Way, OperatorError> {
        // Whoever was asked may have taken hours to answer: what has come since is handled while the serving version goes on.
        self.follow().await?;
        self.refuse_other_store().await?;
        self.make_indexes().await?;
        let later = self.find_later().await?;
        self.enter(Phase::GoingLive).await?;
        self.require(if way == GoLive::Merge { Finding::Merged } else { Finding::Swapped }).await?;
        let merged = match way {
            GoLive::Merge => Some(self.merge().await?),
            GoLive::Auto | GoLive::Swap => None,
        };
        let gone_live = match merged {
            Some(Ok(rows)) => Way::Merged(rows),
            Some(Err(because)) if wanted == GoLive::Merge => {
                return Err(OperatorError::Rebuild(format!(
                    "what differs cannot be merged into the tables of {}, which are as they were: {because}; --go-live swap \
                     exchanges them",
                    self.live.name
                )));
            }
            Some(Err(because)) => {
                (self.listener.note)(&format!("cannot be merged, so the tables are exchanged: {because}"));
                Way::Swapped(self.swap().await?)
            }
            None => Way::Swapped(self.swap().await?),
        };
        self.give_up_later(later).await?;
        self.operator.databases.notify_runners().await;
        Ok(gone_live)
    }

    async fn swap(&mut self) -> Result<String, OperatorError> {
        let projections = self.operator.databases.projections.clone();
        let mut connection = projections.acquire().await?;
        name_session(&mut connection, Some(&self.live.name)).await?;
        let outcome = match self.refresh_views(&mut connection).await {
            Ok(()) => self.swap_in_turn(&mut connection).await,
            Err(error) => Err(error),
        };
        // The session goes back to the pool.
        name_session(&mut connection, None).await?;
        forget_planned_dependents(&mut connection).await?;
        outcome
    }

    /// Has the materialized views that DDL has made show what there is: they were made when the tables were empty, or have stood still
    /// since they served.
    async fn refresh_views(&self, connection: &mut PgConnection) -> Result<(), OperatorError> {
        for view in list_populated_views(connection, &self.building_in).await? {
            let statement = format!("-- refresh_view\nrefresh materialized view {view}");
            let refreshed = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *connection).await;
            refreshed.map_err(|error| match error {
                sqlx::Error::Database(answer) => OperatorError::Rebuild(format!(
                    "materialized view {view} cannot be refreshed: {}",
                    answer.message()
                )),
                error => error.into(),
            })?;
        }
        Ok(())
    }

    async fn swap_in_turn(&mut self, connection: &mut PgConnection) -> Result<String, OperatorError> {
        let (deadline, mut pause) = (Instant::now() + PATIENCE, FIRST_PAUSE);
        if let Some(refusal) = self.as_swap(self.replay.claim()).find_obstacles(connection).await? {
            return Err(OperatorError::Rebuild(refusal));
        }
        loop {
            self.approach().await?;
            let mut older = NewerSnapshot::list_older(connection, self.complete).await?;
            let mut wait = None;
            // Short reads follow one another all the time: those that are there now end while the serving version stands still for them.
            if !older.iter().any(|one| one.had_lasted(pause, self.complete)) {
                older.clear();
                match self.attempt(connection, pause).await? {
                    Tried::Exchanged(archive) => return Ok(archive),
                    Tried::Older(found) => older = found,
                    Tried::Locked(found) => wait = found,
                    Tried::Changed => {}
                }
            }
            if Instant::now() >= deadline {
                return Err(self.given_up(&older, wait));
            }
            self.tell_wait(&older, wait.as_ref()).await?;
            // A moment in which nobody has the tables is met by trying often.
            sleep(if wait.is_some() { pause.min(LONGEST_LOCK_PAUSE) } else { pause }).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Has the version beside reach the serving one, which goes on meanwhile.
    async fn approach(&mut self) -> Result<(), OperatorError> {
        let target = self.operator.find_position(&mut self.worker, &self.live).await?;
        let reached = self.replay.reach(&mut self.worker, target).await;
        reached.map_err(|error| self.failed(error))?;
        Ok(self.note_complete().await?)
    }

    /// Tries once. `patience`: for how long the serving version may stand still for those who would miss rows.
    async fn attempt(
        &mut self,
        connection: &mut PgConnection,
        patience: Duration,
    ) -> Result<Tried, OperatorError> {
        let (operator, name) = (self.operator, self.live.name.clone());
        let (outcome, wait) = operator.observe(&name, self.swap_once(connection, patience)).await;
        match outcome {
            Err(OperatorError::Database(error)) if is_lock_timeout(&error) => Ok(Tried::Locked(match wait {
                Some(wait) => Some(wait),
                None => operator.find_reset_wait(&name).await,
            })),
            outcome => outcome,
        }
    }

    async fn swap_once(
        &mut self,
        connection: &mut PgConnection,
        patience: Duration,
    ) -> Result<Tried, OperatorError> {
        let mut transaction = connection.begin_with(READ_COMMITTED).await?;
        let tried = self.swap_within(&mut transaction, patience).await;
        match tried {
            Ok(Tried::Exchanged(_)) => transaction.commit().await?,
            // Now: others wait for its locks.
            _ => transaction.rollback().await?,
        }
        tried
    }

    async fn swap_within(
        &mut self,
        transaction: &mut PgConnection,
        patience: Duration,
    ) -> Result<Tried, OperatorError> {
        self.hold_live(transaction).await?;
        let older = self.await_snapshots(transaction, patience).await?;
        if !older.is_empty() {
            return Ok(Tried::Older(older));
        }
        let archived = Beside::Archived(self.live.version);
        if archived != self.beside {
            // Of the same version. It is there as long as nothing has taken its place.
            let limit = "-- limit_waits\nset local lock_timeout = '100ms'";
            sqlx::raw_sql(limit).execute(&mut *transaction).await?;
            let former = (archived, self.live.version);
            self.operator.remove_within(transaction, &self.live.name, former, false).await?;
        }
        let claim = self.replay.claim().clone();
        match self.as_swap(&claim).run(transaction).await {
            Ok(archive) => Ok(Tried::Exchanged(archive)),
            Err(SwapError::Changed) => Ok(Tried::Changed),
            Err(SwapError::Database(error)) => Err(error.into()),
            Err(error @ (SwapError::Refused(_) | SwapError::MovedOn)) => {
                Err(OperatorError::Rebuild(error.to_string()))
            }
        }
    }

    /// Waits a little for the snapshots from between the last events of the serving version, which the transaction has locked, and the
    /// rows that the version beside has for them. Nobody else waits meanwhile. Returns those that are there still.
    async fn await_snapshots(
        &mut self,
        transaction: &mut PgConnection,
        patience: Duration,
    ) -> Result<Vec<NewerSnapshot>, OperatorError> {
        self.note_complete().await?;
        let deadline = Instant::now() + patience;
        let mut older = NewerSnapshot::list_older(transaction, self.complete).await?;
        while !older.is_empty() && Instant::now() < deadline {
            sleep(LOOK_INTERVAL).await;
            let now = NewerSnapshot::list_older(transaction, self.complete).await?;
            // Whoever has had none at some moment has only later ones.
            older.retain(|one| now.iter().any(|other| other.pid == one.pid));
        }
        Ok(older)
    }

    fn as_swap<'s>(&'s self, claim: &'s crate::processing::tracker::Claim) -> Swap<'s> {
        Swap {
            trackers: self.replay.trackers(),
            live: &self.live,
            claim,
            schema: &self.operator.databases.scope.schema,
            building_in: &self.building_in,
            operator: self.operator.name,
            is_new: matches!(self.beside, Beside::Next | Beside::DryRun),
            functions: function_names(&claim.key.name, claim.key.version)
                .into_iter()
                .chain(share_function_names(&claim.key.name, claim.key.version))
                .collect(),
        }
    }

    /// Says what it waits for, to who listens and in the status.
    async fn tell_wait(
        &mut self,
        older: &[NewerSnapshot],
        wait: Option<&LockWait>,
    ) -> Result<(), OperatorError> {
        let because = if let Some(first) = older.first() {
            format!(
                "a transaction is open that would see the new tables as they were before they were complete: {}",
                first.describe()
            )
        } else if let Some(wait) = wait {
            format!("others have a lock{}", crate::operations::status::describe_wait(wait))
        } else {
            return Ok(());
        };
        (self.listener.note)(&format!("waits, because {because}"));
        let target = self.replay.position();
        self.write(Phase::GoingLive, target, Some(&because)).await.map(drop)
    }

    fn given_up(&self, older: &[NewerSnapshot], wait: Option<LockWait>) -> OperatorError {
        let name = self.live.name.clone();
        if older.is_empty() {
            return OperatorError::Locked { name, limit: PATIENCE, wait: wait.map(Box::new) };
        }
        let older: Vec<String> = older.iter().map(NewerSnapshot::describe).collect();
        OperatorError::Rebuild(format!(
            "{name} serves version {} as before: transactions are open that would see the new tables as they were before they were \
             complete: {}. Wait for them, or end them",
            self.live.version,
            older.join("; ")
        ))
    }

    /// Changes the serving tables to what the new ones are, in one transaction. The inner error says why that cannot be.
    async fn merge(&mut self) -> Result<Result<u64, String>, OperatorError> {
        let projections = self.operator.databases.projections.clone();
        let mut connection = projections.acquire().await?;
        let mut transaction = connection.begin_with(READ_COMMITTED).await?;
        self.hold_live(&mut transaction).await?;
        let claim = self.replay.claim().clone();
        let trackers = self.operator.trackers();
        if !trackers.lock_claimed(&mut transaction, &claim).await? {
            return Err(OperatorError::Rebuild("somebody else works on this version now".to_owned()));
        }
        self.enter_merge(&mut transaction).await?;
        let schemas = (self.operator.databases.scope.schema.as_str(), self.building_in.as_str());
        let changed = match merge(&mut transaction, &self.declaration.table_names(), schemas, None).await {
            Ok(Merged::Rows(changed)) => changed,
            Ok(Merged::Differs) => {
                let because = "triggers, rules or foreign keys on them change more than what differs";
                return Ok(Err(because.to_owned()));
            }
            Err(error) if is_about_rows(&error) => return Ok(Err(describe(&error))),
            Err(error) => return Err(error.into()),
        };
        DeadLetters::new(&trackers).keep_ages(&mut transaction, &self.live, &claim.key).await?;
        let statement = format!(
            "-- merge_versions\nselect {}.merge_versions($1, {}, {}, {}, {}, $2)",
            trackers.schema(),
            quote_literal(&self.live.name),
            self.live.version,
            quote_literal(&claim.key.name),
            claim.key.version
        );
        sqlx::query(AssertSqlSafe(statement))
            .persistent(false)
            .bind(self.operator.name)
            .bind(i64::try_from(changed).unwrap_or(i64::MAX))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        let (operator, name) = (self.operator, self.live.name.clone());
        operator.remove_version(&mut self.worker, &name, self.beside, self.declaration.version).await?;
        Ok(Ok(changed))
    }
}

/// Whether a constraint has refused the order in which rows are changed, or there were too many for the time.
fn is_about_rows(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|answer| answer.code());
    code.is_some_and(|code| code.starts_with("23") || code == "57014")
}
