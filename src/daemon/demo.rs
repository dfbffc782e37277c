//! `espd demo`: shows everything at once, on a private PostgreSQL that leaves nothing behind.
//!
//! First a to-do application's history is appended, so that there is something to catch up with. Then events keep
//! arriving. The processors are those of `config/processors`, run as `espd run` would run them.

use std::io::{IsTerminal as _, Write as _};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use sqlx::postgres::PgPoolOptions;
use tokio::sync::mpsc;

use super::plan::supervision_plan;
use super::todo_history::TodoHistory;
use crate::admin::{Endpoint, Limits};
use crate::config::{AdminSettings, Config, DatabaseUrl, Listen, parse_duration};
use crate::embedded::{EmbeddedPostgres, Options};
use crate::operations::databases::{Databases, private_database};
use crate::operations::operator::Operator;
use crate::operations::status::table;
use crate::process::signal::{self, Request};
use crate::processing::tracker::Owner;
use crate::shutdown::{self, Shutdown};
use crate::store::{EventStore as _, PostgresEventStore};
use crate::supervision::{Supervisor, SupervisorRequest};
use crate::telemetry;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Events to begin with
    #[arg(long, default_value_t = 100_000, value_name = "COUNT")]
    events: u64,
    /// Events that arrive per second after that
    #[arg(long, default_value_t = 200, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=5_000))]
    rate: u64,
    /// End by itself after this time instead of with Ctrl-C
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    time: Option<Duration>,
}

/// Time between two status tables.
const TABLE_INTERVAL: Duration = Duration::from_secs(1);

/// Events of the history per append.
const CHUNK_EVENTS: usize = 1_000;

/// Requests that the supervisor has not read yet. A few are enough: they come from people.
const REQUESTS_MAX: usize = 4;

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut config = own_configuration().context("the demo's own configuration")?;
    telemetry::start(&config.log);
    let requests = signal::requests().context("could not listen for signals")?;
    print("starting a private PostgreSQL …");
    let server = EmbeddedPostgres::start_temporary(Options::default()).await?;
    config.event_store.url = Some(private_database(&server).await?);
    let databases = Databases::connect(&config, "espd demo").await?;
    databases.migrate().await?;
    show(&arguments, &config, &databases, requests).await?;
    databases.close().await;
    server.stop().await;
    print("stopped; nothing is left behind");
    Ok(())
}

/// Loads the processors of `config/processors`, which are part of this program.
fn own_configuration() -> anyhow::Result<Config> {
    const FILES: [(&str, &str); 4] = [
        ("espd.toml", "include = [\"processors/*.toml\"]\n[log]\nlevel = \"warn\"\n"),
        ("processors/outstanding_todos.toml", include_str!("../../config/processors/outstanding_todos.toml")),
        ("processors/scheduled_todos.toml", include_str!("../../config/processors/scheduled_todos.toml")),
        ("processors/completed_todos.toml", include_str!("../../config/processors/completed_todos.toml")),
    ];
    let folder = tempfile::tempdir()?;
    std::fs::create_dir(folder.path().join("processors"))?;
    for (name, text) in FILES {
        std::fs::write(folder.path().join(name), text)?;
    }
    Ok(Config::load(&folder.path().join("espd.toml"))?)
}

async fn show(
    arguments: &Arguments,
    config: &Config,
    databases: &Databases,
    requests: mpsc::Receiver<Request>,
) -> anyhow::Result<()> {
    let url = config.event_store.url.as_ref().context("just set")?;
    let mut history = TodoHistory::new(1);
    append_history(arguments.events, &mut history, databases).await?;
    let listen = Listen::Tcp((Ipv4Addr::LOCALHOST, 0).into());
    let endpoint = Endpoint::start(&AdminSettings { listen, ..AdminSettings::default() }, Limits::default())?;
    endpoint.show_config(config);
    print_hints(url, &endpoint);
    let (handle, stop) = shutdown::channel();
    let pool = PgPoolOptions::new().max_connections(1).connect(url.expose()).await?;
    let store = PostgresEventStore::new(pool.clone(), databases.layout.clone());
    let arriving = tokio::spawn(append_at_rate(arguments.rate, store, history, stop.clone()));
    let supervisor = Supervisor::new(supervision_plan(config, &Owner::generate())?);
    endpoint.show_workers(&supervisor);
    let (sender, receiver) = mpsc::channel(REQUESTS_MAX);
    let supervising =
        async { tokio::join!(supervisor.run(receiver), stop_when_asked(requests, sender, arguments.time)) };
    tokio::select! {
        _ = supervising => {}
        outcome = print_status_until_stopped(config, databases, stop) => outcome?,
    }
    handle.request();
    endpoint.stop().await;
    arriving.await.context("the demo's own writer")??;
    pool.close().await;
    Ok(())
}

