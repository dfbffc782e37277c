//! What a build begins with: the lock of the session, then what is found out and made under it.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, PgConnection, Postgres};
use tokio::time::{Instant, sleep};

use super::frozen::VERIFIES_SLICES;
use super::preparation::{By, warn_of_publications};
use super::publications;
use super::{Effort, Listener, Rebuilding, SESSION, Selection, blocked, failed};
use crate::event::Position;
use crate::operations::operator::{Operator, OperatorError};
use crate::postgres::quote::quote_literal;
use crate::processing::declaration::ProcessorDeclaration;
use crate::processing::rebuild::{
    Beside, Complete, LeftAside, Pace, Part, Replay, Throttle, create, find_missing_on_place, give_to_owner,
    key_of_lock, refuse_qualified_names,
};
use crate::processing::tracker::ProcessorKey;

/// For how long a slice is waited for, and how often it is looked.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What a build is begun with, once the lock of the session is taken.
pub(super) struct Prepared {
    pub(super) live: ProcessorKey,
    pub(super) declaration: ProcessorDeclaration,
    pub(super) replay: Replay,
    /// Where the version begins.
    pub(super) start: Position,
    pub(super) live_tables: Vec<String>,
    pub(super) part: Option<Part>,
    pub(super) left_aside: LeftAside,
}

impl Prepared {
    pub(super) async fn find(
        operator: Operator<'_>,
        name: &str,
        (beside, selection, by): (Beside, &Selection, By),
        listener: Listener<'_>,
        worker: &mut PgConnection,
    ) -> Result<Self, OperatorError> {
        let (row, declaration) = (operator.find(name).await?, operator.declaration(name)?.clone());
        operator.refuse_unsuitable(&row, &declaration, beside)?;
        operator.refuse_missing_tables(worker, name).await?;
        operator.refuse_without_tables(worker, name, beside).await?;
        let part = operator.find_part(worker, &declaration, selection).await?;
        let live = row.key();
        let schema = &operator.databases.scope.schema;
        refuse_qualified_names(&declaration, schema).map_err(blocked)?;
        let processor = operator.beside(&declaration, beside, part.as_ref())?;
        let goes_on =
            beside == Beside::Next && operator.find_same(worker, &live, &declaration, listener).await?;
        let building_in = beside.schema(schema, &live.name);
        if goes_on {
            refuse_damaged(worker, &building_in, &declaration).await?;
        } else {
            operator.remove_version(worker, &live.name, beside, declaration.version).await?;
            create(worker, processor.base(), (&live, schema)).await.map_err(blocked)?;
            if beside == Beside::Next {
                warn_of_publications(worker, listener).await?;
                operator.note_begun(worker, &live, &declaration, by).await?;
            }
        }
        let start = processor.base().beginning(worker, &live).await?;
        let live_tables = operator.list_tables(worker, &live.name).await?;
        let is_told = matches!(
            (beside, by, goes_on),
            (Beside::DryRun, ..) | (Beside::Next, By::Operator, _) | (Beside::Next, _, false)
        );
        if is_told {
            publications::tell(worker, (schema, &live_tables), listener).await?;
        }
        let replay = Replay::begin(processor, worker, start).await.map_err(failed)?.beside(&live);
        if beside == Beside::Next {
            give_to_owner(worker, (operator.trackers().schema(), &live.name), &building_in).await?;
        }
        let left_aside = match beside {
            Beside::Verification => {
                let (schema, versions) =
                    (operator.trackers().schema().to_owned(), (&live, &replay.claim().key));
                LeftAside::carry_over(worker, &schema, versions, part.as_ref()).await?
            }
            _ => LeftAside::default(),
        };
        // Its tables are there now.
        if let Some(reason) =
            operator.find_obstacle_to_part(worker, &live.name, beside, part.as_ref()).await?
        {
            operator.remove_version(worker, &live.name, beside, declaration.version).await?;
            return Err(reason);
        }
        Ok(Self { live, declaration, replay, start, live_tables, part, left_aside })
    }

