//! The CAs that a worker believes to vouch for its planner. They stand in a file, which is looked at for each request, so that
//! they may be replaced while the worker runs.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rfork_tls::client::CaFile;
use rfork_tls::files::FileError;
use rfork_tls::in_force::{InForce, Looked};
use tokio::sync::Semaphore;

/// How long a request waits for a look: the file may be on a disk that is away.
const LOOK_DEADLINE: Duration = Duration::from_secs(2);

/// What the file said last that could be used. Clones are the same.
#[derive(Debug, Clone)]
pub struct PlannerCa(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    in_force: Arc<InForce<CaFile>>,
    /// One look at a time: one that hangs keeps a thread.
    looking: Arc<Semaphore>,
    told: Mutex<Option<FileError>>,
}

/// Of the same file.
impl PartialEq for PlannerCa {
    fn eq(&self, other: &Self) -> bool {
        self.0.in_force.files() == other.0.in_force.files()
    }
}

impl PlannerCa {
    /// Reads the file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(path: impl Into<PathBuf>) -> Result<Self, FileError> {
        let in_force = Arc::new(InForce::read(CaFile(path.into()))?);
        Ok(Self(Arc::new(Inner { in_force, looking: Arc::new(Semaphore::new(1)), told: Mutex::default() })))
    }

    /// What a client is to be made of.
    pub(crate) fn in_force(&self) -> &Arc<InForce<CaFile>> {
        &self.0.in_force
    }

    /// Looks at the file. While it cannot be used, what it said before is, and the log says so.
    pub(crate) async fn look(&self) {
        let Ok(permit) = self.0.looking.clone().try_acquire_owned() else { return };
        let in_force = self.0.in_force.clone();
        let looking = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            in_force.look()
        });
        // It hangs, or the process ends.
        let Ok(Ok(looked)) = tokio::time::timeout(LOOK_DEADLINE, looking).await else { return };
        let mut told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        match looked {
            Looked::Wrong(error) => {
                if told.as_ref() != Some(&error) {
                    tracing::error!(%error, "the CAs of the planner are not replaced; those before stay in force");
                    *told = Some(error);
                }
            }
            Looked::Anew => {
                tracing::info!("the CAs of the planner were read anew");
                *told = None;
            }
            Looked::Same => *told = None,
        }
    }
}
