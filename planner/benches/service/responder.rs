//! A server that does nothing: what is left of a figure against it is the load's cost and the system's.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;

use crate::Result;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const LISTENER: u64 = u64::MAX;

/// Answers every request with an empty 200, on one thread, for as long as the process lives. A request must come
/// in one piece, as the load's do.
pub(crate) fn serve(listener: &TcpListener) -> Result<()> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let add = |socket: &dyn std::os::fd::AsFd, number| {
        epoll::add(&epoll, socket.as_fd(), epoll::EventData::new_u64(number), epoll::EventFlags::IN)
    };
    add(listener, LISTENER)?;
    let mut connections: Vec<Option<TcpStream>> = Vec::new();
    let mut events = Vec::with_capacity(1_024);
    let mut request = [0; 4_096];
    loop {
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), None)?;
        for event in &events {
            let number = event.data.u64();
            if number == LISTENER {
                let (new, _) = listener.accept()?;
                let free = connections.iter().position(Option::is_none).unwrap_or_else(|| {
                    connections.push(None);
                    connections.len() - 1
                });
                add(&new, free as u64)?;
                connections[free] = Some(new);
                continue;
            }
            let place = &mut connections[usize::try_from(number)?];
            // A client that is gone is as good as one that closed.
            let done = place.as_mut().is_some_and(|stream| match stream.read(&mut request) {
                Ok(0) | Err(_) => false,
                Ok(_) => stream.write_all(ANSWER).is_ok(),
            });
            if !done {
                *place = None;
            }
        }
    }
}
