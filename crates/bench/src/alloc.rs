//! The counting allocator: how often and how much the process has asked the heap for memory.
//!
//! Every call goes on to the allocator that was built in ([`Heap`]); beside it, a thread adds to counters of its own:
//!
//! ```text
//!   thread 0    slot 0    | allocations | bytes allocated | bytes freed |    plain load and store
//!   thread 1    slot 1    | allocations | bytes allocated | bytes freed |
//!   ...
//!   all others  the last  | allocations | bytes allocated | bytes freed |    atomic addition
//! ```
//!
//! - An *allocation* is a call that returned memory; growing or shrinking in place or by moving
//!   counts as one of the new size, for that is what may have to be copied.
//! - The counts of the process are the sum of all slots, background threads included.
//! - Counted are the sizes that were asked for. What the allocator adds to each (8 bytes and rounding
//!   up to 16 with glibc) is not, and neither is memory that is mapped without the
//!   allocator (our memtable's regions) or allocated by C code (zstd's contexts).
//! - Counting must not change what is measured. One pair of shared counters would be passed back
//!   and forth between the cores; a slot's cache line stays with its thread, and since nobody else
//!   writes it, adding needs no locked instruction. [`cost`] measures what is left.

#![expect(unsafe_code, reason = "an allocator is an unsafe trait; this one only hands calls on")]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::hint::black_box;
use std::ops::{Add, Sub};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use crate::heap::Heap;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Slots, of which the last is shared: more than the threads of any workload.
const SLOTS: usize = 256;

static COUNTERS: [Slot; SLOTS] = [const { Slot::new() }; SLOTS];

/// Threads that have allocated so far, which is the slot of the next one.
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// This thread's slot; `usize::MAX` before its first allocation. It is initialised at compile
    /// time and has no destructor, so an allocator may use it at any moment of a thread's life.
    static SLOT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// What was asked of the allocator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls that returned memory.
    pub allocations: u64,
    /// Bytes they asked for.
    pub bytes: u64,
    /// Bytes given back; a block that grows gives back its old size.
    pub freed: u64,
}

impl Counts {
    /// Returns the counts of the whole process, from its start.
    pub fn of_process() -> Counts {
        COUNTERS.iter().map(Slot::counts).fold(Counts::default(), Counts::add)
    }

    /// Returns the bytes allocated and not freed. More may be freed than was allocated between two
    /// moments, which is none.
    pub fn live(self) -> u64 {
        self.bytes.saturating_sub(self.freed)
    }
}

impl Add for Counts {
    type Output = Counts;
    fn add(self, other: Counts) -> Counts {
        Counts {
            allocations: self.allocations + other.allocations,
            bytes: self.bytes + other.bytes,
            freed: self.freed + other.freed,
        }
    }
}

impl Sub for Counts {
    type Output = Counts;
    /// What happened between two moments, the later one first.
    fn sub(self, before: Counts) -> Counts {
        Counts {
            allocations: self.allocations - before.allocations,
            bytes: self.bytes - before.bytes,
            freed: self.freed - before.freed,
        }
    }
}

/// Returns what counting adds to an allocation and its release, in nanoseconds: the difference of
/// the fastest rounds with and without it. They take turns; the fastest were disturbed the least.
pub fn cost() -> f64 {
    const ROUNDS: usize = 200;
    let (mut with, mut without) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..ROUNDS {
        with = with.min(round_trips(&ALLOCATOR));
        without = without.min(round_trips(&Heap));
    }
    with - without
}

/// Allocates and frees small blocks, and returns the nanoseconds of one.
fn round_trips(allocator: &impl GlobalAlloc) -> f64 {
    const BLOCKS: u32 = 10_000;
    let layout = Layout::new::<[u64; 8]>();
    let start = Instant::now();
    for _ in 0..BLOCKS {
        // SAFETY: the layout's size is 64 bytes and not 0.
        let block = black_box(unsafe { allocator.alloc(layout) });
        if !block.is_null() {
            // SAFETY: this allocator returned the block just now, for this layout.
            unsafe { allocator.dealloc(block, layout) };
        }
    }
    start.elapsed().as_nanos() as f64 / f64::from(BLOCKS)
}

/// Hands every call to [`Heap`] and counts it.
struct Counting;

