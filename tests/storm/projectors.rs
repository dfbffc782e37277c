//! The processors under test, and the projectors' tables as the verifier reads them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use espd::event::{Position, Version};
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::handlers::{COLUMNS, NATIVE_COUNTS, PROGRAM_ARGUMENT, PROGRAM_COUNTS};

/// One row for each event that was handled. Nothing is unique but the place in the journal: doubles and
/// inversions show.
const JOURNAL: &str = r#"
[projector]
name = "journal"
batch_size = 50

[projector.tables]
journal = """
  place        bigint generated always as identity primary key,
  event_id     bigint not null,
  event_uuid   uuid   not null,
  aggregate_id uuid   not null,
  version      bigint not null{more}
"""

[[projector.on]]
events = ["*"]
sql = """
  insert into journal (event_id, event_uuid, aggregate_id, version)
  values (event.id, event.uuid, event.aggregate_id, event.version)
"""
"#;

/// The state of each open account. `trail` depends on the order of the events.
const ACCOUNTS: &str = r#"
[projector]
name = "accounts"
batch_size = 20

[projector.tables]
accounts = """
  account_id uuid   primary key,
  version    bigint not null,
  balance    bigint not null,
  trail      bigint not null{more}
"""

[[projector.on]]
events = ["AccountOpened"]
sql = "insert into accounts values (event.aggregate_id, event.version, 0, event.version)"

[[projector.on]]
events = ["MoneyDeposited", "MoneyWithdrawn"]
sql = """
  update accounts set
    version = event.version,
    balance = balance + case event.type when 'MoneyDeposited' then 1 else -1 end * (event.body->>'amount')::bigint,
    trail   = (trail * 31 + (event.body->>'amount')::bigint) % 1000003
  where account_id = event.aggregate_id
"""

[[projector.on]]
events = ["AccountClosed"]
sql = "delete from accounts where account_id = event.aggregate_id"
"#;

/// How many events there are of each type. Looks at few ids at a time.
const COUNTS: &str = r#"
[projector]
name = "counts"
batch_span = 70

[projector.tables]
counts = """
  event_type text   primary key,
  events     bigint not null,
  amount     bigint not null,
  last_event bigint not null{more}
"""

[[projector.on]]
events = ["*"]
sql = """
  insert into counts as c values (event.type, 1, (event.body->>'amount')::bigint, event.id)
  on conflict (event_type) do update set
    events = c.events + 1, amount = c.amount + excluded.amount, last_event = excluded.last_event
"""
"#;

/// The state of each open account again, by handlers whose batches are folded: one row each, known by its key.
const FOLDED_ACCOUNTS: &str = r#"
[projector]
name = "folded_accounts"

[projector.tables]
folded_accounts = "account_id uuid primary key, version bigint not null, balance bigint not null{more}"

[[projector.on]]
events = ["AccountOpened"]
sql = "insert into folded_accounts (account_id, version, balance) values (event.aggregate_id, event.version, 0)"

[[projector.on]]
events = ["MoneyDeposited"]
sql = """
  update folded_accounts set version = event.version, balance = balance + (event.body->>'amount')::bigint
  where account_id = event.aggregate_id
"""

[[projector.on]]
events = ["MoneyWithdrawn"]
sql = """
  update folded_accounts set version = event.version, balance = balance - (event.body->>'amount')::bigint
  where account_id = event.aggregate_id
"""

[[projector.on]]
events = ["AccountClosed"]
sql = "delete from folded_accounts where account_id = event.aggregate_id"
"#;

/// The counts again, likewise.
const FOLDED_COUNTS: &str = r#"
[projector]
name = "folded_counts"

[projector.tables]
folded_counts = "event_type text primary key, events bigint not null, amount bigint not null, last_event bigint not null{more}"

[[projector.on]]
events = ["*"]
sql = """
  insert into folded_counts (event_type, events, amount, last_event)
  values (event.type, 1, (event.body->>'amount')::bigint, event.id)
  on conflict (event_type) do update set events = folded_counts.events + 1,
    amount = folded_counts.amount + excluded.amount, last_event = excluded.last_event
"""
"#;

