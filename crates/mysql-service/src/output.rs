//! What people see: data on standard output, everything else on standard error, tables, colours.

use std::io::{IsTerminal as _, Write as _};

use serde::Serialize;

use crate::failure::Failure;

/// Writes data to standard output.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| {
            if text.ends_with('\n') {
                Ok(())
            } else {
                stdout.write_all(b"\n")
            }
        })
        .and_then(|()| stdout.flush());
    match written {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::OutputClosed),
        Err(error) => Err(Failure::Failed(
            anyhow::Error::new(error).context("cannot write to standard output"),
        )),
    }
}

/// Writes a document to standard output as JSON.
pub(crate) fn print_json(document: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(document).map_err(|error| Failure::Failed(error.into()))?;
    print(&text)
}

/// Writes a line about what is going on to standard error. Progress that nobody can see is no reason to stop.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Whether colours are used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    colours: bool,
}

impl Style {
    /// Colours when standard output is a terminal and `NO_COLOR` is not set.
    pub(crate) fn of_stdout() -> Self {
        Self::on(std::io::stdout().is_terminal())
    }

    /// The same for standard error.
    pub(crate) fn of_stderr() -> Self {
        Self::on(std::io::stderr().is_terminal())
    }

    fn on(terminal: bool) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            colours: terminal && !unwanted,
        }
    }

    /// Without colours, whatever the terminal.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self { colours: false }
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    pub(crate) fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(crate) fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colours && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// A bordered table with a title in its upper border, as wide as its cells.
pub(crate) struct Table {
    title: String,
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// One cell: its text, and how it is painted once it has its width.
pub(crate) struct Cell {
    text: String,
    paint: fn(Style, &str) -> String,
}

impl Cell {
    /// A cell in a colour.
    pub(crate) fn painted(text: impl Into<String>, paint: fn(Style, &str) -> String) -> Self {
        Self {
            text: text.into(),
            paint,
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            paint: |_, text| text.to_owned(),
        }
    }
}

impl Table {
    /// A table without rows.
    pub(crate) fn new(title: impl Into<String>, header: &[&'static str]) -> Self {
        Self {
            title: title.into(),
            header: header.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; it has as many cells as the header.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.header.len());
        self.rows.push(cells);
    }

    /// The table as text.
    pub(crate) fn render(&self, style: Style) -> String {
        let mut widths: Vec<usize> = self.header.iter().map(|head| width(head)).collect();
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                widths[column] = widths[column].max(width(&cell.text));
            }
        }
        let mut rule = String::new();
        for width in &widths {
            rule.push('+');
            rule.push_str(&"-".repeat(width + 2));
        }
        rule.push('+');
        let mut text = self.titled(&rule, style);
        text.push_str(&line(
            self.header
                .iter()
                .zip(&widths)
                .map(|(head, width)| style.bold(&pad(head, *width))),
        ));
        text.push_str(&rule);
        text.push('\n');
        for row in &self.rows {
            text.push_str(&line(
                row.iter()
                    .zip(&widths)
                    .map(|(cell, width)| (cell.paint)(style, &pad(&cell.text, *width))),
            ));
        }
        text.push_str(&rule);
        text.push('\n');
        text
    }

    /// The upper border, with as much of the title as the table is wide.
    fn titled(&self, rule: &str, style: Style) -> String {
        let title = format!(" {} ", self.title);
        let room = rule.len().saturating_sub(3);
        if self.title.is_empty() {
            return format!("{rule}\n");
        }
        if width(&title) > room {
            return format!("{}\n{rule}\n", style.bold(&self.title));
        }
        let rest = &rule[1 + width(&title)..];
        format!("+{}{rest}\n", style.bold(&title))
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

fn pad(text: &str, wanted: usize) -> String {
    format!("{text}{}", " ".repeat(wanted.saturating_sub(width(text))))
}

fn line(cells: impl Iterator<Item = String>) -> String {
    let mut text = String::from("|");
    for cell in cells {
        text.push(' ');
        text.push_str(&cell);
        text.push_str(" |");
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_wide_as_its_cells_and_carries_its_title() {
        let mut table = Table::new("Cluster: c", &["INSTANCE", "ROLE"]);
        table.row(vec!["mysql-server-1".into(), "Master".into()]);
        assert_eq!(
            table.render(Style::plain()),
            "+ Cluster: c ----+--------+\n\
             | INSTANCE       | ROLE   |\n\
             +----------------+--------+\n\
             | mysql-server-1 | Master |\n\
             +----------------+--------+\n"
        );
    }

    #[test]
    fn a_title_wider_than_the_table_stands_above_it() {
        let mut table = Table::new("a title that does not fit", &["A"]);
        table.row(vec!["1".into()]);
        assert_eq!(
            table.render(Style::plain()),
            "a title that does not fit\n+---+\n| A |\n+---+\n| 1 |\n+---+\n"
        );
    }

    #[test]
    fn colours_do_not_count_as_width() {
        let mut table = Table::new("", &["A"]);
        table.row(vec![Cell::painted("x", Style::red)]);
        let coloured = table.render(Style { colours: true });
        assert!(coloured.contains("\x1b[31mx\x1b[0m"), "{coloured:?}");
        assert_eq!(
            table.render(Style::plain()),
            "+---+\n| A |\n+---+\n| x |\n+---+\n"
        );
    }
}
