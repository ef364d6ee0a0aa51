//! Rings and meshes under the model checker: every interleaving of the threads below (with at most
//! three preemptions each) and every value that the memory model lets a load see.
//!
//! A lost wake-up ends as a deadlock, which the checker reports; a lost or doubled message fails an
//! assertion; a message that is not dropped is a leak that it reports. `cargo xtask loom` runs them.

use loom::future::block_on;
use loom::model::Builder;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use loom::thread;

use super::{Unsent, bell, ring};
use crate::mesh::{Port, mesh};

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(f);
}

/// Receives `count` messages in the way a core does: drain, else sleep.
fn receive<T: Send>(port: &mut Port<T>, count: usize) -> Vec<T> {
    let mut got = Vec::new();
    loop {
        port.drain(|_, message| got.push(message));
        if got.len() == count {
            return got;
        }
        block_on(port.arrived());
    }
}

#[test]
fn messages_arrive_once_in_order_and_nobody_sleeps_over_them() {
    model(|| {
        let mut ports = mesh(2, 2);
        let (mut b, mut a) = (ports.pop().unwrap(), ports.pop().unwrap());
        let sender = thread::spawn(move || {
            a.send(1, 1);
            a.send(1, 2);
        });
        assert_eq!(receive(&mut b, 2), [1, 2]);
        sender.join().unwrap();
    });
}

#[test]
fn a_burst_is_seen_whole_and_in_order() {
    model(|| {
        let mut ports = mesh(2, 4);
        let (mut b, mut a) = (ports.pop().unwrap(), ports.pop().unwrap());
        let sender = thread::spawn(move || {
            (1..=3).for_each(|n| a.put(1, n));
            a.flush();
        });
        let mut got = Vec::new();
        block_on(b.arrived());
        b.drain(|_, message| got.push(message));
        assert_eq!(got, [1, 2, 3]);
        sender.join().unwrap();
    });
}

#[test]
fn a_burst_longer_than_its_ring_goes_through() {
    model(|| {
        let mut ports = mesh(2, 2);
        let (mut b, mut a) = (ports.pop().unwrap(), ports.pop().unwrap());
        let sender = thread::spawn(move || {
            (1..=3).for_each(|n| a.put(1, n));
            assert_eq!(receive(&mut a, 1), [9]);
        });
        assert_eq!(receive(&mut b, 3), [1, 2, 3]);
        b.send(0, 9);
        sender.join().unwrap();
    });
}

#[test]
fn a_full_ring_wakes_its_sender_when_there_is_room() {
    model(|| {
        let mut ports = mesh(2, 1);
        let (mut b, mut a) = (ports.pop().unwrap(), ports.pop().unwrap());
        let sender = thread::spawn(move || {
            // Two of them do not fit: the second lap of the only slot, and a third one.
            (1..=3).for_each(|n| a.send(1, n));
            // Nothing arrives here before everything is sent and answered: it sleeps for room.
            assert_eq!(receive(&mut a, 1), [9]);
            assert_eq!(a.backlog(1), 0);
        });
        assert_eq!(receive(&mut b, 3), [1, 2, 3]);
        b.send(0, 9);
        sender.join().unwrap();
    });
}

#[test]
fn one_sleeper_is_woken_by_either_of_two_senders() {
    model(|| {
        let mut ports = mesh(3, 1);
        let mut receiver = ports.remove(0);
        let senders: Vec<_> = ports
            .into_iter()
            .map(|mut port| {
                thread::spawn(move || {
                    port.send(0, port.index());
                    port
                })
            })
            .collect();
        let mut got = receive(&mut receiver, 2);
        got.sort_unstable();
        assert_eq!(got, [1, 2]);
        senders.into_iter().for_each(|sender| drop(sender.join().unwrap()));
    });
}

#[test]
fn two_cores_that_send_to_each_other_first_and_receive_afterwards_both_end() {
    model(|| {
        let mut ports = mesh(2, 1);
        let (mut b, mut a) = (ports.pop().unwrap(), ports.pop().unwrap());
        let other = thread::spawn(move || {
            (1..=2).for_each(|n| a.send(1, n));
            assert_eq!(receive(&mut a, 1), [7]);
            a // its port goes last: what overflowed is in it
        });
        b.send(0, 7);
        assert_eq!(receive(&mut b, 1), [1]);
        drop(b);
        drop(other.join().unwrap());
    });
}

/// A message that counts how often it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
    }
}

#[test]
fn every_message_is_dropped_once_whoever_goes_first() {
    model(|| {
        let (receiver_bell, _listener) = bell();
        let (sender_bell, _listener) = bell();
        let (mut sender, mut receiver) = ring(2, receiver_bell, sender_bell);
        let dropped = Arc::new(AtomicUsize::new(0));
        let count = dropped.clone();
        let thread = thread::spawn(move || {
            for n in 0..3 {
                match sender.put(Counted(count.clone())) {
                    Ok(()) if n == 1 => sender.flush(),
                    Ok(()) => {}
                    Err(Unsent::Full(unsent) | Unsent::Closed(unsent)) => drop(unsent),
                }
            }
        });
        receiver.drain(drop);
        drop(receiver);
        thread.join().unwrap();
        assert_eq!(dropped.load(Relaxed), 3);
    });
}