// SAFETY: `Heap` does the work and keeps the contract; this adds numbers, and neither allocates
// nor panics: a slot is always in bounds, and atomic addition wraps.
unsafe impl GlobalAlloc for Counting {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that `Heap` asks for, here and below.
        let block = unsafe { Heap.alloc(layout) };
        count(block, layout.size(), 0);
        block
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`. Not left to the trait's default, which would clear memory that
        // comes zeroed from the kernel and so touch all of it.
        let block = unsafe { Heap.alloc_zeroed(layout) };
        count(block, layout.size(), 0);
        block
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as in `alloc`; the block came from `Heap`, as all blocks of this allocator do.
        let block = unsafe { Heap.realloc(block, layout, new_size) };
        count(block, new_size, layout.size());
        block
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc`.
        unsafe { Heap.dealloc(block, layout) };
        with_slot(|slot, owned| slot.freed.add(layout.size(), owned));
    }
}

/// Counts an allocation of `size` bytes that replaced one of `freed` bytes, unless it failed.
#[inline]
fn count(block: *mut u8, size: usize, freed: usize) {
    if block.is_null() {
        return;
    }
    with_slot(|slot, owned| {
        slot.allocations.add(1, owned);
        slot.bytes.add(size, owned);
        if freed > 0 {
            slot.freed.add(freed, owned);
        }
    });
}

/// Calls with this thread's slot, and whether no other thread writes it.
#[inline]
fn with_slot(add: impl FnOnce(&Slot, bool)) {
    let nth = SLOT.get();
    let nth = if nth < SLOTS { nth } else { assign() };
    add(&COUNTERS[nth], nth < SLOTS - 1);
}

/// Gives this thread a slot. One that was given is never given again, although its thread ends:
/// taking it back would need a destructor, and the sum needs its counts.
#[cold]
fn assign() -> usize {
    let nth = THREADS.fetch_add(1, Relaxed).min(SLOTS - 1);
    SLOT.set(nth);
    nth
}

/// The counters of a thread, on a cache line of their own.
#[repr(align(64))]
struct Slot {
    allocations: Counter,
    bytes: Counter,
    freed: Counter,
}

impl Slot {
    const fn new() -> Slot {
        Slot { allocations: Counter::new(), bytes: Counter::new(), freed: Counter::new() }
    }

    fn counts(&self) -> Counts {
        Counts {
            allocations: self.allocations.0.load(Relaxed),
            bytes: self.bytes.0.load(Relaxed),
            freed: self.freed.0.load(Relaxed),
        }
    }
}

/// A number that anybody may read. Relaxed throughout: who compares two moments has met the
/// threads that allocated in between (a barrier, a join), and that orders their additions.
struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Counter {
        Counter(AtomicU64::new(0))
    }

    #[inline]
    fn add(&self, n: usize, owned: bool) {
        if owned {
            self.0.store(self.0.load(Relaxed).wrapping_add(n as u64), Relaxed);
        } else {
            self.0.fetch_add(n as u64, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts what a closure does on this thread; other tests allocate on theirs.
    fn counted(work: impl FnOnce()) -> Counts {
        let here = || COUNTERS[SLOT.get()].counts();
        // A thread has its slot from its first allocation on.
        drop(black_box(Box::new(0_u8)));
        let before = here();
        work();
        here() - before
    }

    #[test]
    fn every_kind_of_allocation_is_counted_once_with_its_size() {
        let expect = |allocations, bytes, freed| Counts { allocations, bytes, freed };
        assert_eq!(counted(|| ()), expect(0, 0, 0));
        assert_eq!(counted(|| drop(black_box(Box::new([1_u8; 24])))), expect(1, 24, 24));
        assert_eq!(counted(|| drop(black_box(vec![0_u64; 100]))), expect(1, 800, 800), "zeroed");
        let grown = || {
            let mut bytes = Vec::<u8>::with_capacity(100);
            bytes.reserve_exact(300);
            drop(black_box(bytes));
        };
        assert_eq!(counted(grown), expect(2, 400, 400), "grown");
        let kept = counted(|| std::mem::forget(black_box(Box::new([1_u8; 32]))));
        assert_eq!((kept, kept.live()), (expect(1, 32, 0), 32));
    }

    #[test]
    fn the_counts_of_the_process_have_those_of_ended_threads() {
        let before = Counts::of_process();
        let one = || {
            for _ in 0..1000 {
                drop(black_box(Box::new([1_u8; 64])));
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(one);
            scope.spawn(one);
        });
        let counts = Counts::of_process() - before;
        assert!(counts.allocations >= 2000 && counts.bytes >= 128_000, "{counts:?}");
        assert!(counts.freed >= 128_000, "{counts:?}");
    }

    #[test]
    fn threads_that_share_a_slot_lose_no_count() {
        static SHARED: Slot = Slot::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| SHARED.bytes.add(3, false)));
            }
        });
        assert_eq!(SHARED.counts().bytes, 120_000);
    }
}
