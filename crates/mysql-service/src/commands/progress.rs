//! How long work goes: a bar on a terminal, a line now and then elsewhere; always on standard error.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use api::job::Extent;
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};

use crate::output;

/// How often a line is written where there is no terminal, unless the step changes.
const LINE_PERIOD: Duration = Duration::from_secs(15);

/// What is shown of one piece of work.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    last_step: String,
    last_line: Option<Instant>,
}

impl Progress {
    /// Nothing is shown yet.
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self {
            bar,
            last_step: String::new(),
            last_line: None,
        }
    }

    /// Shows how far it is.
    pub(crate) fn show(&mut self, step: &str, extent: Extent) {
        let changed = self.last_step != step;
        if let Some(bar) = &self.bar {
            if changed {
                // The time is that of the step.
                bar.reset_elapsed();
            }
            match extent.total_bytes.filter(|total| *total > 0) {
                Some(total) => {
                    bar.set_style(style("{spinner} {prefix} [{bar:30}] {msg}"));
                    bar.set_length(total);
                }
                None => bar.set_style(style("{spinner} {prefix} {msg} {elapsed}")),
            }
            bar.set_prefix(step.to_owned());
            bar.set_message(amount(extent));
            bar.set_position(extent.done_bytes);
        } else if changed || self.last_line.is_none_or(|last| last.elapsed() >= LINE_PERIOD) {
            if !step.is_empty() {
                output::say(&format!("  {}", describe(step, extent)));
            }
            self.last_line = Some(Instant::now());
        }
        if changed {
            step.clone_into(&mut self.last_step);
        }
    }

    /// Writes a line that stays, above what moves.
    pub(crate) fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::say(line)),
            None => output::say(line),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// A step and how far it is, in words.
pub(crate) fn describe(step: &str, extent: Extent) -> String {
    match amount(extent) {
        amount if amount.is_empty() => step.to_owned(),
        amount => format!("{step}: {amount}"),
    }
}

/// How much is done, how fast, and how long the rest takes, as far as it is known.
fn amount(extent: Extent) -> String {
    let done = extent.done_bytes;
    let mut text = match extent.total_bytes.filter(|total| *total > 0) {
        Some(total) => format!(
            "{} of {} ({} %)",
            HumanBytes(done),
            HumanBytes(total),
            u128::from(done) * 100 / u128::from(total)
        ),
        None if done > 0 => HumanBytes(done).to_string(),
        None => return String::new(),
    };
    // Writing to a String cannot fail.
    if let Some(rate) = extent.bytes_per_second {
        let _ = write!(text, ", {}/s", HumanBytes(rate));
    }
    if let Some(seconds) = extent.seconds_left {
        let _ = write!(text, ", {} left", HumanDuration(Duration::from_secs(seconds)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_told_with_what_is_known() {
        let extent = |done_bytes, total_bytes, bytes_per_second, seconds_left| Extent {
            done_bytes,
            total_bytes,
            bytes_per_second,
            seconds_left,
        };
        assert_eq!(describe("preparing", Extent::default()), "preparing");
        assert_eq!(
            describe("copying", extent(1024, None, None, None)),
            "copying: 1.00 KiB"
        );
        assert_eq!(
            describe("copying", extent(1 << 20, Some(4 << 20), None, None)),
            "copying: 1.00 MiB of 4.00 MiB (25 %)"
        );
        assert_eq!(
            describe(
                "copying",
                extent(1 << 30, Some(4 << 30), Some(64 << 20), Some(48))
            ),
            "copying: 1.00 GiB of 4.00 GiB (25 %), 64.00 MiB/s, 48 seconds left"
        );
        // It stands still.
        assert_eq!(
            describe("copying", extent(1 << 20, Some(4 << 20), Some(0), None)),
            "copying: 1.00 MiB of 4.00 MiB (25 %), 0 B/s"
        );
    }
}
