//! How fast a version is built whose handlers run one event after the other: by two workers, beside one.

use anyhow::ensure;

use super::building::CAUGHT_UP;
use super::support::{Arguments, Installation, Report, Server, Spread};
use super::{SETTINGS, fingerprint, follow_to, projector};

pub(crate) async fn measure(arguments: Arguments) -> anyhow::Result<()> {
    let (events, rounds) = (arguments.size(500_000, 20_000), arguments.rounds(3));
    let server = Server::start(SETTINGS).await?;
    server.load_todo_history(events).await?;
    let looped = projector(1).replace("version = 1", "version = 1\nfold = false");
    let installation = Installation::new(&server.url, "warn", &looped)?;
    follow_to(&server, &installation, events as i64).await?;
    let rows = fingerprint(&server, "outstanding_todos").await?;
    let mut rates: [Vec<f64>; 2] = Default::default();
    for number in 0..rounds {
        for turn in 0..rates.len() {
            let workers = (number + turn) % rates.len() + 1;
            installation.espctl(&["rebuild", "drop", "outstanding_todos", "--yes"])?;
            server.settle().await?;
            let workers_text = workers.to_string();
            let command =
                ["rebuild", "outstanding_todos", "--yes", "--go-live", "swap", "--workers", &workers_text];
            let (caught_up, _) = installation.espctl_until(&command, CAUGHT_UP)?;
            rates[workers - 1].push(events as f64 / caught_up.as_secs_f64());
            let built = fingerprint(&server, "outstanding_todos").await?;
            ensure!(built == rows, "{workers} workers have left {built}, not {rows}");
        }
    }
    let flush = server.flush_time();
    let title = format!("rebuild by the loop, {events} events, rounds: {rounds}, flush {flush:.1?}");
    let report = Report::begin(&title, "events/s");
    let [one, two] = rates.map(|rates| Spread::of(&rates));
    report.row("the loop, two workers; one worker", two, one, ">= 1.5");
    server.stop().await;
    Ok(())
}
