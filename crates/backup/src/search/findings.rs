//! What a search tells, and how much of it is kept.

use std::collections::BTreeMap;

use mysql_client::binlog::Transaction;
use serde::{Deserialize, Serialize};

use super::Query;
use super::contents::Contents;
use super::mention::TableName;
use crate::archive::ArchivedFile;
use crate::replay::time;

/// Problems beyond these are not listed.
const MOST_PROBLEMS: usize = 20;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Findings {
    /// The earliest transactions of those that match, by their times.
    pub transactions: Vec<FoundTransaction>,
    /// How many match.
    pub matching: u64,
    /// Transactions that were looked through.
    pub looked_through: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What could not be looked through, and why.
    pub problems: Vec<String>,
    /// The rows of the transaction, where they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<RowsOfTransaction>,
}

/// A transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundTransaction {
    /// When it was committed: RFC 3339, UTC. On MariaDB whole seconds.
    pub time: String,
    /// The transaction.
    pub gtid: String,
    /// Whose binlog it was read from.
    pub source: String,
    /// Which file.
    pub file: String,
    /// Where it begins in the file.
    pub position: u64,
    /// Bytes in the binlog.
    pub bytes: u64,
    /// Tables of which it changes rows.
    pub tables: Vec<TableChanges>,
    /// Statements, where they are logged: of definitions always, of rows where the server was told to.
    pub statements: Vec<String>,
    /// How many there are.
    pub statement_count: u64,
    /// A failover left it behind: it is no history and is not replayed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub beyond_a_cut: bool,
    /// Why a part of it could not be looked into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What happens to the rows of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableChanges {
    /// Its schema and its name.
    pub table: String,
    /// Rows that are inserted.
    pub inserted: u64,
    /// Rows that are changed.
    pub updated: u64,
    /// Rows that are removed.
    pub deleted: u64,
    /// Whether these are all.
    pub is_exact: bool,
}

/// The rows of one transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowsOfTransaction {
    /// The first of them.
    pub rows: Vec<ShownRow>,
    /// How many there are.
    pub count: u64,
}

/// A row that was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownRow {
    /// Its table's schema and name.
    pub table: String,
    /// `insert`, `update` or `delete`.
    pub change: String,
    /// How many columns its table had then.
    pub columns: usize,
    /// As it was; none of one that was inserted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Vec<ShownValue>>,
    /// As it is then; none of one that was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Vec<ShownValue>>,
}

/// A value of a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownValue {
    /// The column's name, or `@` and its number where the binlog does not name it.
    pub column: String,
    /// The value, shortened; none is NULL.
    pub value: Option<String>,
}

impl TableChanges {
    pub(super) fn of(table: &TableName) -> Self {
        Self {
            table: table.to_string(),
            inserted: 0,
            updated: 0,
            deleted: 0,
            is_exact: true,
        }
    }
}

impl ShownRow {
    /// About what it takes.
    pub(super) fn bytes(&self) -> usize {
        let values = self.before.iter().chain(&self.after).flatten();
        values
            .map(|value| value.column.len() + value.value.as_ref().map_or(4, String::len) + 40)
            .sum()
    }
}

impl FoundTransaction {
    pub(super) fn new(
        file: &ArchivedFile,
        position: u64,
        transaction: &Transaction,
        contents: &Contents,
        beyond_a_cut: bool,
    ) -> Self {
        Self {
            time: time(transaction.commit_time_microseconds),
            gtid: transaction.gtid.to_string(),
            source: file.source().to_string(),
            file: file.name().to_owned(),
            position,
            bytes: transaction.end - position,
            tables: contents.changes(),
            statements: contents.statements(),
            statement_count: contents.statement_count(),
            beyond_a_cut,
            problem: contents.problem(),
        }
    }
}

/// What was found so far.
pub(super) struct Found {
    limit: usize,
    /// By time, and by the order in which they were found.
    kept: BTreeMap<(u64, u64), FoundTransaction>,
    matching: u64,
    looked_through: u64,
    bytes: u64,
    problems: Vec<String>,
    rows: Option<RowsOfTransaction>,
}

impl Found {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            kept: BTreeMap::new(),
            matching: 0,
            looked_through: 0,
            bytes: 0,
            problems: Vec::new(),
            rows: None,
        }
    }

    pub(super) fn looked_at(&mut self, bytes: u64) {
        self.looked_through += 1;
        self.bytes += bytes;
    }

    pub(super) fn problem(&mut self, problem: String) {
        if self.problems.len() < MOST_PROBLEMS && !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    pub(super) fn add(
        &mut self,
        transaction: &Transaction,
        found: FoundTransaction,
        contents: &mut Contents,
    ) {
        self.matching += 1;
        let (mut rows, count) = contents.take_rows();
        rows.truncate(self.limit);
        self.rows = Some(RowsOfTransaction { rows, count });
        self.kept
            .insert((transaction.commit_time_microseconds, self.matching), found);
        if self.kept.len() > self.limit.max(1) {
            self.kept.pop_last();
        }
    }

    pub(super) fn into_findings(self, query: &Query) -> Findings {
        Findings {
            transactions: self.kept.into_values().collect(),
            matching: self.matching,
            looked_through: self.looked_through,
            bytes: self.bytes,
            problems: self.problems,
            rows: self.rows.filter(|_| matches!(query, Query::RowsOf(_))),
        }
    }
}
