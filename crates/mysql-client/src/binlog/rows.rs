//! The rows of a rows event, one after the other.

use super::BinlogError;
use super::bodies::{RowsChange, RowsHeader};
use super::columns::{Column, length};
use super::cursor::Cursor;
use super::event::event_type;
use super::values::Value;

/// A value of each column; `None` where the server did not log that column.
pub type Image<'row> = Vec<Option<Value<'row>>>;

/// A row that was changed.
#[derive(Debug, Clone, PartialEq)]
pub struct RowChange<'row> {
    /// As it was; `None` of one that was inserted.
    pub before: Option<Image<'row>>,
    /// As it is; `None` of one that was removed.
    pub after: Option<Image<'row>>,
}

/// Reads the rows of one event.
#[derive(Debug)]
pub struct Rows<'event> {
    columns: &'event [Column],
    change: RowsChange,
    /// Whether rows may come with parts of JSON documents only.
    partial: bool,
    first: &'event [u8],
    /// Of the image after an update.
    second: &'event [u8],
    rest: Cursor<'event>,
}

/// JSON documents come as what changed in them.
const VALUE_OPTION_PARTIAL_JSON: u64 = 1;

impl<'event> Rows<'event> {
    /// The rows of an event of type `kind` with this front. Where its rows are compressed, `rows` are they, without
    /// their compression; see [`RowsHeader::rows`].
    ///
    /// # Errors
    /// When the event is malformed, or has another number of columns than its table.
    pub fn new(
        kind: u8,
        header: &RowsHeader<'event>,
        columns: &'event [Column],
        rows: Option<&'event [u8]>,
    ) -> Result<Self, BinlogError> {
        let (count, first, second, rest) = bitmaps(header)?;
        if count != columns.len() {
            return Err(BinlogError::malformed(format!(
                "rows of {count} columns, and the table has {}",
                columns.len()
            )));
        }
        Ok(Self {
            columns,
            change: header.change,
            partial: kind == event_type::PARTIAL_UPDATE_ROWS,
            first,
            second,
            rest: Cursor::new(rows.unwrap_or(rest)),
        })
    }

    /// The next row; `None` after the last.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn next_row(&mut self) -> Result<Option<RowChange<'event>>, BinlogError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let before = match self.change {
            RowsChange::Insert => None,
            RowsChange::Update | RowsChange::Delete => Some(self.image(self.first)?),
        };
        let after = match self.change {
            RowsChange::Insert => Some(self.image(self.first)?),
            RowsChange::Update => {
                if self.partial {
                    self.skip_partial_options()?;
                }
                Some(self.image(self.second)?)
            }
            RowsChange::Delete => None,
        };
        Ok(Some(RowChange { before, after }))
    }

    /// Which JSON columns come in part is of no interest to whoever shows them as bytes.
    fn skip_partial_options(&mut self) -> Result<(), BinlogError> {
        if self.rest.length_encoded()? & VALUE_OPTION_PARTIAL_JSON != 0 {
            let documents = self.columns.iter().filter(|column| column.is_json()).count();
            self.rest.take(documents.div_ceil(8))?;
        }
        Ok(())
    }

    fn image(&mut self, present: &[u8]) -> Result<Image<'event>, BinlogError> {
        let has = |bits: &[u8], index: usize| {
            bits.get(index / 8)
                .is_some_and(|byte| byte >> (index % 8) & 1 == 1)
        };
        let logged = (0..self.columns.len())
            .filter(|&index| has(present, index))
            .count();
        let nulls = self.rest.take(logged.div_ceil(8))?;
        let mut at = 0;
        let mut image = Vec::with_capacity(self.columns.len());
        for (index, column) in self.columns.iter().enumerate() {
            if !has(present, index) {
                image.push(None);
                continue;
            }
            let is_null = has(nulls, at);
            at += 1;
            image.push(Some(if is_null {
                Value::Null
            } else {
                Value::read(column, &mut self.rest)?
            }));
        }
        if logged == 0 && nulls.is_empty() {
            return Err(BinlogError::malformed("rows without a column"));
        }
        Ok(image)
    }
}

