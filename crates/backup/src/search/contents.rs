//! What the events of a transaction do.

use std::collections::BTreeMap;
use std::io::Read as _;

use flate2::read::ZlibDecoder;
use mysql_client::binlog::{
    BinlogError, Column, Image, Query, RowChange, Rows, RowsChange, RowsHeader, TableMap, event_type,
};

use super::findings::{ShownRow, ShownValue, TableChanges};
use super::gather::LARGEST_EVENT_BYTES;
use super::mention::TableName;

/// Of a statement so many characters are kept, and so many statements of a transaction.
const LONGEST_STATEMENT: usize = 1000;
const MOST_STATEMENTS: usize = 10;

/// Of a value so many characters are shown.
const LONGEST_VALUE: usize = 200;

/// Of all rows that are shown together, in bytes.
const MOST_SHOWN_BYTES: usize = 4 * 1024 * 1024;

/// Tables that are remembered from one transaction to the next, so that their columns are read once.
const MOST_TABLES: usize = 1000;

/// The transaction at hand.
#[derive(Default)]
pub(super) struct Contents {
    tables: BTreeMap<u64, Table>,
    changes: BTreeMap<TableName, TableChanges>,
    statements: Vec<String>,
    statement_count: u64,
    /// The table that is looked for, and whether a statement that changes something speaks of it.
    wanted: Option<TableName>,
    is_mentioned: bool,
    unreadable: Option<String>,
    keeps_rows: bool,
    rows: Vec<ShownRow>,
    shown_bytes: usize,
    row_count: u64,
}

struct Table {
    map: Vec<u8>,
    name: TableName,
    columns: Result<Vec<Column>, BinlogError>,
}

impl Contents {
    /// Of transactions that may change `wanted`.
    pub(super) fn new(wanted: Option<TableName>, keeps_rows: bool) -> Self {
        Self {
            wanted,
            keeps_rows,
            ..Self::default()
        }
    }

    /// Another transaction begins.
    pub(super) fn begin(&mut self) {
        if self.tables.len() > MOST_TABLES {
            self.tables.clear();
        }
        self.changes.clear();
        self.statements.clear();
        self.statement_count = 0;
        self.is_mentioned = false;
        self.unreadable = None;
        self.rows.clear();
        self.shown_bytes = 0;
        self.row_count = 0;
    }

    /// A part of it cannot be looked into.
    pub(super) fn unreadable(&mut self, why: &str) {
        self.unreadable.get_or_insert_with(|| why.to_owned());
    }

    /// One of its events, without header and checksum; only its front where it is too long.
    pub(super) fn event(&mut self, kind: u8, body: &[u8], is_whole: bool) {
        if let Err(error) = self.read(kind, body, is_whole) {
            self.unreadable(&error.to_string());
        }
    }

    fn read(&mut self, kind: u8, body: &[u8], is_whole: bool) -> Result<(), BinlogError> {
        match kind {
            event_type::TABLE_MAP => self.table(body)?,
            event_type::QUERY => {
                let query = Query::parse(body)?;
                self.statement(query.schema, query.text);
            }
            event_type::EXECUTE_LOAD_QUERY => {
                let query = Query::parse_load(body)?;
                self.statement(query.schema, query.text);
            }
            event_type::QUERY_COMPRESSED => {
                let query = Query::parse(body)?;
                match decompress(query.text, is_whole) {
                    Ok(text) => self.statement(query.schema, &text),
                    Err(why) => self.unreadable(&why),
                }
            }
            event_type::ANNOTATE_ROWS => self.keep(&String::from_utf8_lossy(body)),
            // Its first byte is a length that has no room for long statements.
            event_type::ROWS_QUERY => {
                self.keep(&String::from_utf8_lossy(body.get(1..).unwrap_or_default()));
            }
            _ => {
                if let Some(header) = RowsHeader::parse(kind, body)? {
                    self.rows(kind, &header, is_whole)?;
                }
            }
        }
        Ok(())
    }

    fn table(&mut self, body: &[u8]) -> Result<(), BinlogError> {
        let map = TableMap::parse(body)?;
        let known = self.tables.get(&map.table_id);
        if known.is_none_or(|table| table.map != body) {
            let table = Table {
                map: body.to_vec(),
                name: TableName::new(map.schema, map.table),
                columns: Column::parse_all(map.columns),
            };
            self.tables.insert(map.table_id, table);
        }
        Ok(())
    }

