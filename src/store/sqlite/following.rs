//! How streams notice that there is something new.

use std::time::Duration;

use tokio::sync::watch;

use super::SqliteEventStore;
use crate::event::Position;
use crate::store::EventStore as _;
use crate::store::event_stream::Watching;
use crate::store::horizon::Horizon;

/// How often a stream looks for what other programs have appended.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Watches a store for one stream, as long as there is the stream. Call it in a runtime.
pub(super) fn watch(store: &SqliteEventStore) -> Watching {
    let (horizon, control) = (watch::Sender::new(Horizon::default()), watch::Sender::new(0));
    let watching = Watching::of(horizon.subscribe(), control.subscribe());
    tokio::spawn(look(store.as_stored(), horizon, control));
    watching
}

async fn look(store: SqliteEventStore, horizon: watch::Sender<Horizon>, control: watch::Sender<u64>) {
    let mut written = store.shared.written.subscribe();
    loop {
        match store.latest_id(None).await {
            Ok(head) => publish(head, &horizon, &control),
            Err(error) => tracing::warn!(%error, "cannot look for new events"),
        }
        tokio::select! {
            () = horizon.closed() => return,
            Ok(()) = written.changed() => {}
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}

/// There is one writer at a time, so everything that can be read is settled.
fn publish(head: Position, horizon: &watch::Sender<Horizon>, control: &watch::Sender<u64>) {
    horizon.send_if_modified(|known| {
        let is_new = known.head != head;
        if is_new {
            *known = Horizon { head, settled: head, ..Horizon::default() };
        }
        is_new
    });
    control.send_if_modified(|observed| std::mem::replace(observed, 1) == 0);
}
