//! Appends of single events in the server, without a driver's time: pgbench calls the SQL functions and, in turn, INSERTs into an
//! identical table.
//!
//! `cargo bench --bench append_in_server [-- --rounds 5]`. Each append creates an aggregate and says so (expected version 0); the INSERT
//! checks nothing.

mod support;

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use espd::embedded::find_binaries;
use support::{Arguments, Report, Server, Spread};

const CLIENTS: [u32; 3] = [1, 16, 32];

/// The table that is compared with: the same columns, indexes and defaults, none of the promises.
const PREPARE: &str = "create table plain_events (like espd.events including all)";

const EVENT: &str =
    r#"'{"title": "Buy milk", "description": "two litres", "due_date": "2024-05-01"}'::jsonb"#;

/// Ways to append one event; `{event}` is the body.
#[derive(Debug, Clone, Copy)]
enum Way {
    Insert,
    Json,
    Arrays,
}

impl Way {
    const ALL: [Self; 3] = [Self::Insert, Self::Json, Self::Arrays];

    fn statement(self) -> &'static str {
        match self {
            Self::Insert => {
                "insert into plain_events (uuid, aggregate_id, type, version, body)
                 values (gen_random_uuid(), gen_random_uuid(), 'Ticked', 1, {event}) returning id, uuid, version"
            }
            Self::Json => {
                "select * from espd.append(jsonb_build_object(
                   'aggregate_id', gen_random_uuid(), 'type', 'Ticked', 'expected_version', 0, 'body', {event}))"
            }
            Self::Arrays => {
                "select * from espd.append_events(array[gen_random_uuid()], array['Ticked'], array[{event}], array[0::bigint])"
            }
        }
    }
}

struct Bench {
    server: Server,
    /// The folder of the scripts.
    folder: tempfile::TempDir,
    time: Duration,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let rounds = arguments.rounds(5);
    let time = Duration::from_secs(arguments.size(3, 1));
    let server = Server::start(&[]).await?;
    server.execute(PREPARE).await?;
    let flush = server.flush_time();
    let bench = Bench { server, folder: tempfile::tempdir()?, time };
    let title = format!("single appends by pgbench, {rounds} rounds of {time:?}, flush {flush:.1?}");
    let report = Report::begin(&title, "events/s");
    for clients in CLIENTS {
        let mut rates: [Vec<f64>; 3] = Default::default();
        for round in 0..rounds {
            for turn in 0..Way::ALL.len() {
                // None always comes after the same one.
                let index = (round + turn) % Way::ALL.len();
                rates[index].push(bench.run(Way::ALL[index], clients).await?);
            }
        }
        let [insert, json, arrays] = rates.map(|rates| Spread::of(&rates));
        report.row(&format!("{clients} clients, append(jsonb); an INSERT"), json, insert, ">= 0.7");
        report.row(&format!("{clients} clients, append_events; an INSERT"), arrays, insert, ">= 0.85");
    }
    drop(report);
    bench.server.stop().await;
    Ok(())
}

impl Bench {
    /// Events per second of one run, into empty tables: two of three ways store into one of them, and a larger index is slower.
    async fn run(&self, way: Way, clients: u32) -> anyhow::Result<f64> {
        self.server.execute("truncate espd.events, plain_events").await?;
        self.server.settle().await?;
        let script = self.folder.path().join("script.sql");
        let statement = way.statement().replace("{event}", EVENT).replace('\n', " ");
        std::fs::write(&script, format!("{statement};\n"))?;
        let beside_server = find_binaries()?.folder().join("pgbench");
        let pgbench = if beside_server.is_file() { beside_server } else { "pgbench".into() };
        let output = Command::new(pgbench)
            .args(["-n", "-M", "prepared", "-c", &clients.to_string(), "-j", "1"])
            .args(["-T", &self.time.as_secs().to_string(), "-f"])
            .arg(&script)
            .arg(&self.server.url)
            .output()?;
        let told = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "pgbench: {told}{}", String::from_utf8_lossy(&output.stderr));
        let rate = told.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next());
        rate.context("pgbench tells a rate")?.parse().context("a rate")
    }
}
