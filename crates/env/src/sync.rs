//! Small ways for tasks to wait for each other, under any executor and deterministic.
//!
//! | Name | Use |
//! |---|---|
//! | [`oneshot`] | one answer to one question |
//! | [`queue`] | an unbounded stream of messages from many senders to one receiver |
//! | [`Notify`] | "look again": signals that arrive while nobody waits are kept as one |
//! | [`timeout`] | give up after a while |
//! | [`select_biased`] | whichever is ready first, the left one on a tie |
//!
//! Waiters are served in the order of their arrival and no choice is drawn from a random source, so
//! that in the simulator the seed decides alone. Wakers run outside the locks.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use event_listener::Event;
use parking_lot::Mutex;

use crate::time::Clock;

/// A flag that one task raises and another waits for and takes.
///
/// Signals are not counted: any number of [`Notify::notify`] calls before a wait make it return
/// once, which is right for "there is work, look at the shared state".
#[derive(Default)]
pub struct Notify {
    raised: AtomicBool,
    event: Event,
}

impl Notify {
    /// Returns a flag that is down.
    pub fn new() -> Notify {
        Notify::default()
    }

    /// Raises the flag and wakes one waiter.
    pub fn notify(&self) {
        self.raised.store(true, Ordering::SeqCst);
        self.event.notify(1);
    }

    /// Waits until the flag is up and takes it down.
    pub async fn notified(&self) {
        loop {
            if self.raised.swap(false, Ordering::SeqCst) {
                return;
            }
            let listener = self.event.listen();
            // Raised between the look and the listening: nobody would wake us.
            if self.raised.swap(false, Ordering::SeqCst) {
                return;
            }
            listener.await;
        }
    }
}

/// One value from one sender to one receiver.
pub mod oneshot {
    use std::fmt;
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};

    use parking_lot::Mutex;

    /// Returns the two ends of a new channel.
    pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
        let shared = Arc::new(Mutex::new(State { value: None, waker: None, closed: false }));
        (Sender { shared: shared.clone() }, Receiver { shared })
    }

    struct State<T> {
        value: Option<T>,
        waker: Option<Waker>,
        /// One of the ends is gone.
        closed: bool,
    }

    /// The end that answers. Dropping it cancels the receiver.
    pub struct Sender<T> {
        shared: Arc<Mutex<State<T>>>,
    }

    /// The end that waits: a future of the value.
    pub struct Receiver<T> {
        shared: Arc<Mutex<State<T>>>,
    }

    /// The sender was dropped without a value.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Canceled;

    impl fmt::Display for Canceled {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the task that should have answered ended without an answer")
        }
    }

    impl std::error::Error for Canceled {}

    impl<T> Sender<T> {
        /// Sends the value; gives it back if the receiver is gone.
        pub fn send(self, value: T) -> Result<(), T> {
            let mut state = self.shared.lock();
            if state.closed {
                return Err(value);
            }
            state.value = Some(value);
            Ok(()) // dropping `self` wakes the receiver
        }

        /// Returns whether nobody waits for the value any more.
        pub fn is_closed(&self) -> bool {
            self.shared.lock().closed
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            let waker = {
                let mut state = self.shared.lock();
                state.closed = true;
                state.waker.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    impl<T> Future for Receiver<T> {
        type Output = Result<T, Canceled>;

        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
            // The waker of the last poll is foreign code and dropped after the lock is released.
            let _replaced;
            let mut state = self.shared.lock();
            match state.value.take() {
                Some(value) => Poll::Ready(Ok(value)),
                None if state.closed => Poll::Ready(Err(Canceled)),
                None => {
                    _replaced = state.waker.replace(cx.waker().clone());
                    Poll::Pending
                }
            }
        }
    }

    impl<T> Drop for Receiver<T> {
        fn drop(&mut self) {
            let mut state = self.shared.lock();
            state.closed = true;
            // The value's destructor is foreign code and runs after the lock is released.
            let unread = state.value.take();
            drop(state);
            drop(unread);
        }
    }
}

/// Returns the two ends of an unbounded queue.
pub fn queue<T>() -> (QueueSender<T>, QueueReceiver<T>) {
    let messages = Mutex::new(Messages { waiting: VecDeque::new(), senders: 1, open: true });
    let shared = Arc::new(Queue { messages, arrived: Notify::new() });
    (QueueSender { shared: shared.clone() }, QueueReceiver { shared })
}

struct Queue<T> {
    messages: Mutex<Messages<T>>,
    arrived: Notify,
}

struct Messages<T> {
    waiting: VecDeque<T>,
    senders: usize,
    /// The receiver lives.
    open: bool,
}

/// The sending end of a [`queue`].
pub struct QueueSender<T> {
    shared: Arc<Queue<T>>,
}

impl<T> QueueSender<T> {
    /// Appends a message; gives it back if the receiver is gone.
    pub fn send(&self, message: T) -> Result<(), T> {
        {
            let mut messages = self.shared.messages.lock();
            if !messages.open {
                return Err(message);
            }
            messages.waiting.push_back(message);
        }
        self.shared.arrived.notify();
        Ok(())
    }
}

impl<T> Clone for QueueSender<T> {
    fn clone(&self) -> QueueSender<T> {
        self.shared.messages.lock().senders += 1;
        QueueSender { shared: self.shared.clone() }
    }
}

impl<T> Drop for QueueSender<T> {
    fn drop(&mut self) {
        let was_last = {
            let mut messages = self.shared.messages.lock();
            messages.senders -= 1;
            messages.senders == 0
        };
        if was_last {
            self.shared.arrived.notify();
        }
    }
}

/// The receiving end of a [`queue`].
pub struct QueueReceiver<T> {
    shared: Arc<Queue<T>>,
}

impl<T> QueueReceiver<T> {
    /// Takes the next message if one waits.
    pub fn try_recv(&mut self) -> Option<T> {
        self.shared.messages.lock().waiting.pop_front()
    }

    /// Waits for the next message; `None` once the queue is empty and every sender is gone.
    pub async fn recv(&mut self) -> Option<T> {
        loop {
            {
                let mut messages = self.shared.messages.lock();
                match messages.waiting.pop_front() {
                    Some(message) => return Some(message),
                    None if messages.senders == 0 => return None,
                    None => {}
                }
            }
            self.shared.arrived.notified().await;
        }
    }
}

impl<T> Drop for QueueReceiver<T> {
    fn drop(&mut self) {
        let unread = {
            let mut messages = self.shared.messages.lock();
            messages.open = false;
            std::mem::take(&mut messages.waiting)
        };
        // Destructors are foreign code and may send: after the lock is released.
        drop(unread);
    }
}

/// The time of a [`timeout`] ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the time allowed for the operation has passed")
    }
}

