//! What a watch tells goes forward, and is at last what there is: no version goes backwards, what is said to be missed
//! was there to be missed, and where the key can't have forgotten its count, no less is said than was missed.

use std::collections::{BTreeMap, BTreeSet};

use super::Event;
use crate::ids::Key;
use crate::token::Token;

/// An event of a watch, as its client is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// The version, of a value or of a removal.
    pub version: Token,
    /// It is a value.
    pub present: bool,
    /// How many writes are said to be missed.
    pub missed: u64,
}

/// All watches of a run, and what was written meanwhile.
#[derive(Default)]
pub struct Watches {
    /// By client.
    open: BTreeMap<u32, Open>,
    /// The highest version that each client was told of as a value.
    highest: BTreeMap<(u32, Key), Token>,
    /// What answers say was written or removed.
    made: BTreeMap<Key, BTreeSet<Token>>,
    /// From this version on the key remembers a fence, so that its count is not forgotten.
    counted_from: BTreeMap<Key, Token>,
    /// Neighbours in what a watch told of a key.
    pairs: Vec<(Key, Told, Told)>,
}

#[derive(Default)]
struct Open {
    synced: bool,
    told: BTreeMap<Key, Told>,
    /// Of one key, whose removal is remembered; of a prefix it is not.
    of_key: bool,
}

impl Watches {
    /// A client begins to watch, anew.
    pub fn open(&mut self, client: u32, of_key: bool) {
        self.open.insert(client, Open { of_key, ..Open::default() });
    }

    /// A client watches no longer.
    pub fn close(&mut self, client: u32) {
        self.open.remove(&client);
    }

    /// All that was there has been told.
    ///
    /// # Errors
    /// It had been said before.
    pub fn synced(&mut self, client: u32) -> Result<(), String> {
        let again = self.open.get_mut(&client).is_some_and(|open| std::mem::replace(&mut open.synced, true));
        if again { Err(format!("watcher {client} is told twice that it has been told all")) } else { Ok(()) }
    }

    /// A key was written under a fence.
    pub fn fenced(&mut self, key: &Key, version: Token) {
        self.counted_from.entry(key.clone()).or_insert(version);
    }

    /// Takes note of versions that were made.
    pub fn observe(&mut self, event: &Event) {
        if let Event::Versioned { key, version, made: true, .. } = event {
            self.made.entry(key.clone()).or_default().insert(*version);
        }
    }

    /// A watch tells; so many writes of the key have been asked for so far.
    ///
    /// # Errors
    /// What must not be.
    pub fn told(&mut self, client: u32, key: &Key, told: Told, asked: u64) -> Result<(), String> {
        let Some(open) = self.open.get_mut(&client) else { return Ok(()) };
        let name = (client, key.clone());
        if told.present {
            let highest = self.highest.entry(name).or_default();
            if told.version < *highest {
                return Err(format!(
                    "watcher {client} is told of version {} of {key} after {highest}",
                    told.version
                ));
            }
            *highest = told.version;
        }
        // Each write may have been followed by a removal, of what had expired.
        if told.missed > 2 * asked {
            return Err(format!(
                "watcher {client} is told that it missed {} of at most {asked} writes of {key}, and as many removals",
                told.missed
            ));
        }
        if let Some(before) = open.told.insert(key.clone(), told) {
            let forward = match (before.present, told.present) {
                (_, true) => told.version > before.version,
                // Where the removal is forgotten its version is not known.
                (true, false) => told.version >= before.version,
                (false, false) => told.version > before.version,
            };
            if !forward {
                return Err(format!("watcher {client} is told of {told:?} of {key} after {before:?}"));
            }
            if before.present || open.of_key {
                self.pairs.push((key.clone(), before, told));
            }
        }
        Ok(())
    }

    /// Whether all watches have come to know that there is nothing any more.
    pub fn see_nothing(&self) -> bool {
        self.open.values().all(|open| open.synced && open.told.values().all(|told| !told.present))
    }

    /// Judges the end of a run.
    ///
    /// # Errors
    /// What was missed without a word.
    pub fn judge(&self) -> Result<(), String> {
        for (key, before, after) in &self.pairs {
            if self.counted_from.get(key).is_none_or(|from| before.version < *from) {
                continue;
            }
            let between =
                (std::ops::Bound::Excluded(before.version), std::ops::Bound::Excluded(after.version));
            let missed = match self.made.get(key) {
                Some(made) if before.version < after.version => made.range(between).count() as u64,
                Some(_) | None => 0,
            };
            if missed > after.missed {
                return Err(format!(
                    "a watch told of {after:?} of {key} after {before:?}, and {missed} writes between were answered"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::parse("k").unwrap()
    }

    fn token(version: u64) -> Token {
        Token::new(version).unwrap()
    }

    fn told(version: u64, present: bool, missed: u64) -> Told {
        Told { version: token(version), present, missed }
    }

    #[test]
    fn what_goes_backwards_or_is_told_again_is_found() {
        // What is told first and then, of one key: fine?
        for (first, then, fine) in [
            (told(5, true, 0), told(6, true, 0), true),
            (told(5, true, 0), told(5, true, 0), false),
            (told(5, true, 0), told(4, true, 0), false),
            (told(5, true, 0), told(6, false, 0), true),
            (told(5, true, 0), told(5, false, 0), true),
            (told(6, false, 0), told(6, false, 0), false),
            (told(6, false, 0), told(7, true, 0), true),
            (told(6, false, 0), told(6, true, 0), false),
            (told(5, true, 0), told(9, true, 7), false),
        ] {
            let mut watches = Watches::default();
            watches.open(1, true);
            watches.told(1, &key(), first, 3).unwrap();
            assert_eq!(watches.told(1, &key(), then, 3).is_ok(), fine, "{first:?} {then:?}");
        }
    }

    #[test]
    fn another_watch_of_the_same_client_goes_on_from_where_it_was() {
        let mut watches = Watches::default();
        watches.open(1, true);
        watches.told(1, &key(), told(5, true, 0), 1).unwrap();
        watches.open(1, true);
        watches.told(1, &key(), told(5, true, 0), 1).expect("it is still there");
        watches.open(1, true);
        assert!(watches.told(1, &key(), told(4, true, 0), 1).is_err());
    }

    #[test]
    fn what_was_missed_without_a_word_is_found_where_the_count_is_kept() {
        for (fence, missed, fine) in
            [(Some(5), 1, true), (Some(5), 0, false), (Some(6), 0, true), (None, 0, true)]
        {
            let mut watches = Watches::default();
            watches.open(1, true);
            watches.told(1, &key(), told(5, true, 0), 9).unwrap();
            watches.told(1, &key(), told(7, true, missed), 9).unwrap();
            for version in 5..=7 {
                let event = Event::Versioned { key: key(), version: token(version), data: None, made: true };
                watches.observe(&event);
            }
            fence.into_iter().for_each(|version| watches.fenced(&key(), token(version)));
            assert_eq!(watches.judge().is_ok(), fine, "{fence:?} {missed}");
        }
    }

    #[test]
    fn a_watch_sees_nothing_when_it_has_been_told_all_and_nothing_is_left() {
        let mut watches = Watches::default();
        assert!(watches.see_nothing());
        watches.open(1, false);
        assert!(!watches.see_nothing(), "not synced");
        watches.synced(1).unwrap();
        assert!(watches.see_nothing());
        assert!(watches.synced(1).is_err());
        watches.told(1, &key(), told(5, true, 0), 1).unwrap();
        assert!(!watches.see_nothing());
        watches.told(1, &key(), told(6, false, 0), 1).unwrap();
        assert!(watches.see_nothing());
    }
}
