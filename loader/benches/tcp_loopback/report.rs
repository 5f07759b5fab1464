//! The figures, for people and for programs.

use std::fmt;

use serde::Serialize;

use crate::Setup;
use crate::reader::{Measured, median};

/// What the engine must reach of the bare loop's rate, without digests and with them.
const BARS: [f64; 2] = [0.85, 0.75];
/// What a reader may take beside the model.
const PEAK_BAR_BYTES: u64 = 64 << 20;
const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1024.0 * MIB;

/// Everything that was measured. Rates are medians in GiB/s.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    model_bytes: u64,
    tensors: u64,
    rounds: usize,
    streams: usize,
    cores: usize,
    bare: Rate,
    without_digests: Rate,
    with_digests: Rate,
    /// Of the medians; the second counts digests in.
    ratios: [f64; 2],
    bars_met: [bool; 2],
    peak_beside_model_bytes: u64,
    peak_bar_met: bool,
    memcpy: f64,
    digests: f64,
    /// `None`: not installed.
    iperf3: Option<f64>,
    into_fresh_memory: Rate,
    /// What first touching the pages costs, in seconds for the whole model.
    first_touch_seconds: f64,
    prefault_seconds: f64,
    #[serde(skip)]
    notes: Notes,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Rate {
    median: f64,
    min: f64,
    max: f64,
}

#[derive(Debug)]
struct Notes {
    bare_piece_kib: usize,
    fill_fresh: f64,
    fill_prefaulted: f64,
    huge_gib: f64,
}

impl Report {
    pub(crate) fn new(setup: &Setup, measured: Measured, peak_bytes: u64, iperf3: Option<f64>) -> Self {
        let gib = setup.gib();
        let rate = |seconds: &[f64]| Rate {
            median: gib / median(seconds),
            min: gib / seconds.iter().copied().fold(0.0, f64::max),
            max: gib / seconds.iter().copied().fold(f64::INFINITY, f64::min),
        };
        let (bare, without_digests, with_digests) =
            (rate(&measured.bare), rate(&measured.without_digests), rate(&measured.with_digests));
        let ratios = [without_digests.median / bare.median, with_digests.median / bare.median];
        let peak_beside_model_bytes = peak_bytes.saturating_sub(setup.bytes);
        let beside = measured.beside;
        Self {
            model_bytes: setup.bytes,
            tensors: setup.tensors,
            rounds: setup.rounds,
            streams: setup.options.streams,
            cores: std::thread::available_parallelism().map_or(0, Into::into),
            bare,
            without_digests,
            with_digests,
            ratios,
            bars_met: [ratios[0] >= BARS[0], ratios[1] >= BARS[1]],
            peak_beside_model_bytes,
            peak_bar_met: peak_beside_model_bytes <= PEAK_BAR_BYTES,
            memcpy: gib / beside.memcpy,
            digests: gib / beside.digests,
            iperf3: iperf3.map(|rate| rate / GIB),
            into_fresh_memory: rate(&measured.into_fresh_memory),
            first_touch_seconds: beside.fill_fresh - beside.fill_prefaulted,
            prefault_seconds: beside.prefault,
            notes: Notes {
                bare_piece_kib: measured.bare_piece_bytes >> 10,
                fill_fresh: beside.fill_fresh,
                fill_prefaulted: beside.fill_prefaulted,
                huge_gib: beside.huge_page_bytes as f64 / GIB,
            },
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (notes, verdict) = (&self.notes, |met| if met { "met" } else { "MISSED" });
        writeln!(
            f,
            "{:.3} GiB in {} tensors over loopback, two processes, {} cores, {} streams; median of {} (min to max), GiB/s",
            self.model_bytes as f64 / GIB,
            self.tensors,
            self.cores,
            self.streams,
            self.rounds,
        )?;
        let mut row = |name: &str, rate: Rate, more: String| {
            writeln!(f, "  {name:<32}{:>7.2}  ({:.2} to {:.2}){more}", rate.median, rate.min, rate.max)
        };
        let kept = |at: usize| {
            format!("  {:.3} of bare, bar {:.2}: {}", self.ratios[at], BARS[at], verdict(self.bars_met[at]))
        };
        row("bare write/read loop", self.bare, format!("  pieces of {} KiB", notes.bare_piece_kib))?;
        row("engine without digests", self.without_digests, kept(0))?;
        row("engine with digests", self.with_digests, kept(1))?;
        row("engine, digests, fresh memory", self.into_fresh_memory, String::new())?;
        let mut alone = |name: &str, rate: f64| writeln!(f, "  {name:<32}{rate:>7.2}");
        match self.iperf3 {
            Some(rate) => alone("iperf3", rate)?,
            None => writeln!(f, "  {:<32}not installed", "iperf3")?,
        }
        let mut alone = |name: &str, rate: f64| writeln!(f, "  {name:<32}{rate:>7.2}");
        alone("memcpy", self.memcpy)?;
        alone("digests alone, one core", self.digests)?;
        writeln!(
            f,
            "first touch of the pages: {:.3} s (fill of fresh memory {:.3} s, of prefaulted {:.3} s; prefault alone {:.3} s)",
            self.first_touch_seconds, notes.fill_fresh, notes.fill_prefaulted, self.prefault_seconds,
        )?;
        writeln!(
            f,
            "reader's peak memory beside the model: {:.1} MiB, bar {}: {}",
            self.peak_beside_model_bytes as f64 / MIB,
            PEAK_BAR_BYTES >> 20,
            verdict(self.peak_bar_met),
        )?;
        writeln!(
            f,
            "the bytes were equal after the first and after the last run of each kind; {:.2} GiB of the reader in huge pages",
            notes.huge_gib
        )
    }
}
