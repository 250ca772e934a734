//! Encryption of the connection to the server, by libpq's `sslmode`.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::store::StoreError;

/// How a connection is encrypted.
#[derive(Clone)]
pub(super) struct Encryption {
    mode: SslMode,
    connector: Option<MakeRustlsConnect>,
}

impl std::fmt::Debug for Encryption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encryption").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Encryption {
    /// Takes `sslmode` and `sslrootcert` out of a URL's query; the rest of the URL is returned.
    ///
    /// As in libpq, `prefer` (the default) and `require` encrypt without asking who the server
    /// is, which every stock server with a certificate of its own needs; `verify-full` checks its
    /// name and its certificate, against `sslrootcert` or the roots that browsers use.
    pub(super) fn from_url(url: &str) -> Result<(String, Encryption), StoreError> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut mode, mut roots, mut rest) = ("prefer", None, Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("sslmode", value)) => mode = value,
                Some(("sslrootcert", value)) => roots = Some(value),
                _ => rest.push(pair),
            }
        }
        let encryption = match mode {
            "disable" => Encryption { mode: SslMode::Disable, connector: None },
            "prefer" => Encryption { mode: SslMode::Prefer, connector: Some(unverified()?) },
            "require" => Encryption { mode: SslMode::Require, connector: Some(unverified()?) },
            "verify-full" => {
                Encryption { mode: SslMode::Require, connector: Some(verified(roots)?) }
            }
            other => {
                return Err(StoreError::Unusable(format!(
                    "the setting --database has sslmode={other}; \
                     it takes disable, prefer, require or verify-full"
                )));
            }
        };
        let rest = rest.join("&");
        let url = if rest.is_empty() { base.to_owned() } else { format!("{base}?{rest}") };
        Ok((url, encryption))
    }

    pub(super) fn mode(&self) -> SslMode {
        self.mode
    }

    /// None when connections are not to be encrypted.
    pub(super) fn connector(&self) -> Option<MakeRustlsConnect> {
        self.connector.clone()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn unusable(error: impl std::fmt::Display) -> StoreError {
    StoreError::Unusable(format!("TLS for the setting --database: {error}"))
}

fn unverified() -> Result<MakeRustlsConnect, StoreError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider())))
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

fn verified(roots: Option<&str>) -> Result<MakeRustlsConnect, StoreError> {
    let mut store = RootCertStore::empty();
    match roots {
        None => store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            let path = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
            let of_file = |error| unusable(format!("sslrootcert={path}: {error}"));
            for certificate in CertificateDer::pem_file_iter(&*path).map_err(of_file)? {
                store.add(certificate.map_err(of_file)?).map_err(unusable)?;
            }
        }
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

/// Accepts any certificate, but still demands that the server holds its key.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
