//! Where a Redis server is and how to reach it: [`Address`] with its parser, and [`RedisOptions`].

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Something that must not be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself, for the one who must send it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A host and a port.
    Tcp {
        /// Name or IP address.
        host: String,
        /// Port.
        port: u16,
        /// Whether TLS is spoken there.
        tls: bool,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

/// One server's address, as [`Address::from_str`] reads it. Printing it shows no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Where the server listens.
    pub endpoint: Endpoint,
    /// Database number.
    pub database: u8,
    /// ACL user named in the address.
    pub username: Option<String>,
    /// Password named in the address.
    pub password: Option<Secret>,
}

/// Why an address can't be read. It never repeats the address, which may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// No known scheme.
    #[error("must start with redis://, rediss://, redis+unix:// or unix://")]
    Scheme,
    /// No host.
    #[error("names no host: write redis://HOST:PORT")]
    Host,
    /// Not a port.
    #[error("has the port {0:?}: a number from 1 to 65535 is needed")]
    Port(String),
    /// Not a database number.
    #[error("has the database {0:?}: a number from 0 to 255 is needed")]
    Database(String),
    /// A Unix socket by a relative path.
    #[error("needs an absolute path of a socket: write unix:///path/to/redis.sock")]
    Path,
    /// A `%` that begins no escape, or what is not UTF-8.
    #[error("has a broken % escape in its user, password or path")]
    Escape,
    /// Something after `?` that is not `db=`.
    #[error("has the option {0:?}: only db=NUMBER is known")]
    Option(String),
}

const DEFAULT_PORT: u16 = 6379;

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let (scheme, rest) = text.trim().split_once("://").ok_or(InvalidAddress::Scheme)?;
        match scheme {
            "redis" => tcp(rest, false),
            "rediss" => tcp(rest, true),
            "unix" | "redis+unix" => unix(rest),
            _ => Err(InvalidAddress::Scheme),
        }
    }
}

fn tcp(rest: &str, tls: bool) -> Result<Address, InvalidAddress> {
    // The last @, because a password may have one in it that nobody escaped.
    let (credentials, place) = rest.rsplit_once('@').unwrap_or(("", rest));
    let (username, password) = match credentials.split_once(':') {
        Some((username, password)) => (unescape(username)?, Some(Secret(unescape(password)?))),
        None => (unescape(credentials)?, None),
    };
    let (place, option) = place.split_once('?').unwrap_or((place, ""));
    let (place, path) = place.split_once('/').unwrap_or((place, ""));
    let (host, port) = match place.strip_prefix('[') {
        Some(ip6) => {
            let (host, port) = ip6.split_once(']').ok_or(InvalidAddress::Host)?;
            (host, port.strip_prefix(':'))
        }
        None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() {
        return Err(InvalidAddress::Host);
    }
    let port = match port {
        None | Some("") => DEFAULT_PORT,
        Some(text) => match text.parse() {
            Ok(port) if port != 0 => port,
            _ => return Err(InvalidAddress::Port(text.to_owned())),
        },
    };
    let database = if path.is_empty() { database_option(option)? } else { database(path)? };
    Ok(Address {
        endpoint: Endpoint::Tcp { host: host.to_owned(), port, tls },
        database,
        username: (!username.is_empty()).then_some(username),
        password: password.filter(|password| !password.0.is_empty()),
    })
}

fn unix(rest: &str) -> Result<Address, InvalidAddress> {
    let (path, option) = rest.split_once('?').unwrap_or((rest, ""));
    if !path.starts_with('/') || path == "/" {
        return Err(InvalidAddress::Path);
    }
    let endpoint = Endpoint::Unix(unescape(path)?.into());
    Ok(Address { endpoint, database: database_option(option)?, username: None, password: None })
}

fn database(text: &str) -> Result<u8, InvalidAddress> {
    text.parse().map_err(|_| InvalidAddress::Database(text.to_owned()))
}

fn database_option(option: &str) -> Result<u8, InvalidAddress> {
    match option.split_once('=') {
        None if option.is_empty() => Ok(0),
        Some(("db", number)) => database(number),
        // Only the name: what follows may be a secret.
        Some((name, _)) => Err(InvalidAddress::Option(name.to_owned())),
        None => Err(InvalidAddress::Option(option.to_owned())),
    }
}

fn unescape(text: &str) -> Result<String, InvalidAddress> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(InvalidAddress::Escape) };
        bytes.push((high * 16 + low) as u8);
    }
    String::from_utf8(bytes).map_err(|_| InvalidAddress::Escape)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Endpoint::Tcp { host, port, tls } => {
                f.write_str(if *tls { "rediss://" } else { "redis://" })?;
                if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }?;
                if self.database == 0 { Ok(()) } else { write!(f, "/{}", self.database) }
            }
            Endpoint::Unix(path) => {
                write!(f, "unix://{}", path.display())?;
                if self.database == 0 { Ok(()) } else { write!(f, "?db={}", self.database) }
            }
        }
    }
}

