//! The figures, for people and for programs.

use std::fmt;

use serde::Serialize;

use crate::fresh::{Filling, KINDS};
use crate::reader::{BARE_PIECES, Runs};
use crate::{Round, Setup};

/// What the engine must reach of the bare loop's rate, without digests and with them.
const BARS: [f64; 2] = [0.85, 0.75];
/// What the engine must reach over TLS of its own rate in plain, both with digests.
const TLS_BAR: f64 = 0.45;
/// What the engine must reach with BLAKE3 digests of its rate with those of the CRC.
const BLAKE3_BAR: f64 = 0.7;
/// What filling memory that was never touched must reach of filling memory that was; and filling that, of doing so
/// without making pages ahead.
const FRESH_BARS: [f64; 2] = [0.8, 0.97];
/// What a reader may take beside the model.
const PEAK_BAR_BYTES: u64 = 64 << 20;
const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1024.0 * MIB;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    model_bytes: u64,
    tensors: u64,
    rounds: usize,
    streams: usize,
    cores: usize,
    bare: Rate,
    bare_piece_bytes: usize,
    without_digests: Rate,
    with_digests: Rate,
    with_tls: Rate,
    /// Of the medians, to plain with digests.
    tls_ratio: f64,
    tls_bar_met: bool,
    by_blake3: Rate,
    /// Of the median with the CRC's digests.
    blake3_ratio: f64,
    blake3_bar_met: bool,
    /// Of the medians; the second counts digests in.
    ratios: [f64; 2],
    bars_met: [bool; 2],
    peak_beside_model_bytes: u64,
    peak_bar_met: bool,
    into_fresh_memory: Rate,
    fresh: Vec<Filled>,
    memcpy: Rate,
    digests: Rate,
    /// `None`: not installed.
    iperf3: Option<Rate>,
    fill_fresh_seconds: f64,
    fill_prefaulted_seconds: f64,
    prefault_seconds: f64,
    huge_page_bytes: u64,
}

/// Memory that was never touched, beside memory that was.
#[derive(Debug, Serialize)]
struct Filled {
    kind: &'static str,
    /// No pages are made ahead.
    touched: Rate,
    touched_ahead: Option<Rate>,
    /// No pages are made ahead.
    fresh: Rate,
    fresh_ahead: Option<Rate>,
    /// Making pages alone.
    pages: Rate,
    /// Of the medians, as the loader does it, to touched memory without a thread: fresh memory, touched memory.
    ratios: [f64; 2],
    bars_met: [bool; 2],
}

impl Filled {
    fn of(kind: usize, setup: &Setup, rounds: &[Round]) -> Self {
        let rate = |seconds: fn(&Filling) -> f64| {
            let all = rounds.iter().filter_map(|round| round.runs.fillings.get(kind)).map(seconds);
            Rate::of(setup.gib(), &all.collect::<Vec<_>>())
        };
        let has = |ahead: fn(&Filling) -> Option<f64>| {
            let all: Option<Vec<f64>> =
                rounds.iter().map(|round| round.runs.fillings.get(kind).and_then(ahead)).collect();
            all.map(|seconds| Rate::of(setup.gib(), &seconds))
        };
        let (touched, touched_ahead) = (rate(|one| one.touched), has(|one| one.touched_ahead));
        let (fresh, fresh_ahead) = (rate(|one| one.fresh), has(|one| one.fresh_ahead));
        let of_touched =
            |ahead: Option<Rate>, without: Rate| ahead.unwrap_or(without).median / touched.median;
        let ratios = [of_touched(fresh_ahead, fresh), of_touched(touched_ahead, touched)];
        let bars_met = [ratios[0] >= FRESH_BARS[0], ratios[1] >= FRESH_BARS[1]];
        let pages = rate(|one| one.pages);
        Self { kind: KINDS[kind], touched, touched_ahead, fresh, fresh_ahead, pages, ratios, bars_met }
    }
}

/// In GiB/s.
#[derive(Debug, Clone, Copy, Serialize)]
struct Rate {
    median: f64,
    min: f64,
    max: f64,
}

