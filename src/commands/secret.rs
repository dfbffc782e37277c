//! What must not be stored or shown.

use std::fmt;
use std::sync::{Arc, OnceLock};

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use validator::ValidateLength;
use zeroize::Zeroizing;

/// What stands for a secret wherever it is written.
const HIDDEN: &str = "[secret]";

/// A text that is read and never written: a password that somebody has sent.
///
/// `Debug`, `Display` and `Serialize` write `[secret]`, so it comes into no log, no event and no record of the command. Its memory is
/// overwritten when the last clone is dropped. What is kept of it is [`Self::hashed`].
#[derive(Clone)]
pub struct Secret {
    text: Arc<Zeroizing<String>>,
    hashed: Arc<OnceLock<HashedPassword>>,
}

impl Secret {
    /// Makes a secret of a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: Arc::new(Zeroizing::new(text.into())), hashed: Arc::default() }
    }

    /// The secret itself. What is done with it is yours to answer for.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Its hash, which may be kept. It is made once, which takes some hundredths of a second; where the command names its
    /// [`secrets`](super::Command::secrets), that has happened before the decision.
    ///
    /// # Errors
    /// The operating system has no randomness to give, or the secret is longer than the hash takes (4 GB).
    pub fn hashed(&self) -> Result<HashedPassword, HashError> {
        if let Some(hashed) = self.hashed.get() {
            return Ok(hashed.clone());
        }
        let hashed = HashedPassword::hash(self)?;
        Ok(self.hashed.get_or_init(|| hashed).clone())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(HIDDEN)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

/// `#[validate(length(min = 12))]` counts its characters.
impl ValidateLength<u64> for Secret {
    fn length(&self) -> Option<u64> {
        ValidateLength::length(self.expose())
    }
}

/// The hash of a password, as argon2id makes it: a text in the PHC format, with parameters and salt, which may be stored.
///
/// There is none but by hashing, or by reading one that was stored.
///
/// ```
/// use espd::commands::{HashedPassword, Secret};
///
/// let kept = HashedPassword::hash(&Secret::new("correct horse")).unwrap();
/// assert!(kept.as_str().starts_with("$argon2id$"));
/// assert!(kept.verify(&Secret::new("correct horse")));
/// assert!(!kept.verify(&Secret::new("wrong horse")));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct HashedPassword(String);

impl HashedPassword {
    /// Hashes a secret with a random salt. It takes some hundredths of a second and 19 MB on purpose.
    ///
    /// # Errors
    /// The operating system has no randomness to give, or the secret is longer than the hash takes (4 GB).
    pub fn hash(secret: &Secret) -> Result<Self, HashError> {
        let hash = Argon2::default().hash_password(secret.expose().as_bytes());
        Ok(Self(hash.map_err(|error| HashError(error.to_string()))?.to_string()))
    }

    /// Whether it is the hash of this secret. It takes as long as hashing.
    pub fn verify(&self, secret: &Secret) -> bool {
        Argon2::default().verify_password(secret.expose().as_bytes(), self.0.as_str()).is_ok()
    }

    /// The hash in the PHC format, for a column of one's own.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// It shows nothing of the hash: whoever has it can try passwords against it.
impl fmt::Debug for HashedPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hashed password]")
    }
}

impl Serialize for HashedPassword {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for HashedPassword {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let is_hash = PasswordHash::new(&text).is_ok_and(|hash| hash.hash.is_some());
        // The text may be a password that somebody has put in the wrong place.
        if is_hash { Ok(Self(text)) } else { Err(de::Error::custom("is no hash of a password")) }
    }
}

/// Why a secret could not be hashed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the secret cannot be hashed: {0}")]
pub struct HashError(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_written() {
        let secret = Secret::new("hunter2");
        let all =
            format!("{secret} {secret:?} {:#?} {}", Some(&secret), serde_json::to_string(&secret).unwrap());
        assert!(!all.contains("hunter2") && all.matches(HIDDEN).count() == 4, "{all}");
        let hashed = secret.hashed().unwrap();
        assert_eq!(hashed, secret.clone().hashed().unwrap(), "made once");
        assert!(!format!("{hashed:?}").contains("argon2"));
    }

    #[test]
    fn a_hash_is_read_back_and_a_password_is_not() {
        let hashed = Secret::new("hunter2").hashed().unwrap();
        let text = serde_json::to_string(&hashed).unwrap();
        assert!(serde_json::from_str::<HashedPassword>(&text).unwrap().verify(&Secret::new("hunter2")));
        let error = serde_json::from_str::<HashedPassword>("\"hunter2\"").unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
