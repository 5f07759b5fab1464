//! TLS between workers: each is known by the hash of its public key, and needs neither a name nor a CA.
//!
//! It is TLS 1.3, with AES-128 first: of what both know it is the fastest where processors have instructions for it.

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, PeerIncompatible, ServerConfig,
    SignatureScheme,
};

use crate::certificate::{self, KeyHash};

/// What a self-made certificate calls its owner. Nobody looks at it.
const NAME: &str = "worker.rfork.invalid";

fn provider() -> Arc<CryptoProvider> {
    let cipher_suites =
        vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    Arc::new(CryptoProvider { cipher_suites, ..rustls::crypto::ring::default_provider() })
}

/// A key that cannot be used, or made.
#[derive(Debug, thiserror::Error)]
pub enum OwnKeyError {
    /// None could be made.
    #[error("no key could be made: {0}")]
    Made(#[from] rcgen::Error),
    /// It does not make a server.
    #[error("a key that was made cannot be used: {0}")]
    Used(#[from] Error),
}

/// A worker's own key, with a certificate around it, as TLS wants it.
#[derive(Clone)]
pub struct OwnKey {
    config: Arc<ServerConfig>,
    hash: KeyHash,
}

impl fmt::Debug for OwnKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnKey")
    }
}

impl OwnKey {
    /// A new one, which ends with the process: nothing of it is written anywhere.
    ///
    /// # Errors
    /// [`OwnKeyError`].
    pub fn make() -> Result<Self, OwnKeyError> {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        let key = PrivateKeyDer::try_from(signing_key.serialize_der())
            .map_err(|why| OwnKeyError::Used(Error::General(why.to_owned())))?;
        let certified = CertifiedKey::from_der(vec![cert.der().clone()], key, &provider())?;
        let hash = certificate::key_hash(cert.der()).ok_or(Error::NoCertificatesPresented)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), hash })
    }

    /// How it answers handshakes.
    pub fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }

    /// What others know it by.
    pub fn hash(&self) -> KeyHash {
        self.hash
    }
}

/// How handshakes are made with a worker that has the key of this hash, and with nobody else.
///
/// # Errors
/// When no handshake could be made: a fault of this program.
pub fn pinned(hash: KeyHash) -> Result<Arc<ClientConfig>, Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        // It looks at the key alone, which is all that is known of a worker.
        .with_custom_certificate_verifier(Arc::new(Pinned { hash, provider: provider() }))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// What a client calls a worker, since it has to call it something.
pub fn name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
}

#[derive(Debug)]
struct Pinned {
    hash: KeyHash,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if certificate::key_hash(end_entity) == Some(self.hash) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls13RequiredForQuic))
    }

    /// That it has the key, and not only its hash.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
