//! Rows with columns and tables of every odd name, and with columns that the database fills in itself: a program reads such
//! a row, changes it, writes it and deletes it.

use sqlx::{AssertSqlSafe, PgPool};

use super::SETTINGS;
use crate::support;
use crate::support::facts::{append, reaches};
use crate::support::program::Installation;

/// A worker that reads each row of its tables, changes it and writes it whole, and deletes it by its odd column in the end.
const REWRITING: &str = r#"
import json, sys
tables = json.loads(sys.stdin.readline())["hello"]["tables"]
print('{"ready":1}', flush=True)
for line in sys.stdin:
    batch = json.loads(line)
    for event in batch["events"]:
        n, actions = event["body"]["n"], []
        for name, table in tables.items():
            print(json.dumps({"read": name, "key": {"id": 1}}), flush=True)
            row = json.loads(sys.stdin.readline())["row"]
            odd = [column for column in table["columns"] if column not in ("id", "n", "double", "place")]
            if row is None:
                row = {"id": 1, "n": 0, **{column: 0 for column in odd}}
            row["n"] += 1
            for column in odd:
                row[column] += 10
            # Some of it alone, so that a new row would need more.
            partial = {"id": 1, **{column: row[column] for column in odd}}
            actions += [{"upsert": name, "row": row}, {"upsert": name, "row": partial}]
            if n == 4:
                actions += [{"delete": name, "where": {"n": row["n"], **{column: row[column] for column in odd}}}]
        print(json.dumps({"done": event["id"], "actions": actions}))
    print(json.dumps({"end": batch["batch"]}), flush=True)
"#;

const COLUMNS: &[&str] = &[
    "t",
    "e",
    "g",
    "k",
    "row",
    "event",
    "excluded",
    "added",
    "espd_id",
    "espd_position",
    "espd_event",
    "Select",
    "a\"b",
    "\"",
    "$1",
    "a b",
    "ü",
    "select",
    "user",
    "value",
    "json",
    "id2",
    "'",
    "\\",
    "{{columns}}",
    "todos",
    "t_",
    "read",
    "key",
    "where",
    "upsert",
    "ctid2",
];

const TABLES: &[&str] = &[
    "t",
    "g",
    "e",
    "k",
    "added",
    "excluded",
    "espd_event",
    "espd_handler",
    "select",
    "user",
    "order",
    "row",
    "json",
    "new",
    "old",
    "espd_savepoint",
    "values_",
    "events",
    "trackers",
];

fn declare_rewriting(installation: &Installation, tables: &str) {
    std::fs::write(installation.path().join("processors/rewriting.py"), REWRITING).unwrap();
    installation.declare(
        "rewriting",
        &format!(
            "[projector]\nname = 'rewriting'\nevents = ['A']\ncommand = ['python3', 'rewriting.py']\nbatch_size = 1\n\
             [projector.tables]\n{tables}"
        ),
    );
}

async fn run_to(installation: &Installation, pool: &PgPool, last: i64) {
    let said = installation.espctl(&["check"]).await.printed();
    assert!(said.starts_with("ok: "), "{said}");
    let daemon = installation.start_daemon();
    reaches(pool, "rewriting", last).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_column_may_have_any_name() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, SETTINGS);
    let column = |name: &str| format!("\"{}\" bigint not null", name.replace('"', "\"\""));
    let table = |(number, name): (usize, &&str)| {
        format!("odd{number} = '''id int primary key, n int not null, {}'''\n", column(name))
    };
    let mut tables: String = COLUMNS.iter().enumerate().map(table).collect();
    let all: Vec<String> = COLUMNS.iter().map(|name| column(name)).collect();
    tables.push_str(&format!("all_of_them = '''id int primary key, n int not null, {}'''\n", all.join(", ")));
    declare_rewriting(&installation, &tables);
    let last = append(&db.pool, 3).await;
    run_to(&installation, &db.pool, last).await;
    for (number, name) in COLUMNS.iter().enumerate() {
        let query = format!("select n::bigint, \"{}\" from odd{number}", name.replace('"', "\"\""));
        let row: (i64, i64) = sqlx::query_as(AssertSqlSafe(query)).fetch_one(&db.pool).await.unwrap();
        assert_eq!(row, (3, 30), "{name}");
    }
    let last = append(&db.pool, 4).await;
    run_to(&installation, &db.pool, last).await;
    for (number, name) in COLUMNS.iter().enumerate() {
        let query = format!("select count(*) from odd{number}");
        let left: i64 = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&db.pool).await.unwrap();
        assert_eq!(left, 0, "{name}");
    }
}

