//! Answers, read with as little work as will do: all that are right are heads alone.

use crate::Result;

/// The lease that an answer grants.
pub(crate) struct Lease<'a> {
    pub(crate) host: &'a str,
    pub(crate) port: &'a str,
    pub(crate) rank: &'a str,
    pub(crate) id: &'a str,
}

const RIGHT: &[u8] = b"HTTP/1.1 200 ";
const END: &[u8] = b"\r\n\r\n";

/// Whether a right answer is there in full.
///
/// # Errors
/// With the answer's text, when it is another than 200.
pub(crate) fn is_complete(bytes: &[u8]) -> Result<bool> {
    if bytes.len() < RIGHT.len() {
        return Ok(false);
    }
    if !bytes.starts_with(RIGHT) {
        return Err(format!("a wrong answer: {}", String::from_utf8_lossy(bytes)).into());
    }
    Ok(bytes.ends_with(END))
}

/// Reads the answer to `GET /get_seed`, as the newest clients do: without a time to live a lease is refused.
///
/// # Errors
/// When it grants nothing.
pub(crate) fn lease(bytes: &[u8]) -> Result<Lease<'_>> {
    let head = std::str::from_utf8(bytes)?;
    let mut lease = Lease { host: "", port: "", rank: "", id: "" };
    let mut ttl = "";
    for (name, value) in head.split("\r\n").filter_map(|line| line.split_once(": ")) {
        let field = match name {
            "seed_ip" => &mut lease.host,
            "seed_port" => &mut lease.port,
            "seed_rank" => &mut lease.rank,
            "user_id" => &mut lease.id,
            "lease_ttl_sec" => &mut ttl,
            _ => continue,
        };
        *field = value;
    }
    let whole = [lease.host, lease.port, lease.rank, lease.id, ttl].iter().all(|value| !value.is_empty());
    whole.then_some(lease).ok_or_else(|| "a granted answer without its headers".into())
}