type Bitmaps<'event> = (usize, &'event [u8], &'event [u8], &'event [u8]);

fn bitmaps<'event>(header: &RowsHeader<'event>) -> Result<Bitmaps<'event>, BinlogError> {
    let mut rest = Cursor::new(header.rest);
    let count = length(rest.length_encoded()?);
    let first = rest.take(count.div_ceil(8))?;
    let second = match header.change {
        RowsChange::Update => rest.take(count.div_ceil(8))?,
        RowsChange::Insert | RowsChange::Delete => &[],
    };
    Ok((count, first, second, rest.rest()))
}

impl<'event> RowsHeader<'event> {
    /// The rows as they stand in the event: compressed where [`compressed`](Self::compressed) says so.
    ///
    /// # Errors
    /// When the event is malformed.
    pub fn rows(&self) -> Result<&'event [u8], BinlogError> {
        bitmaps(self).map(|(_, _, _, rows)| rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Vec<Column> {
        // INT and VARCHAR(20).
        Column::parse_all(&[2, 3, 15, 2, 20, 0, 0b10]).unwrap()
    }

    fn event(change: RowsChange, rest: &[u8]) -> RowsHeader<'_> {
        RowsHeader {
            table_id: 1,
            change,
            compressed: false,
            flags: 0,
            rest,
        }
    }

    fn texts(image: &Image<'_>) -> String {
        let texts: Vec<String> = image
            .iter()
            .map(|value| value.map_or_else(|| "-".to_owned(), |value| value.to_string()))
            .collect();
        texts.join(" ")
    }

    #[test]
    fn an_update_has_two_images() {
        // The first bitmap has both columns, the second only the text, as with a minimal image.
        let rest = [
            2, 0b11, 0b10, 0b00, 7, 0, 0, 0, 1, b'a', 0b1, 0b10, 8, 0, 0, 0, 0, 1, b'b',
        ];
        let columns = columns();
        let header = event(RowsChange::Update, &rest);
        let mut rows = Rows::new(31, &header, &columns, None).unwrap();
        let first = rows.next_row().unwrap().unwrap();
        assert_eq!(texts(&first.before.unwrap()), "7 a");
        assert_eq!(texts(&first.after.unwrap()), "- NULL");
        let second = rows.next_row().unwrap().unwrap();
        assert_eq!(texts(&second.before.unwrap()), "8 NULL");
        assert_eq!(texts(&second.after.unwrap()), "- b");
        assert!(rows.next_row().unwrap().is_none());
    }

    #[test]
    fn inserted_and_removed_rows_have_one_and_nothing_is_read_beyond_the_event() {
        let rest = [2, 0b11, 0b00, 7, 0, 0, 0, 1, b'a', 0b10, 8, 0, 0, 0];
        let columns = columns();
        for (kind, change) in [(30, RowsChange::Insert), (32, RowsChange::Delete)] {
            let header = event(change, &rest);
            let mut rows = Rows::new(kind, &header, &columns, None).unwrap();
            let mut count = 0;
            while let Some(row) = rows.next_row().unwrap() {
                assert_eq!(row.before.is_some(), change == RowsChange::Delete);
                assert_eq!(row.after.is_some(), change == RowsChange::Insert);
                count += 1;
            }
            assert_eq!(count, 2);
            let cut = event(change, &rest[..rest.len() - 1]);
            let mut rows = Rows::new(kind, &cut, &columns, None).unwrap();
            assert!(rows.next_row().unwrap().is_some());
            assert!(rows.next_row().is_err());
        }
        let header = event(RowsChange::Insert, &rest);
        assert!(Rows::new(30, &header, &columns[..1], None).is_err());
    }
}
