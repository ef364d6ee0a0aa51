//! The two things of a ring that two threads share without a lock: its slots, and the waker of who
//! sleeps. The only `unsafe` code of the rings.
//!
//! Each of them is memory with one owner at a time, and an atomic that says who that is:
//!
//! | memory | atomic | owner |
//! |---|---|---|
//! | a slot's message | its mark: even | the producer |
//! | | odd | the consumer |
//! | a bell's waker | `AWAKE` | the listener |
//! | | `ASLEEP` | nobody; whoever changes the state |
//! | | `RINGING` | the ringer that made it so |
//!
//! An owner hands over by a release store; the next one takes over by an acquire load of that value.
//! Producer, consumer and listener exist once per ring or bell, cannot be cloned and change things
//! only through `&mut self`, so that "the producer" is one thread at a time.

use std::fmt;
use std::mem::MaybeUninit;
use std::task::Waker;

use sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use sync::atomic::{AtomicBool, AtomicUsize, fence};
use sync::{Arc, UnsafeCell};

/// The standard library's tools, or the model checker's in their place.
#[cfg(not(all(test, atoll_loom)))]
mod sync {
    pub(super) use std::hint;
    pub(super) use std::sync::{Arc, atomic};

    /// A cell with the model checker's interface.
    pub(super) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(super) fn new(value: T) -> UnsafeCell<T> {
            UnsafeCell(std::cell::UnsafeCell::new(value))
        }

        pub(super) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }
}
#[cfg(all(test, atoll_loom))]
mod sync {
    pub(super) use loom::cell::UnsafeCell;
    pub(super) use loom::hint;
    pub(super) use loom::sync::{Arc, atomic};
}

/// What both ends of a ring share.
struct Ring<T> {
    slots: Box<[Slot<T>]>,
    /// Capacity - 1.
    mask: usize,
    /// The producer found it full and waits. Padded: the fields around it are read for each message
    /// by both sides.
    wants_room: Padded<AtomicBool>,
    /// The consumer is gone.
    closed: AtomicBool,
}

/// Has its cache lines (processors fetch them in pairs) for itself.
#[repr(align(128))]
struct Padded<T>(T);

struct Slot<T> {
    /// Counts writes and reads of this slot.
    mark: AtomicUsize,
    message: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: a message is only touched by the owner that its slot's mark names, so messages move between
// threads but are never shared; everything else in a ring is atomic or constant.
unsafe impl<T: Send> Send for Ring<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Ring<T> {}

/// Returns the ends of a ring.
pub(super) fn ring<T>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    let capacity = capacity.max(1).next_power_of_two();
    let slot =
        |_| Slot { mark: AtomicUsize::new(0), message: UnsafeCell::new(MaybeUninit::uninit()) };
    let ring = Arc::new(Ring {
        slots: (0..capacity).map(slot).collect(),
        mask: capacity - 1,
        wants_room: Padded(AtomicBool::new(false)),
        closed: AtomicBool::new(false),
    });
    (Producer { ring: ring.clone(), position: 0, held: None }, Consumer { ring, position: 0 })
}

impl<T> Ring<T> {
    /// Returns the slot of a position, and its mark when it is free for the lap of that position.
    fn at(&self, position: usize) -> (&Slot<T>, usize) {
        let lap = position >> self.mask.count_ones();
        (&self.slots[position & self.mask], lap.wrapping_mul(2))
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        for slot in &self.slots {
            if slot.mark.load(Relaxed) % 2 == 1 {
                // SAFETY: an odd mark says that the slot holds a message that nobody has taken, and
                // `&mut self` that producer and consumer are gone.
                slot.message.with_mut(|message| unsafe { (*message).assume_init_drop() });
            }
        }
    }
}

/// The writing end of a ring.
pub(super) struct Producer<T> {
    ring: Arc<Ring<T>>,
    /// Messages written.
    position: usize,
    /// Where the first message lies whose mark still says that the slot is free. The consumer takes
    /// messages in order, so it sees none of those behind it either.
    held: Option<usize>,
}

impl<T> Producer<T> {
    /// Writes a message if its slot is free. The consumer sees it after [`Producer::publish`].
    pub(super) fn put(&mut self, message: T) -> Result<(), T> {
        let (slot, free) = self.ring.at(self.position);
        // With a message that is held back in it, the mark of the slot says "free", but for its lap.
        if slot.mark.load(Acquire) != free {
            return Err(message);
        }
        // SAFETY: the mark is even and of this lap, so the slot is the producer's, which is `&mut
        // self`, and nothing was written to it in this lap; the acquire load saw the consumer's last
        // read of it complete, which left it without a message.
        slot.message.with_mut(|place| unsafe { (*place).write(message) });
        match self.held {
            Some(_) => slot.mark.store(free + 1, Release),
            None => self.held = Some(self.position),
        }
        self.position += 1;
        Ok(())
    }

    /// Shows the consumer all messages written; returns whether there was a new one.
    pub(super) fn publish(&mut self) -> bool {
        let Some(held) = self.held.take() else { return false };
        let (slot, free) = self.ring.at(held);
        slot.mark.store(free + 1, Release);
        true
    }

    /// Says that the next room made is waited for. What the producer sees of the slots afterwards is
    /// as new as what a consumer that does not hear of it has left.
    pub(super) fn want_room(&self) {
        self.ring.wants_room.0.store(true, Relaxed);
        fence(SeqCst);
    }

