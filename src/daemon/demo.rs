//! `espd demo`: shows everything at once, on a private PostgreSQL that leaves nothing behind.
//!
//! First a to-do application's history is appended, so that there is something to catch up with. Then events keep
//! arriving, a worker is killed, and an event comes that cannot be handled. The processors are those of
//! `config/processors` and a reactor, run as `espd run` would run them.

mod arriving;
mod configuration;
mod read_model;
mod screen;
mod story;

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use tokio::sync::{mpsc, watch};

use super::plan::supervision_plan;
use super::todo_history::TodoHistory;
use crate::admin::{Endpoint, Limits};
use crate::config::{AdminSettings, Config, Listen, parse_duration};
use crate::embedded::{EmbeddedPostgres, Options};
use crate::operations::databases::{Databases, private_database};
use crate::operations::operator::Operator;
use crate::process::signal::{self, Request};
use crate::processing::tracker::Owner;
use crate::shutdown;
use crate::store::PostgresEventStore;
use crate::supervision::{Snapshot, Supervisor, SupervisorRequest};
use crate::telemetry;

use arriving::{append_at_rate, append_history};
use configuration::Configuration;
use read_model::latest_todos;
use screen::{Page, Screen, write};
use story::Story;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Events to begin with
    #[arg(long, default_value_t = 100_000, value_name = "COUNT")]
    events: u64,
    /// Events that arrive per second after that
    #[arg(long, default_value_t = 200, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=5_000))]
    rate: u64,
    /// Time to look at what has just happened, before the next thing does
    #[arg(long, default_value = "8s", value_name = "TIME", value_parser = parse_duration)]
    pause: Duration,
    /// End by itself after this time instead of with Ctrl-C
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    time: Option<Duration>,
}

/// Time between two frames.
const FRAME: Duration = Duration::from_millis(500);

/// Rows of the read model on the page.
const TODOS: i64 = 3;

/// Requests that the supervisor has not read yet. A few are enough: they come from people.
const REQUESTS_MAX: usize = 4;

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let requests = signal::requests().context("could not listen for signals")?;
    write("starting a private PostgreSQL …\n");
    let server = EmbeddedPostgres::start_temporary(Options::default()).await?;
    let configuration = Configuration::write(&private_database(&server).await?)?;
    let config = configuration.load()?;
    telemetry::start(&config.log);
    let databases = Databases::connect(&config, "espd demo").await?;
    databases.migrate().await?;
    Stage { arguments, config, databases: &databases, configuration: &configuration }.play(requests).await?;
    databases.close().await;
    server.stop().await;
    write("stopped; nothing is left behind\n");
    Ok(())
}

/// What the demo consists of.
struct Stage<'s> {
    arguments: Arguments,
    config: Config,
    databases: &'s Databases,
    configuration: &'s Configuration,
}

