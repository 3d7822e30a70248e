//! A version of a key names one value, or one removal, and no two writes are answered with the same.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Event, Invariant};
use crate::ids::Key;
use crate::runtime::Moment;
use crate::token::Token;

/// The property.
#[derive(Default)]
pub struct VersionsAreUnique {
    named: BTreeMap<(Key, Token), Named>,
}

/// What somebody was told of a version.
struct Named {
    /// `None` for a removal.
    data: Option<Bytes>,
    /// Somebody was told that it made it.
    made: bool,
}

impl Invariant for VersionsAreUnique {
    fn observe(&mut self, _now: Moment, event: &Event) -> Result<(), String> {
        let Event::Versioned { key, version, data, made } = event else { return Ok(()) };
        let at = (key.clone(), *version);
        let named = self.named.entry(at).or_insert_with(|| Named { data: data.clone(), made: false });
        if named.data != *data {
            return Err(format!("version {version} of {key} is {:?}, and it is {data:?}", named.data));
        }
        if named.made && *made {
            return Err(format!("two writes of {key} were answered with version {version}"));
        }
        named.made |= made;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::at;
    use super::*;

    #[test]
    fn a_version_of_two_values_or_of_two_writes_is_found() {
        let told = |version, data: Option<&'static str>, made| Event::Versioned {
            key: Key::parse("k").unwrap(),
            version: Token::new(version).unwrap(),
            data: data.map(Bytes::from),
            made,
        };
        // The first of these is fine; is the second?
        for (first, second, fine) in [
            (told(5, Some("a"), true), told(5, Some("a"), false), true),
            (told(5, Some("a"), false), told(5, Some("a"), true), true),
            (told(5, Some("a"), true), told(6, Some("a"), true), true),
            (told(5, Some("a"), true), told(5, Some("a"), true), false),
            (told(5, Some("a"), false), told(5, Some("b"), false), false),
            (told(5, Some("a"), false), told(5, None, true), false),
        ] {
            let mut property = VersionsAreUnique::default();
            property.observe(at(0), &first).unwrap();
            assert_eq!(property.observe(at(1), &second).is_ok(), fine, "{first:?} {second:?}");
        }
    }
}