    /// A statement that changes something itself.
    fn statement(&mut self, schema: &[u8], text: &[u8]) {
        let (schema, text) = (String::from_utf8_lossy(schema), String::from_utf8_lossy(text));
        let word = text
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_ascii_uppercase();
        let of_transactions = ["BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "XA", ""];
        if of_transactions.contains(&word.trim_end_matches(';')) {
            return;
        }
        let wanted = self.wanted.as_ref();
        self.is_mentioned |= wanted.is_some_and(|table| table.is_mentioned(&schema, &text));
        self.keep(&text);
    }

    fn keep(&mut self, text: &str) {
        self.statement_count += 1;
        if self.statements.len() < MOST_STATEMENTS {
            self.statements.push(shortened(text));
        }
    }

    fn rows(&mut self, kind: u8, header: &RowsHeader<'_>, is_whole: bool) -> Result<(), BinlogError> {
        // A statement may end in a rows event of no table.
        let Some(table) = self.tables.get(&header.table_id) else {
            return Ok(());
        };
        let changes = self
            .changes
            .entry(table.name.clone())
            .or_insert_with(|| TableChanges::of(&table.name));
        let decompressed = if header.compressed && is_whole {
            decompress(header.rows()?, true).map(Some)
        } else {
            Ok(None)
        };
        let (Ok(columns), Ok(decompressed), true) = (&table.columns, decompressed, is_whole) else {
            changes.is_exact = false;
            return Ok(());
        };
        // Until all of them were read.
        let was_exact = std::mem::take(&mut changes.is_exact);
        let mut rows = Rows::new(kind, header, columns, decompressed.as_deref())?;
        while let Some(row) = rows.next_row()? {
            self.row_count += 1;
            *match header.change {
                RowsChange::Insert => &mut changes.inserted,
                RowsChange::Update => &mut changes.updated,
                RowsChange::Delete => &mut changes.deleted,
            } += 1;
            if self.keeps_rows && self.shown_bytes < MOST_SHOWN_BYTES {
                let shown = show(&table.name, header.change, &row, columns);
                self.shown_bytes += shown.bytes();
                self.rows.push(shown);
            }
        }
        changes.is_exact = was_exact;
        Ok(())
    }

    /// Whether the table that is looked for is changed, or may be: what cannot be looked into may.
    pub(super) fn is_wanted(&self) -> bool {
        let Some(wanted) = &self.wanted else {
            return true;
        };
        self.unreadable.is_some()
            || self.is_mentioned
            || self.changes.keys().any(|changed| wanted.covers(changed))
    }

    pub(super) fn changes(&self) -> Vec<TableChanges> {
        self.changes.values().cloned().collect()
    }

    pub(super) fn statements(&self) -> Vec<String> {
        self.statements.clone()
    }

    pub(super) fn statement_count(&self) -> u64 {
        self.statement_count
    }

    pub(super) fn problem(&self) -> Option<String> {
        self.unreadable.clone()
    }

    /// The rows that were kept, and how many there were.
    pub(super) fn take_rows(&mut self) -> (Vec<ShownRow>, u64) {
        (std::mem::take(&mut self.rows), self.row_count)
    }
}

fn shortened(text: &str) -> String {
    let mut shown: String = text.chars().take(LONGEST_STATEMENT).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

fn show(name: &TableName, change: RowsChange, row: &RowChange<'_>, columns: &[Column]) -> ShownRow {
    let image = |image: &Image<'_>| -> Vec<ShownValue> {
        image
            .iter()
            .zip(columns)
            .enumerate()
            .filter_map(|(index, (value, column))| {
                let value = value.as_ref()?;
                let name = column.name.clone();
                Some(ShownValue {
                    column: name.unwrap_or_else(|| format!("@{}", index + 1)),
                    value: value.text(LONGEST_VALUE),
                })
            })
            .collect()
    };
    let change = match change {
        RowsChange::Insert => "insert",
        RowsChange::Update => "update",
        RowsChange::Delete => "delete",
    };
    ShownRow {
        table: name.to_string(),
        change: change.to_owned(),
        columns: columns.len(),
        before: row.before.as_ref().map(image),
        after: row.after.as_ref().map(image),
    }
}

/// MariaDB's compression: a byte with the way and the length's length, the length from its highest byte on, zlib.
fn decompress(bytes: &[u8], is_whole: bool) -> Result<Vec<u8>, String> {
    let broken = || "what is compressed in it is malformed".to_owned();
    let too_long = || "it is too long to be looked into".to_owned();
    if !is_whole {
        return Err(too_long());
    }
    let (&first, rest) = bytes.split_first().ok_or_else(broken)?;
    let length_bytes = usize::from(first & 7);
    let (length, compressed) = rest.split_at_checked(length_bytes).ok_or_else(broken)?;
    if first & 0x70 != 0 || length_bytes > 4 {
        return Err("it is compressed in an unknown way".to_owned());
    }
    let length = length
        .iter()
        .fold(0_usize, |length, &byte| length << 8 | usize::from(byte));
    if length > LARGEST_EVENT_BYTES {
        return Err(too_long());
    }
    let mut bytes = Vec::with_capacity(length);
    let read = ZlibDecoder::new(compressed)
        .take(length as u64)
        .read_to_end(&mut bytes);
    match read {
        Ok(read) if read == length => Ok(bytes),
        _ => Err(broken()),
    }
}
