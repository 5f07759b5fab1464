//! Traces for an OpenTelemetry collector, by OTLP over HTTP.
//!
//! Requests never wait for the collector. A span that has ended is put into a bounded queue, or dropped when that is
//! full; a thread of the exporter's own takes them out in batches and sends each once, within a deadline. Without
//! a collector spans are lost, and nothing else.
//!
//! The environment variables of OpenTelemetry hold for what is not set here: `OTEL_TRACES_SAMPLER`,
//! `OTEL_BSP_SCHEDULE_DELAY`, `OTEL_BSP_MAX_QUEUE_SIZE`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_RESOURCE_ATTRIBUTES`.

use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

/// The longest that sending a batch may take, name resolution included.
const SEND_DEADLINE: Duration = Duration::from_secs(5);
/// The longest that the end waits for spans to be sent.
const FINISH_DEADLINE: Duration = Duration::from_secs(3);

/// Where a collector listens: `http://host:4318`, to which the path of traces is added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(reqwest::Url);

/// A text that is no [`Endpoint`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be the URL of an OTLP collector, as http://collector:4318, without user, query or fragment; headers are \
     given by OTEL_EXPORTER_OTLP_HEADERS"
)]
pub struct BadEndpoint;

impl FromStr for Endpoint {
    type Err = BadEndpoint;

    fn from_str(text: &str) -> Result<Self, BadEndpoint> {
        let mut url = reqwest::Url::parse(text).map_err(|_| BadEndpoint)?;
        let plain = url.username().is_empty() && url.password().is_none();
        let bare = url.query().is_none() && url.fragment().is_none();
        if !(matches!(url.scheme(), "http" | "https") && url.has_host() && plain && bare) {
            return Err(BadEndpoint);
        }
        let path = format!("{}/v1/traces", url.path().trim_end_matches('/'));
        url.set_path(&path);
        Ok(Self(url))
    }
}

/// An exporter that could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("traces cannot be sent to --otlp-endpoint: {0}")]
pub struct ExporterError(String);

/// Sends the planner's spans to a collector. It lives as long as the process logs.
#[derive(Debug)]
pub struct Exporter {
    provider: SdkTracerProvider,
}

impl Exporter {
    /// One that sends to `endpoint`, from within a tokio runtime. The collector need not be there.
    ///
    /// # Errors
    /// [`ExporterError`], when an HTTP client or a thread cannot be made.
    pub fn new(endpoint: &Endpoint) -> Result<Self, ExporterError> {
        let failed = |error: &dyn std::fmt::Display| ExporterError(error.to_string());
        // A process has one provider of cryptography. If somebody installed another before us, that one serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .timeout(SEND_DEADLINE)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .pool_max_idle_per_host(1)
            .build()
            .map_err(|error| failed(&error))?;
        let runtime = tokio::runtime::Handle::try_current().map_err(|error| failed(&error))?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Courier { client, runtime, refused: AtomicBool::new(false) })
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint.0.as_str())
            .build()
            .map_err(|error| failed(&error))?;
        let resource = Resource::builder()
            .with_service_name("rfork-planner")
            .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider =
            SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build();
        Ok(Self { provider })
    }

    /// What the process's subscriber needs for spans to be sent: the planner's own, to debug level, whatever
    /// is logged.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("rfork-planner"))
            .with_location(false)
            .with_threads(false)
            .with_context_activation(false)
            .with_filter(Targets::new().with_target("rfork_planner", LevelFilter::DEBUG))
    }

    /// Sends what waits, within 3 s, and ends.
    pub async fn finish(self) {
        // It blocks, and the courier needs the runtime meanwhile.
        let finishing =
            tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(FINISH_DEADLINE));
        match finishing.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last traces were not sent"),
            Err(error) => tracing::warn!(%error, "the last traces were not sent"),
        }
    }
}

/// Sends for the exporter's thread, which has no runtime of its own.
#[derive(Debug)]
struct Courier {
    client: reqwest::Client,
    runtime: tokio::runtime::Handle,
    /// Whether the last batch was refused: said once, not every few seconds.
    refused: AtomicBool,
}

#[async_trait]
impl HttpClient for Courier {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let sent = self.runtime.spawn(async move { client.send_bytes(request).await }).await;
        let answer = sent.map_err(HttpError::from).flatten();
        let refusal = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(answer.status().to_string()),
            Err(error) => Some(error.to_string()),
        };
        let refused = self.refused.swap(refusal.is_some(), Ordering::Relaxed);
        match refusal {
            Some(reason) if !refused => {
                tracing::warn!(%reason, "the collector takes no traces; they are dropped");
            }
            None if refused => tracing::info!("the collector takes traces again"),
            _ => {}
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_collector_s_url() {
        let url = |text: &str| text.parse::<Endpoint>().unwrap().0.to_string();
        assert_eq!(url("http://collector:4318"), "http://collector:4318/v1/traces");
        assert_eq!(url("https://c.example/otlp/"), "https://c.example/otlp/v1/traces");
        for bad in
            ["", "collector:4318", "grpc://c:4317", "http://", "http://u:SECRET@c", "http://c/?k=SECRET"]
        {
            let error = bad.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains("http://collector:4318") && !error.contains("SECRET"), "{bad}: {error}");
        }
    }
}
