//! The stream of a connection: plain, or with TLS around it.

use std::io::{self, IoSlice, Read};
use std::pin::Pin;
use std::task::{Context, Poll};

use rfork_tls::certificate;
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// A connection's stream.
pub(super) enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// What the certificate is for that its client has shown, if it has: names and URIs.
    pub(super) fn client_names(&self) -> Vec<String> {
        let Self::Tls(stream) = self else { return Vec::new() };
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        shown.map(certificate::names).unwrap_or_default()
    }

    /// Whether its client has gone, or sends nothing any more. It is asked of the system itself, which may know it before the
    /// runtime does.
    pub(super) fn is_gone(&mut self) -> bool {
        match self {
            Self::Plain(stream) => match recv(&*stream, &mut [0u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT)
            {
                // The end of what it sends.
                Ok((0, _)) => true,
                // Its next request.
                Ok(_) => false,
                Err(error) => !is_for_now(&error.into()),
            },
            // What is there may be the end (`close_notify`) or the next request: only who decrypts it can tell. What is read
            // is kept for whoever reads next.
            Self::Tls(stream) => {
                let (stream, session) = stream.get_mut();
                match session.process_new_packets() {
                    Ok(state) if state.peer_has_closed() => return true,
                    Ok(state) if state.plaintext_bytes_to_read() > 0 => return false,
                    Ok(_) => {}
                    Err(_) => return true,
                }
                match session.read_tls(&mut Direct(stream)) {
                    // An end without a word.
                    Ok(0) => true,
                    Ok(_) => session.process_new_packets().map_or(true, |state| state.peer_has_closed()),
                    Err(error) => !is_for_now(&error),
                }
            }
        }
    }
}

fn is_for_now(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// A socket that is read past the runtime.
struct Direct<'a>(&'a TcpStream);

impl Read for Direct<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.0, bytes, RecvFlags::DONTWAIT)?.0)
    }
}

/// Does the same with either.
macro_rules! either {
    ($self:ident, $stream:ident => $does:expr) => {
        match $self.get_mut() {
            Self::Plain($stream) => $does,
            Self::Tls($stream) => $does,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
