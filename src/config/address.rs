//! Addresses of nodes, as the setting `nodes.addresses` has them.

use std::fmt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use serde::{Deserializer, Serialize, Serializer, de};
use url::Url;

use super::{REDACTED, Secret};

/// The port of a Redis address that names none.
const PORT_DEFAULT: u16 = 6379;

/// Where a server is, and how to log in there if the address says so. Shows no password.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeAddress {
    /// Host and port, or a socket file.
    pub server: NodeServer,
    /// `rediss://`: encrypted.
    pub tls: bool,
    /// The ACL user; never without a password.
    pub username: Option<String>,
    /// The password.
    pub password: Option<Secret>,
    /// The database to select.
    pub database: u8,
}

/// Where a server is. Two nodes must not have the same one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeServer {
    /// Over TCP.
    Tcp {
        /// Name or IP address, in lower case, IPv6 without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// Over a Unix socket.
    Unix {
        /// The socket file.
        path: PathBuf,
    },
}

/// Why an address was refused. Never quotes the address, which may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// Not a URL and not a path.
    #[error("is neither a URL (redis://, rediss://, redis+unix://) nor an absolute path: {0}")]
    NotAUrl(url::ParseError),
    /// Another kind of URL.
    #[error("has the scheme {0:?}; redis, rediss and redis+unix are known")]
    Scheme(String),
    /// Nothing to connect to.
    #[error("names no host")]
    NoHost,
    /// Port 0 can't be connected to.
    #[error("has port 0; ports are from 1 to 65535")]
    NoPort,
    /// A socket file somewhere relative.
    #[error("must name the socket file as redis+unix:///path, with no host and an absolute path")]
    NotAPath,
    /// Something other than a small number where the database stands.
    #[error("has the database {0:?}; a number from 0 to 255 is needed")]
    Database(String),
    /// More than an address has.
    #[error("has {0}, which an address of a node does not have")]
    Surplus(&'static str),
    /// A user alone, which logs nobody in, and is perhaps a password that lacks its colon.
    #[error("has a user and no password; write user:password@, or :password@ for the default user")]
    NoPassword,
    /// A user or password that is not UTF-8 once decoded.
    #[error("has a user or password that is not UTF-8 after percent-decoding")]
    Encoding,
}

impl NodeAddress {
    /// Reads `redis://[user:password@]host[:port][/database]`, `rediss://…`, `redis+unix:///path[?db=database]`,
    /// `unix:///path` or `/path`. User and password are percent-encoded.
    ///
    /// # Errors
    /// [`InvalidAddress`] says which rule is broken.
    pub fn parse(text: &str) -> Result<Self, InvalidAddress> {
        if text.starts_with('/') {
            return Ok(Self::plain(NodeServer::Unix { path: text.into() }, false));
        }
        let url = Url::parse(text).map_err(InvalidAddress::NotAUrl)?;
        if url.fragment().is_some() {
            return Err(InvalidAddress::Surplus("a fragment (#…)"));
        }
        match url.scheme() {
            "redis" => parse_tcp(&url, false),
            "rediss" => parse_tcp(&url, true),
            "redis+unix" | "unix" => parse_unix(&url),
            other => Err(InvalidAddress::Scheme(other.to_owned())),
        }
    }

    fn plain(server: NodeServer, tls: bool) -> Self {
        Self { server, tls, username: None, password: None, database: 0 }
    }
}

fn parse_tcp(url: &Url, tls: bool) -> Result<NodeAddress, InvalidAddress> {
    if url.query().is_some() {
        return Err(InvalidAddress::Surplus("a query (?…)"));
    }
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or(InvalidAddress::NoHost)?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let port = match url.port() {
        Some(0) => return Err(InvalidAddress::NoPort),
        port => port.unwrap_or(PORT_DEFAULT),
    };
    let username = Some(decode(url.username())?).filter(|username| !username.is_empty());
    let password = url.password().map(decode).transpose()?.filter(|text| !text.is_empty()).map(Secret::new);
    if username.is_some() && password.is_none() {
        return Err(InvalidAddress::NoPassword);
    }
    Ok(NodeAddress {
        username,
        password,
        database: parse_database(url.path().trim_start_matches('/'))?,
        ..NodeAddress::plain(NodeServer::Tcp { host, port }, tls)
    })
}

fn parse_unix(url: &Url) -> Result<NodeAddress, InvalidAddress> {
    if url.host_str().is_some_and(|host| !host.is_empty()) || url.path().len() < 2 {
        return Err(InvalidAddress::NotAPath);
    }
    let database = match url.query() {
        None => "",
        Some(query) => query.strip_prefix("db=").ok_or(InvalidAddress::Surplus("a query other than ?db="))?,
    };
    let server = NodeServer::Unix { path: decode(url.path())?.into() };
    Ok(NodeAddress { database: parse_database(database)?, ..NodeAddress::plain(server, false) })
}

fn parse_database(text: &str) -> Result<u8, InvalidAddress> {
    if text.is_empty() { Ok(0) } else { text.parse().map_err(|_| InvalidAddress::Database(text.to_owned())) }
}

fn decode(text: &str) -> Result<String, InvalidAddress> {
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| InvalidAddress::Encoding)?;
    Ok(decoded.into_owned())
}

