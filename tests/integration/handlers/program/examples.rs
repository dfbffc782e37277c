//! The workers in `examples/workers`, beside what the SQL projectors make of the same events.

use std::path::Path;
use std::process::Command;

use espd::internals::todo_history::TodoHistory;
use espd::store::Layout;
use espd::store::{EventStore as _, PostgresEventStore};
use sqlx::{AssertSqlSafe, PgPool};

use crate::support;
use crate::support::facts::reaches;
use crate::support::program::Installation;

/// Enough for several batches, and for todos to be completed.
const EVENTS: usize = 3_000;

/// Appends the same events to every store.
async fn append_history(pool: &PgPool) -> i64 {
    let events: Vec<_> = TodoHistory::new(42).take(EVENTS).collect();
    let store = PostgresEventStore::new(pool.clone(), Layout::espd(support::SCHEMA).unwrap());
    for part in events.chunks(500) {
        store.append(part).await.unwrap();
    }
    EVENTS as i64
}

/// The rows of a table.
async fn rows(pool: &PgPool, table: &str) -> Vec<String> {
    let statement = format!("select t::text from (select * from {table} order by todo_id) as t");
    sqlx::query_scalar(AssertSqlSafe(statement)).fetch_all(pool).await.unwrap()
}

/// Who was to be notified of what, by the events alone.
const TO_NOTIFY: &str = "
    select jsonb_build_object('to', email.value, 'about', title.value)::text || c.aggregate_id
    from espd.events as c
    cross join lateral (
      select e.body->>'stakeholder_email' as value from espd.events as e
      where e.aggregate_id = c.aggregate_id and e.id < c.id and e.body ? 'stakeholder_email' order by e.id desc limit 1) as email
    cross join lateral (
      select e.body->>'title' as value from espd.events as e
      where e.aggregate_id = c.aggregate_id and e.id < c.id and e.body ? 'title' order by e.id desc limit 1) as title
    where c.type = 'TodoCompleted' and email.value is not null order by 1";

const NOTIFIED: &str =
    "select body::text || aggregate_id from espd.events where type = 'StakeholderNotified' order by 1";

/// Runs the projector and the reactor of one language, and compares what they leave behind.
async fn agree_with_sql(language: &str, interpreter: &str, table: &str) {
    let is_here = Command::new(interpreter).arg("--version").output().is_ok();
    assert!(is_here, "this test needs {interpreter}, which `./bin/test` installs");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let include = |path: &str| format!("include = ['{}']\n", folder.join(path).display());
    let run = async |include: String, processors: &[&str]| {
        let db = support::database().await;
        let installation = Installation::without_database("");
        let text =
            format!("{include}[log]\nformat = 'json'\nlevel = 'debug'\n[event_store]\nurl = '{}'\n", db.url);
        std::fs::write(installation.path().join("espd.toml"), text).unwrap();
        let last = append_history(&db.pool).await;
        installation.espctl(&["check"]).await.printed();
        let daemon = installation.start_daemon();
        for processor in processors {
            reaches(&db.pool, processor, last).await;
        }
        daemon.stop().await;
        db
    };
    let by_sql = run(include(&format!("config/processors/{table}.toml")), &[table]).await;
    let by_worker =
        run(include(&format!("examples/workers/{language}/processors.toml")), &[table, "notifier"]).await;
    let expected = rows(&by_sql.pool, table).await;
    assert!(expected.len() > 100, "{}", expected.len());
    assert_eq!(rows(&by_worker.pool, table).await, expected);
    let strings =
        async |query| -> Vec<String> { sqlx::query_scalar(query).fetch_all(&by_worker.pool).await.unwrap() };
    let to_notify: Vec<String> = strings(TO_NOTIFY).await;
    assert!(to_notify.len() > 100, "{}", to_notify.len());
    assert_eq!(strings(NOTIFIED).await, to_notify);
}

/// A worker that reads a row, counts in it, and writes it back.
const PYTHON: &str = "import sys\nsys.path.insert(0, sys.argv[1])\nimport espd_worker\n\
    def handle(event, espd):\n    \
        row = espd.read('prices', id=1) or {'id': 1, 'price': event['body']['price'], 'n': 0}\n    \
        row['n'] += 1\n    \
        espd.upsert('prices', **row)\n\
    espd_worker.run(handle)\n";
