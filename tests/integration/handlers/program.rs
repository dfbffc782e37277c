//! Processors whose events a program handles, on real programs: whatever they do, nothing is lost and nothing doubled.

mod check;
mod clock;
mod confinement;
mod deaths;
mod examples;
mod odd_rows;
mod overlap;
mod policies;
mod reactors;
mod refused_text;
mod wrong_answers;

use sqlx::{AssertSqlSafe, PgPool};

use crate::support::program::Installation;

/// A worker that counts, and misbehaves on demand.
const COUNTING: &str = include_str!("program/counting.py");

/// Waits shortly, so that tests do.
const SETTINGS: &str = "[retry]\ninitial = '50ms'\nmax = '200ms'\n";

/// Adds a projector with a worker that counts events of type `A` in a table of its own name, and misbehaves as `mode`
/// says. `keys` are further lines of the declaration.
pub fn declare_counting(installation: &Installation, name: &str, mode: &str, keys: &str) {
    std::fs::write(installation.path().join("processors/counting.py"), COUNTING).unwrap();
    installation.declare(
        name,
        &format!(
            "[projector]\nname = '{name}'\nevents = ['A']\n\
             command = ['python3', 'counting.py', '{mode}', '{name}']\n{keys}\n\
             [projector.tables]\n\
             {name} = 'event_id bigint primary key, place bigint not null check (place > 0)'\n\
             {name}_total = 'id int primary key, total bigint not null'\n"
        ),
    );
}

/// Tells all counting workers of a folder to behave.
fn heal(installation: &Installation) {
    std::fs::write(installation.path().join("processors/healed"), "").unwrap();
}

/// The events that a counting worker has counted, in its order, which has to be without a gap.
async fn counted(pool: &PgPool, name: &str) -> Vec<i64> {
    let statement = format!(
        "select event_id, place, coalesce((select total from {name}_total), 0) from {name} order by place"
    );
    let rows: Vec<(i64, i64, i64)> = sqlx::query_as(AssertSqlSafe(statement)).fetch_all(pool).await.unwrap();
    for (index, (_, place, total)) in rows.iter().enumerate() {
        assert_eq!((*place, *total), (index as i64 + 1, rows.len() as i64), "{name} has lost or doubled");
    }
    rows.into_iter().map(|(event_id, ..)| event_id).collect()
}

/// Ids of all events of type `A`.
async fn events(pool: &PgPool) -> Vec<i64> {
    sqlx::query_scalar("select id from espd.events where type = 'A' order by id")
        .fetch_all(pool)
        .await
        .unwrap()
}
