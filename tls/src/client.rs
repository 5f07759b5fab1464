//! Who is believed to be the server that a client means.

use rustls::RootCertStore;

use crate::certificate;

/// The CAs of a PEM text.
///
/// # Errors
/// What is wrong with it.
pub fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificate::certificates(pem)? {
        roots
            .add(certificate)
            .map_err(|error| format!("a certificate in it is none of a CA that can be read: {error}"))?;
    }
    Ok(roots)
}
