//! Waking tasks of one thread: "look again", without locks and without counting.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

/// The waker of one task at most: whoever waited last.
#[derive(Default)]
pub(crate) struct Bell(Cell<Option<Waker>>);

impl Bell {
    /// Wakes the task when [`Bell::ring`] is called next. To be called before the look at the state
    /// that a ring announces.
    pub(crate) fn listen(&self, cx: &Context<'_>) {
        // Kept if it is the same: cloning one costs two atomic operations.
        let waker = self.0.take().filter(|waker| waker.will_wake(cx.waker()));
        self.0.set(Some(waker.unwrap_or_else(|| cx.waker().clone())));
    }

    /// Wakes whoever listens, once.
    pub(crate) fn ring(&self) {
        if let Some(waker) = self.0.take() {
            waker.wake();
        }
    }
}

/// The wakers of the few tasks that wait for one thing.
#[derive(Default)]
pub(crate) struct Gong(RefCell<Vec<Waker>>);

impl Gong {
    /// Waits until `look` returns something; it is asked again after each [`Gong::strike`].
    pub(crate) async fn wait<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        poll_fn(|cx| {
            if let Some(found) = look() {
                return Poll::Ready(found);
            }
            let mut wakers = self.0.borrow_mut();
            if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                wakers.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// Wakes everybody who waits.
    pub(crate) fn strike(&self) {
        let wakers = self.0.take();
        wakers.into_iter().for_each(Waker::wake);
    }
}
