//! What is to be done after commits: by one program at a time, because two would do it twice.

use std::fs::{File, TryLockError};
use std::path::Path;

use async_trait::async_trait;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use crate::event::Position;
use crate::processing::effects::{Effect, EffectQueue};
use crate::store::sqlite::{SqliteEventStore, row};

pub(super) struct SqliteEffects<'l> {
    store: &'l SqliteEventStore,
    processor: &'l str,
    /// Held while this program does what is to be done. The system lets go of it when the program ends, however that is.
    turn: Option<Turn>,
}

/// The turn of a program.
struct Turn {
    /// A file that is locked; `None`: the store is in memory, where no other program is.
    _locked: Option<File>,
}

impl<'l> SqliteEffects<'l> {
    pub(super) fn new(store: &'l SqliteEventStore, processor: &'l str) -> Self {
        Self { store, processor, turn: None }
    }

    /// Whether this program may do it now. Otherwise another one does.
    fn take_turn(&mut self) -> std::io::Result<bool> {
        if self.turn.is_none() {
            self.turn = match self.store.path() {
                Some(path) => lock(path, self.processor)?.map(|file| Turn { _locked: Some(file) }),
                None => Some(Turn { _locked: None }),
            };
        }
        Ok(self.turn.is_some())
    }
}

/// Locks the file beside the store that stands for a processor; `None`: somebody else has.
fn lock(store: &Path, processor: &str) -> std::io::Result<Option<File>> {
    let mut path = store.as_os_str().to_owned();
    path.push(format!("-{processor}-effects"));
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[async_trait]
impl EffectQueue for SqliteEffects<'_> {
    async fn next(&mut self, done: Option<i64>) -> Result<Option<Effect>, sqlx::Error> {
        if !self.take_turn()? {
            return Ok(None);
        }
        let mut writing = self.store.begin_writing().await?;
        let connection = &mut *writing.transaction;
        let query = sqlx::query("-- remove_effect\ndelete from espd_effects where id = ?").bind(done);
        query.execute(&mut *connection).await?;
        let statement = "-- begin_effect
            update espd_effects set attempts = attempts + 1
            where id = (select min(id) from espd_effects where processor = ?)
            returning id, event_id, event_uuid, event_type, payload, attempts";
        let query = sqlx::query(statement).bind(self.processor);
        let next = query.fetch_optional(&mut *connection).await?.map(|found| effect(&found)).transpose()?;
        writing.commit().await?;
        Ok(next)
    }

    async fn remove(&mut self, id: i64) -> Result<(), sqlx::Error> {
        let mut writing = self.store.begin_writing().await?;
        let query = sqlx::query("-- remove_effect\ndelete from espd_effects where id = ?").bind(id);
        query.execute(&mut *writing.transaction).await?;
        writing.commit().await
    }
}

fn effect(found: &SqliteRow) -> Result<Effect, sqlx::Error> {
    Ok(Effect {
        id: found.try_get("id")?,
        event_id: Position::new(found.try_get("event_id")?),
        event_uuid: row::uuid(found, "event_uuid")?.unwrap_or_default(),
        event_type: found.try_get("event_type")?,
        payload: row::json(found, "payload")?,
        attempt: found.try_get("attempts")?,
    })
}
