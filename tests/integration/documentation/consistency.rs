//! `docs/consistency.md`: its SQL, run by psql from top to bottom.

use std::process::Command;

use crate::support;

/// The blocks of SQL of a page, one after the other.
fn sql_of(page: &str) -> String {
    let blocks = page.split("```sql\n").skip(1).filter_map(|rest| rest.split_once("```"));
    blocks.map(|(sql, _)| sql).collect()
}

#[tokio::test]
async fn the_sql_of_the_page_says_what_the_page_says() {
    let db = support::database().await;
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("page.sql");
    std::fs::write(&script, sql_of(&super::read("docs/consistency.md"))).unwrap();
    let mut psql = Command::new("psql");
    psql.args(["-X", "-q", "-A", "-t", &db.url, "-f"]).arg(&script);
    let output = tokio::process::Command::from(psql).kill_on_drop(true).output().await.unwrap();
    let (said, complaints) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    for expected in [
        "2 events\n",
        "ES008: item 1 of the condition: event 3 (SeatTaken) came on tag course:1\n",
        "ES009: email ann@example.org belongs to aggregate 00000000-0000-4000-8000-000000000011\n",
        "email ann@example.com: 00000000-0000-4000-8000-000000000011\n\
         email ann@example.org: 00000000-0000-4000-8000-000000000012\n",
    ] {
        assert!(said.contains(expected), "{said}{complaints}");
    }
    assert_eq!(complaints.matches("ERROR").count(), 2, "{complaints}");
}
