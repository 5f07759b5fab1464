//! What a seed that still loads announces, as its reader takes it in: what it holds, how it fares, and, of bytes that have no
//! content id yet, each chunk's digest and in the end the content id.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rfork_protocol::frame::{ANNOUNCEMENT_BYTES, ANNOUNCEMENTS, Announcement, CONTENT_ID_BYTES, Head, Range};
use rfork_protocol::manifest::content::{ChunkDigests, Content, ContentId, Root, content_id};

use super::client::{Shared, welcomed};
use super::link::Link;
use super::socket::{read_exact, within};
use crate::digest::Digest;
use crate::engine::ReadError;
use crate::held::Offers;

/// While a source gets bytes, or compares what it holds, it says so each second.
const PROGRESSES: Duration = Duration::from_secs(3);

/// [`follow`] under way. It is polled by who reads, and by no task of its own.
///
/// Excluded: a FINAL that was on its way names other bytes, which came to the memory after that read had ended.
pub(super) type Following = Pin<Box<dyn Future<Output = Result<(), ReadError>> + Send>>;

/// The end of [`follow`], once; never, where nobody is followed.
pub(super) async fn followed(following: &mut Option<Following>) -> Result<(), ReadError> {
    match following {
        Some(running) => {
            let ended = running.await;
            *following = None;
            ended
        }
        None => std::future::pending().await,
    }
}

/// Takes in what a seed that still loads announces, until the read ends. A seed that announces nothing is read as one
/// that holds everything: it answers for what it does not hold.
pub(super) async fn follow(shared: Arc<Shared>) -> Result<(), ReadError> {
    let (mut stream, features) = welcomed(&shared, ANNOUNCEMENTS).await?;
    if features & ANNOUNCEMENTS == 0 {
        if matches!(shared.root, Root::Growing(_)) {
            return Err(shared.breaks("its bytes have no content id, and it announces nothing".into()));
        }
        shared.offer(Offers::offer_all);
        return Ok(());
    }
    let deadline = shared.options.progress_timeout;
    loop {
        let head = read_exact::<ANNOUNCEMENT_BYTES>(&mut stream, deadline).await;
        let head = head.map_err(|error| shared.lost(&error))?;
        match Announcement::decode_head(&head, shared.root.algorithm())
            .map_err(|error| shared.protocol(&error))?
        {
            Head::Alive(sign) => {
                shared.know(|source| {
                    (source.sign, source.signed) = (sign, Some(std::time::Instant::now()));
                });
                // Only FINAL is missing, which who reads storage says when it has compared everything.
                if Duration::from_millis(sign.silent_ms.into()) < PROGRESSES && shared.memory.all_held() {
                    shared.memory.arrivals().progressed();
                }
            }
            Head::Held { ranges_bytes } => {
                let ranges = body(&shared, &mut stream, ranges_bytes).await?;
                let ranges = Announcement::decode_ranges(&ranges, shared.memory.plan().count());
                let ranges = ranges.map_err(|error| shared.protocol(&error))?;
                if matches!(shared.root, Root::Growing(_)) {
                    return Err(shared.breaks("it announces chunks without their digests".into()));
                }
                shared.offer(|offers| offers.offer(ranges.iter().flat_map(Range::chunks)));
            }
            Head::Digested { ranges_bytes, digests_bytes } => {
                let ranges = body(&shared, &mut stream, ranges_bytes).await?;
                let digests = body(&shared, &mut stream, digests_bytes).await?;
                let count = shared.memory.plan().count();
                let algorithm = shared.root.algorithm();
                let chunks = Announcement::decode_digested(&ranges, &digests, algorithm, count);
                let chunks = chunks.map_err(|error| shared.protocol(&error))?;
                shared.learn(&chunks)?;
                shared.offer(|offers| offers.offer(chunks.iter().map(|(chunk, _)| *chunk)));
            }
            Head::Final => {
                let hash = read_exact::<CONTENT_ID_BYTES>(&mut stream, deadline).await;
                shared.is_final(hash.map_err(|error| shared.lost(&error))?)?;
                // Whoever waits for it looks again.
                shared.offer(|_| {});
            }
        }
    }
}

/// What follows the fixed part of an announcement, of a length that its frame bounds.
async fn body(shared: &Shared, stream: &mut Link, len: usize) -> Result<Vec<u8>, ReadError> {
    let mut bytes = vec![0; len];
    let read = within(shared.options.progress_timeout, stream.read_exact(&mut bytes)).await;
    read.map_err(|error| shared.lost(&error))?;
    Ok(bytes)
}

impl Shared {
    /// Takes in digests, before their chunks are asked for. Those that are known already, from another source or from the
    /// bytes, must be the same: it is one root. If they are not, nobody knows who is right, and this seed is not blamed.
    fn learn(&self, chunks: &[(u32, Digest)]) -> Result<(), ReadError> {
        let mut digests = self.digests();
        for (chunk, digest) in chunks {
            if let Some(known) = digests.get_mut(*chunk as usize)
                && *known.get_or_insert(*digest) != *digest
            {
                let reason =
                    format!("its chunk {chunk} has another digest than that of another source of its origin");
                return Err(ReadError::Unusable { peer: self.peer.clone(), reason });
            }
        }
        Ok(())
    }

    /// The seed says which content the bytes are. The digests have to make that same one.
    fn is_final(&self, hash: [u8; CONTENT_ID_BYTES]) -> Result<(), ReadError> {
        let Root::Growing(growing) = &self.root else {
            return Err(self.breaks("it names the content anew".into()));
        };
        let id = ContentId { algorithm: growing.algorithm, hash };
        if self.memory.content().is_some_and(|known| known.id == id) {
            return Ok(());
        }
        let digests: Option<Vec<Digest>> = self.digests().iter().copied().collect();
        let Some(digests) = digests else {
            return Err(self.breaks("it names a content of which it has not announced everything".into()));
        };
        let chunks = ChunkDigests {
            algorithm: growing.algorithm,
            chunk_bytes: growing.chunk_bytes,
            digests: digests.into(),
        };
        let ours = content_id(&self.manifest, &chunks);
        if ours != id {
            return Err(self.breaks(format!("it names content {id}, but its digests make {ours}")));
        }
        if self.memory.content().is_some_and(|known| known.id != id) {
            return Err(self.breaks(format!("it names content {id}, and another source another one")));
        }
        self.memory.set_content(Content { id, chunks });
        Ok(())
    }
}
