//! Compares what a tracker remembers of the event store with the store itself, also while no event arrives.
//!
//! Batches compare by themselves, in the snapshot that they read. This is for a processor that has nothing to do, for one
//! that begins, and for operators who ask.

use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use uuid::Uuid;

use crate::event::Position;
use crate::postgres::literal::simple;
use crate::postgres::quote::quote_literal;
use crate::processing::divergence::{Divergence, Facts};
use crate::processing::partitions::{self, Partition, PartitionChange, RecordedPartitions};
use crate::processing::tracker::{Memory, TrackerRow, Trackers};
use crate::processing::triggers::UnmetTriggers;
use crate::store::layout::Layout;
use crate::store::witness::{Examined, Standing, StoredEvent, Witness};

/// What the store says of what a tracker remembers.
#[derive(Debug, Clone)]
pub(crate) struct Comparison {
    memory: Memory,
    standing: Standing,
    head: Position,
    /// Whether row security may hide events from this role: then what is not seen need not be gone.
    hides_rows: bool,
    /// The last event at or below the position.
    end: Witness,
    /// The partitions of the table of events, if they are not those that the tracker has recorded.
    new_partitions: Option<Vec<Partition>>,
    /// What that means for the processor.
    change: Option<PartitionChange>,
    /// Why the triggers of a synchronous projector may not have met every event.
    unmet: Option<UnmetTriggers>,
}

impl Comparison {
    /// Asks the store. `memory` has been read before, so that its position is not newer than the head of the store.
    pub(crate) async fn take(
        events: &mut PgConnection,
        layout: &Layout,
        memory: Memory,
    ) -> Result<Self, sqlx::Error> {
        let (witness, position) = (memory.witness, memory.position);
        let Examined { standing, end, partitions } =
            Witness::examine(witness, position, &mut *events, layout).await?;
        let (head, hides_rows) = read_head(&mut *events, layout).await?;
        let recorded: Option<Vec<i64>> = memory.partitions.as_ref().map(|map| map.keys().copied().collect());
        let unmet = match &memory.synchronous {
            Some(key) => UnmetTriggers::find(&mut *events, layout, key).await?,
            None => None,
        };
        let mut comparison =
            Self { memory, standing, head, hides_rows, end, new_partitions: None, change: None, unmet };
        if recorded != partitions {
            let present = partitions::list(&mut *events, layout, position).await?;
            if let Some(recorded) = &comparison.memory.partitions {
                comparison.change = partitions::find_change(events, recorded, &present, position).await?;
            }
            comparison.new_partitions = Some(present);
        }
        Ok(comparison)
    }

    /// Whether the store is not the one that the tracker remembers.
    ///
    /// A processor that has handled nothing may begin at a position that the store has not reached yet. Where row security
    /// hides events, nothing is concluded; the watcher lets nothing be handled then.
    pub(crate) fn contradicts(&self) -> bool {
        let has_read = self.memory.witness.is_some() || self.memory.handled > 0;
        let is_beyond_head = has_read && self.memory.position > self.head;
        let differs = self.standing != Standing::Stands || is_beyond_head || self.change.is_some();
        (differs || self.missed_events().is_some()) && !self.hides_rows
    }

    /// Why the triggers of a synchronous projector may have missed events.
    fn missed_events(&self) -> Option<UnmetTriggers> {
        self.unmet.filter(|unmet| *unmet != UnmetTriggers::Restored)
    }

    /// Whether the tracker is to record the triggers of its projector, which came with a dump.
    pub(crate) fn has_triggers_to_record(&self) -> bool {
        self.unmet == Some(UnmetTriggers::Restored)
    }

    /// The partitions that the tracker is to record, if they have changed.
    pub(crate) fn partitions_to_record(&self) -> Option<RecordedPartitions> {
        self.new_partitions.as_deref().map(partitions::to_record)
    }

