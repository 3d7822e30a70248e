//! What a register holds for one item of a queue, and for a queue's settings.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{ItemState, ItemView, QueueOptions};
use crate::ids::{Attributes, ItemId, LeaseId, ProposerId, QueueName};
use crate::node::operation::{Place, Stamp};
use crate::register::Ages;
use crate::token::Token;

/// The first byte of a stored value, for versions to come.
const VERSION: u8 = 1;

/// An item, or that there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemValue {
    /// The item; it may be done.
    pub item: Option<Item>,
}

/// An item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Where it stands.
    pub state: State,
    /// The bytes; none once it is done.
    pub payload: Bytes,
    /// For people and for workers; none once it is done.
    pub attributes: Attributes,
    /// Lower comes first.
    pub priority: i32,
    /// Of two with the same priority the lower comes first: the token of the call that put it.
    pub order: Token,
    /// The daemon that put it. With the order it names the put: two daemons may draw the same token.
    pub put_by: ProposerId,
    /// When it was put, in milliseconds of Unix time by its daemon's clock. For people.
    pub put_unix_ms: u64,
    /// How often it was leased to somebody who got it.
    pub attempts: u32,
    /// The fencing token of the last lease; zero before the first.
    pub token: Token,
    /// What the last nack said, or why it is dead. For people.
    pub reason: String,
}

/// Where an item stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Whoever comes next may have it.
    Ready,
    /// Nobody gets it until the delay has aged.
    Delayed(Timer),
    /// Somebody has it; the lease may have run out.
    Leased(LeaseId, Timer),
    /// It stays until it is redriven or purged.
    Dead,
    /// It was acked or purged; remembered until the timer has aged, if there is one.
    Done(Option<Timer>),
}

/// Something that ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timer {
    /// Ages by the length.
    pub stamp: Stamp,
    /// The length in milliseconds.
    pub length_ms: u64,
}

impl Timer {
    /// The length.
    pub fn length(&self) -> Duration {
        Duration::from_millis(self.length_ms)
    }

    /// Whether it is over.
    pub fn is_over(&self, ages: &Ages) -> bool {
        ages.is_aged(self.stamp, self.length())
    }
}

impl State {
    /// What ends by itself in it.
    pub fn timer(&self) -> Option<&Timer> {
        match self {
            State::Delayed(timer) | State::Leased(_, timer) | State::Done(Some(timer)) => Some(timer),
            State::Ready | State::Dead | State::Done(None) => None,
        }
    }
}

impl Item {
    /// Where it stands now: a delay or a lease that is over leaves it ready.
    pub fn state(&self, ages: &Ages) -> ItemState {
        match &self.state {
            State::Ready => ItemState::Ready,
            State::Delayed(timer) if !timer.is_over(ages) => ItemState::Delayed,
            State::Leased(_, timer) if !timer.is_over(ages) => ItemState::Leased,
            State::Delayed(_) | State::Leased(..) => ItemState::Ready,
            State::Dead => ItemState::Dead,
            State::Done(_) => ItemState::Done,
        }
    }

    /// What everybody may know.
    pub fn view(&self, id: ItemId, ages: &Ages) -> ItemView {
        let state = self.state(ages);
        let runs = matches!(state, ItemState::Delayed | ItemState::Leased);
        let remaining =
            self.state.timer().filter(|_| runs).map(|timer| ages.remaining(timer.stamp, timer.length()));
        ItemView {
            id,
            state,
            payload: self.payload.clone(),
            attributes: self.attributes.clone(),
            priority: self.priority,
            attempts: self.attempts,
            put_unix_ms: self.put_unix_ms,
            remaining,
            token: self.token,
            reason: self.reason.clone(),
        }
    }

    fn place(&self, id: &str) -> Place {
        let (set, due) = match &self.state {
            State::Ready => ('r', Duration::ZERO),
            // A length of zero is none on the nodes.
            State::Delayed(timer) => ('w', timer.length().max(Duration::from_millis(1))),
            State::Leased(_, timer) => ('l', timer.length().max(Duration::from_millis(1))),
            State::Dead => ('d', Duration::ZERO),
            State::Done(_) => ('x', Duration::ZERO),
        };
        Place { set, member: member(self.priority, self.order, id), due }
    }
}

impl ItemValue {
    /// The item, if it is not done.
    pub fn alive(&self) -> Option<&Item> {
        self.item.as_ref().filter(|item| !matches!(item.state, State::Done(_)))
    }

    /// Where it stands among the items of its queue.
    pub fn place(&self, name: &str) -> Option<Place> {
        let (_, id) = split(name)?;
        Some(self.item.as_ref()?.place(id))
    }

    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        let payload = self.item.as_ref().map_or(0, |item| item.payload.len());
        encode(self, payload)
    }

    /// Reads what [`ItemValue::encode`] wrote.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        decode(bytes, "an item")
    }
}

/// The settings of a queue, or that there is no such queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueValue {
    /// What is set.
    pub options: Option<StoredOptions>,
}

/// [`QueueOptions`] as they are stored: lengths in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredOptions {
    lease_ttl: u64,
    max_attempts: u32,
    backoff_min: u64,
    backoff_max: u64,
    max_items: u64,
    done_retention: u64,
}

