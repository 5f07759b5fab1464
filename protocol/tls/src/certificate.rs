//! What a certificate says, as far as it is looked at here: when it ends, and whose key it has.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use webpki::EndEntityCert;
use x509_cert::der::Decode;

/// Certificates of one file at most.
const MAX_CERTIFICATES: usize = 1_000;

/// Names of one certificate that are looked at.
const MAX_NAMES: usize = 16;

/// The hash of a public key, as it stands in certificates: SHA-256 of its `SubjectPublicKeyInfo`. Two certificates of one key
/// have the same.
pub type KeyHash = [u8; 32];

/// The certificates of a PEM text, in its order.
///
/// # Errors
/// What is wrong with it.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| "it is not PEM".to_owned())?;
        if certificates.len() == MAX_CERTIFICATES {
            return Err(format!("it has more than {MAX_CERTIFICATES} certificates"));
        }
        certificates.push(certificate);
    }
    if certificates.is_empty() {
        return Err("it holds no certificate as PEM".into());
    }
    Ok(certificates)
}

/// The private key of a PEM text: its first one.
///
/// # Errors
/// What is wrong with it; nothing of the text.
pub fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| {
        "it holds no private key as PEM that is not encrypted (PKCS#8, PKCS#1 or SEC1)".to_owned()
    })
}

/// A chain with the key of its first certificate, to sign handshakes with.
///
/// # Errors
/// Whether the chain is to blame, or the key; and why.
pub fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, Uncertified> {
    let signing = crate::provider().key_provider.load_private_key(key);
    let certified =
        CertifiedKey::new(chain, signing.map_err(|_| Uncertified::Key("it is of a kind that is not taken"))?);
    let end = certified.end_entity_cert().map_err(|_| Uncertified::Chain)?;
    EndEntityCert::try_from(end).map_err(|_| Uncertified::Chain)?;
    certified.keys_match().map_err(|_| Uncertified::Key("it is not the key of the certificate"))?;
    Ok(Arc::new(certified))
}

/// A chain and a key that do not make a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uncertified {
    /// Its first certificate cannot be read.
    Chain,
    /// The key is not fit for it.
    Key(&'static str),
}

/// The hash of a certificate's public key; `None` if it is no certificate.
pub fn key_hash(certificate: &CertificateDer<'_>) -> Option<KeyHash> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    Some(Sha256::digest(certificate.subject_public_key_info()).into())
}

/// Names and URIs that a certificate is for: its subject alternative names of these kinds, as many as are looked at.
pub fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return Vec::new() };
    let names = certificate.valid_dns_names().chain(certificate.valid_uri_names());
    names.take(MAX_NAMES).map(str::to_owned).collect()
}

/// When a certificate ends, in Unix seconds; `None` if it is none that can be read.
pub fn ends_sec(certificate: &CertificateDer<'_>) -> Option<i64> {
    let certificate = x509_cert::Certificate::from_der(certificate).ok()?;
    let end = certificate.tbs_certificate().validity().not_after.to_unix_duration();
    i64::try_from(end.as_secs()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PublicKeyData};

    use super::*;

    #[test]
    fn the_end_and_the_key_of_a_certificate_are_read() {
        let key = KeyPair::generate().unwrap();
        let other = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["planner".to_owned()]).unwrap();
        let of = |params: &CertificateParams, key: &KeyPair| params.self_signed(key).unwrap().der().clone();
        let first = of(&params, &key);
        for (year, month, day, expected) in [
            (1970, 1, 1, 0),
            (2000, 2, 29, 951_782_400),
            (2026, 11, 30, 1_795_996_800),
            (2049, 12, 31, 2_524_521_600),
            (2050, 1, 1, 2_524_608_000),
            (2100, 3, 1, 4_107_542_400),
        ] {
            params.not_after = rcgen::date_time_ymd(year, month, day);
            assert_eq!(ends_sec(&of(&params, &key)), Some(expected), "{year}-{month}-{day}");
        }
        let second = of(&params, &key);
        assert_ne!(first, second);
        assert_eq!(key_hash(&first), key_hash(&second), "another certificate of one key");
        assert_ne!(key_hash(&first), key_hash(&of(&params, &other)));
        assert_eq!(key_hash(&first), Some(Sha256::digest(key.subject_public_key_info()).into()));
    }

    #[test]
    fn a_chain_and_a_key_that_do_not_fit_are_told_apart() {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let params = CertificateParams::new(vec!["planner".to_owned()]).unwrap();
        let chain = certificates(params.self_signed(&key).unwrap().pem().as_bytes()).unwrap();
        let of = |key: &KeyPair| private_key(key.serialize_pem().as_bytes()).unwrap();
        assert!(certified(chain.clone(), of(&key)).is_ok());
        let refused = certified(chain, of(&other)).unwrap_err();
        assert_eq!(refused, Uncertified::Key("it is not the key of the certificate"));
        assert_eq!(certified(vec![vec![0x30].into()], of(&key)).unwrap_err(), Uncertified::Chain);
        for text in ["", "SECRET", "-----BEGIN CERTIFICATE-----\nSECRET!\n-----END CERTIFICATE-----\n"] {
            for error in
                [certificates(text.as_bytes()).unwrap_err(), private_key(text.as_bytes()).unwrap_err()]
            {
                assert!(!error.contains("SECRET"), "{error}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), byte: u8) {
            let key = KeyPair::generate().unwrap();
            let good = CertificateParams::default().self_signed(&key).unwrap().der().clone();
            let mut near = good.to_vec();
            let at = at.index(near.len());
            near[at] = byte;
            for bytes in [bytes, near[..at].to_vec(), near] {
                let certificate = CertificateDer::from(bytes.clone());
                let _ = (ends_sec(&certificate), key_hash(&certificate), certificates(&bytes), private_key(&bytes));
            }
        }
    }
}
