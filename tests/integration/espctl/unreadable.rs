//! An event that cannot be read is one that cannot be handled, also where a version is built or verified: an upcast fails at it, or
//! `jsonb` refuses its JSON.

use sqlx::{AssertSqlSafe, PgPool};

use crate::store::event_sourcery::framework::Framework;
use crate::support;
use crate::support::Database;
use crate::support::facts::reaches;
use crate::support::program::{Installation, Outcome};

/// How many events there are, and which one cannot be read, of account 9.
#[derive(Clone, Copy)]
struct Story {
    events: i64,
    unreadable: i64,
}

/// So many that two workers build, each with its share of the aggregates.
const LONG: Story = Story { events: 12_000, unreadable: 6_009 };

/// For a program, which is given each of them several times.
const SHORT: Story = Story { events: 1_200, unreadable: 609 };

const UPCAST: &str =
    "[[upcast]]\nevents = ['Paid']\nbody = \"jsonb_build_object('cents', (event.body->>'cents')::bigint)\"\n";

const PARK: &str = "[projector.retry]\nmax_attempts = 1\ninitial = '20ms'\non_failure = 'park'\n";

/// The sum of what was paid, by account.
const HANDLERS: &str = "[[projector.on]]\nevents = ['Opened']\n\
    sql = 'insert into accounts (id) values (event.aggregate_id) on conflict (id) do nothing'\n\
    [[projector.on]]\nevents = ['Paid']\n\
    sql = \"update accounts set total = total + (event.body->>'cents')::bigint where id = event.aggregate_id\"\n";

const PROGRAM: &str = r#"
import json, sys

def say(message):
    print(json.dumps(message))
    sys.stdout.flush()

json.loads(sys.stdin.readline())
say({"ready": 1})
for line in sys.stdin:
    batch = json.loads(line)
    for event in batch["events"]:
        id = event["aggregate_id"]
        say({"read": "accounts", "key": {"id": id}})
        row = json.loads(sys.stdin.readline())["row"] or {"id": id, "total": 0}
        row["total"] += event["body"].get("cents", 0)
        say({"done": event["id"], "actions": [{"upsert": "accounts", "row": row}]})
    say({"end": batch["batch"]})
"#;

/// Who handles the events.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Handler {
    Folded,
    OneByOne,
    Program,
}

impl Handler {
    fn story(self) -> Story {
        if self == Self::Program { SHORT } else { LONG }
    }
}

fn declared(version: i32, handler: Handler, retry: &str) -> String {
    let head = match handler {
        Handler::Folded => "",
        Handler::OneByOne => "fold = false",
        Handler::Program => {
            "command = ['python3', 'accounts.py']\nevents = ['Opened', 'Paid']\naggregate_column = 'id'"
        }
    };
    let more = if version > 1 { ", more int" } else { "" };
    let handlers = if handler == Handler::Program { "" } else { HANDLERS };
    format!(
        "[projector]\nname = 'accounts'\nversion = {version}\n{head}\n{retry}\n\
         [projector.tables]\naccounts = 'id uuid primary key, total bigint not null default 0{more}'\n{handlers}"
    )
}

struct Fixture {
    installation: Installation,
    pool: PgPool,
    schema: &'static str,
    _database: Database,
}

impl Fixture {
    /// In espd's own layout, with an upcast.
    async fn with_upcast(settings: &str, plan: &str) -> Self {
        let db = support::database().await;
        let settings = format!("[runner]\npoll_interval_max = '50ms'\n{settings}\n{UPCAST}");
        let installation = Installation::new(&format!("{}{plan}", db.url), &settings);
        Self { installation, pool: db.pool.clone(), schema: "public", _database: db }
    }

    /// In the layout of event_sourcery, whose bodies are `json`.
    async fn of_event_sourcery(settings: &str, plan: &str) -> Self {
        let db = Framework::create().await.db;
        let settings = format!(
            "layout = 'event_sourcery'\n[projections]\nschema = 'projections'\n[runner]\npoll_interval_max = '50ms'\n{settings}"
        );
        let installation = Installation::new(&format!("{}{plan}", db.url), &settings);
        installation.espctl(&["migrate"]).await.printed();
        Self { installation, pool: db.pool.clone(), schema: "projections", _database: db }
    }

