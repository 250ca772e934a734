//! As much WebSocket as reading a stream on this machine takes.

use std::net::SocketAddr;
use std::ops::Range;

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// Beginning of every message; the number follows.
const MESSAGE: &[u8] = br#"{"seq":"#;
const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
/// Bytes that the system holds for a client that reads now and then, about: half a second of 200 operations a
/// second. The more it holds, the later the server sees that nobody reads.
const SMALL_BUFFER: u32 = 64 << 10;

/// A client of a stream that reads frames and looks only at their numbers: a thousand of them
/// must not need more of the machine than the server.
pub struct Client {
    connection: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    /// Joins the stream now, or after a number.
    pub async fn connect(replica: SocketAddr, cursor: Option<u64>) -> anyhow::Result<Client> {
        Client::join(TcpStream::connect(replica).await?, cursor).await
    }

    /// The same with little room for what it does not read.
    pub async fn connect_slow(replica: SocketAddr, cursor: u64) -> anyhow::Result<Client> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(SMALL_BUFFER)?;
        Client::join(socket.connect(replica).await?, Some(cursor)).await
    }

    async fn join(mut connection: TcpStream, cursor: Option<u64>) -> anyhow::Result<Client> {
        let query = cursor.map_or_else(String::new, |cursor| format!("?cursor={cursor}"));
        let request = format!(
            "GET /export/stream{query} HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\n\
             upgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        );
        connection.write_all(request.as_bytes()).await?;
        let mut client = Client { connection, buffer: Vec::new() };
        let end = loop {
            match memchr::memmem::find(&client.buffer, b"\r\n\r\n") {
                Some(at) => break at + 4,
                None => client.fill().await?,
            }
        };
        let head: Vec<u8> = client.buffer.drain(..end).collect();
        ensure!(
            head.starts_with(b"HTTP/1.1 101"),
            "the stream was refused: {}",
            String::from_utf8_lossy(&head)
        );
        Ok(client)
    }

    /// The number of the next operation. May be dropped while it waits: nothing is lost.
    pub async fn next(&mut self) -> anyhow::Result<u64> {
        loop {
            let (kind, payload) = self.frame().await?;
            let end = payload.end;
            match kind {
                TEXT => {
                    let sequence = sequence_of(&self.buffer[payload])?;
                    self.buffer.drain(..end);
                    return Ok(sequence);
                }
                PING => self.pong(payload).await?,
                CLOSE => bail!(
                    "closed: {}",
                    String::from_utf8_lossy(self.buffer.get(payload.start + 2..end).unwrap_or(b""))
                ),
                _ => {}
            }
            self.buffer.drain(..end);
        }
    }

    /// The kind of the next frame, and where its payload stands in the buffer. Frames of a server
    /// are not masked, and these are not fragmented.
    async fn frame(&mut self) -> anyhow::Result<(u8, Range<usize>)> {
        loop {
            if let Some((start, length)) = payload(&self.buffer)
                && self.buffer.len() >= start + length
            {
                return Ok((self.buffer[0] & 0x0f, start..start + length));
            }
            self.fill().await?;
        }
    }

    async fn pong(&mut self, ping: Range<usize>) -> anyhow::Result<()> {
        // Frames of a client are masked; this mask changes nothing.
        let mut frame = vec![0x8a, 0x80 | ping.len() as u8, 0, 0, 0, 0];
        frame.extend_from_slice(&self.buffer[ping]);
        Ok(self.connection.write_all(&frame).await?)
    }

    async fn fill(&mut self) -> anyhow::Result<()> {
        self.buffer.reserve(16 << 10);
        let read = self.connection.read_buf(&mut self.buffer).await?;
        ensure!(read > 0, "the replica closed the connection");
        Ok(())
    }
}

/// Where the payload of the frame at the beginning stands: start and length.
fn payload(frame: &[u8]) -> Option<(usize, usize)> {
    match frame.get(1)? & 0x7f {
        126 => Some((4, usize::from(u16::from_be_bytes(frame.get(2..4)?.try_into().ok()?)))),
        127 => Some((10, u64::from_be_bytes(frame.get(2..10)?.try_into().ok()?) as usize)),
        length => Some((2, usize::from(length))),
    }
}

fn sequence_of(message: &[u8]) -> anyhow::Result<u64> {
    let digits = message.strip_prefix(MESSAGE).context("a message without a number")?;
    let length = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    Ok(str::from_utf8(&digits[..length])?.parse()?)
}
