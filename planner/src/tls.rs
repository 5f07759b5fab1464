//! TLS of the planner's own port, by files that are read again when they change.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rfork_protocol::settings::{SettingError, Values};
use rfork_tls::files::FileError;
use rfork_tls::in_force::{self, InForce, Looked};
use rfork_tls::server::{Server, ServerFiles};

use crate::metrics::Metrics;

/// A planner's certificate and key, as the files say them that could be used last. Clones are the same.
#[derive(Debug, Clone)]
pub struct Tls(Arc<InForce<ServerFiles>>);

/// Of the same files.
impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        self.0.files() == other.0.files()
    }
}

impl Eq for Tls {}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong in which of them; nothing that stands there.
    pub fn read(files: ServerFiles) -> Result<Self, FileError> {
        Ok(Self(Arc::new(InForce::read(files)?)))
    }

    /// What the settings say; `None` if they name no files.
    ///
    /// # Errors
    /// [`SettingError`]: one of certificate and key without the other, or a file that cannot be used.
    pub(crate) fn of(values: &Values) -> Result<Option<Self>, SettingError> {
        let find = |name| values.find::<PathBuf>(name);
        let client_ca = find("tls_client_ca_file")?;
        let (cert, key) = match (find("tls_cert_file")?, find("tls_key_file")?) {
            (Some(cert), Some(key)) => (cert, key),
            (None, None) if client_ca.is_some() => {
                return Err(
                    values.refused("tls_client_ca_file", &"takes --tls-cert-file and --tls-key-file, too")
                );
            }
            (None, None) => return Ok(None),
            (Some(_), None) => return Err(values.refused("tls_cert_file", &"takes --tls-key-file, too")),
            (None, Some(_)) => return Err(values.refused("tls_key_file", &"takes --tls-cert-file, too")),
        };
        let named = [("tls_cert_file", cert.clone()), ("tls_key_file", key.clone())];
        Self::read(ServerFiles { cert, key, client_ca }).map(Some).map_err(|error| {
            let name = named.iter().find(|(_, path)| error.path() == path).map(|(name, _)| *name);
            values.refused(name.unwrap_or("tls_client_ca_file"), &error)
        })
    }

    /// What is in force.
    pub(crate) fn now(&self) -> Arc<Server> {
        self.0.now()
    }

    /// Looks at the files until it is dropped, and tells what came of it by the log and by `metrics`.
    pub(crate) async fn watch(self, metrics: Arc<Metrics>) {
        metrics.tls_files(true, self.now().ends_sec);
        let last_error = Mutex::new(None);
        let tell = |looked: &Looked| {
            let mut last_error = last_error.lock().unwrap_or_else(PoisonError::into_inner);
            match looked {
                Looked::Wrong(error) => {
                    if last_error.as_ref() != Some(error) {
                        tracing::error!(%error, "the certificate is not replaced; the one before stays in force");
                        *last_error = Some(error.clone());
                    }
                }
                Looked::Anew => {
                    tracing::info!(ends_sec = self.now().ends_sec, "certificate and key were read anew");
                    *last_error = None;
                }
                Looked::Same => *last_error = None,
            }
            metrics.tls_files(!matches!(looked, Looked::Wrong(_)), self.now().ends_sec);
        };
        in_force::watch(self.0.clone(), tell).await;
    }
}
