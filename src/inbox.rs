//! [`Inbox`]: where things for one task arrive from many, all taken by whoever has waited for enough of them.
//!
//! A channel wakes its receiver for each message. A round of which the first answer decides nothing has no use for that, and a
//! queue that is emptied at once none for a piece of memory for each thing in it.

use std::collections::VecDeque;
use std::future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

/// The receiving end.
#[derive(Debug)]
pub struct Inbox<T>(Arc<Shared<T>>);

/// A sending end.
#[derive(Debug)]
pub struct Slot<T>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T>(Mutex<Contents<T>>);

#[derive(Debug)]
struct Contents<T> {
    things: VecDeque<T>,
    /// Nothing more is put in, or nobody is there to take it.
    closed: bool,
    /// Who waits, and for how many.
    waiting: Option<(Waker, usize)>,
}

impl<T> Shared<T> {
    fn contents(&self) -> MutexGuard<'_, Contents<T>> {
        self.0.lock().expect("no holder of this lock panics")
    }

    fn close(&self) {
        let mut contents = self.contents();
        contents.closed = true;
        let woken = contents.waiting.take();
        drop(contents);
        if let Some((waker, _)) = woken {
            waker.wake();
        }
    }
}

impl<T> Inbox<T> {
    /// An empty one, with room for so many before it grows.
    pub fn with_capacity(capacity: usize) -> Self {
        let things = VecDeque::with_capacity(capacity);
        Self(Arc::new(Shared(Mutex::new(Contents { things, closed: false, waiting: None }))))
    }

    /// An end to send from.
    pub fn slot(&self) -> Slot<T> {
        Slot(self.0.clone())
    }

    /// The next, if it is there.
    pub fn take(&self) -> Option<T> {
        self.0.contents().things.pop_front()
    }

    /// Moves all that is there to the end of `taken`. False when nothing more will come.
    pub fn take_all(&self, taken: &mut VecDeque<T>) -> bool {
        let mut contents = self.0.contents();
        taken.append(&mut contents.things);
        !contents.closed
    }

    /// The next, or `None` when nothing more will come. Whoever finds nothing is woken when there are `enough`, or one is urgent.
    pub fn next(&self, enough: usize) -> impl Future<Output = Option<T>> + Unpin + '_ {
        future::poll_fn(move |context| self.poll_next(context, enough))
    }

    fn poll_next(&self, context: &mut Context<'_>, enough: usize) -> Poll<Option<T>> {
        let mut contents = self.0.contents();
        match contents.things.pop_front() {
            Some(thing) => Poll::Ready(Some(thing)),
            None if contents.closed => Poll::Ready(None),
            None => {
                contents.waiting = Some((context.waker().clone(), enough));
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for Inbox<T> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Slot<T> {
    /// Puts something in. What is urgent is not left lying until there is enough.
    ///
    /// # Errors
    /// The thing, where nobody is there to take it.
    pub fn put(&self, thing: T, is_urgent: bool) -> Result<(), T> {
        let mut contents = self.0.contents();
        if contents.closed {
            return Err(thing);
        }
        contents.things.push_back(thing);
        let there = contents.things.len();
        let woken = contents.waiting.take_if(|(_, enough)| is_urgent || there >= *enough);
        drop(contents);
        if let Some((waker, _)) = woken {
            waker.wake();
        }
        Ok(())
    }

    /// Nothing more is put in, by anybody.
    pub fn close(&self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::task::{ArcWake, waker};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl ArcWake for Wakes {
        fn wake_by_ref(this: &Arc<Self>) {
            this.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_waits_is_woken_when_there_is_enough_or_something_urgent_or_the_end() {
        let wakes = Arc::new(Wakes::default());
        let waker = waker(wakes.clone());
        let mut context = Context::from_waker(&waker);
        let woken = || wakes.0.swap(0, Ordering::Relaxed);
        let inbox = Inbox::with_capacity(1);
        let slot = inbox.slot();
        let mut next = |enough| inbox.next(enough).poll_unpin(&mut context);
        assert_eq!(next(2), Poll::Pending);
        assert_eq!((slot.put(1, false), woken()), (Ok(()), 0));
        assert_eq!((slot.clone().put(2, false), woken()), (Ok(()), 1));
        assert_eq!((slot.put(3, false), woken()), (Ok(()), 0), "it knows");
        assert_eq!(
            [next(2), next(2), next(2), next(2)].map(|next| next.is_pending()),
            [false, false, false, true]
        );
        assert_eq!((slot.put(4, true), woken()), (Ok(()), 1));
        assert_eq!((next(1), next(9)), (Poll::Ready(Some(4)), Poll::Pending));
        slot.put(5, false).unwrap();
        slot.close();
        assert_eq!(woken(), 1);
        assert_eq!(slot.put(6, true), Err(6));
        assert_eq!((next(9), next(9)), (Poll::Ready(Some(5)), Poll::Ready(None)));
    }

    #[test]
    fn what_is_there_is_taken_in_order_and_nothing_is_put_in_for_nobody() {
        let inbox = Inbox::with_capacity(0);
        let slot = inbox.slot();
        let mut taken = VecDeque::from([1]);
        slot.put(2, false).unwrap();
        slot.put(3, false).unwrap();
        assert!(inbox.take_all(&mut taken));
        assert_eq!(taken, [1, 2, 3]);
        slot.close();
        assert!(!inbox.take_all(&mut taken));
        let inbox = Inbox::with_capacity(0);
        let slot = inbox.slot();
        drop(inbox);
        assert_eq!(slot.put(1, false), Err(1));
    }
}
