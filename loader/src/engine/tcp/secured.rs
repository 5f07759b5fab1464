//! TLS around a connection, without a thread or a copy more than it takes: what comes is decrypted where it was received and
//! copied into place from there, what goes is encrypted as it is copied out of the weights.
//!
//! An end without `close_notify` is an end like any other, and none is sent: each frame says how long it is.
//!
//! Bounds of a connection: [`INCOMING_BYTES`], [`OUTGOING_BYTES`], and one record that is not taken yet.

use std::io;
use std::sync::Arc;

use rfork_tls::certificate::KeyHash;
use rfork_tls::peer::{self, OwnKey};
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use tokio::net::TcpStream;

use crate::engine::memory::{ChunkReader, ChunkWriter};

/// What is received at once: several records.
const INCOMING_BYTES: usize = 256 << 10;
/// What is encrypted at once. A reader that takes little is noticed by how long this takes.
const PIECE_BYTES: usize = 64 << 10;
/// A record's plain bytes at most.
const RECORD_BYTES: usize = 16 << 10;
/// What that is with TLS around it, and a message of the handshake beside it.
const OUTGOING_BYTES: usize = 2 * PIECE_BYTES;
/// Room for a whole record with TLS around it, of either end.
const ROOM_BYTES: usize = 18 << 10;

/// A connection with TLS around it.
pub(super) struct Secured {
    stream: TcpStream,
    session: Session,
    incoming: Window,
    /// What came and nobody has taken.
    plain: Vec<u8>,
    taken: usize,
    outgoing: Window,
    /// Plain bytes in `outgoing` of which nobody was told yet that they went.
    untold: usize,
    /// Bytes of many small tensors, which make one record.
    gathered: Vec<u8>,
}

enum Session {
    Reader(Box<UnbufferedClientConnection>),
    Seed(Box<UnbufferedServerConnection>),
}

/// A buffer that is filled at its end and emptied at its beginning.
struct Window {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Window {
    fn new(len: usize) -> Self {
        Self { bytes: vec![0; len], start: 0, end: 0 }
    }