const NODE: &str = "const { run } = await import(`${process.argv[2]}/espd_worker.mjs`);\n\
    await run(async (event, espd) => {\n  \
      const row = (await espd.read('prices', { id: 1 })) ?? { id: 1, price: event.body.price, n: 0 };\n  \
      row.n += 1;\n  \
      espd.upsert('prices', row);\n});\n";

#[tokio::test]
async fn a_row_keeps_the_digits_of_its_numbers_in_the_libraries_of_the_examples() {
    for (language, interpreter, script, name) in
        [("python", "python3", PYTHON, "exact.py"), ("node", "node", NODE, "exact.mjs")]
    {
        for digits in
            ["12345678901234567890.123456789012345678901234567890", "0.1", "1e3", "123456789012345678901"]
        {
            let db = support::database().await;
            let installation = Installation::new(&db.url, "");
            std::fs::write(installation.path().join("processors").join(name), script).unwrap();
            let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/workers").join(language);
            let command = format!("['{interpreter}', '{name}', '{}']", library.display());
            let declaration = format!(
                "[projector]\nname = 'prices'\nevents = ['Priced']\ncommand = {command}\n[projector.tables]\n\
                 prices = 'id int primary key, price numeric not null, n int, double numeric generated always as (price * 2) stored'\n"
            );
            installation.declare("prices", &declaration);
            let append = format!(
                "insert into espd.events (aggregate_id, type, version, body)
                 select gen_random_uuid(), 'Priced', 1, '{{\"price\": {digits}}}' from generate_series(1, 3)"
            );
            sqlx::query(AssertSqlSafe(append)).execute(&db.pool).await.unwrap();
            let daemon = installation.start_daemon();
            reaches(&db.pool, "prices", 3).await;
            daemon.stop().await;
            let exact = format!("select price = {digits} and double = 2 * price and n = 3 from prices");
            let exact: bool = sqlx::query_scalar(AssertSqlSafe(exact)).fetch_one(&db.pool).await.unwrap();
            assert!(exact, "{language}: {digits}");
        }
    }
}

/// A reactor that emits what it gets, beside a number that it makes itself.
const COPYING_PYTHON: &str = "import sys\nsys.path.insert(0, sys.argv[1])\nimport espd_worker\nfrom decimal import Decimal\n\
    espd_worker.run(lambda event, espd: espd.emit('Copied', event['aggregate_id'], {**event['body'], 'own': Decimal('0.10')}))\n";
const COPYING_NODE: &str = "const { run, Exact } = await import(`${process.argv[2]}/espd_worker.mjs`);\n\
    await run(async ({ aggregate_id, body }, espd) => espd.emit('Copied', aggregate_id, { ...body, own: new Exact('0.10') }));\n";
const COPYING_RUBY: &str = "require File.join(ARGV[0], 'espd_worker')\n\
    EspdWorker.run { |e, espd| espd.emit('Copied', e['aggregate_id'], e['body'].merge('own' => BigDecimal('0.10'))) }\n";

/// Has a worker emit the bodies that it gets: a number stays a number, and a text that looks like one a text.
async fn emits_exact_numbers(language: &str, interpreter: &str, script: &str) {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let name = if language == "node" { "copying.mjs" } else { "copying" };
    std::fs::write(installation.path().join("processors").join(name), script).unwrap();
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/workers").join(language);
    let declaration = format!(
        "[reactor]\nname = 'copying'\nstart = 'beginning'\nevents = ['Amount']\nemits = ['Copied']\n\
         command = ['{interpreter}', '{name}', '{}']\n",
        library.display()
    );
    installation.declare("copying", &declaration);
    let body = r#"{"sum": 12345678901234567890.12, "ids": [9223372036854775807, -0.5, 1e30, 3], "text": "12345678901234567890",
        "deep": {"sum": -12345678901234567890.1234567890}, "said": "\"12345678901234567890\" 1e999"}"#;
    let append = "insert into espd.events (aggregate_id, type, version, body) values (gen_random_uuid(), 'Amount', 1, $1::jsonb)";
    sqlx::query(append).bind(body).execute(&db.pool).await.unwrap();
    let daemon = installation.start_daemon();
    reaches(&db.pool, "copying", 1).await;
    daemon.stop().await;
    let copied = "select body - 'own' || jsonb_build_object('given', body->'own') from espd.events where type = 'Copied'";
    let copied = format!("select ({copied}) = $1::jsonb || '{{\"given\": 0.10}}'");
    let is_same: bool =
        sqlx::query_scalar(AssertSqlSafe(copied)).bind(body).fetch_one(&db.pool).await.unwrap();
    assert!(is_same, "{language}");
}

