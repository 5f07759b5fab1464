//! The seed's process: the same bytes behind the engine and behind a bare loop.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use rfork_loader::digest::DigestAlgorithm;
use rfork_loader::engine::TransferEngine;
use rfork_loader::engine::memory::WeightMemory;
use rfork_loader::engine::tcp::{TcpEngine, TcpOptions};
use rfork_tls::peer::OwnKey;

use crate::{Result, SeedAddress, Setup, answer, model};

/// Serves until its standard input closes.
pub(crate) fn run(setup: &Setup) -> Result<()> {
    let memory = WeightMemory::allocate(&setup.tensor_bytes())?;
    memory.prefault()?;
    let flat = model::bytes(setup)?;
    fill(&memory, &flat)?;
    let digests = |algorithm| {
        let chunks = memory.chunk_digests(algorithm).ok_or("a chunk is not held")?;
        Ok::<Vec<String>, &str>(chunks.digests.iter().map(ToString::to_string).collect())
    };
    let (crc64nvme, blake3) = (digests(DigestAlgorithm::Crc64Nvme)?, digests(DigestAlgorithm::Blake3)?);
    memory.set_content(setup.content(DigestAlgorithm::Crc64Nvme, &crc64nvme)?);

    let listener = TcpListener::bind("127.0.0.1:0")?;
    let bare = listener.local_addr()?.to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            if let Err(error) = stream.map_err(Into::into).and_then(|stream| serve(stream, &flat)) {
                eprintln!("the bare loop's seed: {error}");
            }
        }
    });

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (key, here) = (OwnKey::make()?, std::net::IpAddr::from([127, 0, 0, 1]));
        let engine = TcpEngine::bind(setup.options.clone()).await?;
        let with_tls = TcpOptions { key: Some(key.clone()), ..setup.options.clone() };
        let secured = TcpEngine::bind(with_tls).await?;
        engine.register(memory.clone()).await?;
        secured.register(memory).await?;
        answer(&SeedAddress {
            bare,
            engine: engine.session(&here.into()),
            secured: secured.session(&here.into()),
            key: key.hash(),
            crc64nvme,
            blake3,
        })?;
        // The main thread only waits; the runtime's own threads serve.
        std::io::stdin().lock().read_to_end(&mut Vec::new())?;
        engine.finalize().await;
        secured.finalize().await;
        Ok(())
    })
}

/// The bare loop: writes everything in pieces of the size that the reader names.
fn serve(mut stream: TcpStream, bytes: &[u8]) -> Result<()> {
    let mut size = [0; 8];
    stream.read_exact(&mut size)?;
    for piece in bytes.chunks(usize::try_from(u64::from_le_bytes(size))?) {
        stream.write_all(piece)?;
    }
    Ok(())
}

/// Fills every chunk, from a small file: memory of the loader is filled by files and sockets only.
fn fill(memory: &Arc<WeightMemory>, flat: &[u8]) -> Result<()> {
    let mut rest = flat;
    for chunk in 0..memory.plan().count() {
        let mut writer = memory.begin_write(chunk).ok_or("a chunk is not empty")?;
        let (bytes, after) =
            rest.split_at_checked(writer.len()).ok_or("the model is larger than its plan")?;
        let mut file = tempfile::tempfile()?;
        file.write_all(bytes)?;
        writer.read_file_at(&file, 0, 0, bytes.len())?;
        writer.commit();
        rest = after;
    }
    Ok(())
}
