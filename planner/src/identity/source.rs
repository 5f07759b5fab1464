//! The keys of an issuer, read again and again. The last good ones stay in force for as long as others cannot be had.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use reqwest::{Certificate, Client, Url, header, redirect};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::issuer::{At, Issuer};
use super::jwt::KeySet;
use crate::toml_file;

/// Between two looks at a file of keys.
const FILE_PAUSE: Duration = Duration::from_secs(2);
/// Between two requests for keys that could be had.
const URL_PAUSE: Duration = Duration::from_secs(300);
/// The same after one that failed.
const FAILED_PAUSE: Duration = Duration::from_secs(10);
/// Between two requests at least, whoever names unknown keys.
const LEAST_PAUSE: Duration = Duration::from_secs(2);
/// How long an issuer may take to answer.
const DEADLINE: Duration = Duration::from_secs(3);
/// How long a request waits that names an unknown key: for a look that begins after it came.
const PATIENCE: Duration = Duration::from_secs(4);
/// Requests that wait so.
const MOST_WAITING: usize = 64;
/// The largest answer that is read, in bytes.
const MAX_BYTES: usize = 256 << 10;

/// Hears whether the keys of an issuer can be had; of none when it is one no longer.
pub(crate) type Tell = Arc<dyn Fn(&str, Option<bool>) + Send + Sync>;

/// An issuer with its keys, which are looked after until it is dropped.
pub(super) struct Source {
    shared: Arc<Shared>,
    _looking: DropGuard,
}

struct Shared {
    issuer: Issuer,
    keys: RwLock<Option<Arc<KeySet>>>,
    /// That somebody names a key which is not known.
    asked: Notify,
    last: watch::Sender<Look>,
    waiting: Semaphore,
    tell: Tell,
    /// Whether nothing is told any more.
    is_over: Mutex<bool>,
}

/// One look for keys.
#[derive(Debug, Clone, Copy)]
struct Look {
    began: Option<Instant>,
    is_good: bool,
}

impl Source {
    /// Begins to look for its keys.
    pub(super) fn start(issuer: Issuer, tell: &Tell, stop: &CancellationToken) -> Self {
        let shared = Arc::new(Shared {
            issuer,
            keys: RwLock::default(),
            asked: Notify::new(),
            last: watch::Sender::new(Look { began: None, is_good: false }),
            waiting: Semaphore::new(MOST_WAITING),
            tell: tell.clone(),
            is_over: Mutex::default(),
        });
        let stop = stop.child_token();
        let looking = look_after(shared.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(looking));
        Self { shared, _looking: stop.drop_guard() }
    }

    /// It is an issuer no longer: nothing is told of it any more. Requests that wait for it may go on.
    pub(super) fn end(&self) {
        self.shared.tell(None);
    }

    pub(super) fn issuer(&self) -> &Issuer {
        &self.shared.issuer
    }

