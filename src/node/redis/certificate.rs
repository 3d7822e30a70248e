//! Until when the certificate of a server is good, for `majorityd check`: on a connection of its own, because the one that is used
//! shows nothing of TLS.

use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::RedisOptions;
use super::client;
use crate::config::NodeServer;

/// When the first of the certificates expires that the server shows, in seconds of Unix time. `None` for a server without TLS, and
/// for one where that can't be found out.
pub(super) async fn expiry(options: &RedisOptions) -> Option<u64> {
    if !options.address.tls {
        return None;
    }
    let NodeServer::Tcp { host, port } = &options.address.server else { return None };
    let config = client::tls_config(options).ok()?;
    let name = ServerName::try_from(host.clone()).ok()?;
    let stream = TcpStream::connect((host.as_str(), *port)).await.ok()?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
    let (_, session) = stream.get_ref();
    let expiries = session.peer_certificates()?.iter().filter_map(|certificate| {
        let parsed = Certificate::from_der(certificate).ok()?;
        Some(parsed.tbs_certificate.validity.not_after.to_unix_duration().as_secs())
    });
    expiries.min()
}
