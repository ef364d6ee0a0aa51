//! What one thread can see of a ring, and a long run between two. The orders in between are
//! `model.rs`'s.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::*;
use crate::task::block_on;

/// A waker that counts.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn waker() -> (Waker, impl Fn() -> usize) {
    let woken = Arc::new(Woken::default());
    (Waker::from(woken.clone()), move || woken.0.load(Ordering::SeqCst))
}

fn drain<T>(receiver: &mut Receiver<T>) -> Vec<T> {
    let mut got = Vec::new();
    receiver.drain(|message| got.push(message));
    got
}

#[test]
fn messages_come_out_in_order_over_many_laps() {
    for capacity in [1, 2, 8] {
        let (mut sender, mut receiver) = ring(capacity, bell().0, bell().0);
        let (mut sent, mut got) = (0u32, Vec::new());
        while sent < 100 {
            // Batches of all sizes, so that laps begin anywhere.
            for _ in 0..1 + sent as usize % capacity {
                sender.send(sent).unwrap();
                sent += 1;
            }
            got.extend(drain(&mut receiver));
        }
        assert_eq!(got, (0..sent).collect::<Vec<_>>());
    }
}

#[test]
fn a_burst_appears_at_once() {
    let (mut sender, mut receiver) = ring(4, bell().0, bell().0);
    (0..3).for_each(|n| sender.put(n).unwrap());
    assert!(!receiver.is_ready());
    assert_eq!(drain(&mut receiver), []);
    sender.flush();
    assert_eq!(drain(&mut receiver), [0, 1, 2]);
    // One that is longer than the ring appears as far as it came.
    (3..7).for_each(|n| sender.put(n).unwrap());
    assert_eq!(sender.put(7), Err(Unsent::Full(7)));
    assert_eq!(drain(&mut receiver), [3, 4, 5, 6]);
    sender.put(7).unwrap();
    drop(sender);
    assert_eq!(drain(&mut receiver), [7], "a sender that goes has flushed");
}

#[test]
fn what_does_not_fit_is_given_back_and_fits_later() {
    let (mut sender, mut receiver) = ring(3, bell().0, bell().0); // rounded up to 4
    for n in 0..4 {
        assert_eq!(sender.send(n), Ok(()));
    }
    assert_eq!(sender.send(4), Err(Unsent::Full(4)));
    assert_eq!(drain(&mut receiver), [0, 1, 2, 3]);
    assert_eq!(sender.send(4), Ok(()));
    drop(receiver);
    assert_eq!(sender.send(5), Err(Unsent::Closed(5)));
}

#[test]
fn a_drain_is_one_pass() {
    let (mut sender, mut receiver) = ring(4, bell().0, bell().0);
    let mut next = 0;
    (0..4).for_each(|n| sender.send(n).unwrap());
    // The sender keeps up with the receiver; the receiver comes back all the same.
    let drained = receiver.drain(|_| {
        sender.send(next).unwrap();
        next += 1;
    });
    assert_eq!((drained, next), (4, 4));
}

#[test]
fn only_a_sleeper_is_woken_and_only_once() {
    let ((bell, mut listener), (waker, woken)) = (bell(), waker());
    let (mut sender, mut receiver) = ring(4, bell.clone(), super::bell().0);
    sender.send(1).unwrap();
    assert_eq!(woken(), 0, "nobody listens");
    listener.listen(&waker);
    sender.send(2).unwrap();
    sender.send(3).unwrap();
    assert_eq!(woken(), 1, "awake after the first one");
    listener.listen(&waker);
    listener.stop();
    bell.ring();
    assert_eq!(woken(), 1, "it stopped listening");
    assert_eq!(drain(&mut receiver), [1, 2, 3]);
}

#[test]
fn the_last_waker_given_is_the_one_that_is_woken() {
    let ((bell, mut listener), (first, first_woken)) = (bell(), waker());
    let (second, second_woken) = waker();
    listener.listen(&first);
    listener.listen(&second);
    bell.ring();
    assert_eq!((first_woken(), second_woken()), (0, 1));
}

#[test]
fn a_sender_that_found_no_room_is_told_of_it_once() {
    let ((sender_bell, mut listener), (waker, woken)) = (bell(), waker());
    let (mut sender, mut receiver) = ring(2, bell().0, sender_bell);
    listener.listen(&waker);
    (0..2).for_each(|n| sender.send(n).unwrap());
    receiver.drain(drop);
    assert_eq!(woken(), 0, "it wanted no room");
    (0..2).for_each(|n| sender.send(n).unwrap());
    assert!(sender.send(2).is_err());
    assert_eq!(receiver.drain(drop), 2);
    assert_eq!(woken(), 1);
    listener.listen(&waker);
    sender.send(2).unwrap();
    receiver.drain(drop);
    assert_eq!(woken(), 1);
}

#[test]
fn unread_messages_go_with_the_receiver() {
    let message = Arc::new(());
    let (mut sender, receiver) = ring(4, bell().0, bell().0);
    (0..3).for_each(|_| sender.send(message.clone()).unwrap());
    drop(receiver);
    assert_eq!(Arc::strong_count(&message), 1);
    let (mut sender, receiver) = ring(4, bell().0, bell().0);
    sender.send(message.clone()).unwrap();
    drop(sender);
    assert!(receiver.is_ready(), "the sender's end takes nothing back");
    drop(receiver);
    assert_eq!(Arc::strong_count(&message), 1);
    let (mut sender, receiver) = ring(4, bell().0, bell().0);
    (0..2).for_each(|_| sender.put(message.clone()).unwrap());
    drop(receiver);
    assert_eq!(Arc::strong_count(&message), 3, "with their sender, which may still put");
    drop(sender);
    assert_eq!(Arc::strong_count(&message), 1);
}

#[test]
fn two_threads_pass_a_million_messages_without_losing_one() {
    const COUNT: u64 = if cfg!(miri) { 300 } else { 1_000_000 };
    let (receiver_bell, mut receiver_listener) = bell();
    let (sender_bell, mut sender_listener) = bell();
    let (mut sender, mut receiver) = ring(64, receiver_bell, sender_bell);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            block_on(async {
                for n in 0..COUNT {
                    let mut message = Some([n; 8]);
                    poll_fn(|cx| {
                        // Sleeps whenever the ring is full: that wake-up is tried as well.
                        for listens in [false, true] {
                            match sender.send(message.take().expect("given back if not sent")) {
                                Ok(()) => {
                                    sender_listener.stop();
                                    return Poll::Ready(());
                                }
                                Err(Unsent::Full(back)) => message = Some(back),
                                Err(Unsent::Closed(_)) => panic!("the receiver waits for more"),
                            }
                            if !listens {
                                sender_listener.listen(cx.waker());
                            }
                        }
                        Poll::Pending
                    })
                    .await;
                }
            });
        });
        let mut next = 0;
        let receive = |cx: &mut Context<'_>| {
            loop {
                let drained = receiver.drain(|message| {
                    assert_eq!(message, [next; 8]);
                    next += 1;
                });
                if next == COUNT {
                    return Poll::Ready(());
                }
                if drained == 0 {
                    receiver_listener.listen(cx.waker());
                    if !receiver.is_ready() {
                        return Poll::Pending;
                    }
                    receiver_listener.stop();
                }
            }
        };
        block_on(poll_fn(receive));
    });
}
