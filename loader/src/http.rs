//! The one HTTP client of a worker, for planner and seeds.

use std::time::Duration;

use reqwest::ClientBuilder;

use crate::planner_ca::PlannerCa;

/// A client whose requests end after `timeout` in all, name resolution included.
///
/// Redirects are not followed: the protocol has none, and a request carries a lease. Proxies of the
/// environment are not used: seeds are named by address within the cluster. Without `https` the system's certificates
/// are not read, which takes longer than asking a planner; nobody is trusted then.
///
/// No connection is kept for another request: a worker asks seldom, and each that it kept would take one of the
/// planner's places from other workers.
///
/// # Errors
/// When TLS cannot be set up.
pub fn client(timeout: Duration, https: bool) -> reqwest::Result<reqwest::Client> {
    // A process has one provider of cryptography. If somebody installed another before us, that one serves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder();
    let builder = if https { builder } else { builder.tls_certs_only([]) };
    ends_within(timeout, builder)
}

/// The same, which believes whom these CAs vouch for, and nobody else.
///
/// # Errors
/// The same.
pub fn trusting(timeout: Duration, ca: &PlannerCa) -> Result<reqwest::Client, TlsError> {
    let config = rfork_tls::client::trusting(ca.in_force().clone())?;
    Ok(ends_within(timeout, reqwest::Client::builder().tls_backend_preconfigured(config))?)
}

/// TLS could not be set up: a fault of this program.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No handshake could be made.
    #[error(transparent)]
    Handshakes(#[from] rustls::Error),
    /// There is no client.
    #[error(transparent)]
    Client(#[from] reqwest::Error),
}

fn ends_within(timeout: Duration, builder: ClientBuilder) -> reqwest::Result<reqwest::Client> {
    builder
        .timeout(timeout)
        .connect_timeout(timeout)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .pool_max_idle_per_host(0)
        .user_agent(concat!("rfork/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// A body that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It broke off.
    #[error("{0}")]
    Broken(String),
    /// The peer sends more than such an answer may have.
    #[error("it has more than {0} bytes")]
    TooLong(usize),
}

/// An answer's body of at most so many bytes. No more is held, whatever the peer sends.
///
/// # Errors
/// [`BodyError`].
pub async fn body(mut answer: reqwest::Response, most_bytes: usize) -> Result<Vec<u8>, BodyError> {
    // As long as it says that it is, within reason: what grows is copied.
    let length = answer.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    let mut body = Vec::with_capacity(length.min(most_bytes));
    while let Some(piece) = answer.chunk().await.map_err(|error| BodyError::Broken(explain(error)))? {
        if body.len() + piece.len() > most_bytes {
            return Err(BodyError::TooLong(most_bytes));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// A URL for messages, without its user and password.
pub fn shown(url: &str) -> String {
    match reqwest::Url::parse(url) {
        Ok(mut parsed) if parsed.has_host() => {
            let _ = (parsed.set_username(""), parsed.set_password(None));
            parsed.as_str().trim_end_matches('/').to_owned()
        }
        // No URL of a service: what stands before an @ may be meant as a password.
        _ => {
            let Some((before, rest)) = url.rsplit_once('@') else { return url.to_owned() };
            before
                .split_once("://")
                .map_or_else(|| rest.to_owned(), |(scheme, _)| format!("{scheme}://{rest}"))
        }
    }
}

/// What failed, with its causes: reqwest's own text leaves out the one that says why. Without the URL, which may
/// carry a password.
pub fn explain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text = format!("{text}: {next_text}");
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        for (url, expected) in [
            ("http://planner:1223", "http://planner:1223"),
            ("https://planner/behind/a/path/", "https://planner/behind/a/path"),
            ("http://user:SECRET@planner:1223/", "http://planner:1223"),
            ("http://planner/a@b", "http://planner/a@b"),
            ("http://user:SECRET@planner:99999", "http://planner:99999"),
            ("http://user:SECRET/@planner", "http://planner"),
            ("user:SECRET@planner:1223", "planner:1223"),
            ("planner", "planner"),
        ] {
            assert_eq!(shown(url), expected);
        }
    }
}
