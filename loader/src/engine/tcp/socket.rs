//! Socket work that both sides share: whole frames with a deadline, and chunks straight from or to memory.

use std::io;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::link::Link;
use super::pace::Pace;
use super::throttle::Throttle;
use crate::digest::{ChunkDigest, Digest, DigestAlgorithm};
use crate::engine::memory::{ChunkReader, ChunkWriter};

/// Bytes of a chunk that a throttled seed sends at a time. A chunk of 16 MiB as one burst would leave its reader
/// without a sign of life for longer than the reader's deadline; these come often enough down to a rate of
/// 6.4 KiB/s a connection.
const THROTTLED_PIECE_BYTES: usize = 64 << 10;

/// Prepares a connection: small frames are not held back.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)
}

/// Runs `io`, and fails with `TimedOut` after `deadline`.
pub(super) async fn within<T>(deadline: Duration, io: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(deadline, io).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("nothing moved for {deadline:?}"))),
    }
}

/// Reads exactly one frame head.
pub(super) async fn read_exact<const N: usize>(stream: &mut Link, deadline: Duration) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    within(deadline, stream.read_exact(&mut bytes)).await?;
    Ok(bytes)
}

/// Writes a frame.
pub(super) async fn write_all(stream: &mut Link, deadline: Duration, bytes: &[u8]) -> io::Result<()> {
    within(deadline, stream.write_all(bytes)).await
}

/// Receives a whole chunk into place and gives its digest, computed while the bytes are in the cache; `None`
/// when nobody wants it. `stall` is how long nothing may come. `arrived` is told of every piece.
pub(super) async fn receive_chunk(
    stream: &mut Link,
    writer: &mut ChunkWriter,
    digest: Option<DigestAlgorithm>,
    stall: Duration,
    mut arrived: impl FnMut(usize),
) -> io::Result<Option<Digest>> {
    let mut digest = digest.map(ChunkDigest::start);
    let mut at = 0;
    while at < writer.len() {
        let received = match within(stall, stream.receive(writer, at)).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            received => received,
        };
        if let Some(digest) = &mut digest {
            writer.digest(at, received, digest)?;
        }
        at += received;
        arrived(received);
    }
    Ok(digest.map(ChunkDigest::finish))
}

/// Sends `head` and the chunk behind it, no faster than `throttle` allows. `stall` is how long the peer may take
/// nothing, `pace` how little it may take. Gives the chunk's size.
pub(super) async fn send_chunk(
    stream: &mut Link,
    head: &[u8],
    reader: &ChunkReader,
    throttle: &Throttle,
    stall: Duration,
    pace: &mut Pace,
) -> io::Result<usize> {
    let piece_bytes = if throttle.is_unlimited() { reader.len() } else { THROTTLED_PIECE_BYTES };
    let total = head.len() + reader.len();
    let mut at = 0;
    while at < total {
        let end = total.min(at.max(head.len()) + piece_bytes);
        throttle.take((end - at) as u64).await;
        while at < end {
            let max = end - at.max(head.len());
            let begun = Instant::now();
            let taken = within(stall, stream.send(reader, head, at, max)).await?;
            pace.took(taken, begun.elapsed())
                .map_err(|slow| io::Error::new(io::ErrorKind::TimedOut, slow))?;
            at += taken;
        }
    }
    Ok(reader.len())
}
