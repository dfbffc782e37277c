//! Where the keys of subjects are: the trait, a twin in memory, and the master key.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use super::cipher::{KeyBytes, new_key};

/// A key of a subject.
#[derive(Clone, PartialEq, Eq)]
pub struct SubjectKey(pub(super) KeyBytes);

impl fmt::Debug for SubjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SubjectKey")
    }
}

/// What is known of a subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubjectState {
    /// Its keys, by number; the highest seals.
    Keys(BTreeMap<i32, SubjectKey>),
    /// It was forgotten.
    Forgotten,
}

/// Keeps the keys of subjects.
#[async_trait]
pub trait SubjectKeys: fmt::Debug + Send + Sync + 'static {
    /// What is known of these subjects. One that has neither a key nor was forgotten is left out.
    ///
    /// # Errors
    /// The keys cannot be read.
    async fn find(&self, subjects: &[String]) -> Result<HashMap<String, SubjectState>, KeyError>;

    /// Makes a first key for each of these subjects that has none and was not forgotten. Somebody else may do so at the same time.
    ///
    /// # Errors
    /// The keys cannot be written.
    async fn create(&self, subjects: &[String]) -> Result<(), KeyError>;
}

/// Why there is no key.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The database of the keys refused, or could not be reached.
    #[error("the keys of personal data cannot be read or written")]
    Database(#[from] sqlx::Error),
    /// A key cannot be unwrapped.
    #[error(
        "key {number} of subject {subject} was wrapped by master key {master}, which is not at hand, or was changed: give the program \
         that master key as well"
    )]
    Wrapped {
        /// Whose key.
        subject: String,
        /// Which key.
        number: i32,
        /// The name of the master key.
        master: String,
    },
    /// There is no master key.
    #[error("no master key: {0}")]
    Master(String),
}

/// The key that the keys of subjects are wrapped by. It is never written anywhere.
#[derive(Clone)]
pub struct MasterKey(pub(super) KeyBytes);

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey")
    }
}

impl MasterKey {
    /// A key of 32 bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// 32 bytes in base64, as `openssl rand -base64 32` makes them.
    ///
    /// # Errors
    /// The text is something else. The error does not show it.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        let bytes = STANDARD.decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok());
        let wrong = || {
            KeyError::Master("it is not 32 bytes in base64, as `openssl rand -base64 32` makes them".into())
        };
        bytes.map(Self).ok_or_else(wrong)
    }

    /// The key in an environment variable, in base64.
    ///
    /// # Errors
    /// The variable is not set, or no key.
    pub fn from_env(name: &str) -> Result<Self, KeyError> {
        let missing = |_| KeyError::Master(format!("the environment variable {name} is not set"));
        Self::from_base64(&std::env::var(name).map_err(missing)?)
    }

    /// The key in a file, in base64.
    ///
    /// # Errors
    /// The file cannot be read, or has no key.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, KeyError> {
        let path = path.as_ref();
        let unreadable = |error| KeyError::Master(format!("{}: {error}", path.display()));
        Self::from_base64(&std::fs::read_to_string(path).map_err(unreadable)?)
    }
}

/// Keys in memory, for tests. Clones are the same keys.
#[derive(Debug, Clone, Default)]
pub struct MemoryKeys(Arc<Mutex<HashMap<String, SubjectState>>>);

impl MemoryKeys {
    /// No keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets a subject. A [`PersonalData`](super::PersonalData) that has used its key remembers it for a while.
    pub fn forget(&self, subject: &str) {
        self.states().insert(subject.to_owned(), SubjectState::Forgotten);
    }

    fn states(&self) -> std::sync::MutexGuard<'_, HashMap<String, SubjectState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl SubjectKeys for MemoryKeys {
    async fn find(&self, subjects: &[String]) -> Result<HashMap<String, SubjectState>, KeyError> {
        let states = self.states();
        let found = |subject: &String| Some((subject.clone(), states.get(subject)?.clone()));
        Ok(subjects.iter().filter_map(found).collect())
    }

    async fn create(&self, subjects: &[String]) -> Result<(), KeyError> {
        let mut states = self.states();
        for subject in subjects {
            let first = || SubjectState::Keys(BTreeMap::from([(1, SubjectKey(new_key()))]));
            states.entry(subject.clone()).or_insert_with(first);
        }
        Ok(())
    }
}