/// How one server is reached and watched.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// Where it is. Its user and password, if any, go before those below.
    pub address: Address,
    /// ACL user; without one the server's default user.
    pub username: Option<String>,
    /// Password; without one the server must want none.
    pub password: Option<Secret>,
    /// A file of PEM certificates to trust, for `rediss://`; without one those of the operating system.
    pub ca_file: Option<PathBuf>,
    /// For how long a connection is tried.
    pub connect_timeout: Duration,
    /// For how long a reply is waited for. Then the connection is given up, because a server that hangs must not hold
    /// up what follows.
    pub call_timeout: Duration,
    /// The longest wait between two attempts to connect.
    pub reconnect_delay_max: Duration,
    /// How often a server is asked whether it still fits, and a refused one whether it does now.
    pub inspect_interval: Duration,
    /// The operator vouches for `maxmemory-policy noeviction` where the server hides CONFIG.
    pub assume_noeviction: bool,
}

impl RedisOptions {
    /// Everything but the address at its default.
    pub fn new(address: Address) -> Self {
        Self {
            address,
            username: None,
            password: None,
            ca_file: None,
            connect_timeout: Duration::from_secs(1),
            call_timeout: Duration::from_secs(1),
            reconnect_delay_max: Duration::from_secs(2),
            inspect_interval: Duration::from_secs(5),
            assume_noeviction: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Address, InvalidAddress> {
        text.parse()
    }

    #[test]
    fn addresses_are_read_and_shown_without_secrets() {
        let cases = [
            ("redis://a", "redis://a:6379"),
            ("redis://a:7/3", "redis://a:7/3"),
            ("redis://[::1]:7", "redis://[::1]:7"),
            ("redis://[::1]", "redis://[::1]:6379"),
            ("rediss://user:hidden@a/0", "rediss://a:6379"),
            ("redis://:hidden@a?db=2", "redis://a:6379/2"),
            ("unix:///run/redis.sock", "unix:///run/redis.sock"),
            ("redis+unix:///run/redis.sock?db=9", "unix:///run/redis.sock?db=9"),
        ];
        for (text, shown) in cases {
            let address = parse(text).expect(text);
            assert_eq!(address.to_string(), shown);
            assert!(!format!("{address:?} {address}").contains("hidden"));
        }
    }

    #[test]
    fn user_and_password_are_unescaped() {
        let address = parse("redis://me%40home:p%3Aw@d%2f@a").unwrap();
        assert_eq!(address.username.as_deref(), Some("me@home"));
        assert_eq!(address.password.unwrap().expose(), "p:w@d/");
        let user_only = parse("redis://me@a").unwrap();
        assert_eq!((user_only.username.as_deref(), user_only.password), (Some("me"), None));
    }

    #[test]
    fn a_bad_address_is_refused_with_its_reason() {
        use InvalidAddress as I;
        let cases = [
            ("a:6379", I::Scheme),
            ("http://a", I::Scheme),
            ("redis://", I::Host),
            ("redis://:6379", I::Host),
            ("redis://[::1", I::Host),
            ("redis://a:0", I::Port("0".into())),
            ("redis://a:b", I::Port("b".into())),
            ("redis://a/x", I::Database("x".into())),
            ("redis://a/256", I::Database("256".into())),
            ("redis://%zz@a", I::Escape),
            ("unix://run/redis.sock", I::Path),
            ("unix:///run/redis.sock?password=x", I::Option("password".into())),
        ];
        for (text, reason) in cases {
            assert_eq!(parse(text), Err(reason), "{text}");
        }
    }
}
