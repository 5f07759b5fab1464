//! HTTP as the simplest client speaks it: a connection a request, headers byte for byte.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket, socket_with};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;

use crate::DEADLINE;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header.
    ///
    /// # Panics
    /// When it is not there.
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _)| known == name);
        &found.unwrap_or_else(|| panic!("no header {name} in {self:?}")).1
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// Sends one request to `address`, as `127.0.0.1:1223`, and reads the answer to its end.
///
/// # Errors
/// When nobody listens, or the answer is cut off.
pub fn request(address: &str, method: &str, path: &str, headers: &[(&str, &str)]) -> std::io::Result<Answer> {
    request_within(DEADLINE, address, method, path, headers)
}

/// The same, giving up when nothing comes for `patience`.
///
/// # Errors
/// When nobody listens, the answer does not come, or it is cut off.
pub fn request_within(
    patience: Duration,
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> std::io::Result<Answer> {
    exchange(TcpStream::connect(address)?, patience, address, (method, path, headers, ""))
}

/// Posts JSON, giving up when nothing comes for `patience`.
///
/// # Errors
/// When nobody listens, the answer does not come, or it is cut off.
pub fn post_within(
    patience: Duration,
    address: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> std::io::Result<Answer> {
    let headers = [headers, &[("Content-Type", "application/json")]].concat();
    exchange(TcpStream::connect(address)?, patience, address, ("POST", path, &headers, &body.to_string()))
}

/// The same as [`request`], from this address.
///
/// # Errors
/// When the address is not this machine's, nobody listens, or the answer is cut off.
pub fn request_from(
    from: Ipv4Addr,
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> std::io::Result<Answer> {
    exchange(connect_from(from, address)?, DEADLINE, address, (method, path, headers, ""))
}

/// The same by TLS, with whom these CAs vouch for.
///
/// # Errors
/// The same; or when there is no agreement on TLS.
pub fn request_by_tls(
    tls: &Arc<ClientConfig>,
    from: Ipv4Addr,
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> std::io::Result<Answer> {
    let stream = connect_from(from, address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let name = ServerName::from(stream.peer_addr()?.ip());
    let session = ClientConnection::new(tls.clone(), name).map_err(std::io::Error::other)?;
    ask(StreamOwned::new(session, stream), address, (method, path, headers, ""))
}

/// Connects to `address` from this address.
///
/// # Errors
/// When the address is not this machine's, or nobody listens.
pub fn connect_from(from: Ipv4Addr, address: &str) -> std::io::Result<TcpStream> {
    let to: SocketAddr = address.parse().map_err(|_| std::io::ErrorKind::InvalidInput)?;
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&socket, &SocketAddr::from((from, 0)))?;
    connect(&socket, &to)?;
    Ok(TcpStream::from(socket))
}

/// Begins to connect to `address` from this address, and does not wait until it is connected.
///
/// # Errors
/// When the address is not this machine's.
pub fn begin_to_connect(from: Ipv4Addr, address: &str) -> std::io::Result<TcpStream> {
    let to: SocketAddr = address.parse().map_err(|_| std::io::ErrorKind::InvalidInput)?;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::NONBLOCK, None)?;
    bind(&socket, &SocketAddr::from((from, 0)))?;
    match connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
        Err(error) => Err(error.into()),
    }
}

fn exchange(
    stream: TcpStream,
    patience: Duration,
    address: &str,
    request: (&str, &str, &[(&str, &str)], &str),
) -> std::io::Result<Answer> {
    stream.set_read_timeout(Some(patience))?;
    ask(stream, address, request)
}

fn ask(
    mut stream: impl Read + Write,
    address: &str,
    (method, path, headers, body): (&str, &str, &[(&str, &str)], &str),
) -> std::io::Result<Answer> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    if !body.is_empty() {
        head.extend(["Content-Length: ", &body.len().to_string(), "\r\n"]);
    }
    stream.write_all(format!("{head}\r\n{body}").as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let end =
        bytes.windows(4).position(|window| window == b"\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|text| text.parse().ok());
    let headers = lines.filter_map(|line| line.split_once(": "));
    Ok(Answer {
        status: status.ok_or(std::io::ErrorKind::InvalidData)?,
        headers: headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect(),
        body: bytes[end + 4..].to_vec(),
    })
}
