//! [`Security`]: how a client knows that a daemon is one, and how it shows who it is itself.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

use super::ClientError;
use crate::tls::{self, Part, Unfit};

/// What is asked of the daemons and shown to them, where endpoints are `https://` or calls need a token. Certificates and keys are
/// PEM, as they are in files.
#[derive(Clone, Default)]
pub struct Security {
    /// Who signs the daemons' certificates; the authorities of this machine unless given.
    pub authorities: Option<Vec<u8>>,
    /// The certificate to show, with its chain, and its private key.
    pub certificate: Option<ClientCertificate>,
    /// A name that the daemons' certificates have, where it is not the host of the endpoint.
    pub server_name: Option<String>,
    /// What is sent as `authorization: Bearer …` with every call. [`super::Client::set_token`] replaces it.
    pub token: Option<String>,
    /// The token may go over a network without encryption, where whoever listens can use it, too.
    pub allow_plaintext_token: bool,
}

/// A certificate of a client and its key, in PEM.
#[derive(Clone)]
pub struct ClientCertificate {
    /// The certificate first, then who signed it.
    pub chain: Vec<u8>,
    /// Its private key.
    pub key: Vec<u8>,
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Security")
            .field("authorities", &self.authorities.is_some())
            .field("certificate", &self.certificate.is_some())
            .field("server_name", &self.server_name)
            .field("token", &self.token.is_some())
            .finish_non_exhaustive()
    }
}

impl Security {
    /// The endpoint with what is to be known and shown there.
    pub(super) fn secured(&self, endpoint: Endpoint, text: &str) -> Result<Endpoint, ClientError> {
        let unfit = |why: String| ClientError::Unfit { endpoint: text.to_owned(), why };
        if endpoint.uri().scheme_str() == Some("https") {
            let config = self.tls().map_err(unfit)?;
            let secured = endpoint.tls_config(config);
            return secured.map_err(|source| ClientError::Endpoint { endpoint: text.to_owned(), source });
        }
        match self.authorities.is_some() || self.certificate.is_some() || self.server_name.is_some() {
            true => Err(unfit("authorities, certificates and server names are for https://".to_owned())),
            false => Ok(endpoint),
        }
    }

    /// Whether a token may be sent there.
    pub(super) fn may_show_token(&self, endpoint: &Endpoint, text: &str) -> bool {
        self.allow_plaintext_token || text.starts_with("unix:") || is_private(endpoint)
    }

    fn tls(&self) -> Result<ClientTlsConfig, String> {
        let mut config = ClientTlsConfig::new();
        config = match &self.authorities {
            Some(pem) => {
                tls::roots(pem).map_err(|unfit| told(&unfit))?;
                config.ca_certificate(Certificate::from_pem(pem))
            }
            None => config.with_enabled_roots(),
        };
        if let Some(ClientCertificate { chain, key }) = &self.certificate {
            tls::pair(chain, key).map_err(|unfit| unfit.iter().map(told).collect::<Vec<_>>().join("; "))?;
            config = config.identity(Identity::from_pem(chain, key));
        }
        if let Some(name) = &self.server_name {
            config = config.domain_name(name);
        }
        Ok(config)
    }
}

fn told(Unfit { part, rule }: &Unfit) -> String {
    let part = match part {
        Part::Certificate => "the certificate",
        Part::Key => "the key",
        Part::Authorities | Part::Revoked => "authorities",
    };
    format!("{part} {rule}")
}

/// Nobody on a network sees what is sent there.
fn is_private(endpoint: &Endpoint) -> bool {
    let uri = endpoint.uri();
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_loopback = host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback());
    is_loopback || host == "localhost" || uri.scheme_str() == Some("https")
}

/// Shows the token of the moment with every call.
#[derive(Clone, Default)]
pub struct Bearer(Arc<RwLock<Option<MetadataValue<Ascii>>>>);

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer(..)")
    }
}

impl Bearer {
    /// Whatever is sent from now on has this one.
    pub(super) fn set(&self, token: &str) -> Result<(), ClientError> {
        let value = header(token)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(value);
        Ok(())
    }
}

fn header(token: &str) -> Result<MetadataValue<Ascii>, ClientError> {
    if token.is_empty() || token.contains(char::is_whitespace) {
        return Err(ClientError::Token);
    }
    let mut value = MetadataValue::try_from(format!("Bearer {token}")).map_err(|_| ClientError::Token)?;
    // So that nothing prints it.
    value.set_sensitive(true);
    Ok(value)
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}
