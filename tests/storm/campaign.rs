//! The order of things: gate, storm, calm, convergence, the store that goes back, end, verdict.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use fastrand::Rng;
use sqlx::PgConnection;
use tokio::time::sleep;

use crate::aftermath::{self, Aftermath};
use crate::arguments::Settings;
use crate::controls;
use crate::faults::{Storm, Tally};
use crate::fold::read_events;
use crate::handlers::Notified;
use crate::ledger::Ledger;
use crate::load::Load;
use crate::projectors::{NAMES, NOTIFIER_NAME, Projections, REACTORS};
use crate::servers::Server;
use crate::trackers::{self, History, Lookout};
use crate::verify::{Evidence, Verdict, verify};
use crate::versions::{self, Versions};
use crate::world::World;

/// How long the daemons may take from their start to the first batch of each projector.
const GATE_LIMIT: Duration = Duration::from_secs(60);

/// How long the projectors may take to catch up once the faults have stopped. A worker that was killed often is
/// started after up to 30 s, and a lease lasts 5 s.
const CONVERGENCE_LIMIT: Duration = Duration::from_secs(600);

/// How long sessions may outlive their processes.
const SESSION_LIMIT: Duration = Duration::from_secs(10);

/// Between two looks at what is waited for.
const POLL: Duration = Duration::from_millis(25);

