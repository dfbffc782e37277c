//! Keys at hand: a thread of its own fetches and makes them, and they are remembered for a while.
//!
//! A codec is asked for a body where nothing can be awaited. What a store appends, and what a processor gets, is announced before
//! ([`Keyring::fetch`]); only what was not waits for the thread.

use std::collections::{HashMap, HashSet};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::keys::{KeyError, SubjectKeys, SubjectState};

/// How long a key is remembered: so long after a subject was forgotten, a running program may still read its data.
pub(super) const MEMORY: Duration = Duration::from_secs(60);

/// How long somebody waits for a key.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// The most subjects that are remembered.
const SUBJECTS_MAX: usize = 50_000;

/// Whether subjects that have no key get one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Create,
    Leave,
}

/// The answer of the thread: what it has found is remembered, and returned.
type Found = Result<HashMap<String, SubjectState>, Arc<KeyError>>;

struct Request {
    subjects: Vec<String>,
    missing: Missing,
    answer: Answer,
}

/// To whom the thread answers.
enum Answer {
    Blocked(SyncSender<Found>),
    Awaiting(oneshot::Sender<Found>),
}

/// Keys that are at hand, and the thread that fetches others. Clones share both.
#[derive(Debug, Clone)]
pub(super) struct Keyring {
    requests: mpsc::UnboundedSender<Request>,
    remembered: Arc<Mutex<HashMap<String, (Instant, SubjectState)>>>,
}

impl Keyring {
    /// Starts the thread, which ends with the last clone of the keyring.
    pub(super) fn start(keys: Arc<dyn SubjectKeys>) -> Self {
        let (requests, received) = mpsc::unbounded_channel();
        std::thread::spawn(move || serve(&*keys, received));
        Self { requests, remembered: Arc::default() }
    }

    /// Fetches what is not at hand, without keeping the runtime from other work.
    pub(super) async fn fetch(
        &self,
        subjects: HashSet<String>,
        missing: Missing,
    ) -> Result<(), Arc<KeyError>> {
        let subjects: Vec<String> =
            subjects.into_iter().filter(|subject| self.recall(subject).is_none()).collect();
        if subjects.is_empty() {
            return Ok(());
        }
        let (sender, answer) = oneshot::channel();
        self.ask(subjects, missing, Answer::Awaiting(sender));
        let found = tokio::time::timeout(PATIENCE * 2, answer).await;
        self.remember(&found.ok().and_then(Result::ok).unwrap_or_else(out_of_time)?);
        Ok(())
    }

    /// What is known of a subject; `None`: nothing. Waits for the thread if that is not at hand.
    pub(super) fn get(&self, subject: &str, missing: Missing) -> Result<Option<SubjectState>, Arc<KeyError>> {
        if let Some(known) = self.recall(subject) {
            return Ok(Some(known));
        }
        let (sender, answer) = sync_channel(1);
        self.ask(vec![subject.to_owned()], missing, Answer::Blocked(sender));
        let mut found = answer.recv_timeout(PATIENCE * 2).unwrap_or_else(|_| out_of_time())?;
        self.remember(&found);
        Ok(found.remove(subject))
    }

    fn ask(&self, subjects: Vec<String>, missing: Missing, answer: Answer) {
        // Where the thread has ended, nobody answers, which is told.
        let _ = self.requests.send(Request { subjects, missing, answer });
    }

    fn recall(&self, subject: &str) -> Option<SubjectState> {
        let remembered = self.remembered();
        let (at, state) = remembered.get(subject)?;
        (at.elapsed() < MEMORY).then(|| state.clone())
    }

    fn remember(&self, found: &HashMap<String, SubjectState>) {
        let mut remembered = self.remembered();
        if remembered.len() + found.len() > SUBJECTS_MAX {
            remembered.clear();
        }
        let now = Instant::now();
        remembered.extend(found.iter().map(|(subject, state)| (subject.clone(), (now, state.clone()))));
    }

    /// Forgets what is at hand.
    pub(super) fn clear(&self) {
        self.remembered().clear();
    }

    fn remembered(&self) -> MutexGuard<'_, HashMap<String, (Instant, SubjectState)>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn out_of_time() -> Found {
    let error =
        std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no key within {:?}", PATIENCE * 2));
    Err(Arc::new(KeyError::Database(sqlx::Error::Io(error))))
}

fn serve(keys: &dyn SubjectKeys, mut requests: mpsc::UnboundedReceiver<Request>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return tracing::error!(%error, "no keys of personal data: there is no runtime for them");
        }
    };
    runtime.block_on(async {
        while let Some(Request { subjects, missing, answer }) = requests.recv().await {
            let found = tokio::time::timeout(PATIENCE, look_up(keys, &subjects, missing)).await;
            let found = found.map_or_else(|_| out_of_time(), |found| found.map_err(Arc::new));
            // Whoever asked may wait no more.
            match answer {
                Answer::Blocked(sender) => drop(sender.send(found)),
                Answer::Awaiting(sender) => drop(sender.send(found)),
            }
        }
    });
}

async fn look_up(
    keys: &dyn SubjectKeys,
    subjects: &[String],
    missing: Missing,
) -> Result<HashMap<String, SubjectState>, KeyError> {
    let mut found = keys.find(subjects).await?;
    let mut new: Vec<String> =
        subjects.iter().filter(|subject| !found.contains_key(*subject)).cloned().collect();
    if missing == Missing::Create && !new.is_empty() {
        new.sort_unstable();
        keys.create(&new).await?;
        found.extend(keys.find(&new).await?);
    }
    Ok(found)
}
