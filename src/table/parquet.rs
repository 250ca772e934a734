//! The table as Parquet.

use std::io::{self, Write};
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;

use super::row::Row;

/// Rows of a group, which are held until it is full: some 60 MB.
pub const ROWS_OF_A_GROUP: usize = 50_000;

/// The columns, in the order in which [`write_group`] writes them.
const SCHEMA: &str = "message operation {
    required binary did (STRING);
    required binary cid (STRING);
    optional int64 sequence;
    required int64 created_at (TIMESTAMP(MILLIS,true));
    required binary type (STRING);
    optional binary prev (STRING);
    required group handles (LIST) { repeated group list { required binary element (STRING); } }
    optional binary host (STRING);
    required group rotation_keys (LIST) { repeated group list { required binary element (STRING); } }
    optional binary signing_key (STRING);
    required binary signer (STRING);
    required int32 signer_index;
    required boolean nullified;
    optional binary nullified_by (STRING);
}";

/// The columns in which hardly any value comes twice: a dictionary of them is as large as they are.
const WITHOUT_DICTIONARY: [&str; 4] = ["did", "cid", "prev", "nullified_by"];

/// A table that is being written as Parquet, compressed with zstd. It is readable when it was ended.
pub struct ParquetTable<W: Write + Send> {
    writer: SerializedFileWriter<W>,
    /// Rows of the group that is not full yet.
    rows: Vec<Row>,
}

impl<W: Write + Send> ParquetTable<W> {
    /// Begins a table.
    ///
    /// # Errors
    ///
    /// Those of the output, here and below.
    pub fn begin(out: W) -> io::Result<ParquetTable<W>> {
        let writer = parse_message_type(SCHEMA).and_then(|schema| {
            let mut properties = WriterProperties::builder()
                .set_created_by(concat!("plc-replica ", env!("CARGO_PKG_VERSION")).to_owned())
                .set_compression(Compression::ZSTD(ZstdLevel::default()));
            for column in WITHOUT_DICTIONARY {
                properties =
                    properties.set_column_dictionary_enabled(ColumnPath::from(column), false);
            }
            SerializedFileWriter::new(out, Arc::new(schema), Arc::new(properties.build()))
        });
        Ok(ParquetTable { writer: writer.map_err(io_error)?, rows: Vec::new() })
    }

    /// Adds rows.
    pub fn add(&mut self, rows: Vec<Row>) -> io::Result<()> {
        self.rows.extend(rows);
        while self.rows.len() >= ROWS_OF_A_GROUP {
            let rest = self.rows.split_off(ROWS_OF_A_GROUP);
            self.write_rows()?;
            self.rows = rest;
        }
        Ok(())
    }

    /// Ends the table, and gives back what it was written to.
    pub fn end(mut self) -> io::Result<W> {
        if !self.rows.is_empty() {
            self.write_rows()?;
        }
        // With the description of the groups, by which a reader begins.
        self.writer.into_inner().map_err(io_error)
    }

    fn write_rows(&mut self) -> io::Result<()> {
        let rows = std::mem::take(&mut self.rows);
        let written = self.writer.next_row_group().and_then(|mut group| {
            write_group(&mut group, &rows)?;
            group.close()
        });
        written.map(drop).map_err(io_error)
    }
}

/// A group of a file that is being written.
struct Group<'a, 'b, W: Write + Send>(&'a mut SerializedRowGroupWriter<'b, W>);

fn write_group<W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    rows: &[Row],
) -> Result<(), ParquetError> {
    let mut group = Group(group);
    let text = |text: &str| ByteArray::from(text.as_bytes().to_vec());
    group.required::<ByteArrayType>(rows, |row| text(&row.did.to_string()))?;
    group.required::<ByteArrayType>(rows, |row| text(&row.cid.to_string()))?;
    group.optional::<Int64Type>(rows, |row| row.sequence)?;
    group.required::<Int64Type>(rows, |row| row.created_at.millis())?;
    group.required::<ByteArrayType>(rows, |row| text(row.kind))?;
    group.optional::<ByteArrayType>(rows, |row| row.prev.as_deref().map(text))?;
    group.list(rows, |row| &row.handles)?;
    group.optional::<ByteArrayType>(rows, |row| row.host.as_deref().map(text))?;
    group.list(rows, |row| &row.rotation_keys)?;
    group.optional::<ByteArrayType>(rows, |row| row.signing_key.as_deref().map(text))?;
    group.required::<ByteArrayType>(rows, |row| text(&row.signer))?;
    group.required::<Int32Type>(rows, |row| i32::from(row.signer_index))?;
    group.required::<BoolType>(rows, |row| row.nullified)?;
    group.optional::<ByteArrayType>(rows, |row| row.nullified_by.map(|cid| text(&cid.to_string())))
}

