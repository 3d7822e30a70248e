//! Newtypes for everything that names something, so that a queue's name can't be passed where a lock's is meant.
//!
//! A value of these types has been checked once, where it entered; nothing behind the edge checks it again.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::limits;

/// Position of a node in the configured list, from 0. The same server has the same index for every daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeIndex(pub u8);

impl fmt::Display for NodeIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// 64 random bits that name one run of one daemon. The second half of every [ballot](crate::token::Ballot).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProposerId(pub u64);

impl fmt::Display for ProposerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for ProposerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// 64 random bits that name one unbroken memory of one node. Zero is "none" on the wire and never a real id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MemoryId(pub u64);

impl fmt::Debug for MemoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The name of a lock: 1 to [`limits::NAME_BYTES_MAX`] bytes of UTF-8 without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LockName(Arc<str>);

/// Why a name or owner was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// The empty string names nothing.
    #[error("must not be empty")]
    Empty,
    /// Longer than allowed.
    #[error("is {bytes} bytes long; at most {max} are allowed")]
    TooLong {
        /// Length found, in bytes.
        bytes: usize,
        /// Length allowed, in bytes.
        max: usize,
    },
    /// A control character (Unicode category Cc) at a byte offset.
    #[error("has a control character (U+{character:04X}) at byte {offset}")]
    ControlCharacter {
        /// The character's code point.
        character: u32,
        /// Where it stands, in bytes from the start.
        offset: usize,
    },
}

/// The rule that names of all kinds share.
fn check_name(text: &str, max: usize) -> Result<(), InvalidName> {
    if text.is_empty() {
        return Err(InvalidName::Empty);
    }
    if text.len() > max {
        return Err(InvalidName::TooLong { bytes: text.len(), max });
    }
    match text.char_indices().find(|(_, c)| c.is_control()) {
        Some((offset, c)) => Err(InvalidName::ControlCharacter { character: c as u32, offset }),
        None => Ok(()),
    }
}

impl LockName {
    /// Checks and wraps a name.
    ///
    /// # Errors
    /// [`InvalidName`] says which rule is broken, with the values that matter.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        check_name(text, limits::NAME_BYTES_MAX)?;
        Ok(Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a key: the rules are those of a lock's.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key(Arc<str>);

impl Key {
    /// Checks and wraps a name.
    ///
    /// # Errors
    /// [`InvalidName`] says which rule is broken, with the values that matter.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        check_name(text, limits::NAME_BYTES_MAX)?;
        Ok(Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a queue: the rules are those of a lock's.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct QueueName(Arc<str>);

impl QueueName {
    /// Checks and wraps a name.
    ///
    /// # Errors
    /// [`InvalidName`] says which rule is broken, with the values that matter.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        check_name(text, limits::NAME_BYTES_MAX)?;
        Ok(Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names an item within its queue: the rules are those of a lock's name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ItemId(Arc<str>);

impl ItemId {
    /// Checks and wraps an id.
    ///
    /// # Errors
    /// [`InvalidName`] says which rule is broken, with the values that matter.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        check_name(text, limits::NAME_BYTES_MAX)?;
        Ok(Self(text.into()))
    }

    /// An id that no other item has, for a caller that gave none.
    pub fn unique(random: u128) -> Self {
        Self(format!("{random:032x}").into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Pairs for people who look at a lock's holder or a queue's item, in the order given.
pub type Attributes = Vec<(String, String)>;

/// A caller's name for one request, so that a repeat of it is known: a UUID.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct RequestId(pub u64, pub u64);

impl RequestId {
    /// Reads a UUID (RFC 9562) in either case, with its hyphens or without. `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let hyphens = |at: usize| matches!(at, 8 | 13 | 18 | 23);
        let digits: String = match text.len() {
            32 => text.to_owned(),
            36 if text.bytes().enumerate().all(|(at, b)| hyphens(at) == (b == b'-')) => text.replace('-', ""),
            _ => return None,
        };
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let number = u128::from_str_radix(&digits, 16).ok()?;
        Some(Self((number >> 64) as u64, number as u64))
    }
}

/// Who a caller says it is. Two calls with the same owner are the same holder.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Owner(Arc<str>);

impl Owner {
    /// Checks and wraps an owner; the rules are those of a name, up to [`limits::OWNER_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// [`InvalidName`] says which rule is broken, with the values that matter.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        check_name(text, limits::OWNER_BYTES_MAX)?;
        Ok(Self(text.into()))
    }

    /// An owner that nobody else has, for a caller that named none.
    pub fn unique(random: u128) -> Self {
        Self(format!("anonymous-{random:032x}").into())
    }

    /// The owner as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// 128 random bits that prove one lease. A secret: it has no `Display`, and `Debug` does not show it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeaseId([u8; 16]);

impl LeaseId {
    /// Wraps random bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Reads the form that [`LeaseId::expose`] writes: 32 hexadecimal digits. `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        Some(Self(u128::from_str_radix(text, 16).ok()?.to_be_bytes()))
    }

    /// The secret as text, for the one response that hands it to its owner.
    pub fn expose(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeaseId(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_to_their_rules() {
        assert!(LockName::parse("orders/2026 ü").is_ok());
        assert!(LockName::parse(&"x".repeat(512)).is_ok());
        assert_eq!(LockName::parse(""), Err(InvalidName::Empty));
        assert_eq!(LockName::parse(&"x".repeat(513)), Err(InvalidName::TooLong { bytes: 513, max: 512 }));
        assert_eq!(
            LockName::parse("a\u{7f}"),
            Err(InvalidName::ControlCharacter { character: 0x7f, offset: 1 })
        );
        assert_eq!(LockName::parse("a\n"), Err(InvalidName::ControlCharacter { character: 0x0a, offset: 1 }));
    }

    #[test]
    fn a_request_id_is_a_uuid() {
        let id = RequestId(0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210);
        for text in ["01234567-89ab-cdef-fedc-ba9876543210", "0123456789ABCDEFfedcba9876543210"] {
            assert_eq!(RequestId::parse(text), Some(id), "{text}");
        }
        for bad in ["", "1", "01234567-89ab-cdef-fedc-ba987654321", "0123456-789ab-cdef-fedc-ba9876543210"] {
            assert_eq!(RequestId::parse(bad), None, "{bad}");
        }
        assert_eq!(RequestId::parse(&"g".repeat(32)), None);
        assert_eq!(RequestId::parse(&"ü".repeat(16)), None);
    }

    #[test]
    fn a_lease_id_survives_its_text_form_and_is_not_printed() {
        let id = LeaseId::from_bytes([0x0f; 16]);
        assert_eq!(LeaseId::parse(&id.expose()), Some(id));
        assert!(!format!("{id:?}").contains("0f"));
        for bad in ["", "0f", &"g".repeat(32), &"+".repeat(32), &"0".repeat(33)] {
            assert_eq!(LeaseId::parse(bad), None, "{bad}");
        }
    }
}
