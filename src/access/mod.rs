//! Who may do what: identities with their credentials and grants, as a file has them, and what follows for a call.
//!
//! Pure. [`Rules`] are read from the text of `access.file`; [`Rules::identify`] says whose credentials those are that came
//! with a call, and [`Identity::may`] whether that identity may do what the call asks for. [`methods`] has which service and
//! right each method of the API needs. `grpc` takes credentials from calls, and names from requests.
//!
//! What is not granted is refused. A token is known by its SHA-256 alone, so the file holds no secret; it is compared with
//! every hash there is, in a time that says nothing about which of them it is.

pub mod methods;
pub mod rules;
pub mod token;

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;

pub use rules::{BadRules, Rules};

use crate::tls::CertificateName;

/// What is called for: the services of the API, as grants name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// Names of locks.
    Locks,
    /// Names of queues.
    Queues,
    /// Keys.
    Keys,
    /// The cluster as a whole; it has no names.
    Cluster,
}

/// What is done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// Look, list, watch, count.
    Read,
    /// Acquire and release; put, reserve and ack; set and delete.
    Use,
    /// End what others hold, remove what others put.
    Force,
    /// Change settings of queues.
    Admin,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Service::Locks => "locks",
            Service::Queues => "queues",
            Service::Keys => "keys",
            Service::Cluster => "cluster",
        })
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Right::Read => "read",
            Right::Use => "use",
            Right::Force => "force",
            Right::Admin => "admin",
        })
    }
}

/// What a method asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Where.
    pub service: Service,
    /// What.
    pub right: Right,
}

/// What a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// One name.
    Name(&'a str),
    /// All names that start so.
    Prefix(&'a str),
}

/// What came with a call to show whose it is.
#[derive(Clone, Default)]
pub struct Credentials {
    /// The SHA-256 of the bearer token, if there was one. The token itself is not kept.
    pub token: Option<[u8; 32]>,
    /// What the certificate of the connection vouches for, which was verified in the handshake; empty without one.
    pub certificate: Arc<[CertificateName]>,
}

/// Somebody whom the rules know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// For people: in refusals and in the log.
    pub name: String,
    /// Without a credential.
    pub anonymous: bool,
    pub(crate) grants: Vec<Grant>,
}

/// Rights in some services on names that start in some ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) services: Vec<Service>,
    pub(crate) prefixes: Vec<String>,
    pub(crate) rights: Vec<Right>,
}

impl Grant {
    fn has(&self, need: Need) -> bool {
        self.services.contains(&need.service) && self.rights.contains(&need.right)
    }

    /// A prefix is covered by one that it starts with: then so is every name that starts with it.
    fn covers(&self, scope: Scope<'_>) -> bool {
        let (Scope::Name(text) | Scope::Prefix(text)) = scope;
        self.prefixes.iter().any(|prefix| text.starts_with(prefix.as_str()))
    }
}

impl Identity {
    /// Whether it has the right somewhere in the service.
    ///
    /// # Errors
    /// [`Refusal::Denied`].
    pub fn has(&self, need: Need) -> Result<(), Refusal> {
        match self.grants.iter().any(|grant| grant.has(need)) {
            true => Ok(()),
            false => Err(self.denied(need, None)),
        }
    }

    /// Whether one of its grants has the right and covers the name or the prefix wholly.
    ///
    /// # Errors
    /// [`Refusal::Denied`].
    pub fn may(&self, need: Need, scope: Scope<'_>) -> Result<(), Refusal> {
        match self.grants.iter().any(|grant| grant.has(need) && grant.covers(scope)) {
            true => Ok(()),
            false => Err(self.denied(need, Some(scope))),
        }
    }

    fn denied(&self, need: Need, scope: Option<Scope<'_>>) -> Refusal {
        let asked = scope.map(|scope| match scope {
            Scope::Name(name) => Asked { name: name.to_owned(), prefix: false },
            Scope::Prefix(name) => Asked { name: name.to_owned(), prefix: true },
        });
        Refusal::Denied { identity: self.name.clone(), need, asked }
    }
}

/// What was asked for and not granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The name, or what names start with.
    pub name: String,
    /// It is the start of names.
    pub prefix: bool,
}

