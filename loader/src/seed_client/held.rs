//! Asks a seed that is read by address what it holds while it loads.

use std::time::Duration;

use async_trait::async_trait;
use reqwest::Client;
use rfork_protocol::manifest::digest::DigestAlgorithm;
use rfork_protocol::manifest::metadata::{HELD_PATH, HeldChunks, HeldQuestion, MAX_HELD_BYTES};
use rfork_protocol::{SeedIdentity, SeedKey};

use super::get;
use crate::engine::{FeedError, HeldFeed};

/// The metadata service of one seed. A question ends with the client's deadline for requests, and waits for half of that at
/// most.
#[derive(Debug, Clone)]
pub struct HeldClient {
    http: Client,
    authority: String,
    key: SeedKey,
    algorithm: DigestAlgorithm,
    chunk_count: u32,
    timeout: Duration,
}

impl HeldClient {
    /// Of `seed`, which holds `key` in so many chunks that are digested so; `http` ends requests after so long.
    pub fn new(
        (http, timeout): (Client, Duration),
        seed: &SeedIdentity,
        key: SeedKey,
        (algorithm, chunk_count): (DigestAlgorithm, u32),
    ) -> Self {
        Self { http, authority: seed.authority(), key, algorithm, chunk_count, timeout }
    }
}

#[async_trait]
impl HeldFeed for HeldClient {
    async fn ask(&self, question: &HeldQuestion) -> Result<HeldChunks, FeedError> {
        let most_ms = u64::try_from(self.timeout.as_millis() / 2).unwrap_or(u64::MAX);
        let question = HeldQuestion { wait_ms: question.wait_ms.min(most_ms), ..*question };
        let (from, parameters) = ((self.authority.as_str(), HELD_PATH), question.parameters());
        let answer = get(&self.http, from, &self.key, &parameters, MAX_HELD_BYTES).await;
        let answer = answer.map_err(|error| FeedError::Gone(error.to_string()))?;
        Ok(HeldChunks::decode(&answer, self.algorithm, self.chunk_count)?)
    }
}
