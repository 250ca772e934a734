//! In which form operations are written.

use std::io::{BufWriter, Write};

use did_plc::entry::Logged;
use did_plc::operation::Malformed;

use super::output::Output;
use crate::store::{Store, StoredOperation};
use crate::table::{CsvTable, ParquetTable, rows};

/// The forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// JSON, a line for each operation, as the directory writes them.
    Lines,
    /// A table with a line for each operation.
    Csv,
    /// A table for programs that count and compare: DuckDB, pandas, Spark.
    Parquet,
}

type Out = BufWriter<Output>;

/// An export that is being written.
pub enum Form {
    /// The lines of the export by number.
    Numbered(Out),
    /// The lines of the export by time.
    Timed(Out),
    /// A table as CSV.
    Csv(Box<CsvTable<Out>>),
    /// A table as Parquet.
    Parquet(Box<ParquetTable<Out>>),
}

impl Form {
    /// Begins it.
    pub fn begin(format: Format, by_time: bool, output: Output) -> anyhow::Result<Form> {
        let out = BufWriter::new(output);
        Ok(match format {
            Format::Lines if by_time => Form::Timed(out),
            Format::Lines => Form::Numbered(out),
            Format::Csv => Form::Csv(Box::new(CsvTable::begin(out)?)),
            Format::Parquet => Form::Parquet(Box::new(ParquetTable::begin(out)?)),
        })
    }

    /// Writes operations of this store.
    pub async fn write(
        &mut self,
        store: &Store,
        operations: Vec<StoredOperation>,
    ) -> anyhow::Result<()> {
        match self {
            Form::Numbered(out) => {
                for stored in operations.iter().filter(|stored| stored.sequence.is_some()) {
                    write_line(stored, |logged, line| logged.write_sequenced(line), out)?;
                }
            }
            Form::Timed(out) => {
                for stored in &operations {
                    write_line(stored, |logged, line| logged.write_timestamped(line), out)?;
                }
            }
            Form::Csv(table) => table.add(&rows(store, operations).await?)?,
            Form::Parquet(table) => table.add(rows(store, operations).await?)?,
        }
        Ok(())
    }

    /// Ends it: all of it is where it is to be.
    pub fn end(self) -> anyhow::Result<()> {
        let out = match self {
            Form::Numbered(out) | Form::Timed(out) => out,
            Form::Csv(table) => table.end()?,
            Form::Parquet(table) => table.end()?,
        };
        let output = out.into_inner().map_err(|error| error.into_error())?;
        Ok(output.finish()?)
    }
}

fn write_line(
    stored: &StoredOperation,
    form: impl Fn(&Logged<'_>, &mut Vec<u8>) -> Result<(), Malformed>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let cid = stored.cid();
    let logged = stored.logged(&cid);
    let mut line = Vec::with_capacity(1024);
    form(&logged, &mut line)?;
    line.push(b'\n');
    out.write_all(&line)?;
    Ok(())
}
