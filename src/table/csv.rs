//! The table as CSV.

use std::io::{self, Write};

use csv::{QuoteStyle, Writer, WriterBuilder};
use did_plc::json;

use super::row::Row;

/// The first line.
const COLUMNS: [&str; 14] = [
    "did",
    "cid",
    "sequence",
    "created_at",
    "type",
    "prev",
    "handles",
    "host",
    "rotation_keys",
    "signing_key",
    "signer",
    "signer_index",
    "nullified",
    "nullified_by",
];

/// A table that is being written as CSV (RFC 4180, with a line of names): a list is a JSON array of texts, an empty cell
/// is what is not there.
pub struct CsvTable<W: Write> {
    writer: Writer<W>,
}

impl<W: Write> CsvTable<W> {
    /// Begins a table.
    ///
    /// # Errors
    ///
    /// Those of the output, here and below.
    pub fn begin(out: W) -> io::Result<CsvTable<W>> {
        let mut writer = WriterBuilder::new().quote_style(QuoteStyle::Necessary).from_writer(out);
        writer.write_record(COLUMNS)?;
        Ok(CsvTable { writer })
    }

    /// Adds rows.
    pub fn add(&mut self, rows: &[Row]) -> io::Result<()> {
        for row in rows {
            self.writer.write_record([
                row.did.to_string(),
                row.cid.to_string(),
                row.sequence.map(|number| number.to_string()).unwrap_or_default(),
                row.created_at.to_string(),
                row.kind.to_owned(),
                row.prev.clone().unwrap_or_default(),
                list(&row.handles),
                row.host.clone().unwrap_or_default(),
                list(&row.rotation_keys),
                row.signing_key.clone().unwrap_or_default(),
                row.signer.clone(),
                row.signer_index.to_string(),
                row.nullified.to_string(),
                row.nullified_by.map(|cid| cid.to_string()).unwrap_or_default(),
            ])?;
        }
        Ok(())
    }

    /// Ends the table, and gives back what it was written to.
    pub fn end(self) -> io::Result<W> {
        self.writer.into_inner().map_err(|error| error.into_error())
    }
}

/// A JSON array.
fn list(texts: &[String]) -> String {
    let mut out = vec![b'['];
    for (at, text) in texts.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        json::write_string(text, &mut out);
    }
    out.push(b']');
    String::from_utf8(out).unwrap_or_default()
}
