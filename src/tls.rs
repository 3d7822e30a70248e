//! What TLS stands on: certificates and keys in PEM, what is wrong with them, and the configurations of rustls made of them.
//!
//! Pure: who calls has read the files. The provider of cryptography is ring, for servers and clients alike. Sessions are not
//! resumed: connections are few and long, and a resumed one would not ask again who the client is.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, RootCertStore, ServerConfig};
use x509_cert::Certificate;
use x509_cert::crl::CertificateList;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// The one protocol above TLS.
const ALPN_H2: &[u8] = b"h2";

/// A name that a certificate vouches for. Kinds are never compared with each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CertificateName {
    /// A DNS name, in lower case.
    Dns(String),
    /// A URI, such as a SPIFFE id; compared byte by byte.
    Uri(String),
}

impl CertificateName {
    /// As people write it: what has a colon is a URI.
    pub fn parse(text: &str) -> Self {
        if text.contains(':') { Self::Uri(text.to_owned()) } else { Self::Dns(text.to_ascii_lowercase()) }
    }
}

impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Dns(text) | Self::Uri(text)) = self;
        f.write_str(text)
    }
}

/// Which of the files is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The certificate with its chain.
    Certificate,
    /// Its private key.
    Key,
    /// Who signs the certificates of the other side.
    Authorities,
    /// Which of those are revoked.
    Revoked,
}

/// One thing that is wrong, as the rest of a sentence that starts with the file. Never has anything of a key in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// The file.
    pub part: Part,
    /// What is asked of it.
    pub rule: String,
}

/// How a server shows who it is.
pub struct Server {
    /// For handshakes.
    pub config: Arc<ServerConfig>,
    /// When the first certificate of the chain expires, in seconds of Unix time.
    pub expires_unix_s: u64,
    /// When the first list of revoked certificates should have been replaced, in seconds of Unix time; `None` without a list.
    pub revoked_until_unix_s: Option<u64>,
    /// Who says whether a client's certificate is good; `None` where none is asked for.
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

/// Who is let in by a certificate.
#[derive(Clone, Copy)]
pub struct Clients<'a> {
    /// Who signs them.
    pub authorities: &'a [u8],
    /// Lists of those that are revoked, each signed by its authority. With any, every authority that signs must have one.
    pub revoked: Option<&'a [u8]>,
    /// Whether a client has to have one.
    pub required: bool,
}

impl Server {
    /// Until when a chain that a client has shown is good, in seconds of Unix time, if it would be taken now: when the first of it
    /// expires, of those that have not.
    ///
    /// # Errors
    /// Why it would not be, as the rest of a sentence that starts with the certificate.
    pub fn vouches(
        &self,
        chain: &[CertificateDer<'static>],
        now_unix: Duration,
    ) -> Result<u64, &'static str> {
        let (Some(clients), [shown, others @ ..]) = (&self.clients, chain) else { return Ok(u64::MAX) };
        let verified = clients.verify_client_cert(shown, others, UnixTime::since_unix_epoch(now_unix));
        verified.map_err(|error| lapse(&error))?;
        let expiries = chain.iter().filter_map(|certificate| expiry(std::slice::from_ref(certificate)).ok());
        Ok(expiries.filter(|expiry| *expiry >= now_unix.as_secs()).min().unwrap_or(u64::MAX))
    }
}

fn lapse(error: &Error) -> &'static str {
    use rustls::CertificateError::{
        Expired, ExpiredContext, Revoked, UnknownIssuer, UnknownRevocationStatus,
    };
    match error {
        Error::InvalidCertificate(Expired | ExpiredContext { .. }) => "has expired",
        Error::InvalidCertificate(Revoked) => "has been revoked",
        Error::InvalidCertificate(UnknownIssuer) => "is of an authority that is not trusted any more",
        Error::InvalidCertificate(UnknownRevocationStatus) => {
            "is of an authority that has no list of revoked certificates any more"
        }
        _ => "would not be taken in a handshake any more",
    }
}

