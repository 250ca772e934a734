//! As much HTTP as asking a server on this machine takes: requests that are rendered once, and
//! answers whose end is found.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};
use did_plc::Timestamp;
use tokio::io::AsyncReadExt;

/// A local server that needs longer than this has stopped.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest head of an answer.
const MAX_HEAD: usize = 16 << 10;

/// Asks once, on a connection of its own: the status and the body.
pub fn get(address: SocketAddr, path: &str) -> anyhow::Result<(u16, Vec<u8>)> {
    let mut connection = TcpStream::connect_timeout(&address, TIMEOUT)?;
    connection.set_read_timeout(Some(TIMEOUT))?;
    // Version 1.0: neither chunks nor a connection that stays open.
    write!(connection, "GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n")?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer)?;
    let end = head_length(&answer).context("an answer without an end of its head")?;
    let status = Head::parse(&answer[..end])?.status;
    Ok((status, answer.split_off(end)))
}

/// A request on a connection that stays open.
pub fn request(address: SocketAddr, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n").into_bytes()
}

/// An answer that was read.
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Bytes of the body.
    pub length: u64,
    /// Whether it says when to come back.
    pub says_when: bool,
    /// What a replica states with it.
    pub stated: Stated,
}

/// What a replica states of an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stated {
    /// `PLC-Sequence`: it has everything up to this number.
    pub sequence: Option<i64>,
    /// `PLC-As-Of`: and up to this time.
    pub as_of: Option<Timestamp>,
    /// `ETag`.
    pub etag: Option<Box<str>>,
}

impl Answer {
    /// Whether it puts the client off, and says until when.
    pub fn puts_off(&self) -> bool {
        self.says_when && matches!(self.status, 429 | 503)
    }
}

/// Reads answers from a connection that stays open; keeps nothing of their bodies.
#[derive(Default)]
pub struct Reader {
    buffer: Vec<u8>,
}

impl Reader {
    /// Reads one answer to its end.
    pub async fn read(&mut self, from: &mut (impl AsyncReadExt + Unpin)) -> anyhow::Result<Answer> {
        let end = loop {
            if let Some(end) = head_length(&self.buffer) {
                break end;
            }
            if self.buffer.len() > MAX_HEAD {
                bail!("the head of an answer is longer than {MAX_HEAD} bytes");
            }
            self.fill(from).await?;
        };
        let head = Head::parse(&self.buffer[..end])?;
        self.buffer.drain(..end);
        let length = match head.length {
            Length::Known(length) => {
                self.skip(from, length).await?;
                length
            }
            Length::Chunks => self.skip_chunks(from).await?,
        };
        Ok(Answer { status: head.status, length, says_when: head.says_when, stated: head.stated })
    }

    /// Passes over this many bytes.
    async fn skip(
        &mut self,
        from: &mut (impl AsyncReadExt + Unpin),
        mut length: u64,
    ) -> anyhow::Result<()> {
        while length > self.buffer.len() as u64 {
            length -= self.buffer.len() as u64;
            self.buffer.clear();
            self.fill(from).await?;
        }
        self.buffer.drain(..usize::try_from(length)?);
        Ok(())
    }

    async fn skip_chunks(&mut self, from: &mut (impl AsyncReadExt + Unpin)) -> anyhow::Result<u64> {
        let mut total = 0;
        loop {
            let end = loop {
                if let Some(at) = memchr::memchr(b'\n', &self.buffer) {
                    break at + 1;
                }
                self.fill(from).await?;
            };
            let digits = str::from_utf8(&self.buffer[..end])?.trim();
            let length = u64::from_str_radix(digits, 16).context("a chunk without a length")?;
            // The chunk, and the line end after it.
            self.skip(from, end as u64 + length + 2).await?;
            total += length;
            if length == 0 {
                return Ok(total);
            }
        }
    }

    async fn fill(&mut self, from: &mut (impl AsyncReadExt + Unpin)) -> anyhow::Result<()> {
        self.buffer.reserve(64 << 10);
        if from.read_buf(&mut self.buffer).await? == 0 {
            bail!("the server closed the connection");
        }
        Ok(())
    }
}

enum Length {
    Known(u64),
    Chunks,
}

struct Head {
    status: u16,
    length: Length,
    says_when: bool,
    stated: Stated,
}

fn head_length(answer: &[u8]) -> Option<usize> {
    memchr::memmem::find(answer, b"\r\n\r\n").map(|at| at + 4)
}

impl Head {
    fn parse(head: &[u8]) -> anyhow::Result<Head> {
        let head = str::from_utf8(head)?;
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
        let status = status.parse().context("an answer without a status")?;
        let (mut length, mut says_when) = (Length::Known(0), false);
        let mut stated = Stated::default();
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            if name.eq_ignore_ascii_case("content-length") {
                length = Length::Known(value.trim().parse()?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                length = Length::Chunks;
            } else if name.eq_ignore_ascii_case("retry-after") {
                says_when = true;
            } else if name.eq_ignore_ascii_case("plc-sequence") {
                stated.sequence = Some(value.trim().parse()?);
            } else if name.eq_ignore_ascii_case("plc-as-of") {
                stated.as_of = Some(value.trim().parse()?);
            } else if name.eq_ignore_ascii_case("etag") {
                stated.etag = Some(value.trim().into());
            }
        }
        Ok(Head { status, length, says_when, stated })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_of_both_kinds_are_read_to_their_ends() {
        let text = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello\
                    HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n\
                    3\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n\
                    HTTP/1.1 304 Not Modified\r\n\r\n\
                    HTTP/1.1 503 Service Unavailable\r\nRetry-After: 10\r\n\r\n";
        let (mut reader, mut from) = (Reader::default(), text.as_bytes());
        for expected in [(200, 5, false), (404, 19, false), (304, 0, false), (503, 0, true)] {
            let answer = reader.read(&mut from).await.unwrap();
            assert_eq!((answer.status, answer.length, answer.puts_off()), expected);
        }
        assert!(reader.read(&mut from).await.is_err());
    }
}