impl Stage<'_> {
    async fn play(&self, requests: mpsc::Receiver<Request>) -> anyhow::Result<()> {
        let store = PostgresEventStore::new(self.databases.events.clone(), self.databases.layout.clone());
        let mut history = TodoHistory::new(1);
        self.begin(&mut history, &store).await?;
        let listen = Listen::Tcp((Ipv4Addr::LOCALHOST, 0).into());
        let endpoint =
            Endpoint::start(&AdminSettings { listen, ..AdminSettings::default() }, Limits::default())?;
        endpoint.show_config(&self.config);
        let owner = Owner::generate();
        let supervisor = Supervisor::new(supervision_plan(&self.config, &owner)?);
        endpoint.show_workers(&supervisor);
        let (handle, stop) = shutdown::channel();
        let arriving = tokio::spawn(append_at_rate(self.arguments.rate, store, history, stop));
        let (sender, receiver) = mpsc::channel(REQUESTS_MAX);
        let (lines, told) = watch::channel(Vec::new());
        let mut screen = Screen::open();
        let story = self.story(owner, sender.clone(), supervisor.snapshots(), lines);
        let hints = self.hints(endpoint.url());
        let showing = self.show(&mut screen, supervisor.snapshots(), &told, &hints);
        let showing = async { tokio::try_join!(story.run(), showing) };
        let supervising = async {
            tokio::join!(supervisor.run(receiver), stop_when_asked(requests, sender, self.arguments.time))
        };
        let outcome = tokio::select! {
            _ = supervising => Ok(()),
            outcome = showing => outcome.map(drop),
        };
        screen.close(&told.borrow());
        handle.request();
        endpoint.stop().await;
        arriving.await.context("the demo's own writer")??;
        outcome
    }

    /// Appends the history.
    async fn begin(&self, history: &mut TodoHistory, store: &PostgresEventStore) -> anyhow::Result<()> {
        let events = self.arguments.events;
        let took = append_history(events, history, store).await?;
        write(&format!("appended {events} events of a to-do application in {:.1} s\n", took.as_secs_f32()));
        Ok(())
    }

    fn story(
        &self,
        owner: Owner,
        supervisor: mpsc::Sender<SupervisorRequest>,
        snapshots: watch::Receiver<Vec<Snapshot>>,
        lines: watch::Sender<Vec<String>>,
    ) -> Story<'_> {
        let pool = self.databases.events.clone();
        let store = PostgresEventStore::new(pool.clone(), self.databases.layout.clone());
        Story {
            pool,
            store,
            configuration: self.configuration,
            owner,
            supervisor,
            snapshots,
            history: self.arguments.events.cast_signed(),
            pause: self.arguments.pause,
            espctl: format!("{}{}", espctl(), self.configuration.argument()),
            started: Instant::now(),
            lines,
        }
    }

    /// What to try in another terminal.
    fn hints(&self, endpoint: &str) -> Vec<String> {
        let espctl = format!("{}{}", espctl(), self.configuration.argument());
        vec![
            "TRY IN ANOTHER TERMINAL (Ctrl-C here ends the demo)".to_owned(),
            format!("  {espctl} status"),
            format!("  {espctl} events --follow --type StakeholderThanked"),
            format!("  curl {endpoint}/metrics"),
        ]
    }

    /// Shows a frame every half second; ends with an error only.
    async fn show(
        &self,
        screen: &mut Screen,
        snapshots: watch::Receiver<Vec<Snapshot>>,
        told: &watch::Receiver<Vec<String>>,
        hints: &[String],
    ) -> anyhow::Result<Infallible> {
        let operator =
            Operator { databases: self.databases, declared: &self.config.processors, name: "", native: None };
        let mut ticks = tokio::time::interval(FRAME);
        loop {
            ticks.tick().await;
            let statuses = operator.statuses(None).await?;
            // The table is made by its projector, a moment after the start.
            let todos = latest_todos(&self.databases.events, TODOS).await.unwrap_or_default();
            let (workers, story) = (snapshots.borrow().clone(), told.borrow().clone());
            screen.show(&Page {
                statuses: &statuses,
                workers: &workers,
                todos: &todos,
                story: &story,
                hints,
            });
        }
    }
}

/// How to call `espctl` from here: by its path if it is beside this program, as after a build.
fn espctl() -> String {
    let beside = std::env::current_exe().ok().map(|program| program.with_file_name("espctl"));
    let Some(path) = beside.filter(|path| path.exists()) else { return "espctl".to_owned() };
    let here =
        std::env::current_dir().ok().and_then(|folder| path.strip_prefix(folder).ok().map(Path::to_owned));
    match here {
        Some(relative) => format!("./{}", relative.display()),
        None => path.display().to_string(),
    }
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
    let _ = supervisor.send(SupervisorRequest::Stop).await;
    while let Some(Request::Stop) = tokio::select! {
        request = requests.recv() => request,
        () = supervisor.closed() => None,
    } {
        let _ = supervisor.send(SupervisorRequest::Stop).await;
    }
}
