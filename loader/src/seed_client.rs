//! Asks a seed what it holds.

use std::time::Duration;

use reqwest::Client;
use rfork_protocol::manifest::metadata::{
    INFO_PATH, MAX_WAIT_MS, Metadata, MetadataError, SHAPE_INFO_PATH, WAIT_PARAMETER,
};
use rfork_protocol::{Host, SeedIdentity, SeedKey};

use crate::http::BodyError;

mod held;

pub use held::HeldClient;

/// The longest metadata that is read: three times what the largest models in the field have. 100,000 tensors take 21 MB.
const MAX_METADATA_BYTES: usize = 64 << 20;
/// What is longer is read on a thread for what takes long: 100,000 tensors take a tenth of a second.
const SHORT_BYTES: usize = 256 << 10;

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
    #[error("the seed at {seed} sends more than {most_bytes} bytes of metadata")]
    TooLarge {
        /// `host:port` of the seed.
        seed: String,
        /// The most that is read.
        most_bytes: usize,
    },
    /// It is a worker of ours, and sends its readers to another host than its own.
    #[error(
        "the seed at {seed} names a transfer engine on another host, {engine}: it is not read. A worker tells one host for \
         both (rfork_seed_advertise_host)"
    )]
    EngineElsewhere {
        /// `host:port` of the seed.
        seed: String,
        /// The host of the transfer engine that it names.
        engine: Host,
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
/// A worker of ours has its transfer engine on the host that the planner granted: else whoever registers a seed could have
/// readers connect to whatever they reach. Seeds of other programs may have a network of their own for data:
/// [`engine_elsewhere`].
///
/// # Errors
/// [`SeedMetadataError`]; [`SeedMetadataError::Status`] with 503 when it still does not know.
pub async fn fetch(
    http: &Client,
    seed: &SeedIdentity,
    key: &SeedKey,
    wait: Duration,
) -> Result<Metadata, SeedMetadataError> {
    let metadata = fetch_within(http, &seed.authority(), key, wait).await?;
    match engine_elsewhere(seed, &metadata) {
        Some(engine) if metadata.extension.is_some() => {
            Err(SeedMetadataError::EngineElsewhere { seed: seed.authority(), engine })
        }
        _ => Ok(metadata),
    }
}

/// The host of the seed's transfer engine, if that is not the seed's own.
pub fn engine_elsewhere(seed: &SeedIdentity, metadata: &Metadata) -> Option<Host> {
    metadata.session_host().filter(|engine| engine.as_str() != seed.host())
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
    let wait_ms = wait.as_millis().min(u128::from(MAX_WAIT_MS));
    let waiting = (wait_ms > 0).then(|| (WAIT_PARAMETER, wait_ms.to_string()));
    let info = get(http, (authority, INFO_PATH), key, waiting.as_slice(), MAX_METADATA_BYTES).await?;
    let metadata = read(info, |info| Metadata::decode(&info)).await.map_err(unusable)?;
    if !metadata.has_shapes() && metadata.extension.is_none() {
        match get(http, (authority, SHAPE_INFO_PATH), key, &[], MAX_METADATA_BYTES).await {
            Ok(shapes) => {
                return read(shapes, move |shapes| metadata.with_shapes(&shapes)).await.map_err(unusable);
            }
            // Seeds of the last generation do not have this URL; their entries may lack a shape all the same.
            Err(SeedMetadataError::Status { status: 404, .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(metadata)
}

/// Reads what a seed sent, apart from the runtime's threads when that may take long: other loads, leases and readers need
/// those. Dropped meanwhile, the thread reads to its end, which is bounded as the text is.
async fn read(
    text: Vec<u8>,
    read: impl FnOnce(Vec<u8>) -> Result<Metadata, MetadataError> + Send + 'static,
) -> Result<Metadata, MetadataError> {
    if text.len() <= SHORT_BYTES {
        return read(text);
    }
    let reading = tokio::task::spawn_blocking(move || read(text));
    reading.await.unwrap_or_else(|error| Err(MetadataError::Malformed(error.to_string())))
}

/// What the seed answers with status 200, of so many bytes at most.
async fn get(
    http: &Client,
    (authority, path): (&str, &str),
    key: &SeedKey,
    parameters: &[(&str, String)],
    most_bytes: usize,
) -> Result<Vec<u8>, SeedMetadataError> {
    let unreachable = |error: reqwest::Error| SeedMetadataError::Unreachable {
        seed: authority.to_owned(),
        reason: crate::http::explain(error),
    };
    let request = http.get(format!("http://{authority}{path}"));
    let request = request.query(&[("seed_key", key.text())]).query(parameters);
    let answer = request.send().await.map_err(unreachable)?;
    if answer.status() != reqwest::StatusCode::OK {
        return Err(SeedMetadataError::Status {
            seed: authority.to_owned(),
            status: answer.status().as_u16(),
        });
    }
    crate::http::body(answer, most_bytes).await.map_err(|error| match error {
        BodyError::Broken(reason) => SeedMetadataError::Unreachable { seed: authority.to_owned(), reason },
        BodyError::TooLong(_) => SeedMetadataError::TooLarge { seed: authority.to_owned(), most_bytes },
    })
}

#[cfg(test)]
mod tests {
    use rfork_protocol::manifest::content::{ChunkDigests, Content, ContentId, Root};
    use rfork_protocol::manifest::digest::{Digest, DigestAlgorithm};
    use rfork_protocol::manifest::metadata::{EntryFields, Extension};
    use rfork_protocol::manifest::{FORMAT_ND, Manifest, Tensor};

    use super::*;
    use crate::seed_service::SeedService;

    fn metadata(session: &str, is_ours: bool) -> Metadata {
        let tensor = Tensor {
            name: "w".into(),
            address: 16,
            count: 6,
            element_bytes: 2,
            shape: Some(vec![2, 3]),
            dtype: Some("bfloat16".into()),
            format: Some(FORMAT_ND),
        };
        let algorithm = DigestAlgorithm::default();
        let chunks =
            ChunkDigests { algorithm, chunk_bytes: 262_144, digests: [Digest::crc64_nvme(1)].into() };
        let root = Root::Content(Content { id: ContentId { algorithm, hash: [7; 32] }, chunks });
        let extension = Extension { engine: "tcp".into(), engine_version: None, root, origin: None };
        let manifest = Manifest::new(vec![tensor]).unwrap();
        Metadata { session: session.into(), manifest, extension: is_ours.then_some(extension) }
    }

    #[test]
    fn an_engine_on_another_host_is_told_from_one_on_the_seed_s() {
        for (seed, session, elsewhere) in [
            ("10.0.0.7", "10.0.0.7:9", None),
            ("10.0.0.7", "[::ffff:10.0.0.7]:9", None),
            ("fd00::7", "[FD00:0::7]:9", None),
            ("node-1", "Node-1.:9", None),
            ("10.0.0.7", "10.0.0.8:9", Some("10.0.0.8")),
            ("10.0.0.7", "node-1:9", Some("node-1")),
            ("127.0.0.1", "[::1]:9", Some("::1")),
        ] {
            let seed = SeedIdentity::new(seed, 1, 0).unwrap();
            let found = engine_elsewhere(&seed, &metadata(session, true));
            assert_eq!(found.as_ref().map(Host::as_str), elsewhere, "{seed} {session}");
        }
    }

    #[tokio::test]
    async fn a_worker_of_ours_that_sends_its_readers_elsewhere_is_refused_and_another_program_s_is_not() {
        let key = SeedKey::from_text("k").unwrap();
        let http = crate::http::client(Duration::from_secs(300), false).unwrap();
        let service = SeedService::start(Some("127.0.0.1"), 0, &key).await.unwrap();
        let seed = SeedIdentity::new("127.0.0.1", service.address().port(), 0).unwrap();
        for (session, is_ours, refused) in [
            ("127.0.0.1:9", true, false),
            ("10.0.0.8:9", true, true),
            ("127.0.0.1:9", false, false),
            ("10.0.0.8:9", false, false),
        ] {
            service.publish(&metadata(session, is_ours), EntryFields::Five);
            let told = fetch(&http, &seed, &key, Duration::ZERO).await;
            let is_refused = matches!(&told, Err(SeedMetadataError::EngineElsewhere { engine, .. })
                if engine.as_str() == "10.0.0.8");
            assert_eq!((is_refused, told.is_ok()), (refused, !refused), "{session} {is_ours}: {told:?}");
        }
    }
}
