//! Who waits for a lock says so, and says who holds it: without that, a command only hangs.

use std::error::Error;
use std::time::Duration;

use anyhow::anyhow;
use sqlx::PgPool;

use crate::operations::databases::Databases;
use crate::operations::status::{LockWait, describe_wait, end_wait, find_own_wait};
use crate::postgres::error::find_answer;
use crate::postgres::sqlstate::LOCK_NOT_AVAILABLE;

/// The time before the first look for locks, and the most between two of them.
const LOOK_INTERVALS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Does what a command is for, and tells whenever a session of it waits for a lock, and for whom.
///
/// # Errors
/// Those of the command. Where it has waited for as long as its sessions may, the error says for what.
pub(crate) async fn say_who_locks<T>(
    databases: &Databases,
    tell: impl Fn(&str),
    command: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let mut told = Vec::new();
    let tell = |wait: &LockWait| {
        let pids: Vec<Option<i32>> = wait.held_by.iter().map(|holder| holder.pid).collect();
        if pids != told {
            tell(&format!("this waits for a lock{}", describe_wait(wait)));
            told = pids;
        }
    };
    let (done, seen) = observe(databases, tell, command).await;
    done.map_err(|error| if is_of_lock(&*error) { anyhow!("{}", describe_end(seen.as_ref())) } else { error })
}

/// Whether the database has given up waiting for a lock.
pub(crate) fn is_of_lock(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if find_answer(error).is_some_and(|answer| answer.code().as_deref() == Some(LOCK_NOT_AVAILABLE)) {
            return true;
        }
        next = error.source();
    }
    false
}

/// What keeps somebody waiting who has given up, and what to do.
pub(crate) fn describe_end(seen: Option<&LockWait>) -> String {
    match seen {
        Some(wait) => format!("given up waiting for a lock{}. {}", describe_wait(wait), end_wait(wait)),
        None => "given up waiting for a lock that others hold: try again".to_owned(),
    }
}

/// The outcome of what is done on the databases, and the last lock that it was seen to wait for.
pub(crate) async fn observe<T>(
    databases: &Databases,
    mut tell: impl FnMut(&LockWait),
    work: impl Future<Output = T>,
) -> (T, Option<LockWait>) {
    let (mut work, mut seen, (mut interval, interval_max)) = (Box::pin(work), None, LOOK_INTERVALS);
    loop {
        let look = async {
            tokio::time::sleep(interval).await;
            find_wait(databases).await
        };
        let found = tokio::select! {
            biased;
            done = &mut work => return (done, seen),
            found = look => found,
        };
        match found {
            Some(wait) => {
                tell(&wait);
                seen = Some(wait);
            }
            // What goes on for long is not looked at all the time.
            None => interval = interval_max.min(interval * 2),
        }
    }
}

/// The lock that a session of this program waits for; `None`: none is seen.
async fn find_wait(databases: &Databases) -> Option<LockWait> {
    let find = async |pool: &PgPool| find_own_wait(&mut *pool.acquire().await.ok()?).await.ok()?;
    match find(&databases.projections).await {
        None if databases.elsewhere => find(&databases.events).await,
        found => found,
    }
}