impl std::error::Error for Elapsed {}

/// Waits for `future`, but not longer than `duration`; a future that is ready in time wins.
pub async fn timeout<F: Future>(
    clock: &dyn Clock,
    duration: Duration,
    future: F,
) -> Result<F::Output, Elapsed> {
    match select_biased(future, clock.sleep(duration)).await {
        Either::Left(output) => Ok(output),
        Either::Right(()) => Err(Elapsed),
    }
}

/// Which of two futures came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Either<A, B> {
    /// The first argument.
    Left(A),
    /// The second argument.
    Right(B),
}

/// Waits for the first of two futures and drops the other; the left one wins if both are ready.
pub async fn select_biased<A: Future, B: Future>(a: A, b: B) -> Either<A::Output, B::Output> {
    let (mut a, mut b) = (pin!(a), pin!(b));
    poll_fn(|cx| {
        if let Poll::Ready(output) = a.as_mut().poll(cx) {
            return Poll::Ready(Either::Left(output));
        }
        b.as_mut().poll(cx).map(Either::Right)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{block_on, yield_now};
    use std::future::{pending, ready};

    #[test]
    fn a_oneshot_delivers_its_value_or_says_that_it_never_will() {
        let (sender, receiver) = oneshot::channel();
        assert_eq!(sender.send(7), Ok(()));
        assert_eq!(block_on(receiver), Ok(7));
        let (sender, receiver) = oneshot::channel::<u32>();
        drop(sender);
        assert_eq!(block_on(receiver), Err(oneshot::Canceled));
        let (sender, receiver) = oneshot::channel();
        drop(receiver);
        assert!(sender.is_closed());
        assert_eq!(sender.send(7), Err(7));
    }

    #[test]
    fn a_queue_keeps_the_order_and_ends_with_its_last_sender() {
        let (sender, mut receiver) = queue();
        let second = sender.clone();
        sender.send(1).unwrap();
        second.send(2).unwrap();
        drop(sender);
        assert_eq!(block_on(receiver.recv()), Some(1));
        assert_eq!(receiver.try_recv(), Some(2));
        assert_eq!(receiver.try_recv(), None);
        let got = block_on(select_biased(receiver.recv(), async {
            yield_now().await;
            drop(second);
            pending::<()>().await;
        }));
        assert_eq!(got, Either::Left(None));
        let (sender, receiver) = queue();
        drop(receiver);
        assert_eq!(sender.send(3), Err(3));
    }

    #[test]
    fn signals_before_a_wait_count_as_one() {
        let notify = Notify::new();
        notify.notify();
        notify.notify();
        block_on(notify.notified());
        let second = block_on(select_biased(notify.notified(), ready("nothing was left")));
        assert_eq!(second, Either::Right("nothing was left"));
    }

    #[test]
    fn of_two_ready_futures_the_left_one_wins() {
        assert_eq!(block_on(select_biased(ready(1), ready(2))), Either::Left(1));
        assert_eq!(block_on(select_biased(pending::<()>(), ready(2))), Either::Right(2));
    }
}