#[tokio::test]
async fn a_table_may_have_any_name_that_is_allowed() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, SETTINGS);
    let table = |name: &&str| format!("{name} = 'id int primary key, n int not null, odd bigint not null'\n");
    declare_rewriting(&installation, &TABLES.iter().map(table).collect::<String>());
    // The same tables for handlers in SQL.
    let sql: Vec<String> =
        TABLES.iter().map(|name| format!("insert into \"s_{name}\" values (event.id, 1); update \"s_{name}\" set t = t + 1 where e = event.id")).collect();
    let tables: String =
        TABLES.iter().map(|name| format!("s_{name} = 'e bigint primary key, t int'\n")).collect();
    installation.declare(
        "in_sql",
        &format!("[projector]\nname = 'in_sql'\n[projector.tables]\n{tables}espd_body = 'e bigint'\n[[projector.on]]\nevents = ['A']\nsql = '''{}'''\n", sql.join(";\n")),
    );
    let last = append(&db.pool, 3).await;
    run_to(&installation, &db.pool, last).await;
    for name in TABLES {
        let query = format!("select n::bigint, odd from public.\"{name}\"");
        let row: (i64, i64) = sqlx::query_as(AssertSqlSafe(query)).fetch_one(&db.pool).await.unwrap();
        assert_eq!(row, (3, 30), "{name}");
    }
}

#[tokio::test]
async fn what_the_database_fills_in_is_read_and_not_written() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, SETTINGS);
    declare_rewriting(
        &installation,
        "doubled = 'id int primary key, n int not null, odd int not null, double int generated always as (n * 2) stored'\n\
         placed = 'id int primary key, n int not null, odd int not null, place bigint generated always as identity'\n\
         numbered = 'id int generated always as identity primary key, n int not null, odd int not null'\n\
         allowed = 'id int generated by default as identity primary key, n int not null, odd int not null, place bigint generated by default as identity'\n\
         keyed = 'id int not null, n int not null, odd int not null, double int generated always as (id * 2) stored, primary key (double, id)'\n",
    );
    // The key of the last one is not the id alone.
    let text = std::fs::read_to_string(installation.path().join("processors/rewriting.py")).unwrap();
    let text = text
        .replace(r#""key": {"id": 1}"#, r#""key": {"id": 1, **({"double": 2} if name == "keyed" else {})}"#);
    let text = text.replace(
        r#"{"id": 1, "n": 0, "#,
        r#"{"id": 1, "n": 0, **({"double": 2} if name == "keyed" else {}), "#,
    );
    let text = text.replace(
        r#"partial = {"id": 1, "#,
        r#"partial = {"id": 1, **({"double": 2} if name == "keyed" else {}), "#,
    );
    std::fs::write(installation.path().join("processors/rewriting.py"), text).unwrap();
    let last = append(&db.pool, 3).await;
    run_to(&installation, &db.pool, last).await;
    for (table, computed) in [
        ("doubled", "double = 2 * n"),
        ("placed", "place = 1"),
        ("numbered", "true"),
        ("allowed", "place = 1"),
        ("keyed", "double = 2"),
    ] {
        let query = format!("select n, odd, {computed} from {table} where id = 1");
        let row: (i32, i32, bool) = sqlx::query_as(AssertSqlSafe(query)).fetch_one(&db.pool).await.unwrap();
        assert_eq!(row, (3, 30, true), "{table}");
    }
}
