//! Who is believed to be the server that a client means: whom the CAs of a file vouch for.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::certificate;
use crate::files::FileError;
use crate::in_force::{Contents, Files, InForce};

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

/// Where the CAs are, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaFile(pub PathBuf);

/// The CAs that a file names.
pub struct Authorities(Arc<WebPkiServerVerifier>);

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorities")
    }
}

impl Files for CaFile {
    type Said = Authorities;

    fn paths(&self) -> Vec<&Path> {
        vec![&self.0]
    }

    fn understand(&self, contents: &Contents) -> Result<Authorities, FileError> {
        let wrong = |reason: String| FileError::new(&self.0, reason);
        let roots = Arc::new(roots(contents.of(&self.0)).map_err(wrong)?);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, crate::provider()).build();
        verifier.map(Authorities).map_err(|error| wrong(error.to_string()))
    }
}

/// How handshakes are made with servers that the CAs of a file vouch for, as it is then. What `alpn_protocols` says is the
/// caller's.
///
/// # Errors
/// When no handshake could be made: a fault of this program.
pub fn trusting(authorities: Arc<InForce<CaFile>>) -> Result<ClientConfig, Error> {
    let builder =
        ClientConfig::builder_with_provider(crate::provider()).with_safe_default_protocol_versions()?;
    let mut config = builder
        .dangerous()
        // It asks the verifier of the CAs that are in force.
        .with_custom_certificate_verifier(Arc::new(InForceVerifier(authorities)))
        .with_no_client_auth();
    // Whoever resumes a session is not asked for a certificate.
    config.resumption = Resumption::disabled();
    Ok(config)
}

#[derive(Debug)]
struct InForceVerifier(Arc<InForce<CaFile>>);

impl ServerCertVerifier for InForceVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Authorities(verifier) = &*self.0.now();
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.now().0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.now().0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.now().0.supported_verify_schemes()
    }
}
