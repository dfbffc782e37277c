//! The storm: espd under random violence, with real processes and durable PostgreSQL servers.
//!
//! Appenders of every habit append, processors of every kind (SQL, Rust, a program, a webhook) follow, and meanwhile workers
//! and daemons are killed, or stopped for longer than their lease and continue, sessions are ended, servers crash, a network
//! cuts, delays and swallows. Versions of projectors are built beside those that serve, by daemons and by operators, who change their
//! mind, go back, and are killed in the middle. When it is over, everything has to converge, every acknowledged event has to be there once, and
//! every projection has to be the fold of the events: none lost, none doubled, none out of order; of each projector one version
//! serves, and nothing is left of others but former ones. Then the store goes back, in three ways, and everybody
//! who has handled events that are gone has to notice.
//!
//!     cargo test --test storm                                       a short one
//!     cargo test --release --test storm -- --for 2m --seed 7        a long one
//!
//! The seed decides the schedule of the faults and the load. Threads and processes keep their own time, so the
//! same seed makes a similar storm, not the same one.

#![expect(
    unreachable_pub,
    reason = "`pub` says here what a module offers to the others; nothing leaves the binary"
)]

mod aftermath;
mod arguments;
mod beside;
mod campaign;
mod controls;
mod daemons;
#[allow(dead_code, clippy::unwrap_used, reason = "the integration tests use all of it, and may unwrap")]
#[path = "../integration/support/facts.rs"]
mod facts;
mod faults;
mod fold;
mod handlers;
#[allow(dead_code, clippy::unwrap_used, reason = "the integration tests use all of it, and may unwrap")]
#[path = "../integration/support/receiver.rs"]
mod http_receiver;
mod ledger;
mod load;
mod operators;
mod processes;
mod projectors;
#[allow(dead_code, clippy::unwrap_used, reason = "the integration tests use all of it, and may unwrap")]
#[path = "../integration/support/proxy.rs"]
mod proxy;
mod report;
mod servers;
mod trackers;
mod verify;
mod versions;
mod world;

use std::process::ExitCode;

use anyhow::Context as _;

use arguments::{NAME, Settings, Wanted};
use campaign::Report;
use world::World;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some(handlers::PROGRAM_ARGUMENT) => return handlers::program(),
        // A daemon of the storm, or a worker of one: they run espd with a projector in Rust.
        Some(_) if std::env::var_os(processes::MARKER_VARIABLE).is_some() => return handlers::daemon(),
        _ => {}
    }
    match arguments::read(std::env::args().skip(1)) {
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
        Ok(Wanted::Nothing) => ExitCode::SUCCESS,
        Ok(Wanted::List) => {
            println!("{NAME}: test");
            ExitCode::SUCCESS
        }
        Ok(Wanted::Storm(_)) if !cfg!(target_os = "linux") => {
            println!("the storm is left out: it needs Linux to find the processes of its daemons");
            ExitCode::SUCCESS
        }
        Ok(Wanted::Storm(settings)) => storm(settings),
    }
}

/// Holds the storm on this thread, with which all daemons die.
fn storm(settings: Settings) -> ExitCode {
    let Settings { time, seed } = settings;
    println!("\nstorm with seed {seed} for {} s", time.as_secs_f64());
    fastrand::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let held = runtime.context("no runtime").and_then(|runtime| runtime.block_on(hold(settings)));
    match held {
        Ok(true) => {
            println!("1 passed, 0 failed");
            ExitCode::SUCCESS
        }
        Ok(false) => {
            println!("0 passed, 1 failed");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("the storm could not be held: {error:#}\n0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether espd has weathered it.
async fn hold(settings: Settings) -> anyhow::Result<bool> {
    let mut interrupts = espd::internals::signal::requests()?;
    let mut world = World::create().await?;
    let report = tokio::select! {
        report = campaign::run(&mut world, settings) => report,
        _ = interrupts.recv() => anyhow::bail!("interrupted"),
    };
    world.stop().await;
    if let Ok(report) = &report {
        print!("{report}");
    }
    if !report.as_ref().is_ok_and(Report::is_good) {
        println!("logs and data are kept in {}", world.keep().display());
    }
    report.map(|report| report.is_good())
}
