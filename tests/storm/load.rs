//! The load: appenders of every habit, each with its own connection and ledger.

mod accounts;
mod client;
mod strangers;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use espd::internals::shutdown::{self, Shutdown, ShutdownHandle};
use espd::store::Layout;
use fastrand::Rng;
use tokio::sync::RwLock;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::ledger::{Ledger, draw_uuid};
use crate::world::SCHEMA;
use accounts::{Owner, Racer, Sharer};
use client::Client;
use strangers::{Copier, Inserter, Preparer};

/// How long appenders may take to finish what they are about, with the server in order.
const FINISH_LIMIT: Duration = Duration::from_secs(60);

/// Somebody who appends events.
trait Appender: Send + 'static {
    /// Appends once, with all retries, and records it.
    fn act(&mut self) -> impl Future<Output = ()> + Send;

    /// The longest pause between two acts.
    fn pause(&self) -> Duration;

    /// The end of its life.
    fn into_client(self) -> Client;
}

/// All appenders at work.
pub struct Load {
    appenders: JoinSet<Ledger>,
    stop: ShutdownHandle,
    lull: Lull,
}

/// Makes all appenders pause: each holds it for reading while it acts.
pub type Lull = Arc<RwLock<()>>;

impl Load {
    /// Starts all appenders on the database at `url`.
    pub fn start(url: &str, rng: &mut Rng) -> anyhow::Result<Self> {
        let (stop, stopping) = shutdown::channel();
        let mut load = Self { appenders: JoinSet::new(), stop, lull: Lull::default() };
        let layout = Layout::espd(SCHEMA)?;
        let shared: Vec<Uuid> = (0..5).map(|_| draw_uuid(rng)).collect();
        let contested: Vec<Uuid> = (0..3).map(|_| draw_uuid(rng)).collect();
        let mut client = |habit: &str, number: u8| -> anyhow::Result<(Client, Rng)> {
            let client = Client::new(&format!("storm: {habit} {number}"), url)?;
            // Every second one.
            Ok((
                if number.is_multiple_of(2) { client.with_library(layout.clone()) } else { client },
                rng.fork(),
            ))
        };
        for number in 1..=4 {
            load.add(Owner::new(client("owner", number)?), &stopping);
        }
        for number in 1..=2 {
            load.add(Sharer::new(client("sharer", number)?, shared.clone()), &stopping);
            load.add(Racer::new(client("racer", number)?, contested.clone()), &stopping);
            load.add(Inserter::new(client("inserter", number)?), &stopping);
        }
        load.add(Copier::new(client("copier", 1)?), &stopping);
        load.add(Preparer::new(client("preparer", 1)?), &stopping);
        Ok(load)
    }

    fn add(&mut self, mut appender: impl Appender, stopping: &Shutdown) {
        let mut stopping = stopping.clone();
        let mut rng = Rng::new();
        let lull = self.lull.clone();
        self.appenders.spawn(async move {
            while !stopping.is_requested() {
                let acting = lull.read().await;
                appender.act().await;
                drop(acting);
                let pause = appender.pause().mul_f64(rng.f64());
                stopping.run_until_requested(sleep(pause)).await;
            }
            appender.into_client().into_ledger()
        });
    }

    /// What makes the appenders pause.
    pub fn lull(&self) -> Lull {
        self.lull.clone()
    }

    /// Lets all appenders finish and returns their ledgers as one. The server must be up.
    pub async fn stop(mut self) -> anyhow::Result<Ledger> {
        self.stop.request();
        let mut all = Ledger::default();
        let finish = async {
            while let Some(ledger) = self.appenders.join_next().await {
                all.merge(ledger.context("an appender has failed")?);
            }
            Ok(all)
        };
        timeout(FINISH_LIMIT, finish).await.context("an appender does not come to an end")?
    }
}
