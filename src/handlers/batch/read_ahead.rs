//! Reading the next events while a handler works on those before them, on the connection of the batch, which is idle meanwhile.
//!
//! What was read ahead is handled in the next transaction, if that is still the next thing to do: under the same claim, from the
//! position at which it begins, on the same server. In that transaction, which holds the tracker, the store is asked once more
//! which event is the last one at or below the end of it, and how many there are. So an event that was deleted meanwhile is not
//! handled, and neither is one that a store has lost. Whatever does not fit is thrown away and read again.

use super::transaction::{BatchTransaction, Reading};
use crate::event::Position;
use crate::postgres::server_mark::ServerMark;
use crate::processing::declaration::BatchLimits;
use crate::processing::processor::{Batch, BatchRequest, Delivery, Events, ProcessorError, Work};
use crate::processing::tracker::Claim;

/// Batches of fewer events read nothing ahead: an event is looked for that fails, or there is little to do.
const WORTHWHILE_EVENTS: i64 = 256;

/// Most bytes of bodies that are read ahead. They are in memory beside those of the batch.
const BYTES_MAX: i64 = 4 << 20;

/// The next events, as they were read while those before them were handled.
#[derive(Debug)]
pub(crate) struct ReadAhead {
    epoch: i64,
    mark: Option<ServerMark>,
    after: Position,
    batch: Batch,
}

impl ReadAhead {
    /// Whether these are the events that the request is about, or the first of them.
    fn fits(&self, request: &BatchRequest<'_>) -> bool {
        let Self { epoch, mark, after, batch } = self;
        request.dead_letter().is_none()
            && *epoch == request.claim.epoch
            && *mark == request.mark
            && *after == request.claim.position
            && batch.upto <= request.upto()
            && batch.events.len() as i64 <= request.limits.size
    }
}

impl BatchTransaction<'_> {
    /// Reads what follows the events of this batch, which end at `after`. `None`: there is nothing more that the batch was allowed
    /// to look at, or nothing is to be read ahead.
    pub(crate) async fn read_ahead(&mut self, after: Position) -> Result<Option<ReadAhead>, ProcessorError> {
        let request = *self.request();
        let Work::Batch { upto, .. } = request.work else { return Ok(None) };
        let Events::SameDatabase(layout) = &self.base().events else { return Ok(None) };
        // An event that cannot be read would fail the batch before it.
        if after >= upto || request.limits.size < WORTHWHILE_EVENTS || layout.may_be_unreadable() {
            return Ok(None);
        }
        let claim = Claim { position: after, ..request.claim.clone() };
        let limits = BatchLimits { bytes: request.limits.bytes.min(BYTES_MAX), ..*request.limits };
        let beyond = BatchRequest { claim: &claim, limits: &limits, ..request };
        match self.read_unchecked(&beyond).await {
            Ok(batch) => Ok(Some(ReadAhead { epoch: claim.epoch, mark: request.mark, after, batch })),
            // Whoever reads again finds out as well, and says so.
            Err(ProcessorError::Diverged) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As [`Self::read`], but takes what was read ahead if that are the events of this batch.
    pub(crate) async fn read_with(
        &mut self,
        ahead: Option<ReadAhead>,
    ) -> Result<(Vec<Delivery>, Position), ProcessorError> {
        if let Some(ahead) = ahead.filter(|ahead| ahead.fits(self.request()))
            && self.still_has(&ahead.batch).await?
        {
            let Reading { deliveries, upto, trail, .. } = self.accept(ahead.batch).await?;
            self.set_trail(trail);
            return Ok((deliveries, upto));
        }
        self.read().await
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::processing::declaration::FoldedLimits;
    use crate::store::witness::Trail;

    const LIMITS: BatchLimits = BatchLimits {
        size: 1_000,
        size_max: 10_000,
        bytes: 1 << 24,
        time: Duration::from_secs(2),
        span: 100_000,
        folded: FoldedLimits { size: 10_000, bytes: 1 << 24, span: 100_000 },
    };

    fn claim(epoch: i64, position: i64) -> Claim {
        Claim { epoch, ..Claim::example(position) }
    }

    #[test]
    fn what_was_read_ahead_is_for_the_next_batch_of_the_same_claim_alone() {
        let batch = Batch { events: Vec::new(), upto: 90.into(), trail: Trail::default() };
        let ahead = ReadAhead { epoch: 7, mark: None, after: 50.into(), batch };
        let upto = |upto: i64| Work::Batch { upto: upto.into(), rate: 0.0 };
        let fits = |claim: &Claim, work: Work, mark: Option<ServerMark>| {
            let (lease, leased_at, keeps_session) = (Duration::from_secs(5), Instant::now(), false);
            ahead.fits(&BatchRequest { claim, work, limits: &LIMITS, lease, leased_at, mark, keeps_session })
        };
        assert!(fits(&claim(7, 50), upto(90), None) && fits(&claim(7, 50), upto(200), None));
        // Another owner was here, an operator has moved the position, or an event was passed over.
        assert!(!fits(&claim(8, 50), upto(200), None));
        assert!(!fits(&claim(7, 0), upto(200), None) && !fits(&claim(7, 51), upto(200), None));
        // The batch may not go that far.
        assert!(!fits(&claim(7, 50), upto(89), None));
        assert!(!fits(&claim(7, 50), Work::DeadLetter(51.into()), None));
        assert!(!fits(&claim(7, 50), upto(200), Some(ServerMark::nowhere())));
    }
}
