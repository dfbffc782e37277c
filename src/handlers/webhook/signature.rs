//! Signatures as Standard Webhooks specifies them: HMAC-SHA256 over `id.timestamp.body`, one for each secret.
//!
//! <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>

use std::ops::RangeInclusive;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::processing::declaration::{InvalidReceiver, SigningSecret};

/// The prefix of a secret; base64 follows.
const PREFIX: &str = "whsec_";

/// The allowed length of a secret, in bytes.
const LENGTH: RangeInclusive<usize> = 24..=64;

impl SigningSecret {
    /// Accepts `whsec_` and the base64 of 24 to 64 bytes.
    ///
    /// # Errors
    /// The secret is not of this form. The text says why, without repeating the secret.
    pub fn new(secret: impl Into<String>) -> Result<Self, InvalidReceiver> {
        let secret = Self(secret.into());
        let Some(key) = secret.key() else {
            return Err(InvalidReceiver(format!("the secret is not {PREFIX} and base64 behind it")));
        };
        if !LENGTH.contains(&key.len()) {
            let [from, to] = [LENGTH.start(), LENGTH.end()];
            return Err(InvalidReceiver(format!(
                "the secret has {} bytes instead of {from} to {to}",
                key.len()
            )));
        }
        Ok(secret)
    }

    fn key(&self) -> Option<Vec<u8>> {
        STANDARD.decode(self.0.strip_prefix(PREFIX)?).ok()
    }
}

/// The value of `webhook-signature`: `v1,…`, one for each secret, so that a receiver may verify with the old or the new
/// one while secrets are rotated.
pub(crate) fn sign(secrets: &[SigningSecret], id: &str, timestamp: i64, body: &[u8]) -> String {
    let keys = secrets.iter().filter_map(SigningSecret::key);
    let signatures = keys.filter_map(|key| sign_with(&key, id, timestamp, body));
    signatures.collect::<Vec<_>>().join(" ")
}

fn sign_with(key: &[u8], id: &str, timestamp: i64, body: &[u8]) -> Option<String> {
    // HMAC accepts keys of every length, so this does not fail.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body);
    Some(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification.
    #[test]
    fn a_signature_is_that_of_the_specification() {
        let secret = SigningSecret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed =
            sign(&[secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn there_is_a_signature_for_each_secret() {
        let secrets = [1, 2].map(|byte| SigningSecret(format!("whsec_{}", STANDARD.encode([byte; 32]))));
        let both = sign(&secrets, "a", 1, b"{}");
        let each: Vec<String> =
            secrets.iter().map(|one| sign(std::slice::from_ref(one), "a", 1, b"{}")).collect();
        assert_eq!(both, each.join(" "));
        assert_eq!(sign(&[], "a", 1, b"{}"), "");
    }

    #[test]
    fn a_secret_is_long_enough_and_never_repeated() {
        for bytes in [24, 32, 64] {
            assert!(SigningSecret::new(format!("whsec_{}", STANDARD.encode(vec![7; bytes]))).is_ok());
        }
        for wrong in ["", "whsec_", "s3cret", "whsec_s3cret!", &format!("whsec_{}", STANDARD.encode([7; 23]))]
        {
            let error = SigningSecret::new(wrong).unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
        assert!(SigningSecret::new(format!("whsec_{}", STANDARD.encode([7; 65]))).is_err());
    }
}
