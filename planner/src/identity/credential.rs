//! How a request shows whose it is: the header `Authorization`, as RFC 6750 and RFC 7617 have it.

use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The longest header that is looked at, in bytes.
const MAX_BYTES: usize = 8 * 1024;

/// What a request shows.
#[derive(PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(super) enum Credential {
    /// Nothing.
    None,
    /// A token: behind `Bearer`, or as the password of `Basic`, which is what unmodified workers can send. Who it is says
    /// the token alone, so the user's name may be any.
    Token(Vec<u8>),
    /// Something else, or more than one.
    Unreadable,
}

/// Reads the credential of a request.
pub(super) fn read(headers: &HeaderMap) -> Credential {
    let mut told = headers.get_all(header::AUTHORIZATION).iter();
    let value = match (told.next(), told.next()) {
        (None, _) => return Credential::None,
        (Some(value), None) if value.len() <= MAX_BYTES => value.as_bytes(),
        _ => return Credential::Unreadable,
    };
    let token = match value.iter().position(|byte| *byte == b' ') {
        Some(end) if value[..end].eq_ignore_ascii_case(b"bearer") => Some(value[end..].trim_ascii().to_vec()),
        Some(end) if value[..end].eq_ignore_ascii_case(b"basic") => password(value[end..].trim_ascii()),
        _ => None,
    };
    token.filter(|token| !token.is_empty()).map_or(Credential::Unreadable, Credential::Token)
}

/// What stands behind the first colon.
fn password(encoded: &[u8]) -> Option<Vec<u8>> {
    let pair = STANDARD.decode(encoded).ok()?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(pair[colon + 1..].to_vec())
}
