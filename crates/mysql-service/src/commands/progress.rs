//! How long work goes: a bar on a terminal, a line now and then elsewhere; always on standard error.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

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
    pub(crate) fn show(&mut self, step: &str, done_bytes: u64, total_bytes: Option<u64>) {
        let changed = self.last_step != step;
        if let Some(bar) = &self.bar {
            if changed {
                // The rate is that of the step.
                bar.reset_elapsed();
            }
            match total_bytes.filter(|total| *total > 0) {
                Some(total) => {
                    bar.set_style(style(
                        "{spinner} {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
                    ));
                    bar.set_length(total);
                }
                None if done_bytes > 0 => bar.set_style(style("{spinner} {msg} {bytes} {bytes_per_sec}")),
                None => bar.set_style(style("{spinner} {msg} {elapsed}")),
            }
            bar.set_message(step.to_owned());
            bar.set_position(done_bytes);
        } else if changed || self.last_line.is_none_or(|last| last.elapsed() >= LINE_PERIOD) {
            if !step.is_empty() {
                output::say(&format!("  {}", describe(step, done_bytes, total_bytes)));
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
pub(crate) fn describe(step: &str, done_bytes: u64, total_bytes: Option<u64>) -> String {
    match total_bytes.filter(|total| *total > 0) {
        Some(total) => format!(
            "{step}: {} of {} ({} %)",
            HumanBytes(done_bytes),
            HumanBytes(total),
            u128::from(done_bytes) * 100 / u128::from(total)
        ),
        None if done_bytes > 0 => format!("{step}: {}", HumanBytes(done_bytes)),
        None => step.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_told_with_what_is_known() {
        assert_eq!(describe("preparing", 0, None), "preparing");
        assert_eq!(describe("copying", 1024, None), "copying: 1.00 KiB");
        assert_eq!(
            describe("copying", 1 << 20, Some(4 << 20)),
            "copying: 1.00 MiB of 4.00 MiB (25 %)"
        );
    }
}
