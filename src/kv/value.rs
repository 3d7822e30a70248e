//! What a register holds for one key.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Effect, Entry};
use crate::ids::RequestId;
use crate::limits;
use crate::node::operation::Stamp;
use crate::register::Ages;
use crate::token::Token;

/// The first byte of a stored value, for versions to come.
const VERSION: u8 = 1;

/// A key. The default is a key that has no value and never had one, as far as its record knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// The value; it may have expired.
    pub stored: Option<Stored>,
    /// The version of the last write or removal; zero before the first.
    pub version: Token,
    /// How many writes and removals there have been, so that who watches knows what it has missed.
    pub writes: u64,
    /// Requests that were done, the oldest first.
    pub requests: Vec<Request>,
    /// Ages by [`limits::REQUESTS_KEPT`]; then the requests are dropped.
    pub requests_stamp: Option<Stamp>,
    /// The highest token of each lock that the key was written under, in the order of the first such write.
    pub fences: Vec<(String, Token)>,
    /// Set only where there is no value. Ages by [`limits::FENCES_KEPT`]; then the fences are dropped.
    pub fences_stamp: Option<Stamp>,
}

/// The value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The bytes.
    pub data: Bytes,
    /// When it ends, if it does.
    pub expiry: Option<Expiry>,
}

/// When a value ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expiry {
    /// Ages by the length.
    pub stamp: Stamp,
    /// The length in milliseconds.
    pub ttl_ms: u64,
}

/// A request that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Its name.
    pub id: RequestId,
    /// Of what it asked for, so that an id that is used twice is noticed.
    pub fingerprint: u32,
    /// What it did.
    pub effect: StoredEffect,
}

/// [`Effect`] as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoredEffect {
    /// Version and TTL in milliseconds.
    Set(Token, Option<u64>),
    /// Version of the removal.
    Deleted(Option<Token>),
    /// The number and its version.
    Counted(i64, Token),
    /// Version and TTL in milliseconds.
    Touched(Option<Token>, Option<u64>),
}

impl From<&Effect> for StoredEffect {
    fn from(effect: &Effect) -> Self {
        let ms = |ttl: &Option<Duration>| ttl.map(millis);
        match effect {
            Effect::Set { version, ttl } => Self::Set(*version, ms(ttl)),
            Effect::Deleted { version } => Self::Deleted(*version),
            Effect::Counted { number, version } => Self::Counted(*number, *version),
            Effect::Touched { version, ttl } => Self::Touched(*version, ms(ttl)),
        }
    }
}

impl From<StoredEffect> for Effect {
    fn from(effect: StoredEffect) -> Self {
        let length = |ms: Option<u64>| ms.map(Duration::from_millis);
        match effect {
            StoredEffect::Set(version, ms) => Self::Set { version, ttl: length(ms) },
            StoredEffect::Deleted(version) => Self::Deleted { version },
            StoredEffect::Counted(number, version) => Self::Counted { number, version },
            StoredEffect::Touched(version, ms) => Self::Touched { version, ttl: length(ms) },
        }
    }
}

pub(super) fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

impl Expiry {
    /// The length.
    pub fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms)
    }
}

impl KeyValue {
    /// What everybody may know of the value, if there is one. Whether it has expired is not looked at.
    pub fn entry(&self, ages: &Ages) -> Option<Entry> {
        let Stored { data, expiry } = self.stored.as_ref()?;
        let remaining = expiry.map(|expiry| ages.remaining(expiry.stamp, expiry.ttl()));
        Some(Entry { data: data.clone(), version: self.version, remaining })
    }

    /// Whether the value has expired.
    pub fn has_expired(&self, ages: &Ages) -> bool {
        let expiry = self.stored.as_ref().and_then(|stored| stored.expiry);
        expiry.is_some_and(|expiry| ages.is_aged(expiry.stamp, expiry.ttl()))
    }

    /// What ages, and after how long.
    pub fn stamps(&self) -> Vec<(Stamp, Duration)> {
        let expiry = self.stored.as_ref().and_then(|stored| stored.expiry);
        let expiry = expiry.map(|expiry| (expiry.stamp, expiry.ttl()));
        let requests = self.requests_stamp.map(|stamp| (stamp, limits::REQUESTS_KEPT));
        let fences = self.fences_stamp.map(|stamp| (stamp, limits::FENCES_KEPT));
        expiry.into_iter().chain(requests).chain(fences).collect()
    }

    /// Whether there is anything to remember but the version, which the floor remembers, too.
    pub fn says_something(&self) -> bool {
        self.stored.is_some() || !self.requests.is_empty() || !self.fences.is_empty()
    }

    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        let data = self.stored.as_ref().map_or(0, |stored| stored.data.len());
        let mut bytes = Vec::with_capacity(data + 64 + 48 * self.requests.len());
        bytes.push(VERSION);
        rmp_serde::encode::write(&mut bytes, self).expect("a key has nothing that MessagePack can't hold");
        bytes
    }

    /// Reads what [`KeyValue::encode`] wrote.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        match bytes.split_first() {
            None => Ok(Self::default()),
            Some((&VERSION, value)) => rmp_serde::from_slice(value).map_err(|error| error.to_string()),
            Some((version, _)) => Err(format!("version {version} of a key")),
        }
    }
}
