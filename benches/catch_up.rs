//! How fast one SQL projector catches up, beside the same PL/pgSQL called in a loop from psql, and beside one statement over
//! the whole log; and with a trigger on its table, beside a loop whose table has it as well.
//!
//! `cargo bench --bench catch_up`; docs/benchmarks.md says what the figures mean.

mod support;

use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use chrono::{DateTime, Utc};
use espd::embedded::find_binaries;
use support::{Arguments, Installation, Report, Server, Spread};

/// The reference workload: one table, a row from TodoAdded until TodoCompleted or TodoAbandoned.
const PROJECTOR: &str = include_str!("../config/processors/outstanding_todos.toml");

const BATCH_EVENTS: i64 = 1_000;

/// The references. All say when the first commit was over and when the last; the one statement, when it began.
const REFERENCES: &str = include_str!("catch_up.sql");

const FORGET: &str = "truncate bare_todos, stated_todos; drop trigger if exists seen on bare_todos";

/// It does nothing, but has to see each row as its event leaves it.
const TRIGGER: &str =
    "create trigger seen after insert or update or delete on {{table}} for each row execute function see()";

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contestant {
    Daemon,
    /// The function that espd has generated, called by a procedure.
    SameFunction,
    /// What one would write by hand for this workload alone.
    BareLoop,
    /// What the whole log comes to, in one statement.
    OneStatement,
    /// A trigger sees each row, so each event needs a statement of its own.
    DaemonWithTrigger,
    BareLoopWithTrigger,
}

const CONTESTANTS: [Contestant; 6] = [
    Contestant::Daemon,
    Contestant::SameFunction,
    Contestant::BareLoop,
    Contestant::OneStatement,
    Contestant::DaemonWithTrigger,
    Contestant::BareLoopWithTrigger,
];

impl Contestant {
    /// The table that it fills.
    fn table(self) -> &'static str {
        match self {
            Self::Daemon | Self::SameFunction | Self::DaemonWithTrigger => "outstanding_todos",
            Self::BareLoop | Self::BareLoopWithTrigger => "bare_todos",
            Self::OneStatement => "stated_todos",
        }
    }

    fn has_trigger(self) -> bool {
        matches!(self, Self::DaemonWithTrigger | Self::BareLoopWithTrigger)
    }
}

/// When one round's batches were committed.
#[derive(Debug, Clone, Copy)]
struct Round {
    /// Before the process was started.
    started: DateTime<Utc>,
    first: DateTime<Utc>,
    /// The position when the first was over.
    position: i64,
    last: DateTime<Utc>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let (events, rounds) = (arguments.size(200_000, 20_000), arguments.rounds(5));
    let server = Server::start(&[]).await?;
    server.load_todo_history(events).await?;
    let flush = server.flush_time();
    let bench = Bench::prepare(&server, events as i64).await?;

    let mut results: [Vec<Round>; CONTESTANTS.len()] = Default::default();
    for number in 0..rounds {
        for turn in 0..CONTESTANTS.len() {
            // Nobody always comes after the same one.
            let index = (number + turn) % CONTESTANTS.len();
            results[index].push(bench.run(CONTESTANTS[index]).await?);
        }
    }
    let title = format!("catch-up of {events} events by one projector, {rounds} rounds, flush {flush:.1?}");
    print(&title, events as i64, &results);
    server.stop().await;
    Ok(())
}

fn print(title: &str, head: i64, results: &[Vec<Round>; CONTESTANTS.len()]) {
    let report = Report::begin(title, "events/s");
    let running = results.each_ref().map(|rounds| rates(rounds, head, |round| (round.first, round.position)));
    let starting = results.each_ref().map(|rounds| rates(rounds, head, |round| (round.started, 0)));
    let [daemon, function, bare, statement, triggered, bare_triggered] = running;
    report.row("from the first batch; one statement over the whole log", daemon, statement, ">= 0.6");
    report.row("from the first batch; the same function", daemon, function, ">= 0.90");
    report.row("from the first batch; a bare loop", daemon, bare, ">= 0.90");
    report.row("with a trigger on the table; a bare loop with it", triggered, bare_triggered, ">= 0.95");
    let [daemon, function, bare, ..] = starting;
    report.row("from the process' start; the same function", daemon, function, "");
    report.row("from the process' start; a bare loop", daemon, bare, "");
}

