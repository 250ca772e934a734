//! Clients that stall: they begin and do not go on, or ask and do not read.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::sleep;

/// How many are there at a time.
const CLIENTS: usize = 12;
/// Requests that are sent by one who reads no answer.
const UNREAD: usize = 20;

/// What they send.
const HALF_A_HEAD: &str = "GET /export HTTP/1.1\r\nhost: he";
const EXPORT: &str = "GET /export HTTP/1.1\r\nhost: here\r\n\r\n";
const STREAM: &str = "GET /export/stream?cursor=0 HTTP/1.1\r\nhost: here\r\nupgrade: websocket\r\n\
    connection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Come one after the other for as long as this is polled.
pub async fn stall(seed: u64, addresses: impl Fn() -> Vec<SocketAddr>) -> ! {
    let random = &mut ChaCha20Rng::seed_from_u64(seed ^ 0x57a1);
    let mut clients = VecDeque::new();
    loop {
        sleep(Duration::from_secs_f64(random.random_range(1.0..120.0))).await;
        let addresses = addresses();
        let Some(address) = addresses.choose(random) else { continue };
        let Ok(mut client) = TcpStream::connect(address).await else { continue };
        let sent = match random.random_range(0..3) {
            0 => HALF_A_HEAD.to_owned(),
            1 => EXPORT.repeat(UNREAD),
            _ => STREAM.to_owned(),
        };
        // A service that is gone takes nothing.
        let _ = client.write_all(sent.as_bytes()).await;
        clients.push_back(client);
        clients.drain(..clients.len().saturating_sub(CLIENTS));
    }
}
