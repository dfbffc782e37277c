//! What many processors cost in one worker, beside one: idle; while events come that are for one of them; and passing a long
//! log in which nothing is for them.
//!
//! `cargo bench --bench one_worker`; docs/benchmarks.md says what the figures mean. Reads `/proc`: Linux only.

mod support;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::ensure;
use sqlx::PgPool;
use support::processes::Family;
use support::{Arguments, Daemon, Installation, Limits, Report, Server, Spread};
use tokio::time::sleep;

const MANY: usize = 100;

/// Events per second.
const RATE: u32 = 1_000;

const WRITERS: u32 = 4;

const PATIENCE: Duration = Duration::from_secs(900);

/// How long a daemon has nothing to do before it counts as idle: its looks become rare after half a minute.
const REST: Duration = Duration::from_secs(45);

const APPEND: &str = "select max(id) from espd.append(jsonb_build_object(
  'aggregate_id', gen_random_uuid(), 'type', 'Ticked0', 'body', '{}'::jsonb))";

/// What a daemon has cost for some time, per second.
#[derive(Debug, Default)]
struct Costs {
    /// Of the daemon, its worker, and the server's processes for them, in % of a core.
    processor: Vec<f64>,
    /// Those of the appends are not counted.
    transactions: Vec<f64>,
    connections: Vec<f64>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let (time, rounds) = (arguments.size(10, 2), arguments.rounds(3));
    let time = Duration::from_secs(time);
    let (mut idle, mut busy) = (Costs::default(), [Costs::default(), Costs::default()]);
    for round in 0..rounds {
        for turn in 0..2 {
            // Neither always comes first.
            let index = (round + turn) % 2;
            let server = Server::start(&[("max_connections", "300")]).await?;
            let follower = Follower::start(&server, [1, MANY][index]).await?;
            sleep(arguments.size(REST, Duration::from_secs(1))).await;
            if index == 1 {
                follower.measure(time, false, &mut idle).await?;
            }
            follower.measure(time, true, &mut busy[index]).await?;
            follower.stop()?;
            server.stop().await;
        }
    }
    print_costs(rounds, time, &idle, &busy);
    pass(arguments).await
}

fn print_costs(rounds: usize, time: Duration, idle: &Costs, busy: &[Costs; 2]) {
    let title = format!("{MANY} processors in one worker, {rounds} rounds of {time:?}");
    let limits = Limits::begin(&title);
    let of = |values: &[f64]| Spread::of(values);
    limits.row("idle: connections", of(&idle.connections), "connections", "<= 8");
    limits.row("idle: transactions", of(&idle.transactions), "/s", "<= 5");
    limits.row("idle: processor time", of(&idle.processor), "% of a core", "");
    drop(limits);
    let [one, many] = busy;
    let title = format!("{title}, {RATE} events/s, of which 1 processor handles all");
    let report = Report::begin(&title, "% of a core");
    report.row("busy: processor time; one processor", of(&many.processor), of(&one.processor), "<= 3 x");
    drop(report);
    let report = Report::begin(&title, "/s");
    report.row("busy: transactions; one processor", of(&many.transactions), of(&one.transactions), "<= 3 x");
}

/// How long processors take to pass events that are for none of them.
async fn pass(arguments: Arguments) -> anyhow::Result<()> {
    let (events, rounds) = (arguments.size(5_000_000, 200_000), arguments.rounds(3));
    let mut seconds: [Vec<f64>; 3] = Default::default();
    let numbers = [1, 10, MANY];
    let settings = [("max_connections", "300"), ("max_wal_size", "4GB")];
    let server = Server::start(&settings).await?;
    server.load_small_events(events).await?;
    for round in 0..rounds {
        for turn in 0..numbers.len() {
            let index = (round + turn) % numbers.len();
            server.settle().await?;
            let begun = Instant::now();
            let follower = Follower::start(&server, numbers[index]).await?;
            follower.wait_for_position(events as i64).await?;
            seconds[index].push(begun.elapsed().as_secs_f64());
            follower.stop()?;
            follower_is_forgotten(&server).await?;
        }
    }
    server.stop().await;
    let title =
        format!("passing {events} events of another type, from the start of the daemon, {rounds} rounds");
    let report = Report::begin(&title, "s");
    let spreads = seconds.map(|seconds| Spread::of(&seconds));
    for (number, spread) in numbers.iter().zip(spreads) {
        let target = if *number == MANY { "<= 3 x" } else { "" };
        let what = format!("{number} processors pass them; one processor");
        report.point(&what, Some(*number as f64), spread, spreads[0], target);
    }
    Ok(())
}

