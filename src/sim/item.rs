//! What clients of queues ask of an item and are told: the words of its history.
//!
//! An item has the name that its first put carries in the payload: its queue, and its id or, where the daemon makes the id,
//! the number of the request. So what is delivered says which request put it, also where nobody was told its id.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::history::{Fate, History};
use crate::ids::{ItemId, QueueName};
use crate::queue::{ItemState, NewItem, Put, QueueError, Reserved, Settled};
use crate::register::RegisterError;
use crate::runtime::Moment;
use crate::token::Token;

/// What all clients of a run noted of items.
pub type ItemHistory = History<ItemAsked, ItemTold>;

/// What clients noted of queues.
#[derive(Clone, Debug, Default)]
pub struct QueueNotes {
    /// Of each item.
    pub items: ItemHistory,
    /// What operators did to whole queues.
    pub operations: Vec<Operation>,
    /// Calls that put items, so far.
    pub requests: u64,
}

/// One request to put one item. All sends of it are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// No other has this number.
    pub number: u64,
    /// Where to.
    pub queue: QueueName,
    /// The client's id for the item; `None` leaves it to the daemon.
    pub id: Option<ItemId>,
    /// Lower comes first.
    pub priority: i32,
    /// For how long nobody gets it.
    pub delay: Duration,
}

/// What a client asks of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ItemAsked {
    /// To be put.
    Put(Request),
    /// Some item of the queue, and it was this one.
    Lease,
    /// More time for the lease with this token, of this length if one is asked for.
    Extend(Token, Option<Duration>),
    /// It is done, says who has the lease with this token.
    Ack(Token),
    /// It is given back by whoever has the lease with this token, for so long if one is asked for.
    Nack(Token, Option<Duration>),
    /// Where it stands.
    Look,
}

/// What a client is told of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ItemTold {
    /// It was put, now or before.
    Put(Put),
    /// It is the client's for a while.
    Leased(Delivery),
    /// It is the client's for longer, until then by the world's clock.
    Until(Moment),
    /// What became of a lease.
    Settled(Settled),
    /// Where it stands; `None` for no such item.
    Seen(Option<ItemState>),
}

/// An item as it is delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Its id.
    pub id: ItemId,
    /// The request that put it, by its payload.
    pub request: u64,
    /// Lower comes first.
    pub priority: i32,
    /// How often it has been leased.
    pub attempt: u32,
    /// The lease's token.
    pub token: Token,
    /// Until when the client relies on it, by the world's clock.
    pub until: Moment,
}

/// What an operator does to a whole queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Which.
    pub queue: QueueName,
    /// Items are removed, or else made ready again that were dead.
    pub removes: bool,
    /// When it began.
    pub start: Moment,
    /// When it was over. [`Moment::FAR`] where nobody can tell, `None` where it did nothing.
    pub end: Option<Moment>,
}

impl Request {
    /// The name of the item that it puts, in the history.
    pub fn item(&self) -> String {
        match &self.id {
            Some(id) => format!("{}/{id}", self.queue),
            None => format!("{}/#{}", self.queue, self.number),
        }
    }

    /// As it is sent.
    pub fn new_item(&self) -> NewItem {
        let payload = Bytes::from(format!("{} {}", self.item(), self.number));
        let attributes = vec![("request".to_owned(), self.number.to_string())];
        NewItem { id: self.id.clone(), payload, priority: self.priority, delay: self.delay, attributes }
    }
}

/// The name in the history, and the delivery, of what was reserved. `None` if nobody put it like this.
pub fn delivery(reserved: &Reserved, until: Moment) -> Option<(String, Delivery)> {
    let payload = std::str::from_utf8(&reserved.payload).ok()?;
    let (item, number) = payload.rsplit_once(' ')?;
    let request = number.parse().ok()?;
    let said = reserved.attributes.first().map(|(_, value)| value.as_str());
    let Reserved { id, priority, attempt, token, .. } = reserved.clone();
    (said == Some(number))
        .then(|| (item.to_owned(), Delivery { id, request, priority, attempt, token, until }))
}

/// What an error promises is held against it: one that says "nothing happened" must have done nothing, ever.
pub fn fate_of<T>(error: &QueueError) -> Fate<T> {
    match error {
        QueueError::Register(RegisterError::OutcomeUnknown) => Fate::Unknown("outcome unknown".into()),
        QueueError::NoSuchQueue { .. }
        | QueueError::NoSuchItem { .. }
        | QueueError::QueueFull { .. }
        | QueueError::TooManyWaiters { .. }
        | QueueError::TooMuchToWrite { .. }
        | QueueError::Recovering { .. }
        | QueueError::ShuttingDown
        | QueueError::Register(_) => Fate::NotApplied(error.to_string().chars().take(40).collect()),
    }
}

impl fmt::Display for ItemAsked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put(Request { number, priority, delay, .. }) => {
                write!(f, "put #{number}, priority {priority}, delay {delay:?}")
            }
            Self::Lease => write!(f, "reserve"),
            Self::Extend(token, ttl) => write!(f, "extend {token} to {ttl:?}"),
            Self::Ack(token) => write!(f, "ack {token}"),
            Self::Nack(token, delay) => write!(f, "nack {token} for {delay:?}"),
            Self::Look => write!(f, "look"),
        }
    }
}

impl fmt::Display for ItemTold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put(Put { id, duplicate: false }) => write!(f, "put as {id}"),
            Self::Put(Put { id, duplicate: true }) => write!(f, "known as {id}"),
            Self::Leased(Delivery { request, attempt, token, until, .. }) => {
                write!(f, "#{request}, attempt {attempt}, token {token}, until {until:?}")
            }
            Self::Until(until) => write!(f, "until {until:?}"),
            Self::Settled(settled) => write!(f, "{settled:?}"),
            Self::Seen(state) => write!(f, "{state:?}"),
        }
    }
}
