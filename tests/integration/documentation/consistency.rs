//! `docs/consistency.md`: its SQL, run by psql from top to bottom, and its Python.

use std::process::Command;

use crate::support;

/// The blocks of a language of a page.
fn blocks_of<'p>(page: &'p str, language: &str) -> Vec<&'p str> {
    let blocks = page.split(&format!("```{language}\n")).skip(1).collect::<Vec<_>>();
    blocks.into_iter().filter_map(|rest| Some(rest.split_once("```")?.0)).collect()
}

#[tokio::test]
async fn the_sql_of_the_page_says_what_the_page_says() {
    let db = support::database().await;
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("page.sql");
    std::fs::write(&script, blocks_of(&super::read("docs/consistency.md"), "sql").concat()).unwrap();
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

/// Seats of other courses do not count, and those of the student do.
const SEATS: &str = r#"
store = Store(os.environ["DATABASE_URL"])
for course in range(1, 8):
    offered = {"course": course, "seats": 1 if course < 3 else 9}
    store.append({"aggregate_id": str(uuid4()), "type": "CourseOffered", "body": offered, "tags": [f"course:{course}"]})
print(take_seat(store, 1, 7), take_seat(store, 2, 7), take_seat(store, 1, 8))
print([take_seat(store, course, 7) for course in range(3, 7)], take_seat(store, 6, 8))
"#;

#[tokio::test]
#[ignore = "needs python3 with psycopg: ./bin/test and ./.ci/run have it and run this"]
async fn the_python_of_the_page_takes_seats_by_the_rules() {
    let db = support::database().await;
    let (append, page) = (super::read("docs/append.md"), super::read("docs/consistency.md"));
    let imports = "import itertools, os, random, time\nfrom uuid import uuid4\nimport psycopg\n\
                   from psycopg.types.json import Jsonb\n\n";
    let script = [imports, blocks_of(&append, "python")[0], blocks_of(&page, "python")[0], SEATS].concat();
    let mut python = crate::store::append_examples::interpreter("python3", &["-c", "import psycopg"]);
    python.args(["-c", &script]).env("DATABASE_URL", &db.url);
    let output = tokio::process::Command::from(python).kill_on_drop(true).output().await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "True True False\n[True, True, True, False] True\n", "{complaints}");
}