    /// Opens 20 accounts, and has money paid to each in turn.
    async fn happens(&self, Story { events, unreadable: id }: Story) {
        let (table, json, unreadable) = match self.schema {
            "public" => ("espd.events", "jsonb", r#"{"cents": "none"}"#),
            _ => ("public.events", "json", r#"{"cents": 5, "note": "a\u0000b"}"#),
        };
        self.run(&format!(
            "alter table {table} set (autovacuum_enabled = false);
             insert into {table} (aggregate_id, type, version, body)
             select (lpad(((n - 1) % 20 + 1)::text, 8, '0') || '-0000-4000-8000-000000000000')::uuid,
               case when n <= 20 then 'Opened' else 'Paid' end, (n - 1) / 20 + 1,
               case n when {id} then '{unreadable}' else json_build_object('cents', n % 100)::text end::{json}
             from generate_series(1, {events}) as n order by n"
        ))
        .await;
    }

    fn declare(&self, text: &str) {
        std::fs::write(self.installation.path().join("processors/accounts.py"), PROGRAM).unwrap();
        self.installation.declare("accounts", text);
    }

    async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await.unwrap();
    }

    async fn fact(&self, query: &str) -> String {
        let query = format!("select ({query})::text");
        let fact: Option<String> =
            sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&self.pool).await.unwrap();
        fact.unwrap_or_default()
    }

    async fn letters(&self) -> String {
        self.fact(
            "select concat(min(event_id) filter (where reason = 'failed'), ' ', count(*) filter (where reason = 'failed'), ' ', count(*))
             from espd.dead_letters where processor = 'accounts'",
        )
        .await
    }

    async fn espctl(&self, arguments: &[&str]) -> Outcome {
        self.installation.espctl(arguments).await
    }

    async fn finds_nothing(&self, arguments: &[&str]) {
        let outcome = self.espctl(arguments).await;
        assert!(
            outcome.code == Some(0) && outcome.stdout.contains("nothing differs"),
            "{arguments:?}: {outcome:?}"
        );
    }
}

const NINTH: &str = "00000009-0000-4000-8000-000000000000";

/// What the live version has done about the event, everybody who builds and verifies does as well.
async fn is_set_aside_everywhere(fixture: Fixture, handler: Handler) {
    let story = handler.story();
    fixture.declare(&declared(1, handler, PARK));
    fixture.happens(story).await;
    let daemon = fixture.installation.start_daemon();
    reaches(&fixture.pool, "accounts", story.events).await;
    let letters = fixture.letters().await;
    assert!(letters.starts_with(&format!("{} 1 ", story.unreadable)), "{letters}");

    fixture.finds_nothing(&["verify", "accounts"]).await;
    fixture.finds_nothing(&["verify", "accounts", "--sample", "100"]).await;
    fixture.finds_nothing(&["verify", "accounts", "--since", "2000-01-01T00:00:00Z"]).await;
    fixture.finds_nothing(&["verify", "accounts", "--aggregate", NINTH]).await;
    fixture.finds_nothing(&["rebuild", "accounts", "--aggregate", NINTH, "--dry-run"]).await;
    let third = NINTH.replace('9', "3");
    fixture.run(&format!("update {}.accounts set total = 1 where id = '{third}'", fixture.schema)).await;
    fixture.espctl(&["rebuild", "accounts", "--aggregate", &third, "--yes"]).await.printed();
    fixture.finds_nothing(&["verify", "accounts"]).await;

    // It is a dead letter already, whatever is declared now.
    fixture.declare(&declared(2, handler, ""));
    for workers in ["1", "2"] {
        let dry = fixture.espctl(&["rebuild", "accounts", "--dry-run", "--workers", workers]).await;
        assert!(dry.stdout.contains("accounts: no row differs") || dry.code == Some(0), "{dry:?}");
    }
    fixture.espctl(&["rebuild", "accounts", "--yes"]).await.printed();
    assert_eq!(fixture.fact("select version from espd.trackers where name = 'accounts'").await, "2");
    assert_eq!(fixture.letters().await, letters);
    daemon.stop().await;
}

