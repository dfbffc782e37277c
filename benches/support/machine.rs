//! Where the measurements are made.

use std::process::Command;
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use sqlx::PgPool;

use super::results::{Machine, Spread};

/// Single-row commits whose median is the flush time.
const FLUSH_SAMPLES: usize = 200;

static MACHINE: LazyLock<Mutex<Machine>> = LazyLock::new(|| Mutex::new(without_server()));

/// What is known of it: of its server from the time on when that was looked at.
pub(crate) fn machine() -> Machine {
    MACHINE.lock().map_or_else(|poisoned| poisoned.into_inner().clone(), |machine| machine.clone())
}

/// Looks at the server that everything is measured on, and returns the time of a commit of one row by the only connection,
/// which is little more than the disk's flush.
pub(crate) async fn look_at(pool: &PgPool) -> anyhow::Result<Duration> {
    let postgresql = sqlx::query_scalar("select split_part(current_setting('server_version'), ' ', 1)");
    let (postgresql, flush) = (postgresql.fetch_one(pool).await?, flush_time(pool).await?);
    if let Ok(mut machine) = MACHINE.lock() {
        machine.postgresql = postgresql;
        machine.flush_ms = flush.as_secs_f64() * 1_000.0;
    }
    Ok(flush)
}

async fn flush_time(pool: &PgPool) -> anyhow::Result<Duration> {
    let mut connection = pool.acquire().await?;
    sqlx::raw_sql("create table public.flush_samples (n bigint)").execute(&mut *connection).await?;
    let mut seconds = Vec::new();
    for n in 0..FLUSH_SAMPLES {
        let begun = Instant::now();
        let insert = sqlx::query("insert into public.flush_samples values ($1)").bind(n as i64);
        insert.execute(&mut *connection).await?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    sqlx::raw_sql("drop table public.flush_samples").execute(&mut *connection).await?;
    Ok(Duration::from_secs_f64(Spread::of(&seconds).median))
}

fn without_server() -> Machine {
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    Machine { cores, build: build.to_owned(), commit: commit(), ..Machine::default() }
}

/// The commit that is checked out, with `+` where files differ from it; "unknown" where there is no git.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=10", "HEAD"]) else { return "unknown".to_owned() };
    let changed =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|files| !files.is_empty());
    if changed { format!("{commit}+") } else { commit }
}
