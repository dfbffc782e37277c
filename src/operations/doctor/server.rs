//! The server: whether acknowledged data survives a crash, and whether there are free connections.

use sqlx::{PgPool, Row as _};

use super::Finding;
use crate::config::Config;
use crate::operations::connections;
use crate::operations::databases::Databases;
use crate::operations::databases::usable::{Restriction, find_restriction};
use crate::operations::setting::assign;

/// The settings that decide what survives a crash, and what is lost if they are off.
const DURABILITY: [(&str, &str); 3] = [
    ("fsync", "a crash of the machine may corrupt the whole server"),
    ("full_page_writes", "a crash of the machine may leave torn pages"),
    (
        "synchronous_commit",
        "a crash of the server loses the last transactions that were acknowledged. An event may be among them that a \
         reactor has acted on, and its id may be given to another event. What espd commits itself about events that were \
         handled (rows, positions, emissions, deliveries, dead letters) is written to disk all the same",
    ),
];

pub(super) async fn examine(pool: &PgPool, what: &str) -> anyhow::Result<Vec<Finding>> {
    let statement = "
        -- describe_server
        select current_setting('server_version') as version, current_database()::text as database,
               current_user::text as role, current_setting('server_encoding') as encoding,
               (select rolsuper from pg_roles where rolname = current_user) as is_superuser";
    let row = sqlx::raw_sql(statement).fetch_one(pool).await?;
    let (version, database): (String, String) = (row.try_get("version")?, row.try_get("database")?);
    let role: String = row.try_get("role")?;
    let connected = format!("{what}: database {database} on PostgreSQL {version}, as role {role}");
    let mut findings = vec![Finding::ok("connection", connected)];
    findings.extend(durability(pool).await?);
    findings.push(encoding(row.try_get("encoding")?));
    findings.push(superuser(&role, row.try_get("is_superuser")?));
    findings.push(clock(pool).await?);
    Ok(findings)
}

/// Whether what is handled can be written.
pub(super) async fn examine_writes(pool: &PgPool) -> anyhow::Result<Vec<Finding>> {
    Ok(vec![match find_restriction(pool).await? {
        None => Finding::ok("writes", "transactions may write"),
        Some(Restriction { unusable, .. }) => Finding::failure("writes", unusable.problem, unusable.remedy),
    }])
}

/// As [`examine_writes`], of the events beside a database of the projections: projectors only read them.
pub(super) async fn examine_events_beside(pool: &PgPool) -> anyhow::Result<Vec<Finding>> {
    let found = find_restriction(pool).await?.map(|Restriction { unusable, is_standby, .. }| {
        let message = format!("the event store: {}", unusable.problem);
        if is_standby {
            Finding::failure("writes", message, unusable.remedy)
        } else {
            let message = format!("{message}. What reactors emit, and what is scheduled, is not appended");
            Finding::warning("writes", message, unusable.remedy)
        }
    });
    Ok(found.into_iter().collect())
}

async fn durability(pool: &PgPool) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (setting, loss) in DURABILITY {
        let statement = "-- read_setting\nselect setting, source, quote_ident(current_database()) as database, \
             quote_ident(session_user) as login from pg_settings where name = $1";
        let row = sqlx::query(statement).bind(setting).fetch_one(pool).await?;
        if row.try_get::<String, _>("setting")? != "off" {
            continue;
        }
        let (database, login): (String, String) = (row.try_get("database")?, row.try_get("login")?);
        let remedy = assign(row.try_get("source")?, &database, &login, &format!("{setting} = on"));
        let message = format!("{setting} is off: {loss}");
        findings.push(match setting {
            "synchronous_commit" => Finding::warning("durability", message, remedy),
            _ => Finding::failure("durability", message, remedy),
        });
    }
    if findings.is_empty() {
        findings.push(Finding::ok("durability", "what the server acknowledges survives a crash"));
    }
    Ok(findings)
}

fn encoding(encoding: &str) -> Finding {
    if encoding == "UTF8" {
        return Finding::ok("encoding", "UTF8");
    }
    let message =
        format!("the database has the encoding {encoding}, which cannot store every character of JSON");
    Finding::warning("encoding", message, "move to a database created with `encoding 'UTF8'`")
}

fn superuser(role: &str, is_superuser: bool) -> Finding {
    if !is_superuser {
        return Finding::ok("role", format!("{role} is not a superuser"));
    }
    let message = format!("{role} is a superuser: a mistake in a handler can destroy everything");
    Finding::warning("role", message, "connect as a role created with `espctl roles`, see docs/roles.md")
}

/// Whether the server has the connections that the configuration needs.
pub(super) async fn examine_connections(
    config: &Config,
    databases: &Databases,
) -> anyhow::Result<Vec<Finding>> {
    let (message, is_enough) = connections::explain(config, databases).await?;
    Ok(vec![if is_enough {
        Finding::ok("connections", message)
    } else {
        let remedy = "raise max_connections, or let processors share a worker (`isolation`)";
        Finding::warning("connections", message, remedy)
    }])
}

/// The server's clock against this machine's. Leases use the server's clock only, but ages are shown by both.
async fn clock(pool: &PgPool) -> anyhow::Result<Finding> {
    /// The accepted difference in milliseconds: more than a slow network explains.
    const TOLERANCE: i64 = 2_000;
    let before = chrono::Utc::now();
    let server: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("-- read_clock\nselect clock_timestamp()").fetch_one(pool).await?;
    let after = chrono::Utc::now();
    let middle = before + (after - before) / 2;
    let difference = (server - middle).num_milliseconds();
    let slack = (after - before).num_milliseconds() / 2;
    let message = format!("the server's clock differs from this machine's by {difference} ms");
    if difference.abs() <= TOLERANCE + slack {
        return Ok(Finding::ok("clock", message));
    }
    let remedy = "synchronise both machines with a time server; until then ages and times of retries are shown wrongly";
    Ok(Finding::warning("clock", message, remedy))
}
