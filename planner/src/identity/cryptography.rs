//! What verifies signatures of JWTs: ring, which the process has for TLS anyway. Only asymmetric algorithms are there, so
//! that no public key can be taken for a secret; and nothing signs.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::signature::{Error, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::signature::{self as verifying, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey};

static PROVIDER: CryptoProvider =
    CryptoProvider { signer_factory, verifier_factory, key_utils: KeyUtils::new_unimplemented() };

/// Has the process verify JWTs so. Whoever came first serves.
pub(super) fn install() {
    let _ = PROVIDER.install_default();
}

/// How each algorithm is verified.
#[derive(Clone, Copy)]
enum Method {
    Rsa(&'static RsaParameters),
    Other(&'static dyn verifying::VerificationAlgorithm),
}

fn method(algorithm: Algorithm) -> Option<Method> {
    Some(match algorithm {
        Algorithm::RS256 => Method::Rsa(&verifying::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::RS384 => Method::Rsa(&verifying::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::RS512 => Method::Rsa(&verifying::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::PS256 => Method::Rsa(&verifying::RSA_PSS_2048_8192_SHA256),
        Algorithm::PS384 => Method::Rsa(&verifying::RSA_PSS_2048_8192_SHA384),
        Algorithm::PS512 => Method::Rsa(&verifying::RSA_PSS_2048_8192_SHA512),
        Algorithm::ES256 => Method::Other(&verifying::ECDSA_P256_SHA256_FIXED),
        Algorithm::ES384 => Method::Other(&verifying::ECDSA_P384_SHA384_FIXED),
        Algorithm::EdDSA => Method::Other(&verifying::ED25519),
        _ => return None,
    })
}

struct ByRing {
    algorithm: Algorithm,
    method: Method,
    key: DecodingKey,
}

impl Verifier<Vec<u8>> for ByRing {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
        let verified = match (self.method, self.key.kind()) {
            (Method::Rsa(parameters), DecodingKeyKind::RsaModulusExponent { n, e }) => {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature)
            }
            (Method::Other(algorithm), DecodingKeyKind::SecretOrDer(key)) => {
                UnparsedPublicKey::new(algorithm, key).verify(message, signature)
            }
            _ => return Err(Error::new()),
        };
        verified.map_err(|_| Error::new())
    }
}

impl JwtVerifier for ByRing {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // As the provider has it.
fn verifier_factory(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    let method = method(*algorithm).filter(|_| key.family() == algorithm.family());
    let method = method.ok_or(ErrorKind::InvalidAlgorithm)?;
    Ok(Box::new(ByRing { algorithm: *algorithm, method, key: key.clone() }))
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn signer_factory(_: &Algorithm, _: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    Err(ErrorKind::UnsupportedAlgorithm.into())
}
