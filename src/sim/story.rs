//! [`Story`]: the calls of one item, sorted by what they say of it. What is judged of items is judged on this.

use std::time::Duration;

use super::history::{Call, Calls, Fate};
use super::item::{Delivery, ItemAsked, ItemTold, Operation, QueueNotes, Request};
use crate::queue::{ItemState, Put, Settled};
use crate::runtime::Moment;
use crate::token::Token;

/// Clocks of nodes may run a thousandth fast; so much earlier, at least, what is to last for a while may be over.
const DRIFT: u32 = 500;

/// How short something may be that is to last for so long.
pub fn at_least(length: Duration) -> Duration {
    length - length / DRIFT
}

/// Whether something took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It did.
    Done,
    /// Nobody can tell.
    Unknown,
    /// It did not.
    None,
}

/// When something took effect, if it did. Of what nobody can tell the end is [`Moment::FAR`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Not before.
    pub start: Moment,
    /// Not after.
    pub end: Moment,
}

/// A put.
#[derive(Clone, Copy, Debug)]
pub struct PutCall<'a> {
    /// When.
    pub span: Span,
    /// What was asked.
    pub request: &'a Request,
    /// Whether it put the item.
    pub effect: Effect,
    /// What was answered.
    pub told: Option<&'a Put>,
}

/// A lease that a client was told of.
#[derive(Clone, Copy, Debug)]
pub struct LeaseCall<'a> {
    /// When.
    pub span: Span,
    /// What was delivered.
    pub delivery: &'a Delivery,
}

/// An ack, a nack or an extension.
#[derive(Clone, Copy, Debug)]
pub struct LeaseUse<'a> {
    /// When.
    pub span: Span,
    /// Under the lease with this token.
    pub token: Token,
    /// What was asked.
    pub asked: &'a ItemAsked,
    /// Whether it did what was asked.
    pub effect: Effect,
    /// What was answered.
    pub told: Option<&'a ItemTold>,
}

/// A look that was answered.
#[derive(Clone, Copy, Debug)]
pub struct LookCall {
    /// When.
    pub span: Span,
    /// What was seen.
    pub state: Option<ItemState>,
}

/// All of one item.
#[derive(Debug)]
pub struct Story<'a> {
    /// By start.
    pub puts: Vec<PutCall<'a>>,
    /// By token.
    pub leases: Vec<LeaseCall<'a>>,
    /// By start.
    pub uses: Vec<LeaseUse<'a>>,
    /// By start.
    pub looks: Vec<LookCall>,
    /// What operators may have done to it.
    pub operations: Vec<&'a Operation>,
    /// For how long a done item is remembered at least.
    retention: Duration,
}

impl<'a> Story<'a> {
    /// The story of an item, by its name in the history.
    pub fn new(
        item: &str,
        calls: &'a Calls<ItemAsked, ItemTold>,
        notes: &'a QueueNotes,
        retention: Duration,
    ) -> Self {
        let of_queue = |operation: &&Operation| {
            operation.end.is_some() && item.starts_with(&format!("{}/", operation.queue))
        };
        let operations = notes.operations.iter().filter(of_queue).collect();
        let (puts, leases, uses, looks) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut story = Self { puts, leases, uses, looks, operations, retention: at_least(retention) };
        calls.0.iter().for_each(|call| story.add(call));
        story.puts.sort_by_key(|put| put.span.start);
        story.leases.sort_by_key(|lease| lease.delivery.token);
        story.uses.sort_by_key(|one| one.span.start);
        story
    }

    fn add(&mut self, call: &'a Call<ItemAsked, ItemTold>) {
        let (told, open) = match &call.fate {
            Fate::Answered(told) => (Some(told), false),
            Fate::NotApplied(_) => (None, false),
            Fate::Unknown(_) | Fate::UnderWay => (None, true),
        };
        let end = call.end.filter(|_| !open).unwrap_or(Moment::FAR);
        let span = Span { start: call.start, end };
        let effect = match told {
            None if open => Effect::Unknown,
            Some(told) if has_effect(told) => Effect::Done,
            None | Some(_) => Effect::None,
        };
        match (&call.asked, told) {
            (ItemAsked::Put(request), told) => {
                let told = told.and_then(|told| if let ItemTold::Put(put) = told { Some(put) } else { None });
                self.puts.push(PutCall { span, request, effect, told });
            }
            (ItemAsked::Lease, Some(ItemTold::Leased(delivery))) => {
                self.leases.push(LeaseCall { span, delivery });
            }
            (
                asked @ (ItemAsked::Ack(token) | ItemAsked::Nack(token, _) | ItemAsked::Extend(token, _)),
                told,
            ) => {
                self.uses.push(LeaseUse { span, token: *token, asked, effect, told });
            }
            (ItemAsked::Look, Some(ItemTold::Seen(state))) => {
                self.looks.push(LookCall { span, state: *state })
            }
            (ItemAsked::Look | ItemAsked::Lease, _) => {}
        }
    }