/// What happened, and what is to be thought of it.
pub struct Report {
    pub tally: Tally,
    pub history: Vec<(&'static str, History)>,
    pub verdict: Verdict,
    pub aftermath: Aftermath,
    pub versions: Versions,
    pub unanswered: u64,
    pub controls: usize,
    /// Time from the end of the faults until all projectors had reached the head.
    pub converged_after: Option<Duration>,
    pub elapsed: Duration,
    /// Everything that is wrong, in words.
    pub complaints: Vec<String>,
}

/// Runs it all. An error means that the storm could not be held, not that espd has failed in it.
pub async fn run(world: &mut World, settings: Settings) -> anyhow::Result<Report> {
    let begun = Instant::now();
    let mut rng = Rng::with_seed(settings.seed);
    let mut complaints = Vec::new();

    for daemon in &mut world.daemons {
        daemon.start()?;
    }
    let load = Load::start(world.events.url(), &mut rng)?;
    pass_gate(world).await?;
    let lookouts = world.places().map(|(place, server)| (place, Lookout::post(server.url())));

    let mut tally = Storm::new(world, load.lull(), rng.fork()).blow(settings.time).await?;
    complaints.append(&mut tally.complaints);
    let calm = Instant::now();
    let ledger = load.stop().await?;
    complaints.extend(versions::settle(world, &mut rng).await?);
    let converged_after = match wait_until_converged(world).await? {
        None => Some(calm.elapsed()),
        Some(laggards) => {
            complaints.push(laggards);
            None
        }
    };
    let mut history = Vec::new();
    for (place, lookout) in lookouts {
        let mut seen = lookout.report().await?;
        complaints.append(&mut seen.complaints);
        history.push((place, seen));
    }
    let unanswered = ledger.unanswered;
    let evidence = collect_evidence(world, ledger).await?;
    let versions = Versions::count(world).await?;
    let mut aftermath = Aftermath::default();
    if complaints.is_empty() {
        aftermath = aftermath::run(world).await.unwrap_or_else(|error| Aftermath {
            complaints: vec![format!("the store went back: {error:#}")],
            ..Aftermath::default()
        });
        complaints.append(&mut aftermath.complaints);
    }
    complaints.extend(stop_daemons(world).await?);

    let mut verdict = verify(&evidence);
    let (controls, missed) = controls::run(&evidence, &verdict);
    complaints.append(&mut verdict.complaints);
    complaints.extend(missed.iter().map(|control| format!("the verifier does not notice {control}")));
    let elapsed = begun.elapsed();
    Ok(Report {
        tally,
        history,
        verdict,
        aftermath,
        versions,
        unanswered,
        controls,
        converged_after,
        elapsed,
        complaints,
    })
}

/// The storm may begin when every projector has handled events.
async fn pass_gate(world: &World) -> anyhow::Result<()> {
    let deadline = Instant::now() + GATE_LIMIT;
    for (place, server) in world.places() {
        let mut connection = server.connect().await?;
        while find_laggards(&mut connection, &NAMES, 1.into()).await?.is_some() {
            anyhow::ensure!(Instant::now() < deadline, "the projectors {place} do not begin");
            sleep(POLL).await;
        }
    }
    Ok(())
}

/// Waits until every processor has reached the head. Returns those that do not.
pub async fn wait_until_converged(world: &World) -> anyhow::Result<Option<String>> {
    let deadline = Instant::now() + CONVERGENCE_LIMIT;
    // What the reactors emit on their way, and later, moves the head once more.
    let laggards = wait_for_processors(&world.events, &REACTORS, read_head(world).await?, deadline).await?;
    if laggards.is_some() {
        return Ok(laggards);
    }
    if let Some(pending) = wait_for_emissions(world, deadline).await? {
        return Ok(Some(pending));
    }
    let head = read_head(world).await?;
    for (place, server) in world.places() {
        if let Some(laggards) = wait_for_processors(server, &NAMES, head, deadline).await? {
            return Ok(Some(format!("{place}, {laggards}")));
        }
    }
    Ok(None)
}

/// Waits until everything that is to be emitted later is in the store. Returns what is not by the deadline.
async fn wait_for_emissions(world: &World, deadline: Instant) -> anyhow::Result<Option<String>> {
    let mut connection = world.events.connect().await?;
    let statement = "-- count_emissions\nselect count(*) from espd.emissions";
    loop {
        let pending: i64 = sqlx::query_scalar(statement).fetch_one(&mut connection).await?;
        if pending == 0 {
            return Ok(None);
        }
        if Instant::now() > deadline {
            return Ok(Some(format!("{pending} emissions are still pending after {CONVERGENCE_LIMIT:?}")));
        }
        sleep(POLL).await;
    }
}

async fn read_head(world: &World) -> anyhow::Result<espd::event::Position> {
    let statement = "-- read_head\nselect coalesce(max(id), 0) from espd.events";
    Ok(sqlx::query_scalar(statement).fetch_one(&mut world.events.connect().await?).await?)
}

/// Waits until these have reached a position. Returns those that have not by the deadline.
async fn wait_for_processors(
    server: &Server,
    names: &[&'static str],
    position: espd::event::Position,
    deadline: Instant,
) -> anyhow::Result<Option<String>> {
    let mut connection = server.connect().await?;
    while let Some(laggards) = find_laggards(&mut connection, names, position).await? {
        if Instant::now() > deadline {
            return Ok(Some(format!("short of {position} after {CONVERGENCE_LIMIT:?}: {laggards}")));
        }
        sleep(POLL).await;
    }
    Ok(None)
}

/// The trackers that have not reached a position, in words.
async fn find_laggards(
    connection: &mut PgConnection,
    names: &[&'static str],
    position: espd::event::Position,
) -> Result<Option<String>, sqlx::Error> {
    let trackers = trackers::read(connection).await?;
    let behind = |name: &&'static str| trackers.get(*name).is_none_or(|tracker| tracker.position < position);
    let laggards: Vec<&str> = names.iter().copied().filter(behind).collect();
    Ok((!laggards.is_empty()).then(|| format!("{laggards:?} of {trackers:?}")))
}

/// Stops the daemons and returns what they leave behind.
async fn stop_daemons(world: &mut World) -> anyhow::Result<Vec<String>> {
    let mut complaints = Vec::new();
    for daemon in &mut world.daemons {
        if let Err(error) = daemon.stop().await {
            complaints.push(format!("daemon {}: {error:#}", daemon.name));
        }
        let log = daemon.read_log()?;
        complaints.extend(log.lines().filter(|line| line.contains("panicked at")).map(str::to_owned));
    }
    for (place, server) in world.places() {
        let left = wait_until_silent(server).await?;
        complaints.extend(left.iter().map(|session| format!("{place}, a session is left: {session}")));
        for (name, tracker) in trackers::read(&mut server.connect().await?).await? {
            if tracker.owner.is_some() {
                complaints.push(format!("{place}, {name} was not given up: {tracker:?}"));
            }
        }
    }
    Ok(complaints)
}

/// The sessions that espd still has after a while.
async fn wait_until_silent(server: &Server) -> anyhow::Result<Vec<String>> {
    let deadline = Instant::now() + SESSION_LIMIT;
    loop {
        let left = server.sessions_of_espd().await?;
        if left.is_empty() || Instant::now() > deadline {
            return Ok(left);
        }
        sleep(POLL).await;
    }
}

async fn collect_evidence(world: &World, ledger: Ledger) -> anyhow::Result<Evidence> {
    let events = read_events(&mut world.events.connect().await?).await?;
    let mut places = Vec::new();
    for (place, server) in world.places() {
        let projections = Projections::read(&mut server.connect().await?).await;
        places.push((place, projections.with_context(|| format!("could not read the projections {place}"))?));
    }
    let beside = versions::read(world).await?;
    let set_aside = Notified::read_dead_letters(&mut world.events.connect().await?, NOTIFIER_NAME).await?;
    let delivered = world.accepted.lock().map(|accepted| accepted.clone()).unwrap_or_default();
    Ok(Evidence { events, ledger, places, notified: Notified { delivered, set_aside }, beside })
}