    /// The witness of a tracker that has none, such as one of an earlier espd. `settled` is the settled horizon: events may
    /// still appear beyond it.
    pub(crate) fn first_witness(&self, settled: Position) -> Option<Witness> {
        let is_settled = self.memory.position <= settled.min(self.head);
        (self.memory.witness.is_none() && is_settled).then_some(self.end)
    }

    /// The witness of the position in the store as it is now.
    pub(crate) fn present_witness(&self) -> Witness {
        self.end
    }

    /// The last id of the store.
    pub(crate) fn head(&self) -> Position {
        self.head
    }

    /// Finds out how far the store is still the one that the tracker remembers. `earlier` are events that its processor has
    /// read.
    pub(crate) async fn explain(
        &self,
        events: &mut PgConnection,
        layout: &Layout,
        earlier: &[StoredEvent],
    ) -> Result<Divergence, sqlx::Error> {
        let Self { memory: Memory { position, witness, .. }, standing, head, .. } = *self;
        if let (Standing::Stands, Some(change)) = (standing, &self.change) {
            return Ok(Divergence::of_partitions(position, witness, head, change));
        }
        let is_beyond_head = position > head;
        if let (Standing::Stands, false, Some(unmet)) = (standing, is_beyond_head, self.missed_events()) {
            return Ok(Divergence::of_triggers(position, witness, head, unmet));
        }
        let last_read = witness.and_then(|witness| witness.event());
        let earlier: Vec<StoredEvent> = earlier.iter().copied().chain(last_read).collect();
        let stored = find_stored(events, layout, &earlier).await?;
        Ok(Divergence::of(Facts { position, witness, standing, head, earlier: &earlier, stored: &stored }))
    }
}

/// How the store differs from the one that a processor has followed, as a daemon has recorded it or as it is now; `None`: it
/// does not.
pub(crate) async fn find_divergence(
    trackers: &Trackers,
    row: &TrackerRow,
    events: &mut PgConnection,
    projections: &mut PgConnection,
    layout: &Layout,
) -> Result<Option<Divergence>, sqlx::Error> {
    let recorded = row.diverged.as_ref().map(|found| found.0.clone());
    let comparison = Comparison::take(&mut *events, layout, row.memory()).await?;
    if !comparison.contradicts() {
        return Ok(recorded);
    }
    let earlier = trackers.list_witnesses(projections, &row.key(), row.position).await?;
    let found = comparison.explain(events, layout, &earlier).await?;
    let Some(recorded) = recorded else { return Ok(Some(found)) };
    // The store may have gone back again since, and then what it had in common is not all there any more.
    let has_gone_back =
        earlier.iter().any(|event| event.id > found.last_common && event.id <= recorded.last_common);
    Ok(Some(if has_gone_back { found } else { recorded }))
}

/// The last id that was drawn, and whether row security may hide events from this role. The ids of the events do not count:
/// where the sequence is behind them, the next events come below them, and below positions.
async fn read_head(events: &mut PgConnection, layout: &Layout) -> Result<(Position, bool), sqlx::Error> {
    let table = layout.events_table();
    let statement = format!(
        "-- read_head
         select {} as head,
                row_security_active({}::regclass) as hides_rows",
        layout.order.head_expression(),
        quote_literal(table)
    );
    let row = simple(statement).fetch_one(events).await?;
    Ok((row.try_get("head")?, row.try_get("hides_rows")?))
}

/// Those of the events that are in the store as they were.
async fn find_stored(
    events: &mut PgConnection,
    layout: &Layout,
    wanted: &[StoredEvent],
) -> Result<Vec<StoredEvent>, sqlx::Error> {
    let statement = format!(
        "-- find_stored_events
         select id, uuid from {} where id = any ($1)",
        layout.events_table()
    );
    let ids: Vec<Position> = wanted.iter().map(|event| event.id).collect();
    let query = sqlx::query_as(AssertSqlSafe(statement)).persistent(false).bind(ids);
    let rows: Vec<(Position, Uuid)> = query.fetch_all(events).await?;
    Ok(rows.into_iter().map(|(id, uuid)| StoredEvent { id, uuid }).collect())
}
