//! What a store that is being opened waits for.

use std::sync::{Arc, Mutex, PoisonError};

/// Why a store that is being opened is not open yet: for those who ask meanwhile. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Opening(Arc<Mutex<Option<String>>>);

impl Opening {
    /// Says what is waited for; gives whether that is the first wait.
    pub fn waits_for(&self, reason: String) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(reason).is_none()
    }

    /// What is waited for.
    pub fn reason(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
