//! What people see of a load: its progress, and its end.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use rfork_loader::session::{LoadReport, Phase, Progress, Source};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::show::{self, gib_per_s};

/// Three digits after the point are enough for people and for scripts.
pub(super) fn rounded(number: f64) -> f64 {
    (number * 1_000.0).round() / 1_000.0
}

/// Says where the weights came from.
pub(super) fn log_loaded(report: &LoadReport, digest: Option<&str>) {
    for share in &report.shares {
        tracing::info!(
            source = %share.source,
            bytes = share.bytes,
            seconds = rounded(share.duration.as_secs_f64()),
            "a source gave its share"
        );
    }
    let (source, seed) = match report.main_source() {
        Source::Seed(identity) => ("seed", Some(identity.to_string())),
        Source::Storage => ("storage", None),
    };
    tracing::info!(
        source,
        seed,
        bytes = report.bytes,
        bytes_from_seeds = report.bytes_from_seeds(),
        seconds = rounded(report.transfer_duration().as_secs_f64()),
        gib_per_s = rounded(gib_per_s(report.bytes, report.transfer_duration())),
        depth = report.depth(),
        first_byte_seconds = report.first_byte.map(|first| rounded(first.as_secs_f64())),
        waited_seconds = rounded(report.duration.saturating_sub(report.transfer_duration()).as_secs_f64()),
        content_id = report.content.map(|content| content.to_string()),
        digest,
        "loaded"
    );
}

/// Shows progress until dropped: a bar on a terminal, log lines elsewhere.
pub(super) fn display(progress: watch::Receiver<Progress>, interval: Duration) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(if std::io::stderr().is_terminal() {
        tokio::spawn(bar(progress))
    } else {
        tokio::spawn(lines(progress, interval))
    })
}

/// Clears the bar when the display is dropped, so that no half line is left.
struct Bar(ProgressBar);

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

async fn bar(mut progress: watch::Receiver<Progress>) {
    let bar = Bar(ProgressBar::new(0));
    if let Ok(style) =
        ProgressStyle::with_template("{msg:<28} {wide_bar} {binary_bytes}/{binary_total_bytes}")
    {
        bar.0.set_style(style);
    }
    loop {
        let now = progress.borrow_and_update().clone();
        bar.0.set_length(now.total_bytes);
        bar.0.set_position(now.held_bytes);
        bar.0.set_message(match &now.phase {
            Phase::Loading(_) => {
                format!("{} {}/s", describe(&now.phase), show::bytes(whole(now.bytes_per_sec)))
            }
            other => describe(other),
        });
        if progress.changed().await.is_err() {
            return;
        }
    }
}

async fn lines(mut progress: watch::Receiver<Progress>, interval: Duration) {
    let mut last_phase = Phase::Idle;
    let mut ticks = tokio::time::interval(interval);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = progress.changed() => {
                // Between two ticks only a new phase is worth a line.
                if changed.is_err() { return }
                if progress.borrow_and_update().phase == last_phase { continue }
            }
        }
        let now = progress.borrow_and_update().clone();
        let worth_a_line = now.phase != last_phase || matches!(now.phase, Phase::Loading(_));
        last_phase = now.phase.clone();
        if worth_a_line {
            tracing::info!(
                phase = describe(&now.phase),
                held_bytes = now.held_bytes,
                total_bytes = now.total_bytes,
                held_chunks = now.held_chunks,
                total_chunks = now.total_chunks,
                gib_per_s = rounded(now.bytes_per_sec / f64::from(1 << 30)),
                "progress"
            );
        }
    }
}

/// A rate as whole bytes; it is never negative.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(rate: f64) -> u64 {
    rate as u64
}

fn describe(phase: &Phase) -> String {
    match phase {
        Phase::Idle => "starting".into(),
        Phase::Asking => "waiting for a seed".into(),
        Phase::Checking(seed) => format!("checking seed {seed}"),
        Phase::Loading(source) => format!("loading from {source}"),
        Phase::Loaded => "loaded".into(),
        Phase::Failed => "failed".into(),
    }
}