    /// Puts that put it, or may have.
    pub fn may_have_put(&self) -> impl Iterator<Item = &PutCall<'a>> {
        self.puts.iter().filter(|put| put.effect != Effect::None)
    }

    /// Acks that did what they were to do.
    pub fn acks(&self, effect: Effect) -> impl Iterator<Item = &LeaseUse<'a>> {
        let is_such =
            move |one: &&LeaseUse<'_>| one.effect == effect && matches!(one.asked, ItemAsked::Ack(_));
        self.uses.iter().filter(is_such)
    }

    /// When it was removed, or may have been, by acks and by operators.
    pub fn removals(&self) -> impl Iterator<Item = Span> {
        let acks = self.acks(Effect::Done).chain(self.acks(Effect::Unknown)).map(|ack| ack.span);
        acks.chain(self.purges())
    }

    /// When operators removed items of its queue.
    pub fn purges(&self) -> impl Iterator<Item = Span> {
        self.spans(true)
    }

    /// When operators made dead items of its queue ready.
    pub fn redrives(&self) -> impl Iterator<Item = Span> {
        self.spans(false)
    }

    fn spans(&self, removes: bool) -> impl Iterator<Item = Span> {
        let such = self.operations.iter().filter(move |operation| operation.removes == removes);
        such.map(|operation| Span { start: operation.start, end: operation.end.unwrap_or(Moment::FAR) })
    }

    /// Whether a put can have put it once more, by a moment, after it was removed.
    pub fn may_be_anew(&self, removal: Span, by: Moment) -> bool {
        let forgotten = removal.start + self.retention;
        let may = |put: &&PutCall<'_>| put.span.start <= by && put.span.end >= forgotten;
        // One put it before, and each puts once or never.
        forgotten <= by && self.may_have_put().count() > 1 && self.may_have_put().any(|put| may(&put))
    }

    /// Whether it was put and removed meanwhile, or may have been, so that a lease and a later one need not be of the same put.
    pub fn may_differ(&self, one: &LeaseCall<'_>, later: &LeaseCall<'_>) -> bool {
        self.removals()
            .any(|removal| self.may_be_anew(removal, later.span.end) && removal.end >= one.span.start)
    }
}