/// A certificate, its chain, and the key that fits it.
pub struct Pair {
    /// The certificate first, then who signed it.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key.
    pub key: PrivateKeyDer<'static>,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// For TLS 1.2 and 1.3 with HTTP/2. With `clients`, those are asked for a certificate.
///
/// # Errors
/// Everything that is wrong with any of the files.
pub fn server(certificate: &[u8], key: &[u8], clients: Option<Clients<'_>>) -> Result<Server, Vec<Unfit>> {
    let pair = pair(certificate, key);
    let verifier = clients.map(verifier).transpose();
    let (pair, clients) = match (pair, verifier) {
        (Ok(pair), Ok(clients)) => (pair, clients),
        (pair, clients) => {
            return Err([pair.err(), clients.err()].into_iter().flatten().flatten().collect());
        }
    };
    let expires_unix_s = expiry(&pair.chain).map_err(|rule| vec![unfit(Part::Certificate, rule)])?;
    let (clients, revoked_until_unix_s) = clients.unzip();
    let config = config(pair, clients.clone())?;
    let revoked_until_unix_s = revoked_until_unix_s.flatten();
    Ok(Server { config: Arc::new(config), expires_unix_s, revoked_until_unix_s, clients })
}

type Verifier = (Arc<dyn ClientCertVerifier>, Option<u64>);

fn verifier(clients: Clients<'_>) -> Result<Verifier, Vec<Unfit>> {
    let roots = roots(clients.authorities);
    let revoked = clients.revoked.map(revocations).transpose();
    let (roots, revoked) = match (roots, revoked) {
        (Ok(roots), Ok(revoked)) => (roots, revoked),
        (roots, revoked) => return Err(roots.err().into_iter().chain(revoked.err()).collect()),
    };
    let (lists, until) =
        revoked.map_or((Vec::new(), None), |Revocations { lists, until_unix_s }| (lists, Some(until_unix_s)));
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider()).with_crls(lists);
    let verifier = if clients.required { verifier } else { verifier.allow_unauthenticated() };
    match verifier.build() {
        Ok(verifier) => Ok((verifier, until)),
        Err(VerifierBuilderError::InvalidCrl(error)) => {
            Err(vec![unfit(Part::Revoked, format!("has a list that can't be used: {error:?}"))])
        }
        Err(error) => Err(vec![unfit(Part::Authorities, error.to_string())]),
    }
}

/// Lists of revoked certificates.
pub struct Revocations {
    lists: Vec<CertificateRevocationListDer<'static>>,
    /// When the first of them should have been replaced, in seconds of Unix time.
    until_unix_s: u64,
}

/// Lists of revoked certificates, as authorities publish them.
///
/// # Errors
/// What is wrong with the file.
pub fn revocations(pem: &[u8]) -> Result<Revocations, Unfit> {
    let of = |rule: String| unfit(Part::Revoked, rule);
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
    let lists = lists.map_err(|error| of(format!("must be lists in PEM: {}", in_words(&error))))?;
    if lists.is_empty() {
        return Err(of("must have a list in PEM (-----BEGIN X509 CRL-----)".to_owned()));
    }
    let mut until_unix_s = u64::MAX;
    for list in &lists {
        let parsed = CertificateList::from_der(list)
            .map_err(|error| of(format!("has something that is no list of X.509, version 2: {error}")))?;
        let next = parsed.tbs_cert_list.next_update;
        until_unix_s = until_unix_s.min(next.map_or(u64::MAX, |next| next.to_unix_duration().as_secs()));
    }
    Ok(Revocations { lists, until_unix_s })
}

