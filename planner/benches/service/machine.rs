//! What processes have used, by what Linux tells in `/proc`.

use crate::Result;

/// Processor time until now, in seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    /// By this process, which makes the load.
    pub(crate) load: f64,
    pub(crate) planner: f64,
    pub(crate) database: f64,
    /// By everything on the machine.
    busy: f64,
    /// Of all processors together, used or not.
    all: f64,
}

/// The processes that a figure is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Processes {
    pub(crate) planner: u32,
    /// The first process of Postgres.
    pub(crate) database: Option<u32>,
}

impl Processes {
    pub(crate) fn used(self) -> Result<Used> {
        let tick = 1.0 / rustix::param::clock_ticks_per_second() as f64;
        let stat = std::fs::read_to_string("/proc/stat")?;
        let machine = stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).unwrap_or("");
        // user, nice, system, idle, iowait, irq, softirq, steal; guest time, behind them, is in user already.
        let machine: Vec<f64> = machine.split_whitespace().take(8).filter_map(|n| n.parse().ok()).collect();
        let idle: f64 = machine.iter().skip(3).take(2).sum();
        let all: f64 = machine.iter().sum();
        let database = self.database.map_or(Ok(0.0), family_ticks)?;
        Ok(Used {
            load: Stat::of(std::process::id())?.own * tick,
            planner: Stat::of(self.planner)?.own * tick,
            database: database * tick,
            busy: (all - idle) * tick,
            all: all * tick,
        })
    }
}

impl Used {
    /// What was used since then.
    pub(crate) fn since(&self, then: &Self) -> Self {
        Self {
            load: self.load - then.load,
            planner: self.planner - then.planner,
            database: self.database - then.database,
            busy: self.busy - then.busy,
            all: self.all - then.all,
        }
    }

    /// The share of the machine's processors that other work had; much of it makes figures worthless.
    pub(crate) fn share_of_others(&self) -> f64 {
        self.share_of_others_but(self.planner)
    }

    /// The same, where planners together used this.
    pub(crate) fn share_of_others_but(&self, planners: f64) -> f64 {
        let ours = self.load + planners + self.database;
        if self.all > 0.0 { (self.busy - ours).max(0.0) / self.all } else { 0.0 }
    }
}

/// One process, times in ticks.
struct Stat {
    parent: u32,
    own: f64,
    /// Of its children that have ended.
    ended: f64,
}

impl Stat {
    fn of(process: u32) -> Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        // Behind the name, which may hold anything: state and parent, nine other fields, then utime, stime,
        // cutime and cstime.
        let fields: Vec<&str> =
            stat.rsplit_once(") ").map_or("", |(_, fields)| fields).split(' ').take(15).collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
        Ok(Self {
            parent: fields.get(1).and_then(|field| field.parse().ok()).unwrap_or(0),
            own: number(11) + number(12),
            ended: number(13) + number(14),
        })
    }
}

/// Of a process and its children.
fn family_ticks(first: u32) -> Result<f64> {
    let stat = Stat::of(first)?;
    let mut ticks = stat.own + stat.ended;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that ends meanwhile is counted as an ended child next time.
        let Ok(stat) = Stat::of(process) else { continue };
        if stat.parent == first {
            ticks += stat.own;
        }
    }
    Ok(ticks)
}

/// The most memory that a process has had, in bytes.
pub(crate) fn peak_memory_bytes(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB"));
    let kib: u64 = line.ok_or("a process without a peak of its memory")?.trim().parse()?;
    Ok(kib << 10)
}

/// Whether files in this directory are kept in memory only.
pub(crate) fn is_in_memory(directory: &std::path::Path) -> Result<bool> {
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58f6;
    let kind = rustix::fs::statfs(directory)?.f_type;
    #[allow(clippy::useless_conversion, reason = "the type differs between platforms")]
    let kind = i64::from(kind);
    Ok(kind == TMPFS || kind == RAMFS)
}

pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, Into::into)
}
