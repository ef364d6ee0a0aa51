//! A lapping ring: messages from one thread to one other, without a lock.
//!
//! ```text
//!   mark    7      7      6      4      5           odd: a message of lap mark / 2
//!   slot  [ m8 ] [ m9 ] [    ] [    ] [ m7 ]        even: free for lap mark / 2
//!            ^             ^             ^
//!            |             sender        receiver, a lap behind
//!            first of lap 3
//! ```
//!
//! The slots are fixed. Each has a *mark* that tells whose turn it is: it counts up by one with each
//! write and each read, so a sender on lap n may write where the mark is 2n, and the receiver may read
//! where it is 2n + 1. Sender and receiver know their own positions and never look at the other's:
//! there is no shared index. The usual ring shares its head and its tail, and every message moves both
//! between the cores' caches; here a message and the permission to read it travel in one line.
//!
//! # Bursts
//! A sender *puts* the messages of a turn and *flushes* once. The first of them keeps its mark until the
//! flush; the receiver stops there, so that the others may have theirs at once and all of them appear
//! together, by one store. Without this a receiver that finds the first message follows the sender
//! from slot to slot, and each message costs the two of them a fight for a cache line.
//!
//! # Sleeping
//! A receiver with nothing to do *listens* to its [`Bell`]; whoever sends afterwards rings it, which
//! wakes the task. While the receiver is awake ringing is a fence and a look. One bell serves all
//! rings of a receiver ([`crate::mesh`]). A sender that found the ring full is woken by its own bell
//! once there is room.
//!
//! No wake-up is lost: the sender *writes a mark, then looks whether somebody sleeps*, the receiver
//! *says that it sleeps, then looks at the marks*, each with a sequentially consistent fence in
//! between; at least one of them sees the other. The full ring is the same with the roles exchanged.
//!
//! # Invariants
//! - Messages arrive once each, in the order in which they were sent.
//! - A message that is not read is dropped with the ring, or earlier with its receiver.
//! - Nothing here waits: a call does what it can and says what it could not.
//!
//! All `unsafe` is in `raw.rs`. `model.rs` has the protocol tried in every order that the memory model
//! allows (docs/testing.md).

#[cfg(all(test, atoll_loom))]
mod model;
mod raw;
#[cfg(all(test, not(atoll_loom)))]
mod tests;

pub use raw::{Bell, Listener, bell};

/// Returns the two ends of a ring with room for `capacity` messages, rounded up to a power of two.
///
/// `receiver_bell` rings when a message was sent, `sender_bell` when there is room again after the
/// ring was found full.
pub fn ring<T: Send>(
    capacity: usize,
    receiver_bell: Bell,
    sender_bell: Bell,
) -> (Sender<T>, Receiver<T>) {
    let (producer, consumer) = raw::ring(capacity);
    (Sender { producer, bell: receiver_bell }, Receiver { consumer, bell: sender_bell })
}

/// The sending end.
#[derive(Debug)]
pub struct Sender<T> {
    producer: raw::Producer<T>,
    /// The receiver's.
    bell: Bell,
}

/// A message that was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsent<T> {
    /// There is no room. The sender's bell rings when there is.
    Full(T),
    /// The receiver is gone, for ever.
    Closed(T),
}

impl<T> Sender<T> {
    /// Sends a message, and with it everything that was put before.
    pub fn send(&mut self, message: T) -> Result<(), Unsent<T>> {
        self.put(message)?;
        self.flush();
        Ok(())
    }

    /// Writes a message that goes out with the next [`Sender::flush`].
    pub fn put(&mut self, message: T) -> Result<(), Unsent<T>> {
        if self.producer.is_closed() {
            return Err(Unsent::Closed(message));
        }
        let Err(message) = self.producer.put(message) else { return Ok(()) };
        // What was put so far may be what fills the ring.
        self.flush();
        // Said first, looked at again afterwards: a receiver that makes room meanwhile sees it.
        self.producer.want_room();
        self.producer.put(message).map_err(Unsent::Full)
    }

    /// Sends what was put, and wakes the receiver if it sleeps.
    pub fn flush(&mut self) {
        if self.producer.publish() {
            self.bell.ring();
        }
    }
}

/// The receiving end.
#[derive(Debug)]
pub struct Receiver<T> {
    consumer: raw::Consumer<T>,
    /// The sender's.
    bell: Bell,
}

impl<T> Receiver<T> {
    /// Hands out the messages that are there, but no more than fit the ring at once: a sender that
    /// is fast enough could keep the receiver here. Returns how many they were.
    pub fn drain(&mut self, mut each: impl FnMut(T)) -> usize {
        let mut drained = 0;
        while drained < self.consumer.capacity()
            && let Some(message) = self.consumer.take()
        {
            drained += 1;
            each(message);
        }
        if drained > 0 && self.consumer.room_is_wanted() {
            self.bell.ring();
        }
        drained
    }

    /// Returns whether there is a message.
    pub fn is_ready(&self) -> bool {
        self.consumer.is_ready()
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.consumer.close();
        // Somebody may wait for the answer to a message that nobody will read.
        while let Some(unread) = self.consumer.take() {
            drop(unread);
        }
        // A sender that waits for room has to learn that there is no use in it.
        self.bell.ring();
    }
}