    /// Returns whether the consumer is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.ring.closed.load(Relaxed)
    }
}

impl<T> Drop for Producer<T> {
    fn drop(&mut self) {
        // A message without its mark would never be dropped.
        self.publish();
    }
}

/// The reading end of a ring.
pub(super) struct Consumer<T> {
    ring: Arc<Ring<T>>,
    /// Messages read.
    position: usize,
}

impl<T> Consumer<T> {
    /// Takes the next message if there is one.
    pub(super) fn take(&mut self) -> Option<T> {
        let (slot, free) = self.ring.at(self.position);
        if slot.mark.load(Acquire) != free + 1 {
            return None;
        }
        // SAFETY: the mark is odd, so the slot is the consumer's, which is `&mut self`; the acquire
        // load saw the producer's write of the message complete. The next store gives the slot back,
        // so the message is not read twice.
        let message = slot.message.with_mut(|place| unsafe { (*place).assume_init_read() });
        slot.mark.store(free + 2, Release);
        self.position += 1;
        Some(message)
    }

    /// Returns whether there is a message.
    pub(super) fn is_ready(&self) -> bool {
        let (slot, free) = self.ring.at(self.position);
        slot.mark.load(Acquire) == free + 1
    }

    /// Returns whether the producer waits for the room that was made, once for each time.
    pub(super) fn room_is_wanted(&self) -> bool {
        fence(SeqCst);
        self.ring.wants_room.0.load(Relaxed) && self.ring.wants_room.0.swap(false, Relaxed)
    }

    /// Says that nobody will read any more.
    pub(super) fn close(&self) {
        self.ring.closed.store(true, Relaxed);
    }

    /// Returns how many messages fit.
    pub(super) fn capacity(&self) -> usize {
        self.ring.mask + 1
    }
}

/// Returns a bell and who listens to it.
pub fn bell() -> (Bell, Listener) {
    let shared = Shared { state: AtomicUsize::new(AWAKE), waker: UnsafeCell::new(None) };
    let shared = Arc::new(shared);
    (Bell { shared: shared.clone() }, Listener { shared })
}

/// What a bell and its listener share: on cache lines of its own, because many look at it often and
/// it changes seldom.
#[repr(align(128))]
struct Shared {
    state: AtomicUsize,
    waker: UnsafeCell<Option<Waker>>,
}

const AWAKE: usize = 0;
const ASLEEP: usize = 1;
const RINGING: usize = 2;

// SAFETY: the waker, which is `Send`, is only touched by the owner that the state names.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// Wakes a task if it sleeps. Cheap to clone.
#[derive(Clone)]
pub struct Bell {
    shared: Arc<Shared>,
}

impl Bell {
    /// Wakes the listener if it sleeps: it will see everything that the caller wrote before.
    pub fn ring(&self) {
        // Orders what was written before against the look at the state: see the module's essay.
        fence(SeqCst);
        let state = &self.shared.state;
        if state.load(Relaxed) != ASLEEP
            || state.compare_exchange(ASLEEP, RINGING, Acquire, Relaxed).is_err()
        {
            return;
        }
        // SAFETY: the exchange made this call the owner; the acquire saw the listener's write of the
        // waker complete.
        let waker = self.shared.waker.with_mut(|waker| unsafe { (*waker).take() });
        state.store(AWAKE, Release);
        // Foreign code runs when the waker is the listener's again.
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The one who is woken by a [`Bell`].
pub struct Listener {
    shared: Arc<Shared>,
}

impl Listener {
    /// Asks for `waker` to be woken by the next ring.
    ///
    /// The caller looks at what it waits for *afterwards*: what it does not see there will ring. If
    /// it sees something, it says [`Listener::stop`].
    pub fn listen(&mut self, waker: &Waker) {
        let state = &self.shared.state;
        // Only this object leaves `AWAKE`, and only it or a ringer enters it.
        loop {
            match state.load(Acquire) {
                AWAKE => break,
                // A waker of an earlier poll is there: it is taken back, if no ringer is faster.
                ASLEEP => _ = state.compare_exchange(ASLEEP, AWAKE, Acquire, Relaxed),
                // A ringer has that one and wakes it in a moment; whether it is the right one is
                // not known. Asking to be polled again costs a turn; waiting here for a ringer that
                // is not running might cost a time slice.
                _ => {
                    sync::hint::spin_loop();
                    return waker.wake_by_ref();
                }
            }
        }
        // SAFETY: the state is `AWAKE`, so the waker is the listener's, which is `&mut self`; the
        // acquire load saw the last ringer's hands off it.
        let before = self.shared.waker.with_mut(|place| unsafe { (*place).replace(waker.clone()) });
        state.store(ASLEEP, Release);
        fence(SeqCst);
        // Foreign code, run when everything is in order.
        drop(before);
    }

    /// Is awake: rings need not wake it.
    pub fn stop(&mut self) {
        // If a ringer was faster, the task is woken for nothing.
        _ = self.shared.state.compare_exchange(ASLEEP, AWAKE, Acquire, Relaxed);
    }
}

impl<T> fmt::Debug for Producer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Producer({} written)", self.position)
    }
}

impl<T> fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Consumer({} read)", self.position)
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bell")
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}
