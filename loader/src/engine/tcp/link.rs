//! A connection between two engines: plain, or with TLS around it. Frames and chunks go over either.

use std::io;
use std::os::fd::AsFd;

use rfork_tls::certificate::KeyHash;
use rfork_tls::peer::OwnKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;

use super::secured::Secured;
use crate::engine::memory::{ChunkReader, ChunkWriter};

/// One connection. Reading may be dropped while it waits; after writing was, nothing is written any more.
pub(super) enum Link {
    Plain(TcpStream),
    Tls(Box<Secured>),
}

impl Link {
    /// With TLS around it if the seed has a key.
    pub(super) async fn accept(stream: TcpStream, key: Option<&OwnKey>) -> io::Result<Self> {
        Ok(match key {
            Some(key) => Self::Tls(Box::new(Secured::accept(stream, key).await?)),
            None => Self::Plain(stream),
        })
    }

    /// With TLS around it if the seed is known by the hash of a key; never without it then.
    pub(super) async fn connect(stream: TcpStream, key: Option<KeyHash>) -> io::Result<Self> {
        Ok(match key {
            Some(hash) => Self::Tls(Box::new(Secured::connect(stream, hash).await?)),
            None => Self::Plain(stream),
        })
    }

    /// Reads some bytes; none at the end.
    pub(super) async fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(bytes).await,
            Self::Tls(stream) => stream.read(bytes).await,
        }
    }

    /// Reads exactly as many bytes.
    pub(super) async fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let mut at = 0;
        while at < bytes.len() {
            match self.read(&mut bytes[at..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => at += read,
            }
        }
        Ok(())
    }

    /// Writes all of it.
    pub(super) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(bytes).await,
            Self::Tls(stream) => stream.write_all(bytes).await,
        }
    }

    /// Receives into a chunk's bytes from `at` on; gives how many came, none at the end.
    pub(super) async fn receive(&mut self, writer: &mut ChunkWriter, at: usize) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => {
                stream.async_io(Interest::READABLE, || writer.receive(stream.as_fd(), at)).await
            }
            Self::Tls(stream) => stream.receive(writer, at).await,
        }
    }

    /// Sends `head` from `at` on, followed by at most `max` of the chunk's bytes; `at` counts over both. Gives how many of
    /// these bytes went.
    pub(super) async fn send(
        &mut self,
        reader: &ChunkReader,
        head: &[u8],
        at: usize,
        max: usize,
    ) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => {
                stream.async_io(Interest::WRITABLE, || reader.send(stream.as_fd(), head, at, max)).await
            }
            Self::Tls(stream) => stream.send(reader, head, at, max).await,
        }
    }
}
