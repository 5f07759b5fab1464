//! What the demo shows while it runs: a bar a worker on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// All bars.
pub(super) struct Board {
    bars: Option<MultiProgress>,
}

impl Board {
    pub(super) fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bars = terminal.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)));
        Self { bars }
    }

    /// A new bar below the others.
    pub(super) fn bar(&self, name: &str, total_bytes: u64) -> Bar {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new(total_bytes));
            let template = "{prefix:<16} {bar:30} {binary_bytes:>11}/{binary_total_bytes:<11} {wide_msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix(name.to_owned());
            bar
        });
        Bar { name: name.to_owned(), drawn: bar, said: Mutex::new(String::new()) }
    }

    /// A line above the bars.
    pub(super) fn say(&self, line: &str) {
        match &self.bars {
            Some(bars) => {
                let _ = bars.println(line);
            }
            None => eprintln!("{line}"),
        }
    }

    /// Takes the bars away, before the result is printed.
    pub(super) fn clear(&self) {
        if let Some(bars) = &self.bars {
            let _ = bars.clear();
        }
    }
}

/// One bar; on no terminal, a line whenever there is something new to say.
pub(super) struct Bar {
    name: String,
    drawn: Option<ProgressBar>,
    said: Mutex<String>,
}

impl Bar {
    pub(super) fn set(&self, bytes: u64) {
        if let Some(bar) = &self.drawn {
            bar.set_position(bytes);
        }
    }

    pub(super) fn say(&self, what: &str) {
        if let Some(bar) = &self.drawn {
            bar.set_message(what.to_owned());
            return;
        }
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if *said != what {
            eprintln!("{}: {what}", self.name);
            what.clone_into(&mut said);
        }
    }

    pub(super) fn finish(&self, what: &str) {
        match &self.drawn {
            Some(bar) => bar.finish_with_message(what.to_owned()),
            None => self.say(what),
        }
    }
}