/// Why a call is not let in. Nothing of a token is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It came with nothing, and there is nothing that anybody may do.
    #[error(
        "this daemon has to know who calls: send a token as `authorization: Bearer TOKEN`, or show a client certificate"
    )]
    NoCredentials,
    /// The header is there and is no token.
    #[error("the header `authorization` must be `Bearer`, a space and a token")]
    Malformed,
    /// No identity has this token.
    #[error("the token is not one of those that this daemon knows; it may have been replaced")]
    UnknownToken,
    /// No identity has any of these names.
    #[error("the client certificate is for {names}, and no identity of this daemon has such a certificate")]
    UnknownCertificate {
        /// Its names with commas.
        names: String,
    },
    /// The connection's certificate was good when it came.
    #[error("the client certificate of this connection {why}: connect again with a good one")]
    CertificateLapsed {
        /// The rest of a sentence that starts with the certificate.
        why: &'static str,
    },
    /// Known, and not allowed.
    #[error("{}", denied(.identity, *.need, .asked.as_ref()))]
    Denied {
        /// Who asked.
        identity: String,
        /// For what.
        need: Need,
        /// On what, if that was looked at.
        asked: Option<Asked>,
    },
}

fn denied(identity: &str, need: Need, asked: Option<&Asked>) -> String {
    let Need { service, right } = need;
    match asked {
        None => format!("{identity} has no grant with the right {right} for {service}"),
        Some(Asked { name, prefix }) => {
            let kind = if *prefix { "all names that start with " } else { "" };
            let name = name.escape_debug();
            format!(
                "{identity} has no grant with the right {right} for {service} that covers {kind}\"{name}\""
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(grants: Vec<Grant>) -> Identity {
        Identity { name: "billing".to_owned(), anonymous: false, grants }
    }

    fn grant(services: &[Service], prefixes: &[&str], rights: &[Right]) -> Grant {
        let prefixes = prefixes.iter().map(|prefix| (*prefix).to_owned()).collect();
        Grant { services: services.to_vec(), prefixes, rights: rights.to_vec() }
    }

    const USE_LOCKS: Need = Need { service: Service::Locks, right: Right::Use };
    const READ_KEYS: Need = Need { service: Service::Keys, right: Right::Read };

    #[test]
    fn service_right_and_name_must_be_in_one_grant() {
        let billing = identity(vec![
            grant(&[Service::Locks], &["billing/", "shared"], &[Right::Use]),
            grant(&[Service::Keys, Service::Locks], &[""], &[Right::Read]),
        ]);
        for (need, scope, granted) in [
            (USE_LOCKS, Scope::Name("billing/1"), true),
            (USE_LOCKS, Scope::Name("billing/"), true),
            (USE_LOCKS, Scope::Name("billing"), false),
            (USE_LOCKS, Scope::Name("shared-not"), true),
            (USE_LOCKS, Scope::Name("orders"), false),
            (USE_LOCKS, Scope::Name("Billing/1"), false),
            (USE_LOCKS, Scope::Name(""), false),
            (READ_KEYS, Scope::Name("orders"), true),
            (READ_KEYS, Scope::Name(""), true),
            (READ_KEYS, Scope::Prefix(""), true),
            (USE_LOCKS, Scope::Prefix("billing/a"), true),
            (USE_LOCKS, Scope::Prefix("billing/"), true),
            (USE_LOCKS, Scope::Prefix("billing"), false),
            (USE_LOCKS, Scope::Prefix(""), false),
            (Need { service: Service::Keys, right: Right::Use }, Scope::Name("billing/1"), false),
            (Need { service: Service::Locks, right: Right::Force }, Scope::Name("billing/1"), false),
            (Need { service: Service::Queues, right: Right::Read }, Scope::Name("billing/1"), false),
        ] {
            assert_eq!(billing.may(need, scope).is_ok(), granted, "{need:?} {scope:?}");
        }
        assert!(billing.has(USE_LOCKS).is_ok() && billing.has(READ_KEYS).is_ok());
        assert!(billing.has(Need { service: Service::Cluster, right: Right::Read }).is_err());
    }

    #[test]
    fn a_refusal_names_who_what_and_where() {
        let nobody = identity(vec![]);
        let text = |scope| nobody.may(USE_LOCKS, scope).unwrap_err().to_string();
        let start = "billing has no grant with the right use for locks that covers ";
        assert_eq!(text(Scope::Name("a\n\"b")), format!("{start}\"a\\n\\\"b\""));
        assert_eq!(text(Scope::Prefix("")), format!("{start}all names that start with \"\""));
        let text = nobody.has(READ_KEYS).unwrap_err().to_string();
        assert_eq!(text, "billing has no grant with the right read for keys");
    }
}
