//! What a certificate says, as far as it is looked at here: when it ends, and whose key it has.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use webpki::EndEntityCert;

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

/// When a certificate ends, in Unix seconds; `None` if it does not say so in a form that is read.
pub fn ends_sec(certificate: &CertificateDer<'_>) -> Option<i64> {
    // RFC 5280, 4.1: Certificate, TBSCertificate, then version (if it is there), serialNumber, signature, issuer, validity.
    let (certificate, _) = Der::of(certificate, SEQUENCE)?;
    let (mut fields, _) = Der::of(certificate, SEQUENCE)?;
    if fields.first() == Some(&VERSION) {
        (_, fields) = Der::of(fields, VERSION)?;
    }
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        (_, fields) = Der::of(fields, tag)?;
    }
    let (validity, _) = Der::of(fields, SEQUENCE)?;
    let (_, _, after_first) = Der::any(validity)?;
    let (tag, not_after, _) = Der::any(after_first)?;
    unix_seconds(tag, not_after)
}

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// `[0]` of a `TBSCertificate`.
const VERSION: u8 = 0xa0;

/// Values in DER: a tag, a length, and so many bytes.
struct Der;

impl Der {
    /// The content of a value of this tag, and what follows it.
    fn of(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
        let (its, content, rest) = Self::any(bytes)?;
        (its == tag).then_some((content, rest))
    }

    /// Tag and content of a value, and what follows it.
    fn any(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
        let [tag, first, rest @ ..] = bytes else { return None };
        let (length, rest) = match first {
            0..=0x7f => (usize::from(*first), rest),
            0x81..=0x83 => {
                let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        Some((*tag, content, rest))
    }
}

/// A time of a certificate: `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`.
fn unix_seconds(tag: u8, text: &[u8]) -> Option<i64> {
    let digits = text.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let pairs: Vec<i64> = digits
        .chunks(2)
        .map(|pair| pair.iter().fold(0, |all, digit| 10 * all + i64::from(digit - b'0')))
        .collect();
    let (year, rest) = match (tag, &pairs[..]) {
        (UTC_TIME, [year, rest @ ..]) => (if *year < 50 { 2000 + year } else { 1900 + year }, rest),
        (GENERALIZED_TIME, [century, year, rest @ ..]) => (100 * century + year, rest),
        _ => return None,
    };
    let [month, day, hour, minute, second] = rest else { return None };
    if digits.len() % 2 != 0
        || !(1..=12).contains(month)
        || !(1..=31).contains(day)
        || *hour > 23
        || *minute > 59
        || *second > 60
    {
        return None;
    }
    // Days since 1970, with years that begin in March, so that the day that some years have more is their last.
    let (year, month) = if *month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + day
        - 719_469;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
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
