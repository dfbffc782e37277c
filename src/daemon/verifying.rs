//! Verifies the tables of projectors slice by slice, where the configuration wants that.

use std::sync::Arc;
use std::time::Duration;

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
    loop {
        match Databases::connect_directly(config, "espd (verify)", CONNECT_TIMEOUT).await {
            Ok(databases) => {
                let databases = databases.with_upcasts(&config.upcasts);
                let operator =
                    Operator { databases: &databases, declared: &config.processors, name: OPERATOR };
                for declaration in config.processors.iter().filter(|one| is_eligible(one)) {
                    verify_one(&operator, &declaration.name, config.verify.share).await;
                }
            }
            Err(error) => debug!(error = format!("{error:#}"), "verifies nothing now"),
        }
        sleep(LOOK_INTERVAL).await;
    }
}

fn is_eligible(declaration: &ProcessorDeclaration) -> bool {
    matches!(declaration.handling, Handling::Sql(_))
        && declaration.kind() == ProcessorKind::Projector
        && !declaration.tables.is_empty()
        && declaration.synchronous.is_none()
}

async fn verify_one(operator: &Operator<'_>, name: &str, share: f64) {
    match operator.verify_slice(name, share).await {
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
        Err(error @ (OperatorError::Blocked(_) | OperatorError::Unknown { .. })) => {
            debug!(processor = name, error = %error, "cannot be verified now");
        }
        Err(error) => warn!(processor = name, error = %error, "could not verify a slice"),
    }
}
