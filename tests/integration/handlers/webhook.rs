//! Webhook reactors, run by the real daemon, and real receivers on loopback.

mod closed_connections;
mod crashes;
mod dead_letters;
mod emissions;
mod failures;
mod half_sent;
mod lost_commits;
mod operators;
mod order;
mod outages;
mod overlap;
mod places;
mod refused_text;
mod renewals;
mod replay;
mod requests;
mod trying;

use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use crate::support::Database;
use crate::support::facts::eventually;
use crate::support::program::Installation;
use crate::support::receiver::Receiver;

/// What most tests want: quick retries.
const QUICK: &str = "initial = '20ms'\nmax = '100ms'\n";

/// A reactor `hook` of the events of type `A` and `B`, from the beginning. `webhook` and `retry` are further lines of
/// these sections, `reactor` of the reactor itself.
fn declare(installation: &Installation, receiver: &Receiver, reactor: &str, webhook: &str, retry: &str) {
    declare_at(installation, &receiver.url(), reactor, &format!("allow_private = true\n{webhook}"), retry);
}

fn declare_at(installation: &Installation, url: &str, reactor: &str, webhook: &str, retry: &str) {
    installation.declare(
        "hook",
        &format!(
            "[reactor]\nname = 'hook'\nstart = 'beginning'\nevents = ['A', 'B']\n{reactor}\n\
             [reactor.webhook]\nurl = '{url}'\n{webhook}\n[reactor.retry]\n{retry}"
        ),
    );
}

fn installation(db: &Database) -> Installation {
    Installation::new(&db.url, "")
}

/// Appends events of type `A` with these aggregates and `n`s, and returns the last id.
async fn append(pool: &PgPool, events: &[(u128, i64)]) -> i64 {
    let mut last = 0;
    for (aggregate, n) in events {
        let query = "insert into espd.events (aggregate_id, type, version, body)
             select $1, 'A', coalesce(max(version), 0) + 1, jsonb_build_object('n', $2::bigint)
             from espd.events where aggregate_id = $1 returning id";
        let query = sqlx::query_scalar(query).bind(Uuid::from_u128(*aggregate)).bind(n);
        last = query.fetch_one(pool).await.unwrap();
    }
    last
}

/// Waits until `espctl status` shows this of the reactor.
async fn shows(installation: &Installation, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    eventually(what, async || Some(installation.status("hook").await).filter(|status| is_so(status))).await
}

async fn count(pool: &PgPool, query: &'static str) -> i64 {
    sqlx::query_scalar(query).fetch_one(pool).await.unwrap()
}
