//! A Postgres for the tests: the server that `DATABASE_URL` names, or one of our own.
//!
//! Our own is started at the first use, once a test run, in a directory of its own, and ends with
//! the test process, however that ends. Tests that kill servers have some of their own ([`Server`]).

mod client;
mod server;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::AssertSqlSafe;

pub use self::client::{Client, TextRow};
pub use self::server::{Place, Server, programs};

/// A database for one test, empty at first. Dropped at its end.
pub struct Database {
    /// Where it is.
    pub url: String,
    name: String,
    server: &'static str,
}

impl Database {
    /// None, and a line that says so, when there is no server to be had.
    pub async fn create() -> Option<Database> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let server = server()?;
        let name =
            format!("plc_test_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let create = format!("CREATE DATABASE {name} TEMPLATE template0");
        Client::connect(server).await.run(&create).await;
        let mut url = url::Url::parse(server).unwrap();
        url.set_path(&name);
        Some(Database { url: url.into(), name, server })
    }

    /// A connection beside the store's, to look and to do harm.
    pub async fn client(&self) -> Client {
        Client::connect(&self.url).await
    }

    /// Ends all connections to the database; `closed` lets no new one in.
    pub async fn interrupt(&self, closed: bool) {
        let sql = format!(
            "ALTER DATABASE {0} ALLOW_CONNECTIONS {1};
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{0}'",
            self.name, !closed
        );
        Client::connect(self.server).await.run(&sql).await;
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (server, name) = (self.server, self.name.clone());
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let drop = format!("DROP DATABASE {name} WITH (FORCE)");
                let mut client = Client::connect(server).await;
                let _ = sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut client.connection).await;
            });
        });
        let _ = dropping.join();
    }
}

/// URL of the server's own database.
fn server() -> Option<&'static str> {
    static SERVER: OnceLock<Option<(String, Option<Server>)>> = OnceLock::new();
    let server = SERVER.get_or_init(|| match std::env::var("DATABASE_URL") {
        Ok(url) if url.starts_with("postgres") => Some((url, None)),
        // Kept for as long as this process lives.
        _ => Server::start().map(|own| (own.url("postgres"), Some(own))),
    });
    server.as_ref().map(|(url, _)| &**url)
}
