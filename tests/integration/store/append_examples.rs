//! The clients in `examples/append`: what they store, hear and see, and that `docs/append.md` shows them as they are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;
use sqlx::postgres::PgListener;

use crate::support;
use crate::support::facts::eventually;
use crate::support::program::Installation;
use crate::support::projectors::numbers;

/// What each client prints: psql cannot overtake itself, so its second event is the second version.
const SAID: &str = "added: version 1\nES001: expected 0, actual 1\namended: version 3, decided 2 times\n\
                    repeated: the same positions\nES002: the uuid belongs to another event\nES003: event 2\n\
                    read: True call mum\ncancelled: True\n";
const SAID_BY_PSQL: &str = "added: version 1\n\
                            ES001: aggregate TODO is at version 1, not at the expected version 0\n\
                            amended: version 2\nrepeated: the same positions\n\
                            ES002: the uuid belongs to another event\nread: true\ntitle: call mum\ncancelled: true\n";

/// The first try of the first append cannot be serialized; in the second one the connection is lost.
const TROUBLE: &str = "
    create sequence public.tries;
    create function public.make_trouble() returns trigger language plpgsql as $$
    begin
      case nextval('public.tries')
        when 1 then raise exception using errcode = '40001', message = 'another try may succeed';
        when 2 then perform pg_terminate_backend(pg_backend_pid());
        else null;
      end case;
      return new;
    end $$;
    create trigger trouble before insert on espd.events for each row execute function public.make_trouble()";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/append")
}

/// The events that are stored, by aggregate in the order of their first events.
async fn stored(pool: &PgPool) -> Value {
    sqlx::query_scalar(
        "select jsonb_agg(jsonb_build_array(type, version, body, metadata) order by id) from espd.events",
    )
    .fetch_one(pool)
    .await
    .unwrap()
}

/// Runs a client beside a daemon and returns what is stored after it, and what it has printed.
async fn run(mut client: Command, troubled: bool) -> (Value, String) {
    let db = support::database().await;
    let projector = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/processors/outstanding_todos.toml");
    let installation = Installation::new(&db.url, "[runner]\npoll_interval_max = '1h'\n");
    installation.declare("outstanding_todos", &std::fs::read_to_string(projector).unwrap());
    let daemon = installation.start_daemon();
    eventually("a table", async || {
        let made = numbers(&db.pool, "select count(*) from espd.declarations").await[0];
        (made == 1).then_some(())
    })
    .await;
    if troubled {
        sqlx::raw_sql(TROUBLE).execute(&db.pool).await.unwrap();
    }
    let mut listener = PgListener::connect(&db.url).await.unwrap();
    listener.listen("espd_events").await.unwrap();
    client.env("DATABASE_URL", &db.url).current_dir(installation.path());
    let output = tokio::process::Command::from(client).kill_on_drop(true).output().await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    rings(&db.pool, &mut listener).await;
    let due = "select count(*) from espd.events where type = 'ReminderDue'";
    eventually("a reminder", async || (numbers(&db.pool, due).await[0] == 1).then_some(())).await;
    assert_eq!(numbers(&db.pool, "select count(*) from espd.scheduled_events").await, [0]);
    daemon.stop().await;
    (stored(&db.pool).await, said)
}

/// Waits for a notification that is not the daemon's, which sends one for the reminder.
async fn rings(pool: &PgPool, listener: &mut PgListener) {
    let daemon = "select pid from pg_stat_activity where datname = current_database() and application_name like 'espd%'";
    let daemon: Vec<i32> = sqlx::query_scalar(daemon).fetch_all(pool).await.unwrap();
    let from_client =
        async { while daemon.contains(&listener.recv().await.unwrap().process_id().cast_signed()) {} };
    tokio::time::timeout(Duration::from_secs(10), from_client).await.expect("a notification of the client");
}

/// A client that decides anew after a conflict has met one, and has stored each event once.
async fn appends_as_documented(client: Command) {
    let (stored, said) = run(client, true).await;
    assert_eq!(said, SAID);
    assert_eq!(
        stored,
        json!([
            ["TodoAdded", 1, { "title": "buy milk" }, {}],
            ["TodoAmended", 2, { "description": "two litres" }, {}],
            ["TodoAmended", 3, { "title": "buy oat milk" }, {}],
            ["TodoCompleted", 4, {}, {}],
            ["TodoAdded", 1, { "title": "call mum" }, { "user": "jo" }],
            ["ReminderDue", 2, {}, {}],
        ])
    );
}

