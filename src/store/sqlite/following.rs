//! How streams notice that there is something new.

use std::sync::Arc;
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
    let unreachable = watch::Sender::new(None);
    let watching = Watching::of(horizon.subscribe(), control.subscribe(), unreachable.subscribe());
    tokio::spawn(look(store.as_stored(), horizon, control, unreachable));
    watching
}

async fn look(
    store: SqliteEventStore,
    horizon: watch::Sender<Horizon>,
    control: watch::Sender<u64>,
    unreachable: watch::Sender<Option<Arc<str>>>,
) {
    let mut written = store.shared.written.subscribe();
    loop {
        match store.latest_id(None).await {
            Ok(head) => {
                publish(head, &horizon, &control);
                unreachable.send_if_modified(|known| known.take().is_some());
            }
            // The stream tells it, as an error of its next event.
            Err(error) => {
                let error: Arc<str> = error.with_causes().into();
                unreachable.send_if_modified(|known| known.replace(Arc::clone(&error)) != Some(error));
            }
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
