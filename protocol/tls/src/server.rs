//! What a server speaks TLS with: its certificate and key, and whose clients' certificates it believes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;

use crate::certificate::{self, KeyHash, Uncertified};
use crate::client;
use crate::files::FileError;
use crate::in_force::{Contents, Files};

/// The protocol that is spoken over it, as ALPN names it.
const HTTP_1_1: &[u8] = b"http/1.1";

/// Where a server's certificate and key are, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFiles {
    /// Its certificate, followed by those between it and a CA.
    pub cert: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
    /// The CAs whose clients' certificates are believed. Without them clients are asked for none.
    pub client_ca: Option<PathBuf>,
}

/// What the files say.
pub struct Server {
    /// How handshakes are made.
    pub config: Arc<ServerConfig>,
    /// When the certificate ends, in Unix seconds.
    pub ends_sec: i64,
    /// Whose key it is.
    pub key: KeyHash,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("ends_sec", &self.ends_sec).finish_non_exhaustive()
    }
}

impl Files for ServerFiles {
    type Said = Server;

    fn paths(&self) -> Vec<&Path> {
        [&self.cert, &self.key].into_iter().chain(&self.client_ca).map(PathBuf::as_path).collect()
    }

    fn understand(&self, contents: &Contents) -> Result<Server, FileError> {
        let wrong = |path: &Path| {
            let path = path.to_owned();
            move |reason: String| FileError::new(&path, reason)
        };
        let chain = certificate::certificates(contents.of(&self.cert)).map_err(wrong(&self.cert))?;
        let key = certificate::private_key(contents.of(&self.key)).map_err(wrong(&self.key))?;
        let unread = || FileError::new(&self.cert, "its first certificate cannot be read");
        let ends_sec = chain.first().and_then(certificate::ends_sec).ok_or_else(unread)?;
        let hash = chain.first().and_then(certificate::key_hash).ok_or_else(unread)?;
        let certified = certificate::certified(chain, key).map_err(|uncertified| match uncertified {
            Uncertified::Chain => unread(),
            Uncertified::Key(why) => FileError::new(&self.key, why),
        })?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if ends_sec < i64::try_from(now).unwrap_or(i64::MAX) {
            return Err(FileError::new(&self.cert, "its certificate has ended"));
        }
        let verifier = match &self.client_ca {
            None => WebPkiClientVerifier::no_client_auth(),
            Some(path) => {
                let roots = client::roots(contents.of(path)).map_err(wrong(path))?;
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crate::provider())
                    // Who has none may have a token, or ask what everybody may.
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| FileError::new(path, error.to_string()))?
            }
        };
        let builder = ServerConfig::builder_with_provider(crate::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| FileError::new(&self.cert, error.to_string()))?;
        let mut config = builder
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![HTTP_1_1.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Server { config: Arc::new(config), ends_sec, key: hash })
    }
}
