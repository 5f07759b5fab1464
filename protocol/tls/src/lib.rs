//! TLS as RFork has it: certificates, keys and CAs in files that are read again when they change.
//!
//! What a file says is understood by pure functions ([`certificate`], [`server`], [`client`]). [`in_force`] keeps what the files
//! said last that could be used. There is one provider of cryptography, ring, and nothing else is asked which one to take: a
//! program that has another one for itself keeps that.
//!
//! No session is resumed, on either side. Who answers is looked at in each handshake, by what is trusted at that time.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub mod certificate;
pub mod client;
pub mod files;
pub mod in_force;
pub mod peer;
pub mod server;

/// The provider of cryptography.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
