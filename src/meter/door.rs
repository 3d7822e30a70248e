//! [`DoorMeter`]: who was let in and who was not, and the files that this rests on.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Count;

/// What happens at the door of one daemon.
#[derive(Debug, Default)]
pub struct DoorMeter {
    /// Handshakes of TLS.
    pub handshakes: Handshakes,
    /// Calls that were not let in.
    pub refusals: Refusals,
    /// The certificate that clients are shown.
    pub certificate: FileMeter,
    /// The rules of access.
    pub access: FileMeter,
    expires_unix_s: AtomicU64,
    revoked_until_unix_s: AtomicU64,
}

/// Handshakes by what they came to.
#[derive(Debug, Default)]
pub struct Handshakes {
    /// A connection.
    pub done: Count,
    /// Nothing: the other side did not want the certificate, showed none that is good, or spoke nonsense.
    pub failed: Count,
    /// Nothing, because the other side spoke HTTP without TLS.
    pub plaintext: Count,
    /// Nothing within the time.
    pub timed_out: Count,
    /// Nothing yet, when too many others had begun after it.
    pub displaced: Count,
}

/// Calls that were not let in, and streams that were ended.
#[derive(Debug, Default)]
pub struct Refusals {
    /// Without a credential.
    pub no_credentials: Count,
    /// With one that nobody has.
    pub unknown_credentials: Count,
    /// On a connection whose certificate is not good any more.
    pub certificate_lapsed: Count,
    /// With one whose identity may not do this.
    pub access_denied: Count,
}

/// What is made of some files, and made again when they change.
#[derive(Debug, Default)]
pub struct FileMeter {
    /// Changes that are in use.
    pub reloaded: Count,
    /// Changes that could not be used.
    pub failed: Count,
    stale: AtomicU64,
}

impl FileMeter {
    /// Whether what is in use is another thing than what the files have now.
    pub fn set_stale(&self, stale: bool) {
        self.stale.store(u64::from(stale), Ordering::Relaxed);
    }

    /// The same.
    pub fn stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed) != 0
    }
}

impl DoorMeter {
    /// When the first list of revoked certificates should have been replaced, in seconds of Unix time; `None` without a list.
    pub fn set_revoked_until(&self, unix_s: Option<u64>) {
        self.revoked_until_unix_s.store(unix_s.unwrap_or(0), Ordering::Relaxed);
    }

    /// The same; `None` without a list, too, that says when.
    pub fn revoked_until(&self) -> Option<u64> {
        Some(self.revoked_until_unix_s.load(Ordering::Relaxed))
            .filter(|until| *until > 0 && *until < u64::MAX)
    }

    /// When the certificate in use expires, in seconds of Unix time.
    pub fn set_expiry(&self, unix_s: u64) {
        self.expires_unix_s.store(unix_s, Ordering::Relaxed);
    }

    /// The same; `None` without a certificate.
    pub fn expiry(&self) -> Option<u64> {
        Some(self.expires_unix_s.load(Ordering::Relaxed)).filter(|expiry| *expiry > 0)
    }
}
