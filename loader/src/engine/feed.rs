//! What an engine that reads by address is told of a source that still loads, by other means than its own.

use std::fmt;

use async_trait::async_trait;
use rfork_protocol::manifest::metadata::{BadHeld, HeldChunks, HeldQuestion};

/// Asks a source what it holds.
#[async_trait]
pub trait HeldFeed: fmt::Debug + Send + Sync {
    /// What the source answers, which may take as long as the question says, and some seconds more.
    ///
    /// # Errors
    /// [`FeedError`].
    async fn ask(&self, question: &HeldQuestion) -> Result<HeldChunks, FeedError>;
}

/// A source that does not say what it holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FeedError {
    /// It cannot be reached, or offers nothing of these bytes any more: it has started over, or failed.
    #[error("it does not say what it holds: {0}")]
    Gone(String),
    /// It answers what it may not.
    #[error(transparent)]
    Malformed(#[from] BadHeld),
}
