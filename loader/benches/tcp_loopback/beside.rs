//! Figures to compare with: what memory, digests, page faults and another program cost on this machine.

use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rfork_loader::digest::DigestAlgorithm;
use rfork_loader::engine::memory::WeightMemory;
use serde::{Deserialize, Serialize};

use crate::{Result, Setup};

/// How long iperf3's server may take to listen.
const IPERF3_DEADLINE: Duration = Duration::from_secs(5);

/// Seconds for the model's bytes, one run each.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Beside {
    /// A copy from one buffer to another, both with their pages made.
    pub(crate) memcpy: f64,
    /// Every chunk's digest, on one core.
    pub(crate) digests: f64,
    /// Filling weight memory from a small file in the page cache, its pages not made before.
    pub(crate) fill_fresh: f64,
    /// The same, its pages made before.
    pub(crate) fill_prefaulted: f64,
    /// Making the pages alone.
    pub(crate) prefault: f64,
    /// Memory of this process that is in huge pages, in bytes.
    pub(crate) huge_page_bytes: u64,
}

pub(crate) fn measure(setup: &Setup, memory: &Arc<WeightMemory>, flat: Vec<u8>) -> Result<Beside> {
    let huge_page_bytes = huge_page_bytes()?;
    let mut other = vec![1; flat.len()];
    let memcpy = seconds(|| {
        other.copy_from_slice(&flat);
        Ok(())
    })?;
    let digests = seconds(|| {
        memory.chunk_digests(DigestAlgorithm::default()).map(drop).ok_or_else(|| "a chunk is not held".into())
    })?;

    let chunk_bytes = usize::try_from(memory.plan().chunk_size())?;
    let mut cached = tempfile::tempfile()?;
    cached.write_all(&flat[..chunk_bytes.min(flat.len())])?;
    drop((flat, other));
    let fill = |memory: &Arc<WeightMemory>| {
        for chunk in 0..memory.plan().count() {
            let mut writer = memory.begin_write(chunk).ok_or("a chunk is not empty")?;
            let len = writer.len();
            writer.read_file_at(&cached, 0, 0, len)?;
            writer.commit();
        }
        Ok(())
    };
    let fresh = WeightMemory::allocate(&setup.tensor_bytes())?;
    let fill_fresh = seconds(|| fill(&fresh))?;
    drop(fresh);
    let prefaulted = WeightMemory::allocate(&setup.tensor_bytes())?;
    let prefault = seconds(|| Ok(prefaulted.prefault()?))?;
    let fill_prefaulted = seconds(|| fill(&prefaulted))?;
    Ok(Beside { memcpy, digests, fill_fresh, fill_prefaulted, prefault, huge_page_bytes })
}

fn seconds(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed().as_secs_f64())
}

fn huge_page_bytes() -> Result<u64> {
    let maps = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = maps.lines().find_map(|line| line.strip_prefix("AnonHugePages:")?.strip_suffix("kB"));
    Ok(line.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or(0) << 10)
}

/// iperf3's seconds for as many bytes; `None` when it is not installed.
pub(crate) fn iperf3(setup: &Setup) -> Result<Option<f64>> {
    // Free now; should somebody take it before iperf3 does, the run fails with iperf3's own words.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let server = Command::new("iperf3")
        .args(["-s", "-1", "-B", "127.0.0.1", "-p", &port])
        .stdout(Stdio::null())
        .spawn();
    let mut server = match server {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        server => server?,
    };
    let rate = iperf3_rate(&port, setup.bytes);
    // It ends by itself after one client; after none, it must be ended.
    server.kill()?;
    server.wait()?;
    Ok(Some(setup.bytes as f64 / rate?))
}

/// Bytes a second.
fn iperf3_rate(port: &str, bytes: u64) -> Result<f64> {
    let begun = Instant::now();
    loop {
        let bytes = bytes.to_string();
        let client =
            Command::new("iperf3").args(["-c", "127.0.0.1", "-p", port, "-n", &bytes, "-J"]).output()?;
        let said: serde_json::Value = serde_json::from_slice(&client.stdout)?;
        if let Some(bits) =
            said.pointer("/end/sum_received/bits_per_second").and_then(serde_json::Value::as_f64)
        {
            return Ok(bits / 8.0);
        }
        if begun.elapsed() > IPERF3_DEADLINE {
            return Err(format!("iperf3 failed: {}", said["error"]).into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