/// Emits one event for each account, into an aggregate that has nothing else, so that doubles show.
const GREETER: &str = r#"
[reactor]
name = "greeter"
emits = ["AccountGreeted"]
start = "beginning"
batch_size = 30

[[reactor.on]]
events = ["AccountOpened"]
sql = """perform espd.emit('AccountGreeted', event.uuid, '{"amount": 1}')"""
"#;

/// Emits one event for each account, a little later.
const REMINDER: &str = r#"
[reactor]
name = "reminder"
emits = ["AccountReminded"]
start = "beginning"

[[reactor.on]]
events = ["AccountOpened"]
sql = """perform espd.emit_after('AccountReminded', event.uuid, '{"amount": 1}', interval '300 milliseconds')"""
"#;

/// Notifies the receiver of accounts that are opened and closed: requests are slower than rows, and it has to keep up. An account that
/// the receiver refuses waits, and the others go on.
const NOTIFIER: &str = r#"
[reactor]
name = "notifier"
events = ["AccountOpened", "AccountClosed"]
start = "beginning"
batch_size = 40

[reactor.retry]
max_attempts = 4
on_failure   = "park"

[reactor.webhook]
url             = "{url}"
allow_private   = true
connect_timeout = "1s"
timeout         = "3s"
"#;

/// Counts as `counts` does, by a program.
const PROGRAM: &str = r#"
[projector]
name = "program_counts"
events = ["*"]
command = ["{program}", "{argument}"]

[projector.tables]
program_counts = "{columns}"
"#;

/// Names of the projectors.
pub const NAMES: [&str; 7] =
    ["accounts", "counts", "folded_accounts", "folded_counts", "journal", NATIVE_COUNTS, PROGRAM_COUNTS];

/// The tables that count the events of each type, which are those of the projectors of these names.
pub const COUNTED: [&str; 4] = ["counts", NATIVE_COUNTS, PROGRAM_COUNTS, "folded_counts"];

/// Names of the reactors, which run beside the events only.
pub const REACTORS: [&str; 3] = ["greeter", "reminder", NOTIFIER_NAME];

/// Name of the reactor that sends webhooks: the only processor with events that fail.
pub const NOTIFIER_NAME: &str = "notifier";

/// The projectors in SQL, of which there are versions.
pub const VERSIONED: [(&str, &str); 5] = [
    ("journal", JOURNAL),
    ("accounts", ACCOUNTS),
    ("counts", COUNTS),
    ("folded_accounts", FOLDED_ACCOUNTS),
    ("folded_counts", FOLDED_COUNTS),
];

/// Declares a version of a projector in SQL for the daemons of a place. Every other one has a column more, which nothing fills.
pub fn declare(folder: &Path, place: &str, name: &str, version: i32) -> anyhow::Result<()> {
    let (_, text) =
        VERSIONED.iter().find(|(versioned, _)| *versioned == name).context("no such projector")?;
    let more = if version % 2 == 0 { ", more bigint" } else { "" };
    let named = format!("name = \"{name}\"\n");
    let versioned = format!("{named}version = {version}\napprove = \"always\"\n");
    let path = folder.join(place).join(format!("{name}.projector.toml"));
    // A daemon reads all of it or nothing.
    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, text.replace(&named, &versioned).replace("{more}", more))?;
    Ok(fs::rename(unfinished, path)?)
}

