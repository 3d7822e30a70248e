//! TLS: who is shown what, who gets in, and that certificates change under load without anybody's noticing.

use std::path::PathBuf;
use std::sync::Arc;

use majorityd::config::ClientAuth;
use majorityd::proto::v1::lock_service_client::LockServiceClient;
use rustls::pki_types::pem::PemObject;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Error, Identity};

use crate::certificates::{Authority, Signed};
use crate::metrics::{Scrape, scraped};
use crate::stage::*;

/// A folder with the certificate of a daemon that serves with it.
pub struct Secured {
    pub cluster: Cluster,
    pub folder: TempDir,
}

impl Secured {
    pub fn new(shown: &Signed) -> Self {
        let (mut cluster, folder) = (Cluster::new(), tempfile::tempdir().unwrap());
        let (certificate, key) = shown.write(folder.path(), "server");
        (cluster.settings.grpc.tls.cert_file, cluster.settings.grpc.tls.key_file) =
            (Some(certificate), Some(key));
        Self { cluster, folder }
    }

    /// Clients are asked for what this one signs.
    pub fn asking(mut self, clients: &Authority, auth: ClientAuth) -> Self {
        let file: PathBuf = self.folder.path().join("clients.crt");
        std::fs::write(&file, &clients.pem).unwrap();
        self.cluster.settings.grpc.tls.client_ca_file = Some(file);
        self.cluster.settings.grpc.tls.client_auth = auth;
        self
    }

    /// Other files at the same place, one after the other.
    pub fn replace(&self, shown: &Signed) {
        shown.write(self.folder.path(), "server");
    }
}

pub fn endpoint(served: &Served, trusted: &[&Authority], shown: Option<&Signed>) -> Endpoint {
    let pem: Vec<&str> = trusted.iter().map(|authority| authority.pem.as_str()).collect();
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem.concat()));
    if let Some(Signed { certificate, key }) = shown {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    Endpoint::from_shared(format!("https://{}", served.address)).unwrap().tls_config(tls).unwrap()
}

pub async fn connect(served: &Served, trusted: &Authority, shown: Option<&Signed>) -> Result<Channel, Error> {
    within(endpoint(served, &[trusted], shown).connect()).await
}

/// Whether there is a connection on which calls are answered. With TLS 1.3 a client learns after its own handshake that it
/// is not wanted.
pub async fn gets_in(served: &Served, trusted: &Authority, shown: Option<&Signed>) -> Result<(), String> {
    let channel = connect(served, trusted, shown).await.map_err(|error| chain(&error))?;
    let mut client = LockServiceClient::new(channel);
    let asked = within(client.acquire(asking("x", "somebody"))).await;
    asked.map(drop).map_err(|status| chain(&status))
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

async fn handshakes(served: &Served, outcome: &str, count: f64) {
    let outcome = [("outcome", outcome)];
    scraped(served, |now| now.sum("majorityd_tls_handshakes_total", &outcome) == count).await;
}

#[tokio::test]
async fn who_trusts_the_certificate_gets_in_and_who_does_not_goes_away() {
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let secured = Secured::new(&ours.server());
    let served = secured.cluster.daemon().await;
    gets_in(&served, &ours, None).await.unwrap();
    handshakes(&served, "done", 1.0).await;
    let refused = gets_in(&served, &others, None).await.unwrap_err();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
    handshakes(&served, "failed", 1.0).await;
    // A certificate that nobody asked for is not looked at.
    gets_in(&served, &ours, Some(&others.client(&["x.example"]))).await.unwrap();
    let expiry = Scrape::of(&served).await.sum("majorityd_tls_certificate_expiry_seconds", &[]);
    assert_eq!(expiry, 67_090_118_400.0, "the end of the year 4095");
}

#[tokio::test]
async fn a_client_that_speaks_plaintext_is_told_so() {
    let ours = Authority::new("ours");
    let served = Secured::new(&ours.server()).cluster.daemon().await;
    let channel = Endpoint::from_shared(format!("http://{}", served.address)).unwrap().connect_lazy();
    let status = within(LockServiceClient::new(channel).acquire(asking("x", "a"))).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("speaks TLS: use an https:// address"), "{status:?}");
    scraped(&served, |now| now.sum("majorityd_tls_handshakes_total", &[("outcome", "plaintext")]) >= 1.0)
        .await;
}

