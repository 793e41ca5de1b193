//! A server's certificate, made up for one session: a replica that is told of it talks to this server and to no other, and
//! what goes between them is encrypted.

use std::fmt;
use std::io;
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Where the server listens.
const LOOPBACK: &str = "127.0.0.1";

/// A certificate for this machine's loopback, signed by itself, with its key.
#[derive(Clone)]
pub struct Certificate {
    pem: String,
    acceptor: TlsAcceptor,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Certificate")
    }
}

impl Certificate {
    /// A new one, with a new key.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn new() -> io::Result<Self> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let mut parameters = CertificateParams::new([LOOPBACK.to_owned()]).map_err(io::Error::other)?;
        // Servers compare the address that they were given, some of them with names only.
        let name = LOOPBACK.try_into().map_err(io::Error::other)?;
        parameters.subject_alt_names.push(SanType::DnsName(name));
        let certificate = parameters.self_signed(&key).map_err(io::Error::other)?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .map_err(io::Error::other)?;
        Ok(Self {
            pem: certificate.pem(),
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }

    /// What a replica must know to know the server, in PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.acceptor.accept(stream).await
    }
}