/// An interpreter of this name that can load the driver; the system's own may have it where the first one has not.
pub(crate) fn interpreter(name: &str, arguments: &[&str]) -> Command {
    let has_driver = |place: &String| {
        let tried = Command::new(place).args(arguments).env("NODE_PATH", node_path()).output();
        tried.is_ok_and(|output| output.status.success())
    };
    let place = [name.to_owned(), format!("/usr/bin/{name}")].into_iter().find(has_driver);
    let place = place.unwrap_or_else(|| {
        panic!("this test needs {name} with a PostgreSQL driver, which `./bin/test` installs")
    });
    let mut command = Command::new(place);
    command.env("NODE_PATH", node_path());
    command
}

/// Where `./bin/test` has npm install the driver, beside what cargo builds, and where Debian does.
fn node_path() -> String {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    format!("{}:/usr/share/nodejs", target.join("node/node_modules").display())
}

#[tokio::test]
#[ignore = "needs python3 with psycopg: ./bin/test and ./.ci/run have it and run this"]
async fn the_client_in_python_appends_as_documented() {
    let mut client = interpreter("python3", &["-c", "import psycopg"]);
    client.arg(folder().join("append.py"));
    appends_as_documented(client).await;
}

#[tokio::test]
#[ignore = "needs ruby with pg: ./bin/test and ./.ci/run have it and run this"]
async fn the_client_in_ruby_appends_as_documented() {
    let mut client = interpreter("ruby", &["-e", "require 'pg'"]);
    client.arg(folder().join("append.rb"));
    appends_as_documented(client).await;
}

#[tokio::test]
#[ignore = "needs node with pg: ./bin/test and ./.ci/run have it and run this"]
async fn the_client_in_node_appends_as_documented() {
    let mut client = interpreter("node", &["-e", "require('pg')"]);
    client.arg(folder().join("append.js"));
    appends_as_documented(client).await;
}

#[tokio::test]
#[ignore = "needs psql: ./bin/test and ./.ci/run have it and run this"]
async fn the_client_in_psql_appends_as_documented() {
    let mut client = Command::new("sh");
    client.args(["-c", "psql -X \"$DATABASE_URL\" -f \"$1\"", "sh"]).arg(folder().join("append.sql"));
    let (stored, said) = run(client, false).await;
    let uuid = said.split_once("aggregate ").unwrap().1.split(' ').next().unwrap();
    assert_eq!(said.replace(uuid, "TODO"), SAID_BY_PSQL);
    assert_eq!(
        stored,
        json!([
            ["TodoAdded", 1, { "title": "buy milk" }, {}],
            ["TodoAmended", 2, { "title": "buy oat milk" }, {}],
            ["TodoCompleted", 3, {}, {}],
            ["TodoAdded", 1, { "title": "call mum" }, { "user": "jo" }],
            ["ReminderDue", 2, {}, {}],
        ])
    );
}

#[test]
fn the_documentation_shows_the_clients_as_they_are() {
    let documentation = include_str!("../../../docs/append.md");
    let mut shown = 0;
    for block in documentation.split("\n```").skip(1).step_by(2) {
        let (language, code) = block.split_once('\n').unwrap();
        let file = match language {
            "python" => "append.py",
            "ruby" => "append.rb",
            "js" => "append.js",
            "sql" => "append.sql",
            _ => continue,
        };
        let text = std::fs::read_to_string(folder().join(file)).unwrap();
        assert!(text.contains(&format!("{code}\n")), "{file} has no such lines:\n{code}");
        shown += 1;
    }
    assert!(shown >= 10, "{shown}");
}

#[test]
fn every_sqlstate_of_its_own_is_documented() {
    let documentation = include_str!("../../../docs/append.md");
    for set in ["event_store", "processing"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(set);
        for file in std::fs::read_dir(folder).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            for state in text.match_indices("'ES0").map(|(at, _)| &text[at + 1..at + 6]) {
                assert!(
                    documentation.contains(&format!("| `{state}` |")),
                    "{state} is not in docs/append.md"
                );
            }
        }
    }
}
