//! The way to the database server: it knows where a statement ends, and breaks where a plan wants it to.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter,
};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use super::time::UnderWay;

/// What is wrong with a link.
#[derive(Debug, Clone, Default)]
pub struct LinkTrouble {
    /// No connection is let through.
    pub closed: bool,
    /// So many messages of ours later the connection is cut: that one is handed on before, or is not.
    pub cut: Option<Cut>,
    /// How long each statement waits before it is handed on.
    pub delay: Option<Duration>,
    /// Nothing is handed on.
    pub stalled: bool,
    /// What becomes of a COMMIT.
    pub commit: CommitFate,
}

/// When a connection is cut.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    pub after_messages: u32,
    pub last_arrives: bool,
}

/// What becomes of a COMMIT.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CommitFate {
    #[default]
    Answered,
    /// The connection is cut before it arrives.
    Lost,
    /// The connection is cut when it is done, before that is known here.
    Unanswered,
    /// It is done, and that is known here so much later.
    Late(Duration),
}

/// A way to the database server.
pub struct Link {
    address: SocketAddr,
    shared: Arc<Shared>,
    _accepting: AbortOnDropHandle<()>,
}

struct Shared {
    server: PgConnectOptions,
    under_way: Arc<UnderWay>,
    trouble: Mutex<LinkTrouble>,
    /// Changes with the trouble.
    changes: watch::Sender<u64>,
    /// Changes when all connections are cut.
    cuts: watch::Sender<u64>,
}

impl Link {
    /// To the server of this URL.
    pub async fn to(url: &str, under_way: &Arc<UnderWay>) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            server: url.parse().unwrap(),
            under_way: Arc::clone(under_way),
            trouble: Mutex::default(),
            changes: watch::channel(0).0,
            cuts: watch::channel(0).0,
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Link { address, shared, _accepting: AbortOnDropHandle::new(accepting) }
    }

    /// The URL of what this one names, by this link.
    pub fn url(&self, of: &str) -> String {
        let mut url = url::Url::parse(of).unwrap();
        url.set_host(Some(&self.address.ip().to_string())).unwrap();
        url.set_port(Some(self.address.port())).unwrap();
        url.set_query(Some("sslmode=disable"));
        url.into()
    }

    /// From now on this is wrong.
    pub fn set_trouble(&self, trouble: LinkTrouble) {
        let closed = trouble.closed;
        *self.shared.trouble.lock().unwrap() = trouble;
        self.shared.changes.send_modify(|changes| *changes += 1);
        if closed {
            self.cut();
        }
    }

    /// One connection is cut at a message to come.
    pub fn cut_at(&self, cut: Cut) {
        self.shared.trouble.lock().unwrap().cut = Some(cut);
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        if shared.trouble.lock().unwrap().closed {
            continue;
        }
        let shared = Arc::clone(&shared);
        let mut cuts = shared.cuts.subscribe();
        tokio::spawn(async move {
            let connection = Connection::new(&shared);
            tokio::select! {
                _ = connection.run(client) => {}
                _ = cuts.changed() => {}
            }
        });
    }
}

/// One connection. What it has under way ends with it.
struct Connection<'a> {
    shared: &'a Shared,
    under_way: Mutex<usize>,
    /// What becomes of the answer that comes next.
    answer: Mutex<CommitFate>,
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        self.shared.under_way.subtract(*self.under_way.lock().unwrap());
    }
}

