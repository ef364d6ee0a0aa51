//! Waiting for many futures: all of a handful, or whichever of many is done.
//!
//! [`join_all`] polls all of its few futures at each wake, which costs less than telling apart who
//! was woken. A [`Nursery`] holds thousands, so there each child has a waker of its own.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

/// Runs all futures at once and returns their outputs in order.
pub(crate) async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<Slot<F>> = futures.into_iter().map(|f| Slot::Runs(Box::pin(f))).collect();
    if let [Slot::Runs(only)] = futures.as_mut_slice() {
        return vec![only.as_mut().await];
    }
    poll_fn(|cx| {
        let mut pending = false;
        for slot in &mut futures {
            if let Slot::Runs(future) = slot {
                match future.as_mut().poll(cx) {
                    Poll::Ready(output) => *slot = Slot::Done(output),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    let output = |slot| match slot {
        Slot::Done(output) => output,
        Slot::Runs(_) => unreachable!("invariant: nothing was pending"),
    };
    futures.into_iter().map(output).collect()
}

/// Runs two futures at once.
pub(crate) async fn join<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut left, mut right) = (None, None);
    poll_fn(|cx| {
        if left.is_none()
            && let Poll::Ready(output) = a.as_mut().poll(cx)
        {
            left = Some(output);
        }
        if right.is_none()
            && let Poll::Ready(output) = b.as_mut().poll(cx)
        {
            right = Some(output);
        }
        match (left.take(), right.take()) {
            (Some(left), Some(right)) => Poll::Ready((left, right)),
            (l, r) => {
                (left, right) = (l, r);
                Poll::Pending
            }
        }
    })
    .await
}

enum Slot<F: Future> {
    Runs(Pin<Box<F>>),
    Done(F::Output),
}

/// Children that run until they are done, all inside of the task that polls the nursery.
pub(crate) struct Nursery<F> {
    children: Vec<Option<Child<F>>>,
    free: Vec<usize>,
    shared: Arc<Shared>,
}

struct Child<F> {
    future: Pin<Box<F>>,
    waker: Waker,
}

/// Who was woken, and who wants to know.
struct Shared {
    state: Mutex<Woken>,
}

#[derive(Default)]
struct Woken {
    children: Vec<usize>,
    parent: Option<Waker>,
}

struct ChildWaker {
    index: usize,
    shared: Arc<Shared>,
}

impl Wake for ChildWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let parent = {
            let mut woken = self.shared.state.lock();
            woken.children.push(self.index);
            woken.parent.take()
        };
        if let Some(parent) = parent {
            parent.wake();
        }
    }
}

impl<F: Future<Output = ()>> Nursery<F> {
    /// Returns an empty one.
    pub(crate) fn new() -> Nursery<F> {
        let shared = Arc::new(Shared { state: Mutex::default() });
        Nursery { children: Vec::new(), free: Vec::new(), shared }
    }

    /// Returns whether no child runs.
    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.children.len()
    }

    /// Adds a child; it is polled with the next poll of the nursery.
    pub(crate) fn add(&mut self, future: F) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.children.push(None);
            self.children.len() - 1
        });
        let waker = Waker::from(Arc::new(ChildWaker { index, shared: self.shared.clone() }));
        waker.wake_by_ref();
        self.children[index] = Some(Child { future: Box::pin(future), waker });
    }

    /// Polls the children that were woken; is ready when none is left.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let woken = {
                let mut woken = self.shared.state.lock();
                if woken.children.is_empty() {
                    woken.parent = Some(cx.waker().clone());
                    break;
                }
                std::mem::take(&mut woken.children)
            };
            for index in woken {
                // A late wake of a child that is gone, or of the next one in its place, is harmless.
                let Some(child) = &mut self.children[index] else { continue };
                let mut context = Context::from_waker(&child.waker);
                if child.future.as_mut().poll(&mut context).is_ready() {
                    self.children[index] = None;
                    self.free.push(index);
                }
            }
        }
        if self.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_env::block_on;
    use atoll_env::task::yield_now;
    use std::cell::RefCell;

    #[test]
    fn outputs_come_in_the_order_of_the_futures() {
        let wait = |n: usize| async move {
            for _ in 0..5 - n {
                yield_now().await;
            }
            n
        };
        assert_eq!(block_on(join_all((0..5).map(wait))), [0, 1, 2, 3, 4]);
        assert_eq!(block_on(join_all((0..1).map(wait))), [0]);
        assert!(block_on(join_all(std::iter::empty::<std::future::Ready<()>>())).is_empty());
    }

    #[test]
    fn a_nursery_runs_its_children_to_their_ends_and_reuses_their_places() {
        let done = RefCell::new(Vec::new());
        let child = |n: u32| {
            let done = &done;
            async move {
                for _ in 0..n {
                    yield_now().await;
                }
                done.borrow_mut().push(n);
            }
        };
        let mut nursery = Nursery::new();
        for n in [3, 1, 2] {
            nursery.add(child(n));
        }
        block_on(poll_fn(|cx| nursery.poll(cx)));
        assert!(nursery.is_empty());
        nursery.add(child(4));
        block_on(poll_fn(|cx| nursery.poll(cx)));
        assert_eq!(*done.borrow(), [1, 2, 3, 4]);
        assert_eq!(nursery.children.len(), 3);
    }
}
