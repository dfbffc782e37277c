//! `espctl events`: what is in the store, and what arrives.

use espd::embedded::StopMode;
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

#[tokio::test]
async fn a_time_is_a_moment_or_an_age() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    append(&db.pool, 2).await;
    sqlx::raw_sql("update espd.events set created_at = created_at - interval '2 days' where id = 1")
        .execute(&db.pool)
        .await
        .unwrap();
    for (arguments, expected) in [(["--since", "1h"], 2), (["--until", "1h"], 1), (["--until", "0s"], 2)] {
        let arguments = [&["events", "--json", "--last", "1"], &arguments[..]].concat();
        assert_eq!(ids(&installation.espctl(&arguments).await.json_lines()), [expected], "{arguments:?}");
    }
    let complaint = installation.espctl(&["events", "--since", "yesterday"]).await.complained(2);
    assert!(complaint.contains("2026-01-31T18:00:00Z") && complaint.contains("1h"), "{complaint}");
}

/// Appends four events of an aggregate, a minute apart, the last of which begins a correlation.
async fn append_history(installation: &Installation, id: &str, correlation: &str) {
    let line = |minute: i32, more: &str| {
        format!(
            "{{\"aggregate_id\":\"{id}\",\"type\":\"A\",\"body\":{{}},\"created_at\":\"2026-01-31T12:0{minute}:00Z\"{more}}}\n"
        )
    };
    let begins = format!(",\"uuid\":\"{correlation}\"");
    let lines = [line(1, ""), line(2, ""), line(3, ""), line(4, &begins)].concat();
    installation.espctl_fed(&["append"], &lines).await.printed();
}

#[tokio::test]
async fn events_are_read_to_a_version_or_a_time_from_either_end() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let (id, correlation) = ("00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-00000000000c");
    append_history(&installation, id, correlation).await;
    append(&db.pool, 600).await;
    sqlx::query("update espd.events set correlation_id = $1::uuid where id in (10, 20)")
        .bind(correlation)
        .execute(&db.pool)
        .await
        .unwrap();
    let events = async |arguments: &[&str]| {
        let arguments = [&["events", "--json"], arguments].concat();
        ids(&installation.espctl(&arguments).await.json_lines())
    };
    assert_eq!(events(&["--aggregate", id, "--to-version", "2"]).await, [1, 2]);
    assert_eq!(events(&["--aggregate", id, "--from-version", "2", "--to-version", "3"]).await, [2, 3]);
    assert_eq!(events(&["--aggregate", id, "--until", "2026-01-31T12:03:30Z"]).await, [1, 2, 3]);
    assert_eq!(events(&["--aggregate", id, "--last", "2"]).await, [3, 4]);
    assert_eq!(events(&["--aggregate", id, "--reverse", "--limit", "1"]).await, [4]);
    let between = ["--since", "2026-01-31T12:02:00Z", "--until", "2026-01-31T12:03:00Z"];
    assert_eq!(events(&between).await, [2, 3]);
    assert_eq!(events(&["--until", "2026-01-31T12:04:00Z", "--reverse"]).await, [4, 3, 2, 1]);
    assert_eq!(events(&["--correlation", correlation]).await, [4, 10, 20]);
    assert_eq!(events(&["--correlation", correlation, "--type", "A", "--last", "1"]).await, [20]);
    assert_eq!(events(&["--last", "3"]).await, [602, 603, 604]);
    assert_eq!(events(&["--last", "550"]).await, (55..=604).collect::<Vec<_>>());
    assert_eq!(events(&["--reverse", "--limit", "550"]).await, (55..=604).rev().collect::<Vec<_>>());
    assert_eq!(installation.espctl(&["events", "--to-version", "2"]).await.code, Some(2));

    let follower =
        Talker::start(installation.espctl_command(&["events", "--last", "2", "--follow", "--json"]));
    let next = async || self::id(&follower.next().await);
    assert_eq!([next().await, next().await], [603, 604]);
    assert_eq!(append(&db.pool, 1).await, next().await);
}

#[tokio::test]
async fn an_index_finds_what_belongs_to_a_correlation() {
    let db = support::database().await;
    let plan: Vec<String> = sqlx::query_scalar(
        "explain select id from espd.events
         where correlation_id = '00000000-0000-4000-8000-00000000000c' or uuid = '00000000-0000-4000-8000-00000000000c'",
    )
    .fetch_all(db.pool.acquire().await.unwrap().as_mut())
    .await
    .unwrap();
    assert!(plan.join("\n").contains("events_correlation_id_idx"), "{plan:?}");
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

#[tokio::test]
async fn following_goes_on_after_its_sessions_were_ended_and_the_server_was_away() {
    let server = support::server().await;
    let db = support::database_on(&server).await;
    let installation = Installation::new(&db.url, "");
    append(&db.pool, 3).await;
    let follower = Talker::start(installation.espctl_command(&["events", "--follow", "--json"]));
    let next = async || id(&follower.next().await);
    assert_eq!((next().await, next().await, next().await), (1, 2, 3));
    let server = server.restart(StopMode::Fast).await.unwrap();
    let appended = async |count| {
        eventually("the server", async || {
            let insert = "insert into espd.events (aggregate_id, type, version, body)
            select gen_random_uuid(), 'A', 1, '{}' from generate_series(1, $1) returning id";
            sqlx::query(insert).bind(count).execute(&db.pool).await.ok()
        })
        .await
    };
    appended(2).await;
    assert_eq!((next().await, next().await), (4, 5));
    // In the middle of whatever it reads.
    for round in 0..20 {
        let end = "select pg_terminate_backend(pid) from pg_stat_activity
            where datname = current_database() and pid <> pg_backend_pid() and application_name like 'espctl%'";
        sqlx::query(end).execute(&db.pool).await.unwrap();
        appended(1).await;
        assert_eq!(next().await, 6 + round);
    }
    drop(follower);
    server.stop().await;
}