fn print_hints(url: &DatabaseUrl, endpoint: &Endpoint) {
    print(&format!(
        "look around in another terminal:\n  export DATABASE_URL='{0}'\n  espctl status    espctl events --follow    \
         psql \"$DATABASE_URL\" -c 'select * from outstanding_todos limit 5'\n  curl {1}/api/v1/processors    curl {1}/metrics\n",
        url.expose(),
        endpoint.url()
    ));
}

/// Appends the history that the processors catch up with.
async fn append_history(events: u64, history: &mut TodoHistory, databases: &Databases) -> anyhow::Result<()> {
    let store = PostgresEventStore::new(databases.events.clone(), databases.layout.clone());
    let begun = Instant::now();
    let mut left = events as usize;
    while left > 0 {
        let count = left.min(CHUNK_EVENTS);
        let chunk: Vec<_> = history.take(count).collect();
        store.append(&chunk).await?;
        left -= count;
    }
    print(&format!(
        "appended {events} events of a to-do application in {:.1} s",
        begun.elapsed().as_secs_f32()
    ));
    Ok(())
}

/// Appends `rate` events per second, one by one, until the stop is requested.
async fn append_at_rate(
    rate: u64,
    store: PostgresEventStore,
    mut history: TodoHistory,
    mut stop: Shutdown,
) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / u32::try_from(rate)?);
    while stop.run_until_requested(ticks.tick()).await.is_some() {
        let event: Vec<_> = history.by_ref().take(1).collect();
        store.append(&event).await?;
    }
    Ok(())
}

/// Asks the supervisor to stop when a signal does or when `time` is over, and again with each further signal.
async fn stop_when_asked(
    mut requests: mpsc::Receiver<Request>,
    supervisor: mpsc::Sender<SupervisorRequest>,
    time: Option<Duration>,
) {
    let time_over = async {
        match time {
            Some(time) => tokio::time::sleep(time).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = requests.recv() => {}
        () = time_over => {}
    }
    print("\nstopping …");
    let _ = supervisor.send(SupervisorRequest::Stop).await;
    while let Some(Request::Stop) = tokio::select! {
        request = requests.recv() => request,
        () = supervisor.closed() => None,
    } {
        let _ = supervisor.send(SupervisorRequest::Stop).await;
    }
}

/// Prints the status every second. On a terminal, each table replaces the one before.
async fn print_status_until_stopped(
    config: &Config,
    databases: &Databases,
    mut stop: Shutdown,
) -> anyhow::Result<()> {
    let operator = Operator { databases, declared: &config.processors, name: "" };
    let mut lines = 0;
    let first = tokio::time::Instant::now() + TABLE_INTERVAL;
    let mut ticks = tokio::time::interval_at(first, TABLE_INTERVAL);
    while stop.run_until_requested(ticks.tick()).await.is_some() {
        let table = table::render(&operator.statuses(None).await?, chrono::Utc::now());
        let mut out = std::io::stdout().lock();
        if std::io::stdout().is_terminal() && lines > 0 {
            write!(out, "\x1b[{lines}A\x1b[J")?;
        }
        writeln!(out, "{table}\n")?;
        lines = table.lines().count() + 1;
    }
    Ok(())
}

fn print(text: &str) {
    // An error means that the reader has closed the pipe, which printing the next table reports.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}
