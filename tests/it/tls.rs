//! An upstream behind TLS: its pages by `https:`, its live stream by `wss:`. Which authorities are
//! trusted is a matter of the system; `SSL_CERT_FILE` stands for its list here.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use plc_testkit::builder::Story;
use plc_testkit::fake_upstream::{FakeUpstream, LogEntry, Route};
use rcgen::{CertificateParams, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::postgres::authority;
use crate::process::Served;

/// An authority that nobody has heard of before.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Authority {
        let (pem, issuer) = authority();
        Authority { pem, issuer }
    }

    /// A file as the system keeps its list of authorities in.
    fn trusted_in(&self, folder: &Path) -> PathBuf {
        let file = folder.join("authorities.pem");
        std::fs::write(&file, &self.pem).unwrap();
        file
    }

    /// What a server with this name needs.
    fn server(&self, name: &str) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let config = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            );
        Arc::new(config.unwrap())
    }
}

/// Passes what comes by TLS on to an upstream that speaks none.
struct Front {
    address: SocketAddr,
    /// Clients that went away without having agreed on anything.
    turned_away: Arc<AtomicUsize>,
}

impl Front {
    async fn start(upstream: &FakeUpstream, config: Arc<ServerConfig>) -> Front {
        let upstream: SocketAddr = upstream.url()["http://".len()..].parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let turned_away = Arc::new(AtomicUsize::new(0));
        let (acceptor, count) = (TlsAcceptor::from(config), Arc::clone(&turned_away));
        tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let (acceptor, count) = (acceptor.clone(), Arc::clone(&count));
                tokio::spawn(async move {
                    let Ok(mut client) = acceptor.accept(connection).await else {
                        count.fetch_add(1, Ordering::Relaxed);
                        return;
                    };
                    let mut server = TcpStream::connect(upstream).await.unwrap();
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Front { address, turned_away }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }
}

fn told(identities: usize) -> Vec<LogEntry> {
    let mut story = Story::seeded(91);
    for _ in 0..identities {
        story.create().accepted();
    }
    story.log().iter().map(LogEntry::from).collect()
}

#[tokio::test]
async fn pages_and_the_stream_come_through_tls() {
    let log = told(5);
    let upstream = FakeUpstream::start(log[..3].to_vec()).await;
    let (authority, folder) = (Authority::new(), TempDir::new().unwrap());
    let front = Front::start(&upstream, authority.server("localhost")).await;
    let trusted = authority.trusted_in(folder.path());
    let environment = [("SSL_CERT_FILE", trusted.to_str().unwrap())];
    let replica = Served::start(folder.path(), &front.url(), &environment);
    replica.reaches(3).await;
    replica.eventually("a stream", async || upstream.streams() == 1).await;
    let pages = upstream.asked_for(Route::Export);
    upstream.append_all(log[3..].to_vec());
    replica.reaches(5).await;
    assert_eq!(upstream.asked_for(Route::Export), pages, "it came by the stream");
    let asked = upstream.asked();
    let stream = asked.iter().find(|asked| asked.route == Route::Stream).unwrap();
    assert_eq!(stream.path, "/export/stream?cursor=3");
    assert_eq!(front.turned_away.load(Ordering::Relaxed), 0);
    replica.end();
}

/// A certificate of an authority that is not trusted, and one that is for somebody else.
#[tokio::test]
async fn nothing_is_asked_of_a_server_that_is_not_who_it_says() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    for config in [stranger.server("localhost"), authority.server("plc.example.com")] {
        let upstream = FakeUpstream::start(told(3)).await;
        let front = Front::start(&upstream, config).await;
        let folder = TempDir::new().unwrap();
        let trusted = authority.trusted_in(folder.path());
        let environment = [("SSL_CERT_FILE", trusted.to_str().unwrap())];
        let replica = Served::start(folder.path(), &front.url(), &environment);
        let turned_away = async || front.turned_away.load(Ordering::Relaxed) >= 2;
        replica.eventually("two attempts", turned_away).await;
        assert!(upstream.asked().is_empty());
        let log = replica.end();
        assert!(log.contains("certificate"), "{log}");
    }
}
