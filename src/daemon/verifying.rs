//! Verifies the tables of projectors slice by slice, where the configuration wants that.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, error, info, warn};

use super::worker_table::WorkerTablePlace;
use crate::config::Config;
use crate::operations::databases::Databases;
use crate::operations::operator::{Operator, OperatorError};
use crate::processing::declaration::{Handling, ProcessorDeclaration, ProcessorKind};
use crate::shutdown::Shutdown;

/// How often it is looked which slice is due.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// The pauses after a slice that could not be verified, from the first to the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The operator that the acts would be of.
const OPERATOR: &str = "espd ([verify])";

/// Verifies until the stop is requested, and starts anew when the configuration was read again.
pub(super) async fn verify_continuously(mut places: watch::Receiver<WorkerTablePlace>, stop: Shutdown) {
    let mut stopped = stop;
    while !stopped.is_requested() {
        let config = places.borrow_and_update().verified.clone();
        let verifying = async {
            match config {
                Some(config) => verify(&config).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = verifying => return,
            () = stopped.requested() => return,
            changed = places.changed() => if changed.is_err() { return },
        }
    }
}

async fn verify(config: &Arc<Config>) {
    let mut pauses = Pauses::default();
    loop {
        match Databases::connect_directly(config, "espd (verify)", CONNECT_TIMEOUT).await {
            Ok(databases) => {
                let databases = databases.with_upcasts(&config.upcasts);
                let operator = Operator {
                    databases: &databases,
                    declared: &config.processors,
                    name: OPERATOR,
                    native: None,
                };
                while verify_all(config, &operator, &mut pauses).await {
                    sleep(LOOK_INTERVAL).await;
                }
                tokio::join!(databases.events.close(), databases.projections.close());
            }
            Err(error) => debug!(error = format!("{error:#}"), "verifies nothing now"),
        }
        sleep(LOOK_INTERVAL).await;
    }
}

/// Looks once which slices are due. Returns whether the databases have answered.
async fn verify_all(config: &Config, operator: &Operator<'_>, pauses: &mut Pauses) -> bool {
    let mut has_answer = true;
    for declaration in config.processors.iter().filter(|one| is_eligible(one)) {
        let name = &declaration.name;
        if pauses.is_over(name) {
            let outcome = verify_one(operator, name, config.verify.share).await;
            has_answer &= !matches!(outcome, Err(OperatorError::Database(_)));
            pauses.note(name, outcome.is_ok());
        }
    }
    has_answer
}

/// When projectors are tried again whose slices could not be verified.
#[derive(Debug, Default)]
struct Pauses(HashMap<String, (Instant, Duration)>);

impl Pauses {
    fn is_over(&self, name: &str) -> bool {
        self.0.get(name).is_none_or(|(since, pause)| since.elapsed() >= *pause)
    }

    fn note(&mut self, name: &str, is_verified: bool) {
        if is_verified {
            self.0.remove(name);
            return;
        }
        let pause = self.0.get(name).map_or(PAUSES.0, |(_, pause)| (*pause * 2).min(PAUSES.1));
        self.0.insert(name.to_owned(), (Instant::now(), pause));
    }
}

fn is_eligible(declaration: &ProcessorDeclaration) -> bool {
    matches!(declaration.handling, Handling::Sql(_))
        && declaration.kind() == ProcessorKind::Projector
        && !declaration.tables.is_empty()
        && declaration.synchronous.is_none()
}

async fn verify_one(operator: &Operator<'_>, name: &str, share: f64) -> Result<(), OperatorError> {
    let verified = operator.verify_slice(name, share).await;
    match &verified {
        Ok(None) => {}
        Ok(Some(slice)) if slice.differing == 0 => info!(
            processor = name,
            aggregates = slice.aggregates,
            rows = slice.rows,
            "verified a slice: the rows are what their events say"
        ),
        Ok(Some(slice)) => error!(
            processor = name,
            aggregates = slice.aggregates,
            rows = slice.rows,
            differing = slice.differing,
            keys = slice.keys.join(", "),
            "rows are not what their events say: `espctl verify {name}` shows them"
        ),
        Err(
            error @ (OperatorError::Blocked(_)
            | OperatorError::Building { .. }
            | OperatorError::Unknown { .. }),
        ) => {
            debug!(processor = name, error = %error, "cannot be verified now");
        }
        Err(error) => warn!(processor = name, error = %error, "could not verify a slice"),
    }
    verified.map(drop)
}
