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

/// Signs with each secret, so that a receiver may verify with the old or the new one while secrets are rotated.
#[derive(Debug)]
pub(crate) struct Signer {
    /// Each secret as what has been computed with it so far, so that this is done once.
    begun: Vec<Hmac<Sha256>>,
}

impl Signer {
    pub(crate) fn new(secrets: &[SigningSecret]) -> Self {
        let keys = secrets.iter().filter_map(SigningSecret::key);
        // HMAC accepts keys of every length, so none is left out.
        Self { begun: keys.filter_map(|key| Hmac::new_from_slice(&key).ok()).collect() }
    }

    /// The value of `webhook-signature`: `v1,…`, one for each secret; `None`: there is no secret.
    pub(crate) fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> Option<String> {
        let head = format!("{id}.{timestamp}.");
        let signatures = self.begun.iter().map(|begun| {
            let mac = begun.clone().chain_update(&head).chain_update(body);
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        });
        signatures.reduce(|all, next| format!("{all} {next}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification.
    #[test]
    fn a_signature_is_that_of_the_specification() {
        let secret = SigningSecret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signer = Signer::new(&[secret]);
        let signed = signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signed.unwrap(), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn there_is_a_signature_for_each_secret() {
        let secrets = [1, 2].map(|byte| SigningSecret(format!("whsec_{}", STANDARD.encode([byte; 32]))));
        let sign = |secrets: &[SigningSecret]| Signer::new(secrets).sign("a", 1, b"{}");
        let each: Vec<String> = secrets.iter().filter_map(|one| sign(std::slice::from_ref(one))).collect();
        assert_eq!(sign(&secrets), Some(each.join(" ")));
        assert_eq!(sign(&[]), None);
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