impl<W: Write + Send> Group<'_, '_, W> {
    /// Writes the next column, in which every row has a value.
    fn required<T: DataType>(
        &mut self,
        rows: &[Row],
        value: impl Fn(&Row) -> T::T,
    ) -> Result<(), ParquetError> {
        let values: Vec<T::T> = rows.iter().map(value).collect();
        self.column::<T>(&values, None, None)
    }

    /// Writes the next column, in which some rows have no value. The level of those that have one is 1.
    fn optional<T: DataType>(
        &mut self,
        rows: &[Row],
        value: impl Fn(&Row) -> Option<T::T>,
    ) -> Result<(), ParquetError> {
        let values: Vec<Option<T::T>> = rows.iter().map(value).collect();
        let levels: Vec<i16> = values.iter().map(|value| i16::from(value.is_some())).collect();
        let values: Vec<T::T> = values.into_iter().flatten().collect();
        self.column::<T>(&values, Some(&levels), None)
    }

    /// Writes the next column, in which every row has a list of texts. An empty list is one entry without a value; of the
    /// entries of another one each but the first is a repetition.
    fn list(
        &mut self,
        rows: &[Row],
        texts: impl Fn(&Row) -> &[String],
    ) -> Result<(), ParquetError> {
        let (mut values, mut levels, mut repetitions) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows {
            let texts = texts(row);
            if texts.is_empty() {
                levels.push(0);
                repetitions.push(0);
            }
            for (at, text) in texts.iter().enumerate() {
                values.push(ByteArray::from(text.as_bytes().to_vec()));
                levels.push(1);
                repetitions.push(i16::from(at > 0));
            }
        }
        self.column::<ByteArrayType>(&values, Some(&levels), Some(&repetitions))
    }

    fn column<T: DataType>(
        &mut self,
        values: &[T::T],
        levels: Option<&[i16]>,
        repetitions: Option<&[i16]>,
    ) -> Result<(), ParquetError> {
        let Some(mut column) = self.0.next_column()? else {
            return Err(ParquetError::General("the schema has no more columns".to_owned()));
        };
        column.typed::<T>().write_batch(values, levels, repetitions)?;
        column.close()
    }
}

/// What the output said, where it was that.
fn io_error(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(cause) => match cause.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(cause) => io::Error::other(cause),
        },
        error => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use did_plc::{Cid, Did, Timestamp};
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::RowAccessor;

    use super::*;

    fn row(number: usize) -> Row {
        let text = |what: &str| format!("{what}{number}");
        let every_third = |text: String| number.is_multiple_of(3).then_some(text);
        Row {
            did: Did::from_bytes([number as u8; 15]),
            cid: Cid::of(&number.to_be_bytes()),
            sequence: Some(number as i64),
            created_at: Timestamp::from_millis(number as i64),
            kind: "plc_operation",
            prev: every_third(text("prev")),
            handles: (0..number % 4).map(|place| format!("handle{place}of{number}")).collect(),
            host: Some(text("host")),
            rotation_keys: vec![text("key")],
            signing_key: None,
            signer: text("key"),
            signer_index: 0,
            nullified: false,
            nullified_by: None,
        }
    }

    /// However many rows come at a time, groups are of the stated size, and nothing is lost between them.
    #[test]
    fn groups_have_a_bound() {
        let all = 2 * ROWS_OF_A_GROUP + 7;
        let mut table = ParquetTable::begin(Vec::new()).unwrap();
        let rows: Vec<Row> = (0..all).map(row).collect();
        rows[..10].chunks(3).for_each(|rows| table.add(rows.to_vec()).unwrap());
        table.add(rows[10..].to_vec()).unwrap();
        assert_eq!(table.rows.len(), 7);
        let file = bytes::Bytes::from(table.end().unwrap());
        let reader = SerializedFileReader::new(file).unwrap();
        let groups = reader.metadata().row_groups().iter().map(|group| group.num_rows());
        assert_eq!(groups.collect::<Vec<_>>(), [ROWS_OF_A_GROUP as i64, ROWS_OF_A_GROUP as i64, 7]);
        let mut read = 0;
        for (found, row) in reader.get_row_iter(None).unwrap().zip(&rows) {
            let found = found.unwrap();
            assert_eq!(found.get_long(2).unwrap(), row.sequence.unwrap());
            assert_eq!(found.get_string(7).ok(), row.host.as_ref());
            assert_eq!(found.get_string(5).ok(), row.prev.as_ref());
            assert_eq!(found.get_list(6).unwrap().len(), row.handles.len());
            read += 1;
        }
        assert_eq!(read, all);
    }
}