/// Without TLS, and within.
#[tokio::test]
async fn a_client_that_speaks_http1_is_told_so() {
    let ours = Authority::new("ours");
    let served = Secured::new(&ours.server()).cluster.daemon().await;
    for request in ["GET / HTTP/1.1\r\n\r\n", "POST / HTTP/1.1\r\n\r\n"] {
        let mut plain = TcpStream::connect(served.address).await.unwrap();
        plain.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within(plain.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 505 ") && answer.contains("HTTP/2 and TLS alone"), "{answer}");
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(ours.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.unwrap().with_root_certificates(roots).with_no_client_auth();
    let plain = TcpStream::connect(served.address).await.unwrap();
    let name = "localhost".try_into().unwrap();
    let connecting = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, plain);
    let mut inside = within(connecting).await.unwrap();
    inside.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    within(inside.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 505 ") && answer.contains("HTTP/2 alone"), "{answer}");
}

#[tokio::test]
async fn a_client_has_to_show_a_good_certificate_where_one_is_required() {
    let (ours, clients, others) =
        (Authority::new("ours"), Authority::new("clients"), Authority::new("others"));
    let secured = Secured::new(&ours.server()).asking(&clients, ClientAuth::Required);
    let served = secured.cluster.daemon().await;
    let names = &["billing.example"];
    gets_in(&served, &ours, Some(&clients.client(names))).await.unwrap();
    gets_in(&served, &ours, None).await.unwrap_err();
    gets_in(&served, &ours, Some(&others.client(names))).await.unwrap_err();
    gets_in(&served, &ours, Some(&clients.expired_client(names))).await.unwrap_err();
    // Of the right authority, and for another purpose.
    gets_in(&served, &ours, Some(&clients.server())).await.unwrap_err();
    handshakes(&served, "done", 1.0).await;
    scraped(&served, |now| now.sum("majorityd_tls_handshakes_total", &[("outcome", "failed")]) >= 4.0).await;
}

#[tokio::test]
async fn a_client_may_show_none_where_it_is_optional_and_no_bad_one() {
    let (ours, clients, others) =
        (Authority::new("ours"), Authority::new("clients"), Authority::new("others"));
    let secured = Secured::new(&ours.server()).asking(&clients, ClientAuth::Optional);
    let served = secured.cluster.daemon().await;
    gets_in(&served, &ours, None).await.unwrap();
    gets_in(&served, &ours, Some(&clients.client(&["a.example"]))).await.unwrap();
    gets_in(&served, &ours, Some(&others.client(&["a.example"]))).await.unwrap_err();
}

#[tokio::test]
async fn an_expired_certificate_is_shown_and_clients_refuse_it() {
    let ours = Authority::new("ours");
    let served = Secured::new(&ours.expired_server()).cluster.daemon().await;
    let refused = gets_in(&served, &ours, None).await.unwrap_err();
    assert!(refused.contains("xpired"), "{refused}");
    let expiry = Scrape::of(&served).await.sum("majorityd_tls_certificate_expiry_seconds", &[]);
    assert_eq!(expiry, 1_609_372_800.0, "2020-12-31");
}

/// Connections that say nothing hold up nobody, and when there are too many the oldest make room.
#[tokio::test]
async fn clients_that_hang_in_their_handshakes_hold_up_nobody() {
    let ours = Authority::new("ours");
    let mut secured = Secured::new(&ours.server());
    secured.cluster.grpc.handshakes_max = 4;
    let served = secured.cluster.daemon().await;
    let mut hanging = Vec::new();
    for _ in 0..12 {
        hanging.push(TcpStream::connect(served.address).await.unwrap());
    }
    handshakes(&served, "displaced", 8.0).await;
    gets_in(&served, &ours, None).await.unwrap();
    // The first is closed, without a byte.
    let mut answer = Vec::new();
    assert_eq!(within(hanging[0].read_to_end(&mut answer)).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_handshake_has_its_time() {
    let ours = Authority::new("ours");
    let mut secured = Secured::new(&ours.server());
    secured.cluster.grpc.handshake_timeout = std::time::Duration::from_millis(50);
    let served = secured.cluster.daemon().await;
    let mut hanging = TcpStream::connect(served.address).await.unwrap();
    handshakes(&served, "timed_out", 1.0).await;
    let mut answer = Vec::new();
    assert_eq!(within(hanging.read_to_end(&mut answer)).await.unwrap_or(0), 0);
}

/// Many hold locks and extend them; the certificate is replaced by one of another authority. Nobody's call fails, no
/// connection is dropped, and new connections see the new one.
#[tokio::test]
async fn a_certificate_changes_under_load_and_no_call_fails() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let secured = Secured::new(&old.server());
    let served = secured.cluster.daemon().await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut callers = Vec::new();
    for number in 0..8 {
        let channel = within(endpoint(&served, &[&old], None).connect()).await.unwrap();
        let (mut client, stopped) = (LockServiceClient::new(channel), stopped.clone());
        callers.push(start(async move {
            let name = format!("lock {number}");
            let mut held = lease(&mut client, asking(&name, "holder")).await;
            let mut calls = 0;
            while !*stopped.borrow() {
                held = extend(&mut client, &held).await.expect("no call fails");
                calls += 1;
            }
            assert!(release(&mut client, &held).await, "it was held all the time");
            calls
        }));
    }
    let channel = within(endpoint(&served, &[&old], None).connect()).await.unwrap();
    let mut stream = hold(&mut LockServiceClient::new(channel), holding("held", "stream")).await;
    crate::stage::held(&mut stream).await;

    secured.replace(&new.server());
    let done = [("what", "certificate"), ("outcome", "done")];
    scraped(&served, |now| now.sum("majorityd_reloads_total", &done) == 1.0).await;
    gets_in(&served, &new, None).await.unwrap();
    gets_in(&served, &old, None).await.unwrap_err();

    stop.send_replace(true);
    for caller in callers {
        assert!(within(caller).await.unwrap() > 0);
    }
    // The connections of before are nine, and there was one more since.
    handshakes(&served, "done", 10.0).await;
    let mut client = LockServiceClient::new(connect(&served, &new, None).await.unwrap());
    assert_eq!(get(&mut client, "held").await.holder.unwrap().owner, "stream");
}

#[tokio::test]
async fn a_bad_new_certificate_leaves_the_old_one_and_shows() {
    let ours = Authority::new("ours");
    let secured = Secured::new(&ours.server());
    let served = secured.cluster.daemon().await;
    let failed = [("what", "certificate"), ("outcome", "failed")];
    let stale = |now: &Scrape| now.sum("majorityd_reload_stale", &[("what", "certificate")]);
    let Signed { certificate, .. } = ours.server();
    let bad = [
        Signed { certificate, ..ours.server() },
        Signed { certificate: "nonsense".to_owned(), key: String::new() },
        ours.expired_server(),
    ];
    for (at, bad) in bad.iter().enumerate() {
        secured.replace(bad);
        let now =
            scraped(&served, |now| now.sum("majorityd_reloads_total", &failed) == at as f64 + 1.0).await;
        assert_eq!(stale(&now), 1.0);
        gets_in(&served, &ours, None).await.unwrap();
    }
    let other = Authority::new("other");
    secured.replace(&other.server());
    scraped(&served, |now| stale(now) == 0.0).await;
    gets_in(&served, &other, None).await.unwrap();
}

/// Who signs the clients' certificates changes like everything else.
#[tokio::test]
async fn the_authority_of_clients_changes_too() {
    let (ours, before, after) = (Authority::new("ours"), Authority::new("before"), Authority::new("after"));
    let secured = Secured::new(&ours.server()).asking(&before, ClientAuth::Required);
    let served = secured.cluster.daemon().await;
    let names = &["a.example"];
    std::fs::write(secured.folder.path().join("clients.crt"), &after.pem).unwrap();
    let done = [("what", "certificate"), ("outcome", "done")];
    scraped(&served, |now| now.sum("majorityd_reloads_total", &done) == 1.0).await;
    gets_in(&served, &ours, Some(&after.client(names))).await.unwrap();
    gets_in(&served, &ours, Some(&before.client(names))).await.unwrap_err();
}

#[tokio::test]
async fn plaintext_and_a_unix_socket_stay_as_they_are() {
    let ours = Authority::new("ours");
    let secured = Secured::new(&ours.server());
    let path = secured.folder.path().join("majorityd.sock");
    let served = secured.cluster.daemon_on(tokio::net::UnixListener::bind(&path).unwrap()).await;
    let endpoint = Endpoint::from_shared(format!("unix://{}", path.display())).unwrap();
    let mut client = LockServiceClient::new(within(endpoint.connect()).await.unwrap());
    lease(&mut client, asking("x", "a")).await;
    assert_eq!(gets_in(&served, &ours, None).await, Ok(()));
    // The other way round: nothing of TLS where none is configured.
    let (_cluster, plain, _client) = alone().await;
    assert!(gets_in(&plain, &ours, None).await.is_err());
    let status = within(plain.client().await.get_lock(majorityd::proto::v1::GetLockRequest::default())).await;
    assert_eq!(status.unwrap_err().code(), Code::InvalidArgument);
}