impl From<&QueueOptions> for StoredOptions {
    fn from(options: &QueueOptions) -> Self {
        Self {
            lease_ttl: millis(options.lease_ttl),
            max_attempts: options.max_attempts,
            backoff_min: millis(options.backoff_min),
            backoff_max: millis(options.backoff_max),
            max_items: options.max_items,
            done_retention: millis(options.done_retention),
        }
    }
}

impl From<StoredOptions> for QueueOptions {
    fn from(stored: StoredOptions) -> Self {
        Self {
            lease_ttl: Duration::from_millis(stored.lease_ttl),
            max_attempts: stored.max_attempts,
            backoff_min: Duration::from_millis(stored.backoff_min),
            backoff_max: Duration::from_millis(stored.backoff_max),
            max_items: stored.max_items,
            done_retention: Duration::from_millis(stored.done_retention),
        }
    }
}

impl QueueValue {
    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        encode(self, 0)
    }

    /// Reads what [`QueueValue::encode`] wrote.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        decode(bytes, "a queue's settings")
    }
}

fn encode<T: Serialize>(value: &T, payload: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(payload + 160);
    bytes.push(VERSION);
    rmp_serde::encode::write(&mut bytes, value).expect("it has nothing that MessagePack can't hold");
    bytes
}

fn decode<T: Default + for<'de> Deserialize<'de>>(bytes: &[u8], what: &str) -> Result<T, String> {
    match bytes.split_first() {
        None => Ok(T::default()),
        Some((&VERSION, value)) => rmp_serde::from_slice(value).map_err(|error| error.to_string()),
        Some((version, _)) => Err(format!("version {version} of {what}")),
    }
}

pub(super) fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

/// The name of an item's register.
pub(super) fn name_of(queue: &QueueName, id: &ItemId) -> String {
    format!("{queue}{}{id}", Place::SEPARATOR)
}

/// Queue and id of the register of this name.
pub(super) fn split(name: &str) -> Option<(&str, &str)> {
    name.split_once(Place::SEPARATOR)
}

/// How an item is named in its queue's index, so that byte order is the order of the queue.
fn member(priority: i32, order: Token, id: &str) -> String {
    // The lowest of all becomes zero.
    let biased = priority.cast_unsigned() ^ (1 << 31);
    format!("{biased:08x}{:014x}{id}", order.get())
}

/// When the item of a member was put, and its id.
pub(super) fn parse_member(member: &str) -> Option<(Token, ItemId)> {
    let (order, id) = member.split_at_checked(Place::ORDER_LENGTH)?;
    let order = Token::new(u64::from_str_radix(order.get(8..)?, 16).ok()?)?;
    Some((order, ItemId::parse(id).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::Ballot;

    #[test]
    fn members_sort_by_priority_and_then_by_time_of_put() {
        let token = |token| Token::new(token).unwrap();
        let last = token((1 << 53) - 1);
        let mut members = vec![
            member(i32::MIN, last, "z"),
            member(-1, token(0), "y"),
            member(-1, token(1), "x"),
            member(0, token(1 << 40), "w"),
            member(0, token((1 << 40) + 1), "v"),
            member(7, token(3), "u"),
            member(i32::MAX, token(2), "t"),
        ];
        assert!(members.is_sorted(), "{members:?}");
        for (member, id) in members.drain(..).zip(["z", "y", "x", "w", "v", "u", "t"]) {
            assert_eq!(parse_member(&member).map(|(_, id)| id.as_str().to_owned()), Some(id.to_owned()));
        }
        assert_eq!(parse_member(&member(0, last, "a")).map(|(order, _)| order), Some(last));
        for bad in ["", "0", &"g".repeat(30), &"0".repeat(22)] {
            assert_eq!(parse_member(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_item_survives_its_stored_form() {
        let ballot = Ballot { token: Token::new(9).unwrap(), proposer: ProposerId(3) };
        let timer = Timer { stamp: Stamp { ballot, ordinal: 1 }, length_ms: 5 };
        let lease = LeaseId::from_bytes([7; 16]);
        for state in [
            State::Ready,
            State::Delayed(timer),
            State::Leased(lease, timer),
            State::Dead,
            State::Done(None),
            State::Done(Some(timer)),
        ] {
            let item = Item {
                state,
                payload: Bytes::from_static(b"\x00\xff"),
                attributes: vec![("a".into(), "b".into())],
                priority: -3,
                order: ballot.token,
                put_by: ballot.proposer,
                put_unix_ms: 1,
                attempts: 2,
                token: ballot.token,
                reason: "r".into(),
            };
            let value = ItemValue { item: Some(item) };
            assert_eq!(ItemValue::decode(&value.encode()), Ok(value));
        }
        assert_eq!(ItemValue::decode(b""), Ok(ItemValue::default()));
        assert!(ItemValue::decode(b"\x02").is_err());
        let options = QueueOptions { max_items: 7, ..QueueOptions::default() };
        let value = QueueValue { options: Some((&options).into()) };
        let back = QueueValue::decode(&value.encode()).unwrap().options.unwrap();
        assert_eq!(QueueOptions::from(back), options);
    }
}
