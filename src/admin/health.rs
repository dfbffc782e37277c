//! Whether the daemon is alive, and whether it is ready.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::Workers;
use super::answer::{self, Answer, ApiError};
use crate::operations::databases::Databases;
use crate::operations::databases::usable::Unusable;
use crate::operations::databases::ways::Through;
use crate::operations::lock_watch::{describe_end, is_of_lock, observe};
use crate::postgres::error::chain;

/// The supervisor's loop, which runs once a second even if nothing happens, is stuck after this time without a run.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// How long a way through a pooler may take.
pub(super) const THROUGH_TIME: Duration = Duration::from_secs(2);

/// Whether the supervisor's loop runs. Databases do not matter: a restart of the daemon would not repair them.
/// `age` is the time since the last run of the loop; `None`: it has not begun.
pub(super) fn livez(age: Option<Duration>) -> Answer {
    match age {
        None => answer::json(StatusCode::OK, &json!({ "live": true, "starting": true })),
        Some(age) if age < STUCK_AFTER => answer::json(StatusCode::OK, &json!({ "live": true })),
        Some(age) => {
            let error = format!("the supervisor's loop has been stuck for {} s", age.as_secs());
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error, "restart the daemon").into()
        }
    }
}

/// The result of one check; `Err`: what is wrong and what to do.
type Check = Result<Value, (String, String)>;

/// Whether databases, schema and workers are ready. `detailed`: with what is wrong.
pub(super) async fn readyz(
    reached: Result<(Arc<Databases>, Arc<Through>), ApiError>,
    workers: Option<&Workers>,
    detailed: bool,
) -> Answer {
    let (database, schema) = match reached {
        Ok((databases, through)) => match databases.require_usable().await {
            Ok(()) => {
                let (schema, through) =
                    tokio::join!(check_schema(&databases), check_through(&databases, &through));
                (through.map(|()| json!({})), schema)
            }
            Err(Unusable { problem, remedy, answers: true }) => {
                (Err((problem, remedy)), check_schema(&databases).await)
            }
            Err(Unusable { problem, remedy, answers: false }) => {
                let unknown = "not known, because the database does not answer".to_owned();
                (Err((problem, remedy)), Err((unknown, "see `database`".to_owned())))
            }
        },
        Err(error) => {
            let waiting = || "wait until the daemon has started".to_owned();
            (Err((error.error, waiting())), Err(("the database is not known yet".into(), waiting())))
        }
    };
    let checks = [("database", database), ("schema", schema), ("workers", check_workers(workers))];
    let ready = checks.iter().all(|(_, check)| check.is_ok());
    let shown: Map<String, Value> =
        checks.into_iter().map(|(name, check)| (name.to_owned(), show(check, detailed))).collect();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    answer::json(status, &json!({ "ready": ready, "checks": shown }))
}

fn show(check: Check, detailed: bool) -> Value {
    match (check, detailed) {
        (Ok(mut found), true) => {
            found["ok"] = json!(true);
            found
        }
        (Err((error, remedy)), true) => json!({ "ok": false, "error": error, "remedy": remedy }),
        (check, false) => json!({ "ok": check.is_ok() }),
    }
}

/// Nothing is handled where batches cannot go their way, whatever the direct one does.
async fn check_through(databases: &Databases, through: &Through) -> Result<(), (String, String)> {
    let remedy = || "check that the pooler runs and leads to the server".to_owned();
    through.require(databases, THROUGH_TIME).await.map_err(|error| (error, remedy()))
}

async fn check_schema(databases: &Databases) -> Check {
    let (checked, wait) = observe(databases, |_| {}, databases.check_schema()).await;
    checked.map(|()| json!({})).map_err(|error| {
        if is_of_lock(&error) {
            (describe_end(wait.as_ref()), "look at /api/v1/processors".to_owned())
        } else {
            (chain(&error), error.remedy())
        }
    })
}

fn check_workers(workers: Option<&Workers>) -> Check {
    let Some(workers) = workers else {
        return Err(("no worker has been started yet".into(), "wait until the daemon has started".into()));
    };
    let snapshots = workers.snapshots.borrow();
    let down: Vec<&str> =
        snapshots.iter().filter(|worker| worker.pid.is_none()).map(|worker| worker.name.as_str()).collect();
    if !down.is_empty() {
        return Err((
            format!("workers that do not run: {}", down.join(", ")),
            "the daemon's log says why".into(),
        ));
    }
    Ok(json!({ "running": snapshots.len() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_is_stuck_is_not_alive() {
        let status = |age: Option<u64>| livez(age.map(Duration::from_secs)).status().as_u16();
        assert_eq!([None, Some(0), Some(9), Some(10), Some(100)].map(status), [200, 200, 200, 503, 503]);
    }
}
