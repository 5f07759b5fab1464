//! Asks a seed what it holds.

use std::time::Duration;

use reqwest::Client;
use rfork_protocol::manifest::metadata::{
    INFO_PATH, MAX_WAIT_MS, Metadata, MetadataError, SHAPE_INFO_PATH, WAIT_PARAMETER,
};
use rfork_protocol::{SeedIdentity, SeedKey};

use crate::http::BodyError;

/// The longest metadata that is read; a manifest of 100,000 tensors takes about 15 MB.
const MAX_METADATA_BYTES: usize = 256 << 20;

/// A seed's metadata could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SeedMetadataError {
    /// No answer within the deadline.
    #[error("the seed at {seed} did not answer: {reason}")]
    Unreachable {
        /// `host:port` of the seed.
        seed: String,
        /// What failed.
        reason: String,
    },
    /// A status other than 200.
    #[error("the seed at {seed} answered with status {status}")]
    Status {
        /// `host:port` of the seed.
        seed: String,
        /// The status.
        status: u16,
    },
    /// More than is sensible.
    #[error("the seed at {seed} sends more than {MAX_METADATA_BYTES} bytes of metadata")]
    TooLarge {
        /// `host:port` of the seed.
        seed: String,
    },
    /// It was read, but cannot be used.
    #[error("the seed at {seed}: {source}")]
    Metadata {
        /// `host:port` of the seed.
        seed: String,
        /// Why not.
        source: MetadataError,
    },
}

/// Fetches and decodes the metadata of the seed at `seed`, its shapes from the second URL where the first
/// does not tell them. One that still loads may take `wait` until it knows its own.
///
/// # Errors
/// [`SeedMetadataError`]; [`SeedMetadataError::Status`] with 503 when it still does not know.
pub async fn fetch(
    http: &Client,
    seed: &SeedIdentity,
    key: &SeedKey,
    wait: Duration,
) -> Result<Metadata, SeedMetadataError> {
    fetch_within(http, &seed.authority(), key, wait).await
}

/// As [`fetch`], from `host:port`, of a seed that knows what it holds.
///
/// # Errors
/// [`SeedMetadataError`].
pub async fn fetch_at(http: &Client, authority: &str, key: &SeedKey) -> Result<Metadata, SeedMetadataError> {
    fetch_within(http, authority, key, Duration::ZERO).await
}

async fn fetch_within(
    http: &Client,
    authority: &str,
    key: &SeedKey,
    wait: Duration,
) -> Result<Metadata, SeedMetadataError> {
    let unusable = |source| SeedMetadataError::Metadata { seed: authority.to_owned(), source };
    let info = get(http, authority, INFO_PATH, key, wait).await?;
    let mut metadata = Metadata::decode(&info).map_err(unusable)?;
    if !metadata.has_shapes() && metadata.extension.is_none() {
        match get(http, authority, SHAPE_INFO_PATH, key, Duration::ZERO).await {
            Ok(shapes) => metadata.add_shapes(&shapes).map_err(unusable)?,
            // Seeds of the last generation do not have this URL; their entries may lack a shape all the same.
            Err(SeedMetadataError::Status { status: 404, .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(metadata)
}

async fn get(
    http: &Client,
    authority: &str,
    path: &str,
    key: &SeedKey,
    wait: Duration,
) -> Result<Vec<u8>, SeedMetadataError> {
    let unreachable = |error: reqwest::Error| SeedMetadataError::Unreachable {
        seed: authority.to_owned(),
        reason: crate::http::explain(error),
    };
    let mut request = http.get(format!("http://{authority}{path}")).query(&[("seed_key", key.text())]);
    if !wait.is_zero() {
        let wait_ms = wait.as_millis().min(u128::from(MAX_WAIT_MS));
        request = request.query(&[(WAIT_PARAMETER, wait_ms.to_string())]);
    }
    let answer = request.send().await.map_err(unreachable)?;
    if answer.status() != reqwest::StatusCode::OK {
        return Err(SeedMetadataError::Status {
            seed: authority.to_owned(),
            status: answer.status().as_u16(),
        });
    }
    crate::http::body(answer, MAX_METADATA_BYTES).await.map_err(|error| match error {
        BodyError::Broken(reason) => SeedMetadataError::Unreachable { seed: authority.to_owned(), reason },
        BodyError::TooLong(_) => SeedMetadataError::TooLarge { seed: authority.to_owned() },
    })
}