fn config(pair: Pair, clients: Option<Arc<dyn ClientCertVerifier>>) -> Result<ServerConfig, Vec<Unfit>> {
    let of = |part| move |error: &dyn fmt::Display| vec![unfit(part, error.to_string())];
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| of(Part::Certificate)(&e))?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => builder.with_client_cert_verifier(clients),
    };
    let mut config = builder.with_single_cert(pair.chain, pair.key).map_err(|e| of(Part::Certificate)(&e))?;
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// A certificate with its chain and its key.
///
/// # Errors
/// Everything that is wrong with either, and that they do not fit.
pub fn pair(certificate: &[u8], key: &[u8]) -> Result<Pair, Vec<Unfit>> {
    let chain = certificates(certificate).map_err(|rule| unfit(Part::Certificate, rule));
    let key = private_key(key).map_err(|rule| unfit(Part::Key, rule));
    let (chain, key) = match (chain, key) {
        (Ok(chain), Ok(key)) => (chain, key),
        (chain, key) => return Err(chain.err().into_iter().chain(key.err()).collect()),
    };
    match CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider()) {
        Ok(_) => Ok(Pair { chain, key }),
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            let rule = "must be the key of the certificate: they do not fit".to_owned();
            Err(vec![unfit(Part::Key, rule)])
        }
        Err(Error::InvalidCertificate(error)) => {
            Err(vec![unfit(Part::Certificate, format!("has a certificate that can't be used: {error:?}"))])
        }
        Err(error) => Err(vec![unfit(Part::Key, format!("has a key that can't be used: {error}"))]),
    }
}

/// Certificates of authorities.
///
/// # Errors
/// What is wrong with the file.
pub fn roots(pem: &[u8]) -> Result<RootCertStore, Unfit> {
    let of = |rule| unfit(Part::Authorities, rule);
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem).map_err(of)? {
        roots
            .add(certificate)
            .map_err(|error| of(format!("has a certificate that can't be used: {error}")))?;
    }
    Ok(roots)
}

fn unfit(part: Part, rule: String) -> Unfit {
    Unfit { part, rule }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(certificates) if certificates.is_empty() => {
            Err("must have a certificate in PEM (-----BEGIN CERTIFICATE-----)".to_owned())
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("must be certificates in PEM: {}", in_words(&error))),
    }
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    if pem.windows(ENCRYPTED.len()).any(|window| window == ENCRYPTED) {
        return Err("must not be encrypted: there is nobody to ask for the passphrase".to_owned());
    }
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound => "must have a private key in PEM (-----BEGIN PRIVATE KEY-----)".to_owned(),
        error => format!("must be a private key in PEM: {}", in_words(&error)),
    })
}

/// In PEM, of PKCS #8 and of the older forms.
const ENCRYPTED: &[u8] = b"ENCRYPTED";

/// Without the bytes that the parser quotes: there may be a key in them.
fn in_words(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no end",
        pem::Error::IllegalSectionStart { .. } => "a section starts wrongly",
        pem::Error::Base64Decode(_) => "what is in a section is not base64",
        pem::Error::SectionTooLarge => "a section is too large",
        pem::Error::NoItemsFound => "there is none",
        _ => "it can't be read",
    }
}