async fn follower_is_forgotten(server: &Server) -> anyhow::Result<()> {
    server.execute("delete from espd.trackers; delete from espd.projection_tables").await?;
    let tables = (0..MANY).map(|number| format!("drop table if exists arrivals_{number};"));
    server.execute(&tables.collect::<String>()).await
}

/// A daemon with so many processors in one worker.
struct Follower<'s> {
    server: &'s Server,
    daemon: Daemon,
    _installation: Installation,
    processors: usize,
}

impl<'s> Follower<'s> {
    /// Starts it and waits until all processors have an owner.
    async fn start(server: &'s Server, processors: usize) -> anyhow::Result<Self> {
        let installation = Installation::new(&server.url, "warn", &declare(processors)?)?;
        let daemon = installation.start()?;
        let follower = Self { server, daemon, _installation: installation, processors };
        follower
            .wait_until("select count(*) from espd.trackers where owner is not null and position >= $1", 0)
            .await?;
        Ok(follower)
    }

    async fn wait_for_position(&self, position: i64) -> anyhow::Result<()> {
        self.wait_until("select count(*) from espd.trackers where position >= $1", position).await
    }

    /// Waits until a statement counts all processors.
    async fn wait_until(&self, statement: &'static str, position: i64) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let count: i64 =
                sqlx::query_scalar(statement).bind(position).fetch_one(&self.server.pool).await?;
            if usize::try_from(count)? >= self.processors {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{count} of {} processors only", self.processors);
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Costs for this time, with events or without.
    async fn measure(&self, time: Duration, with_events: bool, costs: &mut Costs) -> anyhow::Result<()> {
        let family = Family::of(self.daemon.pid())?;
        let processor = async || {
            let server = self.server.processor_time_for_daemons().await?;
            anyhow::Ok((family.processor_time()? + server).as_secs_f64())
        };
        let (transactions, used, begun) =
            (self.server.transactions().await?, processor().await?, Instant::now());
        let appended = if with_events {
            append_for(self.server, time).await?
        } else {
            sleep(time).await;
            0
        };
        let seconds = begun.elapsed().as_secs_f64();
        // A connection that was closed meanwhile has taken its time with it.
        costs.processor.push((processor().await? - used).max(0.0) / seconds * 100.0);
        // Less the three that ask.
        let transactions = self.server.transactions().await? - transactions - 3 - appended;
        costs.transactions.push(transactions as f64 / seconds);
        costs.connections.push(self.server.connections().await? as f64);
        Ok(())
    }

    fn stop(self) -> anyhow::Result<()> {
        self.daemon.stop()
    }
}

/// Appends at [`RATE`] and returns how many transactions that took.
async fn append_for(server: &Server, time: Duration) -> anyhow::Result<i64> {
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let pool = server.pool.clone();
        writers.spawn(append_steadily(pool, time));
    }
    writers.join_all().await.into_iter().sum()
}

async fn append_steadily(pool: PgPool, time: Duration) -> anyhow::Result<i64> {
    let mut connection = pool.acquire().await?;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) * WRITERS / RATE);
    let (begun, mut appended) = (Instant::now(), 0);
    while begun.elapsed() < time {
        ticks.tick().await;
        sqlx::query(APPEND).execute(&mut *connection).await?;
        appended += 1;
    }
    Ok(appended)
}

/// Processors in one worker, each for a type of its own; only the first one's events come.
fn declare(processors: usize) -> anyhow::Result<String> {
    let mut text = String::new();
    for number in 0..processors {
        write!(
            text,
            r#"
[[projector]]
name      = "arrivals_{number}"
isolation = "task"
tables    = {{ arrivals_{number} = "id bigint primary key, handled_at timestamptz not null" }}

[[projector.on]]
events = ["Ticked{number}"]
sql    = "insert into arrivals_{number} values (event.id, clock_timestamp())"
"#
        )?;
    }
    Ok(text)
}
