//! Verifies the tables of projectors slice by slice, where the configuration wants that.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, error, info, warn};

use super::handler_thread::work_in_thread;
use super::worker_table_place::WorkerTablePlace;
use crate::config::Config;
use crate::handlers::native::Registry;
use crate::operations::databases::Databases;
use crate::operations::operator::{Operator, OperatorError};
use crate::operations::rebuild::{VERIFIES_SLICES, VerifiedSlice};
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

/// Verifies until the stop is requested, and starts anew when the configuration was read again. `registry` has the processors in
/// Rust of this program.
pub(super) async fn verify_continuously(
    mut places: watch::Receiver<WorkerTablePlace>,
    registry: Arc<Registry>,
    stop: Shutdown,
) {
    let mut stopped = stop;
    while !stopped.is_requested() {
        let config = places.borrow_and_update().verified.clone();
        let verifying = async {
            match config {
                Some(config) => verify(&Place { config, registry: Arc::clone(&registry) }).await,
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

async fn verify(place: &Place) {
    let mut pauses = Pauses::default();
    loop {
        match place.connect().await {
            Ok(databases) => {
                while verify_all(place, &databases, &mut pauses).await {
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
async fn verify_all(place: &Place, databases: &Databases, pauses: &mut Pauses) -> bool {
    let mut has_answer = true;
    for declaration in place.config.processors.iter().filter(|one| has_rows(one)) {
        let name = &declaration.name;
        if pauses.is_over(name) {
            let outcome = match find_lasting_obstacle(declaration) {
                Some(obstacle) => Err(obstacle),
                None => place.verify_one(databases, declaration).await,
            };
            tell(name, &outcome, pauses.is_new(name));
            has_answer &= !matches!(outcome, Err(OperatorError::Database(_)));
            pauses.note(name, outcome.is_ok());
            place.note_tried(databases, declaration, &outcome).await;
        }
    }
    has_answer
}

/// What is verified, and with which handlers.
#[derive(Debug, Clone)]
struct Place {
    config: Arc<Config>,
    registry: Arc<Registry>,
}

impl Place {
    async fn connect(&self) -> anyhow::Result<Databases> {
        let databases = Databases::connect_directly(&self.config, VERIFIES_SLICES, CONNECT_TIMEOUT).await?;
        Ok(databases.with_upcasts(&self.config.upcasts))
    }

    fn operator<'p>(&'p self, databases: &'p Databases) -> Operator<'p> {
        Operator {
            databases,
            declared: &self.config.processors,
            name: OPERATOR,
            native: Some(&self.registry),
        }
    }

    /// Verifies the next slice of a projector, if it is due. One in Rust does not share a thread with the daemon.
    async fn verify_one(
        &self,
        databases: &Databases,
        declaration: &ProcessorDeclaration,
    ) -> Result<Option<VerifiedSlice>, OperatorError> {
        if !matches!(declaration.handling, Handling::Native(_)) {
            return self.verify_slice(databases, &declaration.name).await;
        }
        // Looked at here, because a thread has connections of its own.
        if !self.operator(databases).is_slice_due(&declaration.name, self.config.verify.share).await? {
            return Ok(None);
        }
        let (place, name) = (self.clone(), declaration.name.clone());
        work_in_thread(format!("verify {name}"), move || async move {
            // Connections belong to the runtime that they were made in.
            let databases = place.connect().await;
            let databases = databases.map_err(|error| OperatorError::Rebuild(format!("{error:#}")))?;
            place.verify_slice(&databases, &name).await
        })
        .await
    }

    async fn verify_slice(
        &self,
        databases: &Databases,
        name: &str,
    ) -> Result<Option<VerifiedSlice>, OperatorError> {
        self.operator(databases).verify_slice(name, self.config.verify.share).await
    }
}

impl Place {
    /// Has others see what has come of it, as far as the database takes it.
    async fn note_tried(
        &self,
        databases: &Databases,
        declaration: &ProcessorDeclaration,
        outcome: &Result<Option<VerifiedSlice>, OperatorError>,
    ) {
        let is_lasting =
            matches!(outcome, Err(OperatorError::NotApart { .. })) || declaration.synchronous.is_some();
        let noted = self.operator(databases).note_tried(&declaration.name, outcome, is_lasting).await;
        if let Err(error) = noted {
            debug!(processor = declaration.name, %error, "could not record why a projector is not verified");
        }
    }
}

/// When projectors are tried again whose slices could not be verified.
#[derive(Debug, Default)]
struct Pauses(HashMap<String, (Instant, Duration)>);

impl Pauses {
    fn is_over(&self, name: &str) -> bool {
        self.0.get(name).is_none_or(|(since, pause)| since.elapsed() >= *pause)
    }

    fn is_new(&self, name: &str) -> bool {
        !self.0.contains_key(name)
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

/// Whether there are rows that could be verified.
fn has_rows(declaration: &ProcessorDeclaration) -> bool {
    declaration.kind() == ProcessorKind::Projector
        && !declaration.tables.is_empty()
        && !matches!(declaration.handling, Handling::Webhook(_))
}

/// Why slices of it are not verified, as far as the declaration says. What a program or Rust writes, only its author knows.
fn find_lasting_obstacle(declaration: &ProcessorDeclaration) -> Option<OperatorError> {
    let name = declaration.name.clone();
    if declaration.synchronous.is_some() {
        return Some(OperatorError::Blocked(format!(
            "{name} is synchronous, and nothing is built beside its tables"
        )));
    }
    let is_told_apart =
        matches!(declaration.handling, Handling::Sql(_)) || declaration.aggregate_column.is_some();
    let reason =
        "what handles its events is no SQL, so only `aggregate_column` could say of which aggregate a row is";
    (!is_told_apart).then(|| OperatorError::NotApart { name, reason: reason.to_owned() })
}

/// `is_new`: whether the try before, if there was one, has succeeded. What lasts is told once.
fn tell(name: &str, verified: &Result<Option<VerifiedSlice>, OperatorError>, is_new: bool) {
    match verified {
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
        Err(error @ OperatorError::NotApart { .. }) if is_new => {
            info!(processor = name, error = %error, "`[verify]` does not verify this projector");
        }
        Err(error @ OperatorError::Blocked(_)) if is_new => {
            warn!(processor = name, error = %error, "cannot be verified now");
        }
        Err(
            error @ (OperatorError::NotApart { .. }
            | OperatorError::Blocked(_)
            | OperatorError::Building { .. }
            | OperatorError::Unknown { .. }),
        ) => {
            debug!(processor = name, error = %error, "cannot be verified now");
        }
        Err(error) => warn!(processor = name, error = %error, "could not verify a slice"),
    }
}
