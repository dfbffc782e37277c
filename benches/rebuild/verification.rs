//! How long `espctl verify` takes beside the building that it contains.

use anyhow::ensure;

use super::building::CAUGHT_UP;
use super::support::{Arguments, Installation, Report, Server, Spread};
use super::{SETTINGS, fingerprint, follow_to, projector};

/// Each aggregate is added, and then amended in turn with all others.
const LOAD: &str = r#"
  insert into espd.events (aggregate_id, type, version, body)
  select md5((n % {rows})::text)::uuid, case when n < {rows} then 'TodoAdded' else 'TodoAmended' end, n / {rows} + 1,
    jsonb_build_object('title', 'todo ' || n, 'due_date', '2027-05-01')
  from generate_series(0, {events} - 1) as n order by n"#;

pub(crate) async fn measure(arguments: Arguments) -> anyhow::Result<()> {
    let (events, rows) = arguments.size((1_000_000, 300_000), (20_000, 6_000));
    let rounds = arguments.rounds(3);
    let server = Server::start(SETTINGS).await?;
    server
        .execute(&LOAD.replace("{events}", &events.to_string()).replace("{rows}", &rows.to_string()))
        .await?;
    server.execute("vacuum analyze espd.events").await?;
    let installation = Installation::new(&server.url, "warn", &projector(1))?;
    follow_to(&server, &installation, events).await?;
    let rows_before = fingerprint(&server, "outstanding_todos").await?;
    ensure!(rows_before.starts_with(&format!("{rows} rows")), "the tables have {rows_before}");

    let (mut verified, mut built, mut live) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..rounds {
        for turn in 0..2 {
            installation.espctl(&["rebuild", "drop", "outstanding_todos", "--yes"])?;
            server.settle().await?;
            if (number + turn) % 2 == 0 {
                let begun = std::time::Instant::now();
                installation.espctl(&["verify", "outstanding_todos"])?;
                verified.push(begun.elapsed().as_secs_f64());
            } else {
                let command = ["rebuild", "outstanding_todos", "--yes", "--go-live", "swap"];
                let (caught_up, all) = installation.espctl_until(&command, CAUGHT_UP)?;
                built.push(caught_up.as_secs_f64());
                live.push(all.as_secs_f64());
            }
        }
        let rows_after = fingerprint(&server, "outstanding_todos").await?;
        ensure!(rows_after == rows_before, "{rows_before} have become {rows_after}");
    }
    let flush = server.flush_time();
    let title = format!("verify of {events} events and {rows} rows, rounds: {rounds}, flush {flush:.1?}");
    let report = Report::begin(&title, "s");
    let verified = Spread::of(&verified);
    report.row("verify; building alone", verified, Spread::of(&built), "<= 1.5 x");
    report.row("verify; a whole rebuild", verified, Spread::of(&live), "");
    server.stop().await;
    Ok(())
}