impl Report {
    pub(crate) fn new(setup: &Setup, rounds: &[Round]) -> Self {
        let gib = setup.gib();
        let all = |seconds: &dyn Fn(&Runs) -> f64| -> Vec<f64> {
            rounds.iter().map(|round| seconds(&round.runs)).collect()
        };
        let rate = |seconds: &dyn Fn(&Runs) -> f64| Rate::of(gib, &all(seconds));
        let middle = |seconds: &dyn Fn(&Runs) -> f64| median(&all(seconds));
        let (one, two) = (rate(&|runs| runs.bare[0]), rate(&|runs| runs.bare[1]));
        let (bare, bare_piece_bytes) =
            if one.median > two.median { (one, BARE_PIECES[0]) } else { (two, BARE_PIECES[1]) };
        let (without_digests, with_digests) =
            (rate(&|runs| runs.without_digests), rate(&|runs| runs.with_digests));
        let with_tls = rate(&|runs| runs.with_tls);
        let tls_ratio = with_tls.median / with_digests.median;
        let by_blake3 = rate(&|runs| runs.by_blake3);
        let blake3_ratio = by_blake3.median / with_digests.median;
        let ratios = [without_digests.median / bare.median, with_digests.median / bare.median];
        let peak_bytes = rounds.iter().map(|round| round.peak_bytes).max().unwrap_or(0);
        let peak_beside_model_bytes = peak_bytes.saturating_sub(setup.bytes);
        let iperf3: Option<Vec<f64>> = rounds.iter().map(|round| round.iperf3).collect();
        let (fill_fresh, fill_prefaulted) =
            (middle(&|runs| runs.beside.fill_fresh), middle(&|runs| runs.beside.fill_prefaulted));
        Self {
            model_bytes: setup.bytes,
            tensors: setup.tensors,
            rounds: setup.rounds,
            streams: setup.options.streams,
            cores: std::thread::available_parallelism().map_or(0, Into::into),
            bare,
            bare_piece_bytes,
            without_digests,
            with_digests,
            with_tls,
            tls_ratio,
            tls_bar_met: tls_ratio >= TLS_BAR,
            by_blake3,
            blake3_ratio,
            blake3_bar_met: blake3_ratio >= BLAKE3_BAR,
            ratios,
            bars_met: [ratios[0] >= BARS[0], ratios[1] >= BARS[1]],
            peak_beside_model_bytes,
            peak_bar_met: peak_beside_model_bytes <= PEAK_BAR_BYTES,
            into_fresh_memory: rate(&|runs| runs.into_fresh_memory),
            fresh: (0..KINDS.len()).map(|kind| Filled::of(kind, setup, rounds)).collect(),
            iperf3: iperf3.map(|seconds| Rate::of(gib, &seconds)),
            memcpy: rate(&|runs| runs.beside.memcpy),
            digests: rate(&|runs| runs.beside.digests),
            fill_fresh_seconds: fill_fresh,
            fill_prefaulted_seconds: fill_prefaulted,
            prefault_seconds: middle(&|runs| runs.beside.prefault),
            huge_page_bytes: rounds.iter().map(|round| round.runs.beside.huge_page_bytes).min().unwrap_or(0),
        }
    }
}

impl Rate {
    fn of(gib: f64, seconds: &[f64]) -> Self {
        Self {
            median: gib / median(seconds),
            min: gib / seconds.iter().copied().fold(0.0, f64::max),
            max: gib / seconds.iter().copied().fold(f64::INFINITY, f64::min),
        }
    }
}

/// The middle of these; 0 for none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = |met| if met { "met" } else { "MISSED" };
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
        let share = |at: usize| {
            format!("  {:.3} of bare, bar {:.2}: {}", self.ratios[at], BARS[at], verdict(self.bars_met[at]))
        };
        row("bare write/read loop", self.bare, format!("  pieces of {} MiB", self.bare_piece_bytes >> 20))?;
        row("engine without digests", self.without_digests, share(0))?;
        row("engine with digests", self.with_digests, share(1))?;
        let share = format!(
            "  {:.3} of plain with digests, bar {TLS_BAR}: {}",
            self.tls_ratio,
            verdict(self.tls_bar_met)
        );
        row("engine with digests, by TLS", self.with_tls, share)?;
        let of_crc = format!(
            "  {:.3} of those with digests of CRC, bar {BLAKE3_BAR:.2}: {}",
            self.blake3_ratio,
            verdict(self.blake3_bar_met)
        );
        row("engine with digests of BLAKE3", self.by_blake3, of_crc)?;
        row("fresh memory, any frames", self.into_fresh_memory, String::new())?;
        row("memcpy", self.memcpy, String::new())?;
        row("digests alone, one core", self.digests, String::new())?;
        match self.iperf3 {
            Some(rate) => row("iperf3", rate, String::new())?,
            None => writeln!(f, "  {:<32}not installed", "iperf3")?,
        }
        writeln!(f, "memory that was touched, and memory that was never (frames at hand)")?;
        for one in &self.fresh {
            let row = |f: &mut fmt::Formatter<'_>, name, rate: Rate, more: String| {
                let Rate { median, min, max } = rate;
                writeln!(f, "  {:<18}  {name:<24}{median:>7.2}  ({min:.2} to {max:.2}){more}", one.kind)
            };
            let share = |at: usize, of| {
                format!(
                    "  {:.3} of {of}, bar {:.2}: {}",
                    one.ratios[at],
                    FRESH_BARS[at],
                    verdict(one.bars_met[at])
                )
            };
            row(f, "touched", one.touched, String::new())?;
            if let Some(rate) = one.touched_ahead {
                row(f, "touched, pages ahead", rate, share(1, "touched"))?;
            }
            match one.fresh_ahead {
                Some(rate) => {
                    row(f, "fresh", one.fresh, String::new())?;
                    row(f, "fresh, pages ahead", rate, share(0, "touched"))?;
                }
                None => row(f, "fresh", one.fresh, share(0, "touched"))?,
            }
            row(f, "making pages alone", one.pages, String::new())?;
        }
        writeln!(
            f,
            "first touch of the pages: {:.3} s (fill of fresh memory {:.3} s, of prefaulted {:.3} s; prefault alone {:.3} s)",
            self.fill_fresh_seconds - self.fill_prefaulted_seconds,
            self.fill_fresh_seconds,
            self.fill_prefaulted_seconds,
            self.prefault_seconds,
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
            "all bytes were equal in every round; {:.2} GiB of the reader's two buffers in huge pages",
            self.huge_page_bytes as f64 / GIB,
        )
    }
}