    pub(super) fn begin<'o>(
        self,
        operator: Operator<'o>,
        beside: Beside,
        listener: Listener<'o>,
        worker: PoolConnection<Postgres>,
    ) -> Rebuilding<'o> {
        let Self { live, declaration, replay, start, live_tables, part, left_aside } = self;
        Rebuilding {
            building_in: beside.schema(&operator.databases.scope.schema, &live.name),
            complete: Complete::unknown(),
            operator,
            listener,
            beside,
            live,
            declaration,
            replay,
            start,
            worker,
            live_tables,
            pace: Pace::new(),
            part,
            left_aside,
            effort: Effort::default(),
            room: None,
            throttle: Throttle::default(),
            probe: None,
            is_slowing_told: false,
        }
    }
}

/// Refuses to go on with a version of which something is missing.
async fn refuse_damaged(
    worker: &mut PgConnection,
    building_in: &str,
    declaration: &ProcessorDeclaration,
) -> Result<(), OperatorError> {
    let Some(missing) = find_missing_on_place(worker, building_in).await? else { return Ok(()) };
    let ProcessorDeclaration { name, version, .. } = declaration;
    Err(OperatorError::Blocked(format!(
        "version {version} of {name} cannot be gone on with: {missing}; or `espctl rebuild abort {name}`, as whoever has begun it"
    )))
}

impl Operator<'_> {
    /// A session with the lock that keeps others from building versions of this processor. The lock ends with the session,
    /// however that ends.
    pub(super) async fn lock_versions(&self, name: &str) -> Result<PoolConnection<Postgres>, OperatorError> {
        let mut worker = self.databases.projections.acquire().await?;
        worker.close_on_drop();
        let statement =
            format!("-- lock_rebuild\n{SESSION}; select {}", lock_call("try_advisory_lock", name));
        let row = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_one(&mut *worker).await?;
        let is_locked: bool = sqlx::Row::try_get(&row, 0)?;
        if is_locked { Ok(worker) } else { Err(OperatorError::Building { name: name.to_owned() }) }
    }
}

impl Operator<'_> {
    /// As [`Self::lock_versions`]. Where a daemon verifies a slice just now, it is waited for: that ends soon, and the next one does not
    /// begin at once. A daemon that is frozen is not waited for.
    pub(super) async fn lock_versions_after_slice(
        &self,
        name: &str,
        listener: Listener<'_>,
    ) -> Result<PoolConnection<Postgres>, OperatorError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lock_versions(name).await {
                Err(OperatorError::Building { .. })
                    if Instant::now() < deadline
                        && (self.end_frozen(name, listener).await?
                            || self.is_slice_verified(name).await?) =>
                {
                    sleep(LOOK_INTERVAL).await;
                }
                locked => return locked,
            }
        }
    }

    /// As [`Self::lock_versions`], and has the next try succeed where a frozen daemon has the lock.
    pub(super) async fn lock_versions_of_living(
        &self,
        name: &str,
        listener: Listener<'_>,
    ) -> Result<PoolConnection<Postgres>, OperatorError> {
        let locked = self.lock_versions(name).await;
        if matches!(locked, Err(OperatorError::Building { .. })) {
            self.end_frozen(name, listener).await?;
        }
        locked
    }

    /// Whether who has the lock verifies a slice.
    async fn is_slice_verified(&self, name: &str) -> Result<bool, OperatorError> {
        let statement = format!(
            "-- is_slice_verified
             select exists (select from pg_locks as l join pg_stat_activity as a on a.pid = l.pid
               where l.locktype = 'advisory' and l.objsubid = 1 and l.granted and a.application_name = {}
                 and l.database = (select oid from pg_database where datname = current_database())
                 and (l.classid::bigint << 32) | l.objid::bigint = {})",
            quote_literal(VERIFIES_SLICES),
            key_of_lock(&quote_literal(name))
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
        Ok(query.fetch_one(&self.databases.projections).await?)
    }
}

/// Lets go of the lock of a session.
pub(super) async fn unlock_session(connection: &mut PgConnection, name: &str) -> Result<(), sqlx::Error> {
    let statement = format!("-- unlock_rebuild\nselect {}", lock_call("advisory_unlock", name));
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
}

fn lock_call(function: &str, name: &str) -> String {
    format!("pg_{function}({})", key_of_lock(&quote_literal(name)))
}