fn has_effect(told: &ItemTold) -> bool {
    match told {
        ItemTold::Put(put) => !put.duplicate,
        ItemTold::Settled(settled) => matches!(settled, Settled::Done | Settled::Buried),
        ItemTold::Leased(_) | ItemTold::Until(_) => true,
        ItemTold::Seen(_) => false,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ids::{ItemId, QueueName};
    use crate::queue::QueueOptions;

    /// What is remembered in a test, in seconds.
    pub(crate) const RETENTION: u64 = 10;

    /// The one item of a test, and what is noted of it. All times are in seconds.
    #[derive(Clone, Default)]
    pub(crate) struct Script(QueueNotes);

    fn at(seconds: u64) -> Moment {
        Moment::from_start(Duration::from_secs(seconds))
    }

    fn token(token: u64) -> Token {
        Token::new(token).unwrap()
    }

    /// A request for the item of a test.
    fn request(number: u64) -> Request {
        let (queue, id) = (QueueName::parse("q").unwrap(), Some(ItemId::parse("i").unwrap()));
        Request { number, queue, id, priority: 0, delay: Duration::ZERO }
    }

    impl Script {
        fn call(mut self, span: (u64, u64), asked: ItemAsked, fate: Fate<ItemTold>) -> Self {
            let call = self.0.items.begin("q/i", 1, asked, at(span.0));
            self.0.items.end(call, fate, at(span.1));
            self
        }

        pub(crate) fn put(self, span: (u64, u64), number: u64, duplicate: bool) -> Self {
            self.put_delayed(span, number, duplicate, 0)
        }

        pub(crate) fn put_delayed(self, span: (u64, u64), number: u64, duplicate: bool, delay: u64) -> Self {
            let told = ItemTold::Put(Put { id: ItemId::parse("i").unwrap(), duplicate });
            let request = Request { delay: Duration::from_secs(delay), ..request(number) };
            self.call(span, ItemAsked::Put(request), Fate::Answered(told))
        }

        pub(crate) fn put_unknown(self, span: (u64, u64), number: u64) -> Self {
            self.call(span, ItemAsked::Put(request(number)), Fate::Unknown("".into()))
        }

        pub(crate) fn not_put(self, span: (u64, u64), number: u64) -> Self {
            self.call(span, ItemAsked::Put(request(number)), Fate::NotApplied("".into()))
        }

        /// A lease under this token, as this attempt, until then, of what that request put.
        pub(crate) fn lease(self, span: (u64, u64), of: (u64, u32), until: u64, number: u64) -> Self {
            let delivery = Delivery {
                id: ItemId::parse("i").unwrap(),
                request: number,
                priority: 0,
                attempt: of.1,
                token: token(of.0),
                until: at(until),
            };
            self.call(span, ItemAsked::Lease, Fate::Answered(ItemTold::Leased(delivery)))
        }

        pub(crate) fn ack(self, span: (u64, u64), of: u64, settled: Settled) -> Self {
            self.call(span, ItemAsked::Ack(token(of)), Fate::Answered(ItemTold::Settled(settled)))
        }

        pub(crate) fn ack_unknown(self, span: (u64, u64), of: u64) -> Self {
            self.call(span, ItemAsked::Ack(token(of)), Fate::Unknown("".into()))
        }

        pub(crate) fn not_acked(self, span: (u64, u64), of: u64) -> Self {
            self.call(span, ItemAsked::Ack(token(of)), Fate::NotApplied("".into()))
        }

        pub(crate) fn nack(self, span: (u64, u64), of: u64, delay: u64, settled: Settled) -> Self {
            let asked = ItemAsked::Nack(token(of), Some(Duration::from_secs(delay)));
            self.call(span, asked, Fate::Answered(ItemTold::Settled(settled)))
        }

        pub(crate) fn extend(self, span: (u64, u64), of: u64, until: u64) -> Self {
            self.call(span, ItemAsked::Extend(token(of), None), Fate::Answered(ItemTold::Until(at(until))))
        }

        pub(crate) fn look(self, span: (u64, u64), state: Option<ItemState>) -> Self {
            self.call(span, ItemAsked::Look, Fate::Answered(ItemTold::Seen(state)))
        }

        pub(crate) fn operate(mut self, span: (u64, u64), removes: bool) -> Self {
            let queue = QueueName::parse("q").unwrap();
            self.0.operations.push(Operation { queue, removes, start: at(span.0), end: Some(at(span.1)) });
            self
        }

        /// What a rule says of it.
        pub(crate) fn judge(
            &self,
            rule: impl Fn(&Story<'_>, &QueueOptions) -> Result<(), String>,
        ) -> Result<(), String> {
            let options =
                QueueOptions { done_retention: Duration::from_secs(RETENTION), ..QueueOptions::default() };
            let (item, calls) = self.0.items.keys().next().expect("something was called");
            rule(&Story::new(item, calls, &self.0, options.done_retention), &options)
        }
    }

    #[test]
    fn an_item_may_be_put_anew_when_it_was_done_and_forgotten_and_somebody_put_it_again() {
        // The second put: when, and may the item be another?
        for (span, anew) in [((5, 6), false), ((5, 12), true), ((13, 14), true)] {
            let script = Script::default().put((0, 1), 1, false).put(span, 2, false);
            let judged = script.judge(|story, _| {
                let removal = Span { start: at(2), end: at(3) };
                if story.may_be_anew(removal, at(15)) { Ok(()) } else { Err("no".to_owned()) }
            });
            assert_eq!(judged.is_ok(), anew, "{span:?}");
        }
    }
}