/// Writes the processors and returns a configuration for a daemon that runs them. Daemons of the same `place` share projectors.
pub fn write_config(
    folder: &Path,
    (name, place): (&str, &str),
    events_url: &str,
    projections_url: Option<&str>,
    receiver_url: &str,
) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(folder.join(place))?;
    for (projector, _) in VERSIONED {
        declare(folder, place, projector, 1)?;
    }
    let program = PROGRAM
        .replace("{program}", &std::env::current_exe()?.display().to_string())
        .replace("{argument}", PROGRAM_ARGUMENT)
        .replace("{columns}", COLUMNS);
    fs::write(folder.join(place).join("program.projector.toml"), program)?;
    let native = format!("[projector]\nname = \"{NATIVE_COUNTS}\"\nnative = true\n");
    fs::write(folder.join(place).join("native.projector.toml"), native)?;
    fs::write(folder.join("greeter.reactor.toml"), GREETER)?;
    fs::write(folder.join("reminder.reactor.toml"), REMINDER)?;
    fs::write(folder.join("notifier.reactor.toml"), NOTIFIER.replace("{url}", receiver_url))?;
    let reactors = if projections_url.is_none() { ", \"*.reactor.toml\"" } else { "" };
    let projections = projections_url.map(|url| format!("url = \"{url}\"")).unwrap_or_default();
    let text = format!(
        r#"include = ["{place}/*.projector.toml"{reactors}]

[event_store]
url = "{events_url}"

[projections]
{projections}

[runner]
poll_interval_max = "200ms"
shutdown_timeout  = "10s"

[retry]
initial = "100ms"
max     = "1s"

[log]
format = "json"
"#
    );
    let path = folder.join(format!("{name}.toml"));
    fs::write(&path, text)?;
    Ok(path)
}

/// A row of `journal`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub event_id: Position,
    pub event_uuid: Uuid,
    pub aggregate_id: Uuid,
    pub version: Version,
}

/// A row of `accounts`, without its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    pub version: Version,
    pub balance: i64,
    pub trail: i64,
}

/// A row of `counts`, without its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    pub events: i64,
    pub amount: i64,
    pub last_event: Position,
}

/// All that the projectors have made in one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projections {
    /// In the order in which the rows were written.
    pub journal: Vec<Entry>,
    pub accounts: BTreeMap<Uuid, Account>,
    /// Version and balance of each account.
    pub folded_accounts: BTreeMap<Uuid, (Version, i64)>,
    /// Of each of [`COUNTED`].
    pub counts: [BTreeMap<String, Count>; 4],
}

impl Projections {
    /// Reads the tables.
    pub async fn read(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let statement = "-- read_journal
             select event_id, event_uuid, aggregate_id, version from journal order by place";
        let journal: Vec<(Position, Uuid, Uuid, Version)> =
            sqlx::query_as(statement).fetch_all(&mut *connection).await?;
        let entry = |(event_id, event_uuid, aggregate_id, version)| Entry {
            event_id,
            event_uuid,
            aggregate_id,
            version,
        };

        let statement = "-- read_accounts\nselect account_id, version, balance, trail from accounts";
        let accounts: Vec<(Uuid, Version, i64, i64)> =
            sqlx::query_as(statement).fetch_all(&mut *connection).await?;
        let account = |(id, version, balance, trail)| (id, Account { version, balance, trail });

        let statement = "-- read_folded_accounts\nselect account_id, version, balance from folded_accounts";
        let folded: Vec<(Uuid, Version, i64)> = sqlx::query_as(statement).fetch_all(&mut *connection).await?;

        let mut counts = [const { BTreeMap::new() }; 4];
        for (table, counts) in COUNTED.into_iter().zip(&mut counts) {
            *counts = read_counts(connection, table).await?;
        }
        Ok(Self {
            journal: journal.into_iter().map(entry).collect(),
            accounts: accounts.into_iter().map(account).collect(),
            folded_accounts: folded
                .into_iter()
                .map(|(id, version, balance)| (id, (version, balance)))
                .collect(),
            counts,
        })
    }
}

async fn read_counts(
    connection: &mut PgConnection,
    table: &str,
) -> Result<BTreeMap<String, Count>, sqlx::Error> {
    let statement = format!("-- read_counts\nselect event_type, events, amount, last_event from {table}");
    let counts: Vec<(String, i64, i64, Position)> =
        sqlx::query_as(AssertSqlSafe(statement)).fetch_all(connection).await?;
    let count = |(name, events, amount, last_event)| (name, Count { events, amount, last_event });
    Ok(counts.into_iter().map(count).collect())
}