    /// The last good keys.
    pub(super) fn keys(&self) -> Option<Arc<KeySet>> {
        self.shared.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for a look that begins now or later, or for the first one; whether its keys could be had.
    pub(super) async fn look(&self) -> bool {
        let Ok(_place) = self.shared.waiting.try_acquire() else { return false };
        let came = Instant::now();
        let mut last = self.shared.last.subscribe();
        let is_first = last.borrow().began.is_none();
        if !is_first {
            self.shared.asked.notify_one();
        }
        let looked = last.wait_for(|look| look.began.is_some_and(|began| is_first || began >= came));
        match timeout(PATIENCE, looked).await {
            Ok(Ok(look)) => look.is_good,
            _ => false,
        }
    }
}

impl Shared {
    /// Tells whether its keys can be had, unless nothing is told any more.
    fn tell(&self, is_good: Option<bool>) {
        let mut is_over = self.is_over.lock().unwrap_or_else(PoisonError::into_inner);
        if !*is_over {
            *is_over = is_good.is_none();
            (self.tell)(&self.issuer.name, is_good);
        }
    }
}

async fn look_after(shared: Arc<Shared>) {
    let issuer = &shared.issuer;
    let mut last_error = None;
    loop {
        let began = Instant::now();
        let read = match timeout(2 * DEADLINE, text(&issuer.at)).await {
            Ok(text) => text.and_then(|text| KeySet::read(&text).map_err(str::to_owned)),
            Err(_) => Err("it does not answer in time".to_owned()),
        };
        let is_good = read.is_ok();
        match read {
            Ok(keys) => {
                let mut known = shared.keys.write().unwrap_or_else(PoisonError::into_inner);
                if known.as_deref() != Some(&keys) {
                    tracing::info!(issuer = %issuer.name, "the issuer's keys were read anew");
                    *known = Some(Arc::new(keys));
                }
                last_error = None;
            }
            Err(error) if last_error.as_ref() != Some(&error) => {
                tracing::error!(issuer = %issuer.name, %error, "the issuer's keys cannot be had; the last ones stay in force");
                last_error = Some(error);
            }
            Err(_) => {}
        }
        shared.tell(Some(is_good));
        shared.last.send_replace(Look { began: Some(began), is_good });
        let pause = match (&issuer.at, is_good) {
            (At::File(_), _) => FILE_PAUSE,
            (At::Url { .. }, true) => URL_PAUSE,
            (At::Url { .. }, false) => FAILED_PAUSE,
        };
        let least = Instant::now() + LEAST_PAUSE;
        let asked = async {
            shared.asked.notified().await;
            sleep_until(least).await;
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = asked => {}
        }
    }
}

/// The document of an issuer's keys.
async fn text(at: &At) -> Result<Vec<u8>, String> {
    match at {
        At::File(path) => Ok(file(path).await?.into_bytes()),
        At::Url { url, ca, token } => {
            let ca = match ca {
                Some(path) => Some(file(path).await?),
                None => None,
            };
            let token = match token {
                Some(path) => Some(file(path).await?),
                None => None,
            };
            fetch(url, ca.as_deref(), token.as_deref()).await
        }
    }
}

async fn file(path: &Path) -> Result<String, String> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || toml_file::text(&path));
    read.await.map_err(|_| "it cannot be read".to_owned())?.map_err(|error| error.to_string())
}

async fn fetch(url: &Url, ca: Option<&str>, token: Option<&str>) -> Result<Vec<u8>, String> {
    // A process has one provider of cryptography. If somebody installed another before us, that one serves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = Client::builder()
        .timeout(DEADLINE)
        .connect_timeout(DEADLINE)
        .redirect(redirect::Policy::none())
        .no_proxy()
        .pool_max_idle_per_host(0)
        .user_agent(concat!("rfork/", env!("CARGO_PKG_VERSION")));
    let builder = match ca {
        Some(pem) => {
            let certificates = Certificate::from_pem_bundle(pem.as_bytes());
            builder
                .tls_certs_only(certificates.map_err(|_| "ca_file holds no certificates as PEM".to_owned())?)
        }
        // Without TLS nobody is trusted, and the system's certificates need not be read.
        None if url.scheme() == "http" => builder.tls_certs_only([]),
        None => builder,
    };
    let client = builder.build().map_err(explain)?;
    let request = client.get(url.clone()).header(header::ACCEPT, "application/json");
    let request = match token {
        Some(token) => request.bearer_auth(token.trim()),
        None => request,
    };
    let mut answer = request.send().await.map_err(explain)?;
    if !answer.status().is_success() {
        return Err(format!("it answers {}", answer.status()));
    }
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(explain)? {
        if body.len() + piece.len() > MAX_BYTES {
            return Err(format!("it has more than {MAX_BYTES} bytes"));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// What failed, with its causes.
#[allow(clippy::needless_pass_by_value)] // Given to `map_err`.
fn explain(error: reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
