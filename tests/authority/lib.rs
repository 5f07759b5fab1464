//! A CA of tests, and what it certifies.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc)] // Clippy knows tests by their attribute.

use std::path::Path;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};

/// Somebody who vouches for others.
pub struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    /// Another one each time.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "authority of tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        Self { certificate: params.self_signed(&key).unwrap(), issuer: Issuer::new(params, key) }
    }

    /// Its own certificate, as PEM.
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A certificate for these DNS names, addresses and URIs.
    pub fn issue(&self, names: &[&str]) -> Issued {
        self.issue_until(names, 4096)
    }

    /// The same, which ends with the beginning of a year.
    pub fn issue_until(&self, names: &[&str], year: i32) -> Issued {
        let (uris, names): (Vec<_>, Vec<_>) =
            names.iter().map(|name| (*name).to_owned()).partition(|name| name.contains("://"));
        let mut params = CertificateParams::new(names).unwrap();
        params.subject_alt_names.extend(uris.into_iter().map(|uri| SanType::URI(uri.try_into().unwrap())));
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Issued { cert: certificate.pem(), key: key.serialize_pem() }
    }
}

/// A certificate and its key, as PEM.
pub struct Issued {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
}

impl Issued {
    /// Writes both; neither is ever there in part.
    pub fn write(&self, cert: &Path, key: &Path) {
        replace(cert, &self.cert);
        replace(key, &self.key);
    }
}

/// Gives a file another content, at once.
pub fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}
