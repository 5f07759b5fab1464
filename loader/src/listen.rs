//! Where a worker listens for other workers: its metadata service and its TCP engine alike.
//!
//! Unless a setting says otherwise, that is every address of the machine, whatever families it has: one socket on `::`
//! that takes IPv4, too. One socket has one port for both families, also when any free one is taken, and one queue of
//! connections; of two sockets the second might find the port of the first in use.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::net::sockopt::set_ipv6_v6only;
use tokio::net::{TcpListener, TcpSocket};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// Listens on `host`, an address or a name; `None` for all addresses. `::` is all addresses, too, and `0.0.0.0` all of
/// IPv4. Port 0 takes a free one.
///
/// # Errors
/// What the system says.
pub(crate) async fn listen(host: Option<&str>, port: u16) -> io::Result<TcpListener> {
    let Some(host) = host else {
        return match on_both_families(port) {
            // The port is taken, of either family.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
            // This system has no IPv6.
            Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
            listener => listener,
        };
    };
    let bare = host.trim_matches(['[', ']']);
    match bare.parse::<Ipv6Addr>() {
        Ok(address) if address.is_unspecified() => on_both_families(port),
        _ => TcpListener::bind((bare, port)).await,
    }
}

fn on_both_families(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    // As tokio's own listeners have it: the port of a worker that has just ended is free.
    socket.set_reuseaddr(true)?;
    // The system's default may be IPv6 alone.
    set_ipv6_v6only(&socket, false)?;
    socket.bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    /// Whether a connection to `address` on the listener's port is taken.
    async fn takes(listener: &TcpListener, address: &str) -> bool {
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect((address, port)).await.is_ok()
    }

    #[tokio::test]
    async fn without_a_host_every_family_of_the_system_is_taken_on_one_port() {
        let has_ipv6 = TcpListener::bind("[::1]:0").await.is_ok();
        for host in [None, Some("::"), Some("[::]"), Some("0::0")] {
            if !has_ipv6 && host.is_some() {
                continue;
            }
            let listener = listen(host, 0).await.unwrap();
            assert!(takes(&listener, "127.0.0.1").await, "{host:?}");
            assert_eq!(takes(&listener, "::1").await, has_ipv6, "{host:?}");
            let port = listener.local_addr().unwrap().port();
            let again = listen(host, port).await.unwrap_err();
            assert_eq!(again.kind(), io::ErrorKind::AddrInUse, "{host:?}");
        }
    }

    #[tokio::test]
    async fn a_port_that_ipv4_has_taken_is_not_taken_for_ipv6_alone() {
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = other.local_addr().unwrap().port();
        assert_eq!(listen(None, port).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn a_host_that_is_set_is_listened_on_alone() {
        for (host, ipv4, other) in
            [("0.0.0.0", true, "::1"), ("127.0.0.2", false, "127.0.0.1"), ("localhost", true, "127.0.0.2")]
        {
            let listener = listen(Some(host), 0).await.unwrap();
            if listener.local_addr().unwrap().is_ipv4() {
                assert_eq!(takes(&listener, "127.0.0.1").await, ipv4, "{host}");
            }
            assert!(!takes(&listener, other).await, "{host} {other}");
        }
        assert!(listen(Some("no-such-host.invalid"), 0).await.is_err());
    }
}
