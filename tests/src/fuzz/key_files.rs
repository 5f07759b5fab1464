//! Certificates, keys and CAs, as PEM: one file that is all of them.

use std::fs;

use rfork_tls::certificate;
use rfork_tls::client::CaFile;
use rfork_tls::files::FileError;
use rfork_tls::in_force::{Files, InForce};
use rfork_tls::server::ServerFiles;

use super::{Target, in_directory, is_one_line};

/// The entry point.
pub const TARGET: Target =
    Target { name: "key_files", run, executions: 2_000, most_bytes: |input| 256 * input + (256 << 10) };

/// A line of PEM is longer. Of a key no error may tell one.
const LINE_BYTES: usize = 24;

/// Tries one input.
///
/// # Panics
/// When a promise is broken.
pub fn run(data: &[u8]) {
    in_directory(|home| {
        let path = home.join("file.pem");
        fs::write(&path, data).unwrap();
        let files = |client_ca| ServerFiles { cert: path.clone(), key: path.clone(), client_ca };
        let server = tried(data, files(None));
        let of_clients = tried(data, files(Some(path.clone())));
        let authorities = tried(data, CaFile(path.clone()));
        assert!(of_clients.is_none() || server.is_some() && authorities.is_some(), "it does less with more");
        let chain = certificate::certificates(data).unwrap_or_default();
        if let Some(server) = server {
            let first = chain.first().unwrap();
            assert_eq!(certificate::key_hash(first), Some(server.now().key));
            assert_eq!(certificate::ends_sec(first), Some(server.now().ends_sec));
        }
        for certificate in &chain {
            certificate::names(certificate);
        }
    });
}

fn tried<F: Files>(data: &[u8], files: F) -> Option<InForce<F>> {
    let told = |error: &FileError| {
        is_one_line(error);
        let text = error.to_string();
        let lines = data.split(|byte| b"\r\n".contains(byte)).filter(|line| line.len() >= LINE_BYTES);
        for line in lines.filter_map(|line| std::str::from_utf8(line).ok()) {
            assert!(!text.contains(line), "an error tells a line of the file: {text}");
        }
    };
    InForce::read(files).inspect_err(told).ok()
}
