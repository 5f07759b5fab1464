//! What only the planners of one database know.

use std::fmt;

use rfork_protocol::ids::hex;
use ring::hmac;

use super::StoreError;

/// The least that a secret has, in bytes.
const MIN_BYTES: usize = 32;

/// What names the leases of idempotency keys: made with the database, so that all its planners name them alike from the first
/// start on.
#[derive(Clone)]
pub struct LeaseSecret(hmac::Key);

impl LeaseSecret {
    /// Of these bytes, which are random.
    ///
    /// # Errors
    /// [`StoreError::Broken`], when they are too few.
    pub(super) fn new(bytes: &[u8]) -> Result<Self, StoreError> {
        if bytes.len() < MIN_BYTES {
            return Err(StoreError::Broken(format!("the secret of leases has fewer than {MIN_BYTES} bytes")));
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, bytes)))
    }

    /// The lease of all acquisitions of one principal under one idempotency key: it need not be kept anywhere to be told
    /// again. Whoever knows the key does not know it.
    pub(crate) fn lease_of(&self, key: &str, principal: Option<&str>) -> String {
        let mut message = hmac::Context::with_key(&self.0);
        if let Some(principal) = principal {
            message.update(principal.as_bytes());
            // It is in no name and in no key.
            message.update(&[0]);
        }
        message.update(key.as_bytes());
        hex(&message.sign().as_ref()[..16])
    }
}

/// Nothing of it.
impl fmt::Debug for LeaseSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeaseSecret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_of_one_secret_one_principal_and_one_key() {
        let [secret, other] = [7, 8].map(|byte| LeaseSecret::new(&[byte; 32]).unwrap());
        let lease = secret.lease_of("k", Some("a"));
        assert_eq!((lease.len(), &lease), (32, &secret.lease_of("k", Some("a"))));
        for another in [
            other.lease_of("k", Some("a")),
            secret.lease_of("l", Some("a")),
            secret.lease_of("k", Some("b")),
            secret.lease_of("k", None),
            secret.lease_of("ak", None),
        ] {
            assert_ne!(lease, another);
        }
        assert_eq!(format!("{secret:?}"), "LeaseSecret");
        assert!(LeaseSecret::new(&[7; 31]).is_err());
    }
}
