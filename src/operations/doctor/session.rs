//! Poolers between espd and the server, notifications, and timeouts of the server.

use std::time::Duration;

use sqlx::postgres::PgListener;
use sqlx::{Connection as _, PgConnection, PgPool, Row as _};
use uuid::Uuid;

use super::Finding;
use crate::config::Config;
use crate::operations::databases::Databases;
use crate::operations::setting::assign;
use crate::postgres::notify::{EVENTS, notify};

/// How long a notification may take. It takes a millisecond if it arrives at all.
const NOTIFICATION_PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn examine(databases: &Databases, config: &Config) -> anyhow::Result<Vec<Finding>> {
    let pooled = is_pooled(&databases.events).await?;
    let mut findings = vec![if pooled {
        let message = "there is a pooler in transaction mode before the server";
        let remedy = "espd works through it, but notices events sooner with `direct_url`, and `espctl migrate` needs that";
        Finding::warning("pooler", message, remedy)
    } else {
        Finding::ok("pooler", "each connection has a session of its own")
    }];
    findings.push(if hears_notifications(&databases.events).await? {
        Finding::ok("notifications", "notifications arrive")
    } else {
        let message = format!(
            "notifications do not arrive: new events are noticed by polling, after up to {:?}",
            config.runner.poll_interval_max
        );
        Finding::warning("notifications", message, "connect directly, not through a pooler: set `direct_url`")
    });
    findings.push(timeouts(&databases.projections, config.runner.batch.time).await?);
    Ok(findings)
}

/// Whether one connection gets two sessions, if another connection takes a session in between.
async fn is_pooled(pool: &PgPool) -> anyhow::Result<bool> {
    let mut ours = pool.acquire().await?;
    let mut other = pool.acquire().await?;
    let before = read_pid(&mut ours).await?;
    // A pooler gives the session that has just become free to the next transaction.
    let mut transaction = other.begin().await?;
    let others = read_pid(&mut transaction).await?;
    let after = read_pid(&mut ours).await?;
    transaction.rollback().await?;
    Ok(before != after || before == others)
}

async fn read_pid(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    sqlx::raw_sql("-- read_pid\nselect pg_backend_pid() as pid").fetch_one(connection).await?.try_get("pid")
}

async fn hears_notifications(pool: &PgPool) -> anyhow::Result<bool> {
    let channel = format!("espd_doctor_{}", Uuid::new_v4().simple());
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(&channel).await?;
    notify(pool, &channel, EVENTS).await?;
    Ok(tokio::time::timeout(NOTIFICATION_PATIENCE, listener.recv()).await.is_ok_and(|heard| heard.is_ok()))
}

/// Whether timeouts of the server end sessions or batches of a healthy worker.
async fn timeouts(pool: &PgPool, batch: Duration) -> anyhow::Result<Finding> {
    let statement = "
        -- read_timeouts
        select name, setting::bigint as milliseconds, source, quote_ident(current_database()) as database,
               quote_ident(session_user) as login from pg_settings
        where name in ('statement_timeout', 'idle_session_timeout', 'transaction_timeout') and setting <> '0'
        order by name";
    // A batch exceeds its time by the event that is being handled then.
    let tight = i64::try_from(batch.as_millis()).unwrap_or(i64::MAX).saturating_mul(5);
    for row in sqlx::raw_sql(statement).fetch_all(pool).await? {
        let (name, milliseconds): (String, i64) = (row.try_get("name")?, row.try_get("milliseconds")?);
        if name == "idle_session_timeout" || milliseconds < tight {
            let ends = match name.as_str() {
                // Batches run without it.
                "statement_timeout" => "what the daemon says of its workers, and commands of espctl",
                _ => "batches or waiting workers",
            };
            let message = format!("{name} is {milliseconds} ms for this role and ends {ends}");
            let (database, login): (String, String) = (row.try_get("database")?, row.try_get("login")?);
            let remedy = assign(row.try_get("source")?, &database, &login, &format!("{name} = 0"));
            return Ok(Finding::warning("timeouts", message, remedy));
        }
    }
    Ok(Finding::ok("timeouts", "no timeout of the server ends a healthy worker"))
}
