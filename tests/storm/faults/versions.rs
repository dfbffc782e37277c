//! Versions of projectors: raised, so that daemons build them, and built, compared, given up and gone back from by operators.

use tokio::time::sleep;

use super::Storm;
use crate::projectors::VERSIONED;

impl Storm<'_> {
    /// Declares a projector beside the events in a higher version. Whether the daemons hear of it at once is a matter of luck:
    /// otherwise they do when they are started again, or at the end.
    pub(super) fn raise_version(&mut self) -> anyhow::Result<bool> {
        let name = self.draw_projector();
        self.world.raise_version(name)?;
        self.world
            .operators
            .begin("here", &["reload".to_owned(), "--timeout".to_owned(), "2s".to_owned()])?;
        Ok(true)
    }

    /// Has an operator begin something. Returns whether there was room for one more.
    pub(super) fn operate(&mut self) -> anyhow::Result<bool> {
        let place = if self.rng.u8(..3) > 0 { "here" } else { "elsewhere" };
        let name = self.draw_projector();
        self.world.operators.act(place, name, &mut self.rng)
    }

    /// Kills a command of an operator, who begins one if none runs.
    pub(super) async fn kill_operator(&mut self) -> anyhow::Result<bool> {
        if !self.world.operators.are_busy()? && self.operate()? {
            sleep(self.draw_gap()).await;
        }
        self.world.operators.kill(&mut self.rng).await
    }

    fn draw_projector(&mut self) -> &'static str {
        VERSIONED[self.rng.usize(..VERSIONED.len())].0
    }
}