impl fmt::Display for NodeServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NodeServer::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            NodeServer::Tcp { host, port } => write!(f, "{host}:{port}"),
            NodeServer::Unix { path } => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.server, self.tls) {
            (NodeServer::Unix { .. }, _) => f.write_str("redis+unix://")?,
            (NodeServer::Tcp { .. }, true) => f.write_str("rediss://")?,
            (NodeServer::Tcp { .. }, false) => f.write_str("redis://")?,
        }
        match (&self.username, &self.password) {
            (_, None) => {}
            (username, Some(_)) => write!(f, "{}:{REDACTED}@", username.as_deref().unwrap_or(""))?,
        }
        write!(f, "{}", self.server)?;
        match (&self.server, self.database) {
            (_, 0) => Ok(()),
            (NodeServer::Tcp { .. }, database) => write!(f, "/{database}"),
            (NodeServer::Unix { .. }, database) => write!(f, "?db={database}"),
        }
    }
}

impl fmt::Debug for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeAddress({self})")
    }
}

impl Serialize for NodeAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An address that may be a wrong one, fit to be shown: what stands before its last `@` is left out.
pub fn redact(text: &str) -> String {
    let scheme = text.find("://").map_or("", |end| &text[..end + 3]);
    match text.rfind('@') {
        Some(at) => format!("{scheme}{REDACTED}{}", &text[at..]),
        None => text.to_owned(),
    }
}

/// A list of addresses, or one text with commas between them (as an environment variable has it).
/// The message names every address that is wrong.
pub(super) fn deserialize_list<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<NodeAddress>, D::Error> {
    deserializer.deserialize_any(ListVisitor)
}

struct ListVisitor;

impl<'de> de::Visitor<'de> for ListVisitor {
    type Value = Vec<NodeAddress>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of addresses")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        parse_list(text.split(',').map(str::trim).filter(|text| !text.is_empty()))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = list.next_element::<String>()? {
            texts.push(text);
        }
        parse_list(texts.iter().map(String::as_str))
    }
}

fn parse_list<'a, E: de::Error>(texts: impl Iterator<Item = &'a str>) -> Result<Vec<NodeAddress>, E> {
    let mut addresses = Vec::new();
    let mut wrong = Vec::new();
    for text in texts {
        match NodeAddress::parse(text) {
            Ok(address) => addresses.push(address),
            Err(error) => wrong.push(format!("{} {error}", redact(text))),
        }
    }
    if wrong.is_empty() { Ok(addresses) } else { Err(E::custom(wrong.join("; "))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown_without_passwords() {
        for (text, shown) in [
            ("redis://a", "redis://a:6379"),
            ("redis://A.Example:7001", "redis://a.example:7001"),
            ("redis://a:7001/", "redis://a:7001"),
            ("redis://a:7001/3", "redis://a:7001/3"),
            ("rediss://a:7001", "rediss://a:7001"),
            ("redis://me:pw%40x@a:7001/3", "redis://me:***@a:7001/3"),
            ("redis://:pw@a", "redis://:***@a:6379"),
            ("redis://[::1]:7001", "redis://[::1]:7001"),
            ("redis://10.0.0.1", "redis://10.0.0.1:6379"),
            ("redis+unix:///run/r.sock", "redis+unix:///run/r.sock"),
            ("redis+unix:///run/r.sock?db=2", "redis+unix:///run/r.sock?db=2"),
            ("unix:///run/r%20s.sock", "redis+unix:///run/r s.sock"),
            ("/run/r.sock", "redis+unix:///run/r.sock"),
        ] {
            let address = NodeAddress::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(address.to_string(), shown, "{text}");
        }
        let address = NodeAddress::parse("redis://me:pw%40x@a").expect("good");
        assert_eq!(address.password.expect("has one").expose(), "pw@x");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for (text, found) in [
            ("a:6379", "scheme"),
            ("localhost", "neither"),
            ("", "neither"),
            ("http://a", "scheme"),
            ("redis://", "host"),
            ("redis://:6379", "host"),
            ("redis://a:0", "port 0"),
            ("redis://a:70000", "neither"),
            ("redis://a/x", "database"),
            ("redis://a/256", "database"),
            ("redis://a?x=1", "query"),
            ("redis://a#x", "fragment"),
            ("redis://%ff@a", "UTF-8"),
            ("redis://secret@a", "no password"),
            ("rediss://secret:@a", "no password"),
            ("redis+unix://run/r.sock", "absolute"),
            ("redis+unix:///", "absolute"),
            ("redis+unix:///run/r.sock?x=2", "query"),
        ] {
            let message = NodeAddress::parse(text).expect_err(text).to_string();
            assert!(message.contains(found), "{text}: {message}");
        }
    }

    #[test]
    fn a_wrong_address_is_shown_without_what_may_be_a_password() {
        assert_eq!(redact("redis://me:p@w@host:x"), "redis://***@host:x");
        assert_eq!(redact("me:pw@host"), "***@host");
        assert_eq!(redact("redis://secret@host"), "redis://***@host");
        assert_eq!(redact("redis://host"), "redis://host");
    }
}
