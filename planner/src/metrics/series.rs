//! How series are made, each named once and shown.

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Makes series, and registers each.
pub(super) struct Series {
    pub(super) registry: Registry,
}

impl Series {
    /// None yet; `prefix` will begin every name.
    pub(super) fn new(prefix: &str) -> prometheus::Result<Self> {
        Ok(Self { registry: Registry::new_custom(Some(prefix.to_owned()), None)? })
    }

    /// Counters by labels. For one label, `values` are at zero from the beginning: a rate over a series that
    /// comes with its first event would miss that.
    pub(super) fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        values: &[&str],
    ) -> prometheus::Result<IntCounterVec> {
        let counters = self.register(IntCounterVec::new(Opts::new(name, help), labels)?)?;
        for value in values {
            counters.with_label_values(&[value]);
        }
        Ok(counters)
    }

    /// Gauges by labels. For one label, `values` are at zero from the beginning.
    pub(super) fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        values: &[&str],
    ) -> prometheus::Result<IntGaugeVec> {
        let gauges = self.register(IntGaugeVec::new(Opts::new(name, help), labels)?)?;
        for value in values {
            gauges.with_label_values(&[value]);
        }
        Ok(gauges)
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.register(IntCounter::new(name, help)?)
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.register(IntGauge::new(name, help)?)
    }

    pub(super) fn histogram(&self, name: &str, help: &str, bounds: &[f64]) -> prometheus::Result<Histogram> {
        self.register(Histogram::with_opts(HistogramOpts::new(name, help).buckets(bounds.to_vec()))?)
    }

    pub(super) fn histograms(
        &self,
        name: &str,
        help: &str,
        label: &str,
        bounds: &[f64],
    ) -> prometheus::Result<HistogramVec> {
        let options = HistogramOpts::new(name, help).buckets(bounds.to_vec());
        self.register(HistogramVec::new(options, &[label])?)
    }

    fn register<C: Collector + Clone + 'static>(&self, series: C) -> prometheus::Result<C> {
        self.registry.register(Box::new(series.clone()))?;
        Ok(series)
    }
}
