//! Which uuid an emitted event has.

use sha2::{Digest as _, Sha256};
use uuid::{Builder, Uuid};

/// Returns the uuid of the `ordinal`th event, from 1, that a reactor emits for the event `source`. The uuid is of version 8,
/// made from a digest (RFC 9562), so an event that is handled again emits the same uuids.
pub(super) fn identify(reactor: &str, source: Uuid, ordinal: u32) -> Uuid {
    let digest = Sha256::digest(format!("espd/{reactor}/{source}/{ordinal}"));
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    // The variant leaves two bits of its nibble free, and the builder would keep them: they are 01 in every uuid so far.
    bytes[8] = 0x90 | bytes[8] & 0x0f;
    Builder::from_custom_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emission_has_one_identity() {
        let source = Uuid::from_u128(7);
        let uuid = identify("reminders", source, 1);
        // A stored uuid has to be found again by every later release.
        assert_eq!(uuid.to_string(), "7689cbf5-23a3-8e3d-966d-9318c182f87b");
        assert_eq!(uuid, identify("reminders", source, 1));
        assert_eq!(uuid.get_version_num(), 8);
        assert_ne!(uuid, identify("reminders", source, 2));
        assert_ne!(uuid, identify("reminder", source, 1));
        assert_ne!(uuid, identify("reminders", Uuid::from_u128(8), 1));
    }
}