impl Connection<'_> {
    fn new(shared: &Shared) -> Connection<'_> {
        Connection { shared, under_way: Mutex::new(0), answer: Mutex::default() }
    }

    async fn run(&self, client: TcpStream) -> std::io::Result<()> {
        client.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let options = &self.shared.server;
        if let Some(socket) = options.get_socket() {
            let path = socket.join(format!(".s.PGSQL.{}", options.get_port()));
            let (answers, requests) = UnixStream::connect(path).await?.into_split();
            self.carry(from_client, requests, answers, to_client).await
        } else {
            let server = TcpStream::connect((options.get_host(), options.get_port())).await?;
            server.set_nodelay(true)?;
            let (answers, requests) = server.into_split();
            self.carry(from_client, requests, answers, to_client).await
        }
    }

    /// Carries both ways until either ends.
    async fn carry(
        &self,
        from_client: impl AsyncRead + Unpin,
        to_server: impl AsyncWrite + Unpin,
        from_server: impl AsyncRead + Unpin,
        to_client: impl AsyncWrite + Unpin,
    ) -> std::io::Result<()> {
        tokio::select! {
            ended = self.carry_requests(BufReader::new(from_client), BufWriter::new(to_server)) => ended,
            ended = self.carry_answers(BufReader::new(from_server), BufWriter::new(to_client)) => ended,
        }
    }

    async fn carry_requests(
        &self,
        mut from: BufReader<impl AsyncRead + Unpin>,
        mut to: BufWriter<impl AsyncWrite + Unpin>,
    ) -> std::io::Result<()> {
        // The first message has no type.
        let mut message = read_sized(&mut from, Vec::new()).await?;
        self.begins();
        loop {
            to.write_all(&message).await?;
            if from.buffer().is_empty() {
                to.flush().await?;
            }
            let kind = from.read_u8().await?;
            message = read_sized(&mut from, vec![kind]).await?;
            let (delay, cut, fate) = self.trouble_with(&message);
            self.while_stalled().await;
            if ends_statement(kind) {
                if let Some(delay) = delay {
                    sleep(delay).await;
                }
                self.begins();
            }
            match (fate, cut) {
                (CommitFate::Lost, _) => return Ok(()),
                (CommitFate::Answered, _) => {}
                (fate, _) => *self.answer.lock().unwrap() = fate,
            }
            if let Some(last_arrives) = cut {
                if last_arrives {
                    to.write_all(&message).await?;
                    to.flush().await?;
                }
                return Ok(());
            }
        }
    }

    /// Waits until something is let through again.
    async fn while_stalled(&self) {
        let mut changes = self.shared.changes.subscribe();
        while self.shared.trouble.lock().unwrap().stalled {
            // Never closed while we are here.
            let _ = changes.changed().await;
        }
    }

    /// What is wrong with this message: how long it waits, whether the connection is cut, and what becomes of it where
    /// it is a COMMIT.
    fn trouble_with(&self, message: &[u8]) -> (Option<Duration>, Option<bool>, CommitFate) {
        let mut trouble = self.shared.trouble.lock().unwrap();
        let cut = match &mut trouble.cut {
            Some(Cut { after_messages: 0, last_arrives }) => {
                let last_arrives = *last_arrives;
                trouble.cut = None;
                Some(last_arrives)
            }
            Some(cut) => {
                cut.after_messages -= 1;
                None
            }
            None => None,
        };
        let is_commit = message[0] == b'Q' && message[5..].starts_with(b"COMMIT");
        let fate = if is_commit { trouble.commit } else { CommitFate::Answered };
        (trouble.delay, cut, fate)
    }

    async fn carry_answers(
        &self,
        mut from: BufReader<impl AsyncRead + Unpin>,
        mut to: BufWriter<impl AsyncWrite + Unpin>,
    ) -> std::io::Result<()> {
        loop {
            let kind = from.read_u8().await?;
            let message = read_sized(&mut from, vec![kind]).await?;
            self.while_stalled().await;
            let fate = std::mem::take(&mut *self.answer.lock().unwrap());
            match fate {
                CommitFate::Unanswered => return Ok(()),
                CommitFate::Late(by) => {
                    self.ends();
                    sleep(by).await;
                    self.begins();
                }
                CommitFate::Answered | CommitFate::Lost => {}
            }
            if kind == b'Z' {
                self.ends();
            }
            to.write_all(&message).await?;
            if from.buffer().is_empty() {
                to.flush().await?;
            }
        }
    }

    fn begins(&self) {
        *self.under_way.lock().unwrap() += 1;
        self.shared.under_way.add();
    }

    fn ends(&self) {
        let mut under_way = self.under_way.lock().unwrap();
        if *under_way > 0 {
            *under_way -= 1;
            self.shared.under_way.subtract(1);
        }
    }
}

/// Whether the server answers a message of this type with that it is ready again: Query and Sync.
fn ends_statement(kind: u8) -> bool {
    matches!(kind, b'Q' | b'S')
}

/// Reads a message from its length on, behind what was read of it.
async fn read_sized(
    from: &mut (impl AsyncBufReadExt + Unpin),
    mut message: Vec<u8>,
) -> std::io::Result<Vec<u8>> {
    let length = from.read_u32().await?;
    message.extend(length.to_be_bytes());
    let begin = message.len();
    message.resize(begin + length as usize - 4, 0);
    from.read_exact(&mut message[begin..]).await?;
    Ok(message)
}
