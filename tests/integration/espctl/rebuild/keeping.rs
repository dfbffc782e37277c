//! What is kept of a version that was compared: no value of any row, so that nobody has to forget one there.

use super::*;

const SECRET: (&str, &str) =
    ("n bigint, tenant text", "insert into orders values (event.id, event.id % 3, 'Secret')");

impl Fixture {
    /// How many rows of espd's own table of rebuilds have a text.
    async fn kept(&self, text: &str) -> String {
        self.fact(&format!("select count(*) from espd.rebuilds as r where strpos(r::text, '{text}') > 0"))
            .await
    }
}

#[tokio::test]
async fn no_value_of_a_row_is_kept_of_a_comparison() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.declare(2, SECRET);
    // Whoever asks sees what differs.
    let asked = fixture.rebuild_without_answer().await;
    assert!(asked.contains("Secret") && asked.contains("5 changed"), "{asked}");
    assert_eq!(fixture.state().await, "differs");
    assert_eq!(fixture.fact("select difference #>> '{tables,0,changed}' from espd.rebuilds").await, "5");
    assert_eq!(fixture.kept("Secret").await, "0");
    fixture.espctl(&["rebuild", "abort", "orders"]).await.printed();
    assert_eq!(fixture.kept("Secret").await, "0");
    // An approval still covers what it was about.
    fixture.rebuild_without_answer().await;
    fixture.espctl(&["rebuild", "approve", "orders"]).await.printed();
    fixture.espctl(&["rebuild", "orders", "--yes"]).await.printed();
    assert_eq!(fixture.kept("Secret").await, "0");
    daemon.stop().await;
}

#[tokio::test]
async fn what_programs_of_before_have_kept_of_rows_is_removed() {
    let (fixture, daemon) = Fixture::running().await;
    fixture.declare(2, SECRET);
    fixture.rebuild_without_answer().await;
    let found = fixture.fact("select difference from espd.rebuilds").await;
    fixture
        .run(
            "update espd.rebuilds set difference = jsonb_set(difference || '{\"dead_letters\": {\"number\": 1, \"failed\": [], \"examples\": [{\"message\": \"Secret\"}]}}',
               '{tables,0,examples}', '[{\"new\": {\"tenant\": \"Secret\"}}]')",
        )
        .await;
    assert_eq!(fixture.kept("Secret").await, "1");
    let migration = include_str!("../../../../migrations/processing/0042_no_rows_in_differences.sql");
    fixture.run(&migration.replace(":\"schema\"", "espd")).await;
    assert_eq!(fixture.kept("Secret").await, "0");
    let left = "select (difference - 'dead_letters')::text from espd.rebuilds";
    let before = format!("select ('{found}'::jsonb - 'dead_letters')::text");
    assert_eq!(fixture.fact(left).await, fixture.fact(&before).await);
    assert_eq!(fixture.fact("select difference #>> '{dead_letters,number}' from espd.rebuilds").await, "1");
    daemon.stop().await;
}
