//! `backup search`: the transaction that did the damage, and its rows.

use std::fmt::Write as _;

use api::backup::SearchRequest;
use api::job::{Search, Work};
use backup::search::{Findings, FoundTransaction, RowsOfTransaction, ShownRow, ShownValue, TableChanges};
use jiff::Timestamp;
use serde_json::Value;

use super::work::{self, Place, Show};
use crate::cli::SearchBackup;
use crate::failure::Failure;
use crate::output::{Style, Table};

pub(crate) async fn run(options: &SearchBackup) -> Result<(), Failure> {
    for time in options.since.iter().chain(&options.until) {
        // A time without an offset means another moment at another place.
        time.parse::<Timestamp>().map_err(|error| {
            Failure::usage(format!(
                "`{time}` is not a time with its offset, such as 2026-11-22T03:04:05Z: {error}"
            ))
        })?;
    }
    let search = Search {
        table: options.table.clone(),
        since: options.since.clone(),
        until: options.until.clone(),
        rows_of: options.rows.clone(),
        limit: Some(options.limit),
    };
    let show = Show {
        render: &render,
        is_data: true,
    };
    let (output, waiting) = (options.work.client.output, &options.work.waiting);
    match work::place(&options.work)? {
        Place::Here(here) => {
            here.perform_and(Work::SearchArchive(search), output, waiting, Some(&show))
                .await
        }
        Place::Monitor(client) => {
            let request = SearchRequest {
                search,
                instance: options.work.instance.clone(),
            };
            let answer = client.change("/api/v1/backups/search", &request).await?;
            work::conclude_and(&client, answer, output, waiting, Some(&show)).await
        }
    }
}

fn render(result: &Value) -> Result<String, serde_json::Error> {
    let findings: Findings = serde_json::from_value(result.clone())?;
    Ok(match &findings.rows {
        Some(rows) => rows_of(&findings, rows),
        None => transactions(&findings, Style::of_stdout()),
    })
}

fn transactions(findings: &Findings, style: Style) -> String {
    let title = format!(
        "{} of {} transactions match",
        findings.matching, findings.looked_through
    );
    let mut table = Table::new(title, &["Committed", "GTID", "Rows", "Statement"]);
    for found in &findings.transactions {
        table.row(vec![
            found.time.clone().into(),
            found.gtid.clone().into(),
            changes(found).into(),
            statement(found).into(),
        ]);
    }
    let mut text = table.render(style);
    let shown = findings.transactions.len() as u64;
    if findings.matching > shown {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "\nThe first {shown} are shown: narrow it with --since and --until, or raise --limit"
        );
    }
    if let [found, ..] = findings.transactions.as_slice() {
        let gtid = &found.gtid;
        let _ = writeln!(
            text,
            "\nIts rows:           mysql-service backup search --rows {gtid}\nTo just before it:  mysql-service restore \
             incremental --before-gtid {gtid}\nAll but it:         mysql-service restore incremental --skip-gtid {gtid}"
        );
    }
    text
}

fn changes(found: &FoundTransaction) -> String {
    /// A line of a table has room for so many.
    const MOST: usize = 4;
    let of = |table: &TableChanges| {
        let counts = [(table.inserted, '+'), (table.updated, '~'), (table.deleted, '-')];
        let counts: Vec<String> = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, sign)| format!("{sign}{count}"))
            .collect();
        let inexact = if table.is_exact { "" } else { " or more" };
        format!("{} {}{inexact}", table.table, counts.join(" "))
    };
    let mut parts: Vec<String> = found.tables.iter().take(MOST).map(of).collect();
    if found.tables.len() > MOST {
        parts.push(format!("{} more tables", found.tables.len() - MOST));
    }
    if found.beyond_a_cut {
        parts.push("left behind by a failover".to_owned());
    }
    parts.extend(found.problem.clone());
    parts.join(", ")
}

fn statement(found: &FoundTransaction) -> String {
    /// Leaves the table readable on a wide terminal.
    const LONGEST: usize = 60;
    let Some(first) = found.statements.first() else {
        return String::new();
    };
    let words: Vec<&str> = first.split_whitespace().collect();
    let line = words.join(" ");
    let mut text: String = line.chars().take(LONGEST).collect();
    if text.len() < line.len() {
        text.push('…');
    }
    if found.statement_count > 1 {
        let _ = write!(text, " (and {} more)", found.statement_count - 1);
    }
    text
}

fn rows_of(findings: &Findings, rows: &RowsOfTransaction) -> String {
    let mut text = String::new();
    for found in &findings.transactions {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} of {}: {}", found.gtid, found.time, changes(found));
        for statement in &found.statements {
            let _ = writeln!(text, "  {statement}");
        }
    }
    for row in &rows.rows {
        let _ = writeln!(text, "{} {}{}", row.change, row.table, values(row));
    }
    let shown = rows.rows.len() as u64;
    if rows.count > shown {
        let _ = writeln!(text, "… and {} more rows", rows.count - shown);
    }
    text
}

/// Of a change what identifies the row, and each value that is another one after it.
fn values(row: &ShownRow) -> String {
    let value = |value: &ShownValue| value.value.clone().unwrap_or_else(|| "NULL".to_owned());
    let all = |image: &[ShownValue]| {
        image.iter().fold(String::new(), |mut text, one| {
            let _ = write!(text, "  {}={}", one.column, value(one));
            text
        })
    };
    match (&row.before, &row.after) {
        (Some(before), Some(after)) => {
            let mut text = all(before);
            for now in after {
                let was = before.iter().find(|was| was.column == now.column);
                if was.is_none_or(|was| was.value != now.value) {
                    let _ = write!(text, "  → {}={}", now.column, value(now));
                }
            }
            text
        }
        (Some(image), None) | (None, Some(image)) => all(image),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(column: &str, value: Option<&str>) -> ShownValue {
        ShownValue {
            column: column.to_owned(),
            value: value.map(str::to_owned),
        }
    }

    #[test]
    fn what_was_found_is_a_table_and_says_what_to_do_next() {
        let findings = Findings {
            transactions: vec![FoundTransaction {
                time: "2026-11-22T03:00:00Z".to_owned(),
                gtid: "0-1-5".to_owned(),
                source: "1-a-0".to_owned(),
                file: "binlog.000001".to_owned(),
                position: 4,
                bytes: 100,
                tables: vec![TableChanges {
                    table: "app.t".to_owned(),
                    inserted: 0,
                    updated: 2,
                    deleted: 30,
                    is_exact: true,
                }],
                statements: vec!["DELETE\n  FROM t".to_owned()],
                statement_count: 1,
                beyond_a_cut: false,
                problem: None,
            }],
            matching: 3,
            looked_through: 10,
            ..Findings::default()
        };
        let text = transactions(&findings, Style::plain());
        for part in [
            "3 of 10 transactions match",
            "app.t ~2 -30",
            "DELETE FROM t",
            "The first 1 are shown",
            "--rows 0-1-5",
            "--before-gtid 0-1-5",
            "--skip-gtid 0-1-5",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }

    #[test]
    fn a_changed_row_shows_what_is_another_value_now() {
        let row = ShownRow {
            table: "app.t".to_owned(),
            change: "update".to_owned(),
            columns: 2,
            before: Some(vec![shown("id", Some("7")), shown("v", None)]),
            after: Some(vec![shown("id", Some("7")), shown("v", Some("new"))]),
        };
        assert_eq!(values(&row), "  id=7  v=NULL  → v=new");
        let row = ShownRow { after: None, ..row };
        assert_eq!(values(&row), "  id=7  v=NULL");
    }
}