    fn filled(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn drop_front(&mut self, len: usize) {
        self.start += len;
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Room at the end; what is filled goes to the beginning if that is too little.
    fn room(&mut self, least: usize) -> &mut [u8] {
        if self.bytes.len() - self.end < least {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }
}

/// What a session wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// To be asked again.
    Again,
    /// That what is outgoing is sent.
    Send,
    /// More bytes, to go on with the handshake.
    Hear,
    /// Nothing: the handshake is done, and whole records that came are taken.
    Done,
    /// Nothing any more: the other end has said that it ends.
    End,
}

/// Encrypts bytes by a session, after whatever that itself has to say.
macro_rules! encrypt_by {
    ($session:expr, $outgoing:expr, $bytes:expr) => {
        loop {
            match $session.process_tls_records(&mut []).state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    let sealed = traffic.encrypt($bytes, $outgoing.room(0));
                    $outgoing.end += sealed.map_err(broken)?;
                    break Ok(());
                }
                Ok(ConnectionState::EncodeTlsData(mut message)) => {
                    $outgoing.end += message.encode($outgoing.room(ROOM_BYTES)).map_err(broken)?;
                }
                // It goes with what is outgoing, and before it.
                Ok(ConnectionState::TransmitTlsData(sent)) => sent.done(),
                Ok(_) => break Err(io::ErrorKind::BrokenPipe.into()),
                Err(error) => break Err(broken(error)),
            }
        }
    };
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl Secured {
    /// Makes a handshake with a seed that has the key of this hash.
    pub(super) async fn connect(stream: TcpStream, hash: KeyHash) -> io::Result<Self> {
        let config = peer::pinned(hash).map_err(broken)?;
        let session = UnbufferedClientConnection::new(config, peer::name()).map_err(broken)?;
        Self::shaken(stream, Session::Reader(Box::new(session))).await
    }

    /// Answers the handshake of a reader.
    pub(super) async fn accept(stream: TcpStream, key: &OwnKey) -> io::Result<Self> {
        let session = UnbufferedServerConnection::new(Arc::clone(key.config())).map_err(broken)?;
        Self::shaken(stream, Session::Seed(Box::new(session))).await
    }

    async fn shaken(stream: TcpStream, session: Session) -> io::Result<Self> {
        let mut secured = Self {
            stream,
            session,
            incoming: Window::new(INCOMING_BYTES),
            plain: Vec::new(),
            taken: 0,
            outgoing: Window::new(OUTGOING_BYTES),
            untold: 0,
            gathered: Vec::new(),
        };
        loop {
            match secured.step(|_| 0) {
                Ok((Next::Again, _)) => {}
                Ok((Next::Send, _)) => secured.flush().await?,
                Ok((Next::Hear, _)) => secured.hear().await?,
                Ok((Next::Done, _)) => {
                    secured.flush().await?;
                    return Ok(secured);
                }
                Ok((Next::End, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) => {
                    // The other end learns why, if the session has something to say.
                    let _ = (secured.step(|_| 0), secured.flush().await);
                    return Err(error);
                }
            }
        }
    }

    /// Lets the session go on with what came. `take` is given plain bytes, and says how many it takes; the rest is kept. Gives
    /// how many it took.
    fn step(&mut self, mut take: impl FnMut(&[u8]) -> usize) -> io::Result<(Next, usize)> {
        let Self { session, incoming, outgoing, plain, .. } = self;
        let mut all = 0;
        let mut keep = |bytes: &[u8]| {
            let took = if plain.is_empty() { take(bytes) } else { 0 };
            plain.extend_from_slice(&bytes[took..]);
            all += took;
        };
        let (discard, next) = match session {
            Session::Reader(session) => {
                stepped(session.process_tls_records(incoming.filled()), outgoing, &mut keep)
            }
            Session::Seed(session) => {
                stepped(session.process_tls_records(incoming.filled()), outgoing, &mut keep)
            }
        };
        incoming.drop_front(discard);
        Ok((next?, all))
    }

    /// Receives what there is.
    async fn hear(&mut self) -> io::Result<()> {
        loop {
            self.stream.readable().await?;
            match self.stream.try_read(self.incoming.room(ROOM_BYTES)) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    self.incoming.end += read;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives plain bytes to `take`, of all records that are here, once there are some; none at the end. It may be dropped while
    /// it waits: nothing is lost.
    async fn receive_with(&mut self, mut take: impl FnMut(&[u8]) -> usize) -> io::Result<usize> {
        let mut received = 0;
        if self.taken < self.plain.len() {
            received = take(&self.plain[self.taken..]);
            self.taken += received;
            if self.taken < self.plain.len() {
                return Ok(received);
            }
        }
        self.plain.clear();
        self.taken = 0;
        loop {
            let (next, took) = self.step(&mut take)?;
            received += took;
            match next {
                Next::Again if self.plain.is_empty() => {}
                // Whoever takes has enough.
                Next::Again | Next::End => return Ok(received),
                // What is to be sent goes before what is sent next.
                Next::Send | Next::Done | Next::Hear if received > 0 => return Ok(received),
                Next::Send => self.flush().await?,
                Next::Done | Next::Hear => self.hear().await?,
            }
        }
    }

    /// Reads some bytes; none at the end.
    pub(super) async fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut at = 0;
        self.receive_with(|plain| {
            let len = plain.len().min(bytes.len() - at);
            bytes[at..at + len].copy_from_slice(&plain[..len]);
            at += len;
            len
        })
        .await
    }

    /// Receives into a chunk's bytes from `at` on; gives how many came, none at the end.
    pub(super) async fn receive(&mut self, writer: &mut ChunkWriter, at: usize) -> io::Result<usize> {
        let mut filled = at;
        let mut failed = None;
        let received = self
            .receive_with(|plain| {
                let len = plain.len().min(writer.len() - filled);
                match writer.fill(filled, &plain[..len]) {
                    Ok(()) => filled += len,
                    Err(error) => failed = Some(error),
                }
                len
            })
            .await?;
        failed.map_or(Ok(received), Err)
    }

    /// Sends everything that is encrypted.
    async fn flush(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            self.send_some().await?;
        }
        self.untold = 0;
        Ok(())
    }

    /// Sends what the system takes now, or once it takes something. It may be dropped while it waits.
    async fn send_some(&mut self) -> io::Result<usize> {
        loop {
            self.stream.writable().await?;
            match self.stream.try_write(self.outgoing.filled()) {
                Ok(sent) => {
                    self.outgoing.drop_front(sent);
                    return Ok(sent);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Encrypts bytes, for which there is room.
    fn encrypt(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Self { session, outgoing, .. } = self;
        match session {
            Session::Reader(session) => encrypt_by!(session, outgoing, bytes),
            Session::Seed(session) => encrypt_by!(session, outgoing, bytes),
        }
    }

    /// Writes a frame.
    pub(super) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.flush().await?;
            self.encrypt(piece)?;
        }
        self.flush().await
    }

    /// Sends `head` from `at` on, followed by the chunk's bytes, as the plain socket does; gives how many of these bytes went.
    pub(super) async fn send(
        &mut self,
        reader: &ChunkReader,
        head: &[u8],
        at: usize,
        max: usize,
    ) -> io::Result<usize> {
        if self.outgoing.is_empty() {
            let head_left = &head[at.min(head.len())..];
            let max = max.min(PIECE_BYTES);
            self.gathered.clear();
            self.gathered.extend_from_slice(head_left);
            let mut encrypting = Ok(0);
            reader.visit_part(at.saturating_sub(head.len()), max, &mut |bytes| {
                if let Ok(len) = &mut encrypting {
                    *len += bytes.len();
                    if let Err(error) = self.gather(bytes) {
                        encrypting = Err(error);
                    }
                }
            })?;
            let len = head_left.len() + encrypting?;
            let gathered = std::mem::take(&mut self.gathered);
            self.encrypt(&gathered)?;
            self.gathered = gathered;
            self.untold = len;
        }
        let sent = self.send_some().await?;
        let told =
            if self.outgoing.is_empty() { self.untold } else { sent.min(self.untold.saturating_sub(1)) };
        self.untold -= told;
        Ok(told)
    }

    /// Encrypts bytes of a chunk; few of them when more have come.
    fn gather(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if !self.gathered.is_empty() {
            let len = bytes.len().min(RECORD_BYTES.saturating_sub(self.gathered.len()));
            self.gathered.extend_from_slice(&bytes[..len]);
            bytes = &bytes[len..];
            if self.gathered.len() < RECORD_BYTES {
                return Ok(());
            }
            let gathered = std::mem::take(&mut self.gathered);
            self.encrypt(&gathered)?;
            self.gathered = gathered;
            self.gathered.clear();
        }
        let whole = bytes.len() - bytes.len() % RECORD_BYTES;
        self.encrypt(&bytes[..whole])?;
        self.gathered.extend_from_slice(&bytes[whole..]);
        Ok(())
    }
}

/// Does what a session says: gives how many bytes of what came are used up, and what is next.
fn stepped<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    outgoing: &mut Window,
    keep: &mut dyn FnMut(&[u8]),
) -> (usize, io::Result<Next>) {
    let UnbufferedStatus { mut discard, state } = status;
    let next = match state {
        Err(error) => Err(broken(error)),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => {
            let mut next = Ok(Next::Again);
            while let Some(record) = traffic.next_record() {
                match record {
                    Ok(record) => {
                        discard += record.discard;
                        keep(record.payload);
                    }
                    Err(error) => next = Err(broken(error)),
                }
            }
            next
        }
        Ok(ConnectionState::EncodeTlsData(mut message)) => {
            match message.encode(outgoing.room(RECORD_BYTES)) {
                Ok(len) => {
                    outgoing.end += len;
                    Ok(Next::Again)
                }
                // There is always room for it.
                Err(error) => Err(broken(error)),
            }
        }
        Ok(ConnectionState::TransmitTlsData(sent)) => {
            sent.done();
            Ok(Next::Send)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Next::Hear),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Next::Done),
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Ok(Next::End),
        // Nobody asks for early data.
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
    };
    (discard, next)
}