/// Events per second of each round.
fn rates(rounds: &[Round], head: i64, begin: impl Fn(&Round) -> (DateTime<Utc>, i64)) -> Spread {
    let rate = |round: &Round| {
        let (at, position) = begin(round);
        (head - position) as f64 / (round.last - at).as_seconds_f64()
    };
    Spread::of(&rounds.iter().map(rate).collect::<Vec<_>>())
}

struct Bench<'a> {
    server: &'a Server,
    installation: Installation,
    head: i64,
    /// What every contestant has to leave behind.
    rows: String,
}

impl<'a> Bench<'a> {
    /// Lets the daemon make the table and the function, and the rows that all others are compared with.
    async fn prepare(server: &'a Server, head: i64) -> anyhow::Result<Self> {
        let installation = Installation::new(&server.url, "warn,espd::processing::runner=debug", PROJECTOR)?;
        let mut bench = Self { server, installation, head, rows: String::new() };
        bench.run_daemon().await?;
        bench.server.execute(REFERENCES).await?;
        bench.rows = bench.fingerprint("outstanding_todos").await?;
        Ok(bench)
    }

    async fn run(&self, contestant: Contestant) -> anyhow::Result<Round> {
        // A trigger of the round before goes with the table.
        self.installation.espctl(&["reset", "outstanding_todos", "--cascade", "--in-place", "--yes"])?;
        self.server.execute(FORGET).await?;
        if contestant.has_trigger() {
            self.server.execute(&TRIGGER.replace("{{table}}", contestant.table())).await?;
        }
        self.server.settle().await?;
        let round = match contestant {
            Contestant::Daemon | Contestant::DaemonWithTrigger => self.run_daemon().await?,
            Contestant::SameFunction => self.call("same_function", BATCH_EVENTS)?,
            Contestant::BareLoop | Contestant::BareLoopWithTrigger => self.call("bare_loop", BATCH_EVENTS)?,
            Contestant::OneStatement => self.call("one_statement", 0)?,
        };
        let left = self.fingerprint(contestant.table()).await?;
        ensure!(left == self.rows, "{contestant:?} left other rows");
        Ok(round)
    }

    async fn run_daemon(&self) -> anyhow::Result<Round> {
        let mut daemon = self.installation.start()?;
        let batches = daemon.wait_for_position(self.head).await?;
        let started = daemon.started;
        daemon.stop()?;
        let first = batches.first().context("there is a batch")?;
        let last = batches.iter().find(|batch| batch.position == self.head).context("the head is reached")?;
        Ok(Round { started, first: first.at, position: first.position, last: last.at })
    }

    /// Calls one of the procedures of [`REFERENCES`] from psql.
    ///
    /// Its first time is that when it had reached `position`.
    fn call(&self, procedure: &str, position: i64) -> anyhow::Result<Round> {
        let beside_server = find_binaries()?.folder().join("psql");
        let psql = if beside_server.is_file() { beside_server } else { "psql".into() };
        let statement = format!("call {procedure}({}, {BATCH_EVENTS}, null, null)", self.head);
        let started = Utc::now();
        let output = Command::new(psql)
            .args(["-X", "-q", "-A", "-t", "-F", " ", "-v", "ON_ERROR_STOP=1", "-d", &self.server.url])
            .args(["-c", "set time zone 'utc'", "-c", "set jit = off", "-c", "set enable_seqscan = off"])
            .args(["-c", &statement])
            .stdin(Stdio::null())
            .output()?;
        ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
        let answer = String::from_utf8(output.stdout)?;
        let (first, last) = answer.trim().split_once(' ').context("two times")?;
        Ok(Round { started, first: first.parse()?, position, last: last.parse()? })
    }

    /// The rows of a table, in few letters.
    async fn fingerprint(&self, table: &str) -> anyhow::Result<String> {
        let statement = format!(
            "select count(*) || ' rows, ' || md5(string_agg(t::text, '' order by todo_id)) from {table} t"
        );
        Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_one(&self.server.pool).await?)
    }
}
