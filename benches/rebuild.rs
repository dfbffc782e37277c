//! Versions side by side: how fast one is built, what that costs those who append, how long a proof takes that tables are what
//! their events say, and how long readers wait while two versions change places.
//!
//! `cargo bench --bench rebuild`, or one part of it: `cargo bench --bench rebuild -- --part appends`; docs/benchmarks.md says what the figures mean. Takes a quarter of an hour and 10 GB of disk.

#[path = "rebuild/appends.rs"]
mod appends;
#[path = "rebuild/building.rs"]
mod building;
#[path = "rebuild/reader.rs"]
mod reader;
mod support;
#[path = "rebuild/swaps.rs"]
mod swaps;
#[path = "rebuild/verification.rs"]
mod verification;
#[path = "rebuild/workers.rs"]
mod workers;

use support::{Arguments, Server};

/// The reference workload: one table, a row from TodoAdded until TodoCompleted or TodoAbandoned.
const PROJECTOR: &str = include_str!("../config/processors/outstanding_todos.toml");

/// The settings of each server, so that no checkpoint falls into one contestant's time alone.
const SETTINGS: &[(&str, &str)] = &[("max_wal_size", "4GB")];

/// What it measures.
const PARTS: [&str; 5] = ["building", "workers", "verification", "appends", "swaps"];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read_with_parts(&PARTS)?;
    for part in PARTS.into_iter().filter(|part| arguments.wants(part)) {
        match part {
            "building" => building::measure(arguments).await?,
            "workers" => workers::measure(arguments).await?,
            "verification" => verification::measure(arguments).await?,
            "appends" => appends::measure(arguments).await?,
            _ => swaps::measure(arguments).await?,
        }
    }
    Ok(())
}

/// The projector of the reference workload in a version.
fn projector(version: i32) -> String {
    PROJECTOR.replace("version = 1", &format!("version = {version}"))
}

/// Has a daemon make the tables of the first version and handle everything.
async fn follow_to(
    server: &Server,
    installation: &support::Installation,
    position: i64,
) -> anyhow::Result<()> {
    let daemon = installation.start()?;
    wait_until_position(server, position).await?;
    daemon.stop()
}

/// Waits until the version that serves has handled everything up to a position.
async fn wait_until_position(server: &Server, position: i64) -> anyhow::Result<()> {
    let statement = "select coalesce(min(position), 0) from espd.trackers where strpos(name, '$') = 0";
    wait_until(server, &format!("{statement} having min(position) >= {position}"), "a position").await
}

/// Waits until a query returns a row.
async fn wait_until(server: &Server, query: &str, what: &str) -> anyhow::Result<()> {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(1_800);
    loop {
        let query = sqlx::query(sqlx::AssertSqlSafe(query));
        if query.fetch_optional(&server.pool).await?.is_some() {
            return Ok(());
        }
        anyhow::ensure!(std::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// The rows of a table, in few letters.
async fn fingerprint(server: &Server, table: &str) -> anyhow::Result<String> {
    let statement = format!(
        "select count(*) || ' rows, ' || md5(string_agg(t::text, '' order by todo_id)) from {table} t"
    );
    Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_one(&server.pool).await?)
}
