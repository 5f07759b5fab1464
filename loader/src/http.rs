//! The one HTTP client of a worker, for planner and seeds.

use std::time::Duration;

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
    builder
        .timeout(timeout)
        .connect_timeout(timeout)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .pool_max_idle_per_host(0)
        .user_agent(concat!("rfork/", env!("CARGO_PKG_VERSION")))
        .build()
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
