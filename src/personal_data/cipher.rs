//! AES-256-GCM, for fields of events and for the keys of subjects.
//!
//! A nonce follows from the key, the associated data and what is sealed. So sealing the same again gives the same, which is how an
//! append that is repeated is recognised, and no nonce meets another content under the same key.

use aes_gcm::aead::{Aead as _, Generate as _, Key, KeyInit as _, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

/// A key of AES-256.
pub(crate) type KeyBytes = [u8; 32];

/// Length of a nonce, in bytes.
const NONCE_LENGTH: usize = 12;

/// What was sealed cannot be opened: it was changed, or key or associated data are others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

/// A new key, from the randomness of the operating system.
pub(crate) fn new_key() -> KeyBytes {
    Key::<Aes256Gcm>::generate().into()
}

/// Seals `content`, as base64 of nonce, ciphertext and tag.
pub(crate) fn seal(key: &KeyBytes, associated: &[u8], content: &[u8]) -> String {
    let nonce = nonce(key, associated, content);
    let payload = Payload { msg: content, aad: associated };
    // Fails for more than 64 GiB, which no event has.
    let sealed = cipher(key).encrypt(&Nonce::from(nonce), payload).unwrap_or_default();
    STANDARD.encode([&nonce[..], &sealed].concat())
}

/// Opens what was sealed with the same key and the same associated data.
pub(crate) fn open(key: &KeyBytes, associated: &[u8], sealed: &str) -> Result<Vec<u8>, Refused> {
    let sealed = STANDARD.decode(sealed).map_err(|_| Refused)?;
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LENGTH>().ok_or(Refused)?;
    let payload = Payload { msg: sealed, aad: associated };
    cipher(key).decrypt(&Nonce::from(*nonce), payload).map_err(|_| Refused)
}

/// A short name of a key, which tells nothing about it.
pub(crate) fn name_of(key: &KeyBytes) -> String {
    digest(key, &[b"espd name of a key"])[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn cipher(key: &KeyBytes) -> Aes256Gcm {
    Aes256Gcm::new(&Key::<Aes256Gcm>::from(*key))
}

fn nonce(key: &KeyBytes, associated: &[u8], content: &[u8]) -> [u8; NONCE_LENGTH] {
    let of_nonces = digest(key, &[b"espd key of nonces"]);
    let length = (associated.len() as u64).to_be_bytes();
    let digest = digest(&of_nonces, &[&length, associated, content]);
    let mut nonce = [0; NONCE_LENGTH];
    nonce.copy_from_slice(&digest[..NONCE_LENGTH]);
    nonce
}

fn digest(key: &KeyBytes, parts: &[&[u8]]) -> [u8; 32] {
    // HMAC takes a key of any length.
    let mut mac = <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(key).expect("a key of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_sealed_opens_only_as_it_was_sealed(
            key in any::<KeyBytes>(), other in any::<KeyBytes>(), content in any::<Vec<u8>>(),
            associated in any::<Vec<u8>>(), wrong in any::<Vec<u8>>(), at in any::<prop::sample::Index>(), bit in 0..8_u8
        ) {
            let sealed = seal(&key, &associated, &content);
            prop_assert_eq!(&sealed, &seal(&key, &associated, &content));
            prop_assert_eq!(open(&key, &associated, &sealed), Ok(content.clone()));
            if wrong != associated {
                prop_assert_eq!(open(&key, &wrong, &sealed), Err(Refused));
            }
            if other != key {
                prop_assert_eq!(open(&other, &associated, &sealed), Err(Refused));
            }
            let mut bytes = STANDARD.decode(&sealed).expect("base64");
            let place = at.index(bytes.len());
            bytes[place] ^= 1_u8 << bit;
            prop_assert_eq!(open(&key, &associated, &STANDARD.encode(&bytes)), Err(Refused));
            prop_assert_eq!(open(&key, &associated, &STANDARD.encode(&bytes[..place])), Err(Refused));
        }
    }

    #[test]
    fn another_content_has_another_nonce_and_keys_differ() {
        let (one, other) = (seal(&[7; 32], b"a", b"one"), seal(&[7; 32], b"a", b"two"));
        assert_ne!(one[..16], other[..16]);
        assert_ne!(new_key(), new_key());
        assert_eq!((name_of(&[7; 32]).len(), name_of(&[7; 32]) == name_of(&[8; 32])), (16, false));
    }
}
