//! `espctl events`: what is in the store, and what arrives.

use serde_json::Value;
use sqlx::{Connection as _, PgConnection, PgPool};

use crate::support;
use crate::support::facts::{append, append_typed, eventually};
use crate::support::program::{Installation, Talker};

fn ids(lines: &[Value]) -> Vec<i64> {
    lines.iter().map(|line| line["id"].as_i64().unwrap()).collect()
}

#[tokio::test]
async fn events_are_printed_by_id_and_by_what_is_asked_for() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    assert_eq!(installation.espctl(&["events"]).await.printed(), "");
    append(&db.pool, 600).await;
    append_typed(&db.pool, "B", 3).await;
    append_typed(&db.pool, "C", 2).await;
    let events = async |arguments: &[&str]| {
        let arguments = [&["events", "--json"], arguments].concat();
        ids(&installation.espctl(&arguments).await.json_lines())
    };
    assert_eq!(events(&[]).await, (1..=605).collect::<Vec<_>>());
    assert_eq!(events(&["--after", "602"]).await, [603, 604, 605]);
    assert_eq!(events(&["--after", "602", "--limit", "1"]).await, [603]);
    assert_eq!(events(&["--type", "B"]).await, [601, 602, 603]);
    assert_eq!(events(&["--type", "B", "--type", "C", "--after", "601"]).await, [602, 603, 604, 605]);
    assert_eq!(events(&["--type", "nope"]).await, Vec::<i64>::new());
    assert_eq!(installation.espctl(&["events", "--limit", "0"]).await.code, Some(2));
}

#[tokio::test]
async fn the_events_of_an_aggregate_are_printed_by_version() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let id = "00000000-0000-4000-8000-000000000001";
    let line = format!("{{\"aggregate_id\":\"{id}\",\"type\":\"A\",\"body\":{{}}}}\n");
    append(&db.pool, 5).await;
    installation.espctl_fed(&["append"], &line.repeat(12)).await.printed();
    let events = installation.espctl(&["events", "--aggregate", id, "--json"]).await.json_lines();
    let versions: Vec<i64> = events.iter().map(|event| event["version"].as_i64().unwrap()).collect();
    assert_eq!(versions, (1..=12).collect::<Vec<_>>());
    let printed = installation.espctl(&["events", "--aggregate", id, "-n", "1"]).await.printed();
    assert!(printed.contains(&format!("  A  {id} 1  {{}}")), "{printed}");
}

fn id(line: &str) -> i64 {
    serde_json::from_str::<Value>(line).unwrap()["id"].as_i64().unwrap()
}

/// Waits until the follower has looked at the store, from before to after.
async fn several_looks(pool: &PgPool) {
    for _ in 0..3 {
        let look = async || {
            let query = sqlx::query_scalar::<_, Option<String>>(
                "select max(query_start)::text from pg_stat_activity
                 where datname = current_database() and application_name = 'espctl'",
            );
            query.fetch_one(pool).await.unwrap()
        };
        let before = look().await;
        eventually("a look of the follower", async || (look().await > before).then_some(())).await;
    }
}

#[tokio::test]
async fn following_shows_every_event_in_order_also_behind_a_slow_writer() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    append(&db.pool, 2).await;
    let follower = Talker::start(installation.espctl_command(&["events", "--follow", "--json"]));
    let next = async || id(&follower.next().await);
    assert_eq!([next().await, next().await], [1, 2]);
    assert_eq!(append(&db.pool, 1).await, next().await);

    let mut writer = PgConnection::connect(&db.url).await.unwrap();
    let mut slow = writer.begin().await.unwrap();
    sqlx::query(
        "insert into espd.events (aggregate_id, type, version, body) values (gen_random_uuid(), 'A', 1, '{}')",
    )
    .execute(&mut *slow)
    .await
    .unwrap();
    assert_eq!(append(&db.pool, 1).await, 5);
    several_looks(&db.pool).await;
    assert_eq!(follower.printed(), None, "printed before it had settled");
    slow.commit().await.unwrap();
    assert_eq!([next().await, next().await], [4, 5]);
}
