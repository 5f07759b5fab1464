//! A library that plays YuanRong's: it reads the memory of peers by address, and shows nobody anything but bytes.
//!
//! A peer's bytes come over a connection, which its library answers from its own `/proc/self/mem`, if the range is
//! registered there. So no process looks into another one.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rfork_loader::engine::memory::Region;
use rfork_loader::engine::yuanrong::{Ranges, Vendor, VendorError};

/// How long a peer may take for a range.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is said before the bytes of a range.
const HERE: u8 = 1;
/// What is said in the place of those of a range that is not registered.
const NOT_REGISTERED: u8 = 0;

/// What peers may read: starts, and bytes from there on.
type Registered = Arc<Mutex<BTreeMap<u64, u64>>>;

/// One process's library.
#[derive(Debug)]
pub struct Library {
    port: u16,
    registered: Registered,
}

impl Library {
    /// Listens on a free port of 127.0.0.1, until the process ends.
    ///
    /// # Errors
    /// [`VendorError::RUNTIME`].
    pub fn start() -> Result<Self, VendorError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let registered = Registered::default();
        let answers = registered.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let registered = answers.clone();
                // It ends when the peer has gone.
                std::thread::spawn(move || answer(stream, &registered));
            }
        });
        Ok(Self { port, registered })
    }
}

impl Vendor for Library {
    fn version(&self) -> Option<&str> {
        Some("0.1.0")
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn register(&mut self, regions: &[Region]) -> Result<(), VendorError> {
        let mut registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        registered.extend(regions.iter().map(|region| (region.start, region.bytes)));
        Ok(())
    }

    fn unregister(&mut self, starts: &[u64]) -> Result<(), VendorError> {
        let mut registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        registered.retain(|start, _| !starts.contains(start));
        Ok(())
    }

    fn read(&mut self, peer: &str, ranges: Ranges<'_>) -> Result<(), VendorError> {
        let mut stream = TcpStream::connect(peer).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        let memory = OpenOptions::new().write(true).open("/proc/self/mem").map_err(failed)?;
        for ((to, from), len) in ranges.to.iter().zip(ranges.from).zip(ranges.lens) {
            stream.write_all(&[from.to_le_bytes(), len.to_le_bytes()].concat()).map_err(failed)?;
            let mut said = [0];
            stream.read_exact(&mut said).map_err(failed)?;
            if said != [HERE] {
                let message = "a range is not registered at the peer".into();
                return Err(VendorError { code: VendorError::NOT_AUTHORIZED, message });
            }
            let mut bytes = vec![0; usize::try_from(*len).unwrap_or(usize::MAX)];
            stream.read_exact(&mut bytes).map_err(failed)?;
            memory.write_all_at(&bytes, *to).map_err(failed)?;
        }
        Ok(())
    }

    fn finalize(&mut self) -> Result<(), VendorError> {
        self.registered.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(())
    }
}

/// Answers one peer, range by range.
fn answer(mut stream: TcpStream, registered: &Registered) -> io::Result<()> {
    // By its cursor: storage that stops (`fakes`) counts reads at a position.
    let mut memory = File::open("/proc/self/mem")?;
    loop {
        let (mut from, mut len) = ([0; 8], [0; 8]);
        stream.read_exact(&mut from)?;
        stream.read_exact(&mut len)?;
        let (from, len) = (u64::from_le_bytes(from), u64::from_le_bytes(len));
        let bytes = {
            // Excluded: it is unregistered, and written, while it is read.
            let registered = registered.lock().unwrap_or_else(PoisonError::into_inner);
            let region = registered.range(..=from).next_back();
            let is_there = region.is_some_and(|(start, bytes)| len <= bytes.saturating_sub(from - start));
            let mut bytes = vec![0; if is_there { usize::try_from(len).unwrap_or(0) } else { 0 }];
            memory.seek(SeekFrom::Start(from))?;
            memory.read_exact(&mut bytes)?;
            is_there.then_some(bytes)
        };
        match bytes {
            Some(bytes) => {
                stream.write_all(&[HERE])?;
                stream.write_all(&bytes)?;
            }
            None => stream.write_all(&[NOT_REGISTERED])?,
        }
    }
}

#[allow(clippy::needless_pass_by_value)] // What `map_err` wants.
fn failed(error: io::Error) -> VendorError {
    VendorError { code: VendorError::RUNTIME, message: error.to_string() }
}