const SETTINGS: &str = "[rebuild]\nparallelism = 0\n";

#[tokio::test]
async fn an_event_at_which_an_upcast_fails_is_set_aside_by_builds_as_well() {
    for handler in [Handler::Folded, Handler::OneByOne, Handler::Program] {
        is_set_aside_everywhere(Fixture::with_upcast(SETTINGS, "").await, handler).await;
    }
}

#[tokio::test]
async fn an_event_that_jsonb_refuses_is_set_aside_by_builds_as_well() {
    for handler in [Handler::Folded, Handler::OneByOne, Handler::Program] {
        is_set_aside_everywhere(Fixture::of_event_sourcery(SETTINGS, "").await, handler).await;
    }
}

/// Whatever the server computes before it sorts and cuts off.
#[tokio::test]
async fn where_it_stops_a_build_that_event_is_named_and_no_handler_is_blamed() {
    for plan in ["", "&options=-c%20enable_indexscan%3Doff", "&options=-c%20enable_bitmapscan%3Doff"] {
        for (fixture, handler) in [
            (Fixture::with_upcast(SETTINGS, plan).await, Handler::OneByOne),
            (Fixture::of_event_sourcery(SETTINGS, plan).await, Handler::OneByOne),
            (Fixture::of_event_sourcery(SETTINGS, plan).await, Handler::Program),
        ] {
            let Story { events, unreadable } = handler.story();
            fixture.declare(&declared(1, handler, ""));
            fixture.happens(handler.story()).await;
            let daemon = fixture.installation.start_daemon();
            // It stops at it as well, and an operator sets it aside.
            reaches(&fixture.pool, "accounts", unreadable - 1).await;
            let status = support::facts::eventually("it fails", async || {
                let status = fixture.espctl(&["status", "accounts"]).await.printed();
                status.contains("cannot handle").then_some(status)
            })
            .await;
            let named = format!("event {unreadable} (Paid), which cannot be read: ");
            assert!(
                status.contains(&named) && status.contains("Fix the upcast that reads it"),
                "{plan}: {status}"
            );
            fixture.espctl(&["dead-letters", "park", "accounts"]).await.printed();
            reaches(&fixture.pool, "accounts", events).await;
            let shown = fixture.espctl(&["dead-letters", "show", "accounts", &unreadable.to_string()]).await;
            assert!(shown.stdout.contains("Fix the upcast that reads the event"), "{shown:?}");
            fixture.finds_nothing(&["verify", "accounts", "--aggregate", NINTH]).await;
            fixture.finds_nothing(&["verify", "accounts", "--sample", "100"]).await;

            // Nobody has set it aside any more.
            fixture.run("delete from espd.dead_letters").await;
            fixture.declare(&declared(2, handler, ""));
            for workers in ["1", "2"] {
                let dry = fixture.espctl(&["rebuild", "accounts", "--dry-run", "--workers", workers]).await;
                let is_named = dry.stderr.contains(&named) && dry.stderr.contains("correct the upcast");
                assert!(dry.code == Some(1) && is_named, "{plan} {handler:?}: {dry:?}");
            }
            daemon.stop().await;
        }
    }
}

#[tokio::test]
async fn a_slice_with_such_an_event_is_verified() {
    let is_verified = async |fixture: Fixture| {
        fixture.declare(&declared(1, Handler::OneByOne, PARK));
        fixture.happens(SHORT).await;
        let daemon = fixture.installation.start_daemon();
        reaches(&fixture.pool, "accounts", SHORT.events).await;
        daemon.stop().await;
        // What cannot be verified yet would be looked at again after a minute.
        let path = fixture.installation.path().join("espd.toml");
        let settings = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{settings}\n[verify]\nshare = 1.0\n")).unwrap();
        let daemon = fixture.installation.start_daemon();
        daemon.says("verified a slice: the rows are what their events say").await;
        let found = fixture.fact("select sum(compared_rows) from espd.verifications").await;
        assert_eq!(found, "20");
        daemon.stop().await;
    };
    let (of_espd, of_event_sourcery) =
        (Fixture::with_upcast("", "").await, Fixture::of_event_sourcery("", "").await);
    tokio::join!(is_verified(of_espd), is_verified(of_event_sourcery));
}
