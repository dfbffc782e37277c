//! How a runner ends: with nothing left that it has begun, and its claim released.

use sqlx::Connection as _;

use crate::processing::runner::Runner;
use crate::processing::runner::phase::Phase;
use crate::processing::runner::session::in_time;
use crate::processing::runner::sessions::Session;
use crate::shutdown::Shutdown;

impl Runner {
    /// Releases what the runner has, because the stop was requested.
    pub(super) async fn end(
        &mut self,
        session: &mut Option<Session>,
        stop: &mut Shutdown,
    ) -> Result<(), sqlx::Error> {
        if session.is_none() && !self.has_more_to_release() {
            return Ok(());
        }
        while self.has_requests_under_way() {
            self.step(session, stop).await?;
        }
        if let Some(held) = self.hold(session, None).await? {
            self.release(&mut held.connection).await?;
        }
        self.give_back(session);
        if let Some(session) = session.take() {
            in_time(session.connection.close()).await?;
        }
        Ok(())
    }

    /// Whether requests are to end that a processor which runs ahead has begun. It begins no more.
    fn has_requests_under_way(&mut self) -> bool {
        let Some(ahead) = self.processor.runs_ahead() else { return false };
        ahead.stop_sending();
        matches!(&self.phase, Phase::Following(following) if following.under_way)
    }
}