/// When the first of these expires, in seconds of Unix time.
fn expiry(chain: &[CertificateDer<'_>]) -> Result<u64, String> {
    let mut first = u64::MAX;
    for certificate in chain {
        let parsed = parse(certificate).map_err(|error| format!("has no certificate of X.509: {error}"))?;
        first = first.min(parsed.tbs_certificate.validity.not_after.to_unix_duration().as_secs());
    }
    Ok(first)
}

fn parse(certificate: &CertificateDer<'_>) -> Result<Certificate, x509_cert::der::Error> {
    Certificate::from_der(certificate)
}

/// What a certificate vouches for that a client has shown and rustls has verified: its subject alternative names that are DNS
/// names or URIs. None of one that can't be read.
pub fn names(certificate: &CertificateDer<'_>) -> Vec<CertificateName> {
    let Ok(parsed) = parse(certificate) else { return Vec::new() };
    let Ok(Some((_, SubjectAltName(names)))) = parsed.tbs_certificate.get::<SubjectAltName>() else {
        return Vec::new();
    };
    let name = |name: GeneralName| match name {
        GeneralName::DnsName(name) => Some(CertificateName::Dns(name.to_string().to_ascii_lowercase())),
        GeneralName::UniformResourceIdentifier(uri) => Some(CertificateName::Uri(uri.to_string())),
        _ => None,
    };
    names.into_iter().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(names: &[&str]) -> (String, String) {
        let made = rcgen::generate_simple_self_signed(
            names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(),
        )
        .unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn clients<'a>(authorities: &'a str, revoked: Option<&'a str>) -> Clients<'a> {
        Clients { authorities: authorities.as_bytes(), revoked: revoked.map(str::as_bytes), required: true }
    }

    fn refused(certificate: &str, key: &str, authorities: Option<&str>) -> Vec<(Part, String)> {
        let clients = authorities.map(|authorities| clients(authorities, None));
        let made = server(certificate.as_bytes(), key.as_bytes(), clients);
        made.err().unwrap().into_iter().map(|unfit| (unfit.part, unfit.rule)).collect()
    }

    #[test]
    fn a_certificate_and_its_key_make_a_server_that_resumes_nothing() {
        let (certificate, key) = made(&["a.example"]);
        let made = server(certificate.as_bytes(), key.as_bytes(), Some(clients(&certificate, None))).unwrap();
        assert_eq!(made.config.alpn_protocols, [b"h2"]);
        assert_eq!(made.config.send_tls13_tickets, 0);
        // rcgen's end of time.
        assert_eq!(made.expires_unix_s, 67_090_118_400);
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once_and_nothing_of_a_key() {
        let (certificate, key) = made(&["a.example"]);
        let other = made(&["a.example"]).1;
        let parts = |found: Vec<(Part, String)>| found.into_iter().map(|(part, _)| part).collect::<Vec<_>>();
        assert_eq!(parts(refused("", "x", Some("y"))), [Part::Certificate, Part::Key, Part::Authorities]);
        assert_eq!(parts(refused(&certificate, &certificate, None)), [Part::Key]);
        assert_eq!(parts(refused(&key, &key, None)), [Part::Certificate]);
        let found = refused(&certificate, &other, None);
        assert!(found[0].0 == Part::Key && found[0].1.contains("do not fit"), "{found:?}");
        let locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA==\n-----END ENCRYPTED PRIVATE KEY-----\n";
        assert!(refused(&certificate, locked, None)[0].1.contains("passphrase"));
        let cut = &key[..key.len() / 2];
        let found = refused(&certificate, cut, None);
        assert!(!found[0].1.contains(&key[40..50]), "{found:?}");
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(parts(refused(broken, &key, Some(broken))), [Part::Certificate, Part::Authorities]);
    }

    #[test]
    fn what_is_no_list_of_revoked_certificates_is_refused() {
        let (certificate, key) = made(&["a.example"]);
        let broken = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
        for (bad, rule) in
            [("", "must have a list"), (&*certificate, "must have a list"), (broken, "no list of X.509")]
        {
            let clients = Some(clients(&certificate, Some(bad)));
            let found = server(certificate.as_bytes(), key.as_bytes(), clients).err().unwrap();
            assert!(found[0].part == Part::Revoked && found[0].rule.contains(rule), "{found:?}");
        }
    }

    #[test]
    fn names_are_those_of_the_certificate_by_their_kinds() {
        let mut asked =
            rcgen::CertificateParams::new(vec!["A.Example".to_owned(), "10.0.0.1".to_owned()]).unwrap();
        let uri = rcgen::SanType::URI("spiffe://Example/Billing".try_into().unwrap());
        asked.subject_alt_names.push(uri);
        let certificate = asked.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let expected = ["a.example", "spiffe://Example/Billing"].map(CertificateName::parse);
        assert_eq!(names(certificate.der()), expected);
        assert_eq!(CertificateName::parse("A.b"), CertificateName::Dns("a.b".to_owned()));
        assert_eq!(names(&CertificateDer::from(vec![1, 2, 3])), []);
    }
}