#[tokio::test]
async fn the_libraries_of_the_examples_emit_exact_numbers() {
    emits_exact_numbers("python", "python3", COPYING_PYTHON).await;
    emits_exact_numbers("node", "node", COPYING_NODE).await;
}

#[tokio::test]
#[ignore = "needs ruby: ./bin/test and ./.ci/run have it and run this"]
async fn the_library_in_ruby_emits_exact_numbers() {
    emits_exact_numbers("ruby", "ruby", COPYING_RUBY).await;
}

/// A worker that notes what it gets.
const NOTING_PYTHON: &str = "import sys\nsys.path.insert(0, sys.argv[1])\nimport espd_worker\n\
    def handle(event, espd):\n    \
        espd.upsert('seen', id=event['id'], body=event['body'])\n\
    espd_worker.run(handle)\n";
const NOTING_NODE: &str = "const { run } = await import(`${process.argv[2]}/espd_worker.mjs`);\n\
    await run(async (event, espd) => espd.upsert('seen', { id: event.id, body: event.body }));\n";
const NOTING_RUBY: &str = "require File.join(ARGV[0], 'espd_worker')\n\
    EspdWorker.run { |event, espd| espd.upsert('seen', { 'id' => event['id'], 'body' => event['body'] }) }\n";

/// Has a worker note long texts, deep nests, long integers, and ids that JavaScript would round.
async fn handles_large_bodies(language: &str, interpreter: &str, script: &str) {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    // Node goes by the name.
    let name = if language == "node" { "noting.mjs" } else { "noting" };
    std::fs::write(installation.path().join("processors").join(name), script).unwrap();
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/workers").join(language);
    let declaration = format!(
        "[projector]\nname = 'seen'\nevents = ['A']\ncommand = ['{interpreter}', '{name}', '{}']\n\
         [projector.tables]\nseen = 'id bigint primary key, body jsonb not null'\n",
        library.display()
    );
    installation.declare("seen", &declaration);
    let append = "
        insert into espd.events (aggregate_id, type, version, body)
        select gen_random_uuid(), 'A', 1, body::jsonb from (values
          (1, '{\"n\": 1}'),
          (2, '\"' || repeat('\\\"a\\\\', 1000000) || repeat('x 1', 3000000) || '\"'),
          (3, repeat('[', 1500) || '12345678901234567890' || repeat(']', 1500)),
          (4, repeat('9', 5000))) as events (n, body) order by n";
    sqlx::query("select setval('espd.events_id_seq', 9007199254740992)").execute(&db.pool).await.unwrap();
    sqlx::query(append).execute(&db.pool).await.unwrap();
    let daemon = installation.start_daemon();
    reaches(&db.pool, "seen", 9_007_199_254_740_996).await;
    daemon.stop().await;
    let same =
        "select count(*) from seen join espd.events as e using (id) where seen.body::text = e.body::text";
    assert_eq!(sqlx::query_scalar::<_, i64>(same).fetch_one(&db.pool).await.unwrap(), 4, "{language}");
}

#[tokio::test]
async fn the_libraries_of_the_examples_handle_large_bodies_and_ids() {
    handles_large_bodies("python", "python3", NOTING_PYTHON).await;
    handles_large_bodies("node", "node", NOTING_NODE).await;
}

#[tokio::test]
#[ignore = "needs ruby: ./bin/test and ./.ci/run have it and run this"]
async fn the_library_in_ruby_handles_large_bodies_and_ids() {
    handles_large_bodies("ruby", "ruby", NOTING_RUBY).await;
}

#[tokio::test]
#[ignore = "needs python3: ./bin/test and ./.ci/run have it and run this"]
async fn the_workers_in_python_agree_with_sql() {
    agree_with_sql("python", "python3", "outstanding_todos").await;
}

#[tokio::test]
#[ignore = "needs ruby: ./bin/test and ./.ci/run have it and run this"]
async fn the_workers_in_ruby_agree_with_sql() {
    agree_with_sql("ruby", "ruby", "scheduled_todos").await;
}

#[tokio::test]
#[ignore = "needs node: ./bin/test and ./.ci/run have it and run this"]
async fn the_workers_in_node_agree_with_sql() {
    agree_with_sql("node", "node", "completed_todos").await;
}
