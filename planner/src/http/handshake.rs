//! How a connection begins at a port that speaks TLS. Until its handshake is done it is one that has said nothing.

use std::time::Duration;

use rustls::ContentType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::socket::Socket;
use crate::metrics::Handshake;
use crate::tls::Tls;

/// How long a handshake may take, from the connection on.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long a client that does not speak TLS may take to hear so, and what is read of it meanwhile.
const LAST_WORDS: (Duration, usize) = (Duration::from_secs(1), 64 << 10);
/// What it hears. 503, for an older worker takes any 4xx for the end of its service.
const ASK_BY_TLS: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 67\r\nConnection: close\r\n\r\n\
    tls-required: this port speaks TLS alone; ask it by an https:// URL";

/// Makes a connection a stream by TLS, within `patience` and [`DEADLINE`].
///
/// # Errors
/// What came of it instead.
pub(super) async fn shake(stream: TcpStream, tls: &Tls, patience: Duration) -> Result<Socket, Handshake> {
    let mut stream = Some(stream);
    let shaking = async {
        let first = match &stream {
            Some(stream) => {
                let mut first = [0];
                stream.peek(&mut first).await.ok().filter(|read| *read > 0).map(|_| first[0])
            }
            None => None,
        };
        let handshake = u8::from(ContentType::Handshake);
        let Some(tcp) = first.and_then(|first| stream.take_if(|_| first == handshake)) else {
            return Err(if first.is_some() { Handshake::Plain } else { Handshake::Failed });
        };
        // By what is in force now, and not when it connected.
        let acceptor = TlsAcceptor::from(tls.now().config.clone());
        let shaken = acceptor.accept(tcp).await;
        shaken.map(|stream| Socket::Tls(Box::new(stream))).map_err(|error| {
            tracing::debug!(%error, "a TLS handshake failed");
            Handshake::Failed
        })
    };
    let shaken = tokio::time::timeout(DEADLINE.min(patience), shaking).await.unwrap_or(Err(Handshake::Late));
    if let (Err(Handshake::Plain), Some(stream)) = (&shaken, stream) {
        tell(stream).await;
    }
    shaken
}

/// Tells whoever does not speak TLS that it should. What it has sent is read: else the system would cut it off.
async fn tell(mut stream: TcpStream) {
    let (within, most_bytes) = LAST_WORDS;
    let telling = async {
        stream.write_all(ASK_BY_TLS.as_bytes()).await?;
        stream.shutdown().await?;
        let mut read = 0;
        let mut bytes = [0; 4 << 10];
        while read < most_bytes {
            match stream.read(&mut bytes).await? {
                0 => break,
                more => read += more,
            }
        }
        Ok::<_, std::io::Error>(())
    };
    let _ = tokio::time::timeout(within, telling).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_a_whole_answer() {
        let (head, body) = ASK_BY_TLS.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
    }
}
