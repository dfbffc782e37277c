//! How a processor in Rust is run: as the file says, then as the program says, then as all are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use espd::native::{Delivery, HandlerError, OnFailure, Projector, ProjectorContext, Registration, Strategy};
use espd::{Config, Program};

use super::{A, dead_letters};
use crate::support::facts::{append, reaches};
use crate::support::program::Installation;
use crate::support::{self};

/// Fails at an A whose `n` is 3, and knows its largest batch.
struct Counting(Arc<AtomicUsize>);

#[async_trait]
impl Projector for Counting {
    async fn project(
        &mut self,
        events: &[Delivery],
        _context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        self.0.fetch_max(events.len(), Ordering::Relaxed);
        for event in events {
            if event.read::<A>()?.is_some_and(|a| a.n == 3) {
                return Err(event.failed("n is 3"));
            }
        }
        Ok(())
    }
}

#[tokio::test]
async fn the_section_is_heard_before_the_program_and_the_program_before_what_holds_for_all() {
    let db = support::database().await;
    let last = append(&db.pool, 9).await;
    let installation = Installation::new(
        &db.url,
        "[runner]\nbatch_size = 1\n[retry]\ninitial = '1h'\nmax = '1h'\nmax_attempts = 70\non_failure = 'stop'\n",
    );
    installation.declare(
        "counting",
        "[projector]\nname = 'counting'\nnative = true\n[projector.retry]\nmax_attempts = 2\n",
    );
    let config = Config::load(&installation.path().join("espd.toml")).unwrap();
    let largest = Arc::new(AtomicUsize::new(0));
    let counting = Registration::projector("counting")
        .handles::<A>()
        .batch_size(4)
        .max_attempts(60)
        .on_failure(OnFailure::Skip)
        .retry_strategy(Strategy::Constant)
        .retry_delays(Duration::from_millis(10), Duration::from_millis(20));
    let seen = Arc::clone(&largest);
    let running =
        Program::new().projector(counting, move || Counting(Arc::clone(&seen))).start(&config).await.unwrap();
    reaches(&db.pool, "counting", last).await;
    let set_aside: Vec<_> =
        dead_letters(&db.pool).await.iter().map(|one| (one.event_id.get(), one.attempts)).collect();
    assert_eq!(set_aside, [(3, 2)], "two attempts as the file says, and skipped as the program says");
    assert_eq!(largest.load(Ordering::Relaxed), 4, "not 1, as for all");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn what_together_makes_no_sense_does_not_start() {
    let db = support::database().await;
    let config = Config::for_database(&db.url).unwrap();
    let start = async |registration: Registration| {
        let program = Program::new().projector(registration, || Counting(Arc::default()));
        program.start(&config).await.unwrap_err().to_string()
    };
    let said = start(Registration::projector("a").on_failure(OnFailure::Park)).await;
    assert!(said.contains("a: what is to happen on_failure never happens"), "{said}");
    let said = start(Registration::projector("a").batch_size(0)).await;
    assert!(said.contains("a: `batch_size` is 0, and may be 1 to 100000"), "{said}");
}
