//! Where frames lie in a region: runs cut out by a buddy system, and frames cut out of runs.
//!
//! ```text
//!   chunk, 2 MiB  |  64 KiB  |  64 KiB  |       128 KiB       |          256 KiB  free       | ...
//!   run, 64 KiB   | 4352 | 4352 | free | 4352 | ...  15 frames of one class
//! ```
//!
//! Blocks have any length, and most of them a little more than the target they were cut at. Powers of
//! two would waste nearly half of those. So a *class* is not a size but a number of frames to a run: a
//! run of 64 KiB holds 16 frames of 4096 bytes, or 15 of 4368, or 14 of 4672, down to 9 of 7280. A frame is at
//! most an eighth longer than the next class below, and a run has no tail to speak of.
//!
//! *Runs* are the blocks of a buddy system: powers of two, at addresses that are multiples of their
//! size, so that two free halves make a whole again. A run belongs to one class as long as one of its
//! frames is taken, and has a bit for each free one. Frames are taken from the fullest run that has
//! room: the others empty meanwhile, and what has become empty serves another class.
//!
//! # Shortage
//! When the distribution of lengths changes, the runs of one class are in the way of another. Nothing
//! is moved: the owner is told the *cheapest* run, drops what lies there, and has a run. The same with
//! whole chunks when he is to give memory back: a *closed* chunk takes no new frames, and what is free
//! in it is *idle*: its pages can go to the machine.
//!
//! Rejected: a buddy system alone, whose rounding costs a quarter of all memory on the average; frames
//! of exact length one behind the other, which leaves holes that fit nothing.
//!
//! Everything here is arithmetic on offsets. It owns no memory, and no call fails in another way than
//! by `None`.

use std::ops::Range;

use atoll_env::os::memory::CHUNK;

/// The smallest unit of the buddy system: a page of the machine.
pub(super) const PAGE: usize = 4096;
const CHUNK_PAGES: usize = CHUNK / PAGE;
/// Order of a run that is a chunk.
const ORDER_MAX: usize = CHUNK_PAGES.ilog2() as usize;
/// The order whose runs have frames of 512 to 1024 bytes. Below, a run would hold too little.
const ORDER_MIN: usize = 1;
/// The most frames to a run.
const FRAMES_MAX: usize = 16;
/// Frames begin at multiples of it.
const ALIGN: usize = 16;

/// A class of frames: so many to a run of so many pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class(u8);

#[derive(Clone, Copy)]
struct Shape {
    order: u8,
    frames: u8,
    /// Bytes of a frame.
    bytes: u32,
}

/// 9 to 16 frames in each order, and down to 2 in a chunk.
const CLASSES: usize = (ORDER_MAX - ORDER_MIN + 1) * 8 + 7;

const SHAPES: [Shape; CLASSES] = {
    let mut shapes = [Shape { order: 0, frames: 0, bytes: 0 }; CLASSES];
    let (mut n, mut order, mut frames) = (0, ORDER_MIN, FRAMES_MAX);
    while n < CLASSES {
        let bytes = (PAGE << order) / frames / ALIGN * ALIGN;
        shapes[n] = Shape { order: order as u8, frames: frames as u8, bytes: bytes as u32 };
        n += 1;
        frames -= 1;
        if frames == FRAMES_MAX / 2 && order < ORDER_MAX {
            frames = FRAMES_MAX;
            order += 1;
        }
    }
    shapes
};

impl Class {
    /// Returns the smallest class with room for so many bytes, if there is one.
    pub(super) fn of(bytes: usize) -> Option<Class> {
        let n = SHAPES.partition_point(|shape| (shape.bytes as usize) < bytes);
        (n < CLASSES).then_some(Class(n as u8))
    }

    fn shape(self) -> Shape {
        SHAPES[self.0 as usize]
    }

    /// Returns the room in one of its frames.
    #[cfg(test)]
    fn frame_bytes(self) -> usize {
        self.shape().bytes as usize
    }

    /// Returns the size of one of its runs.
    pub(super) fn run_bytes(self) -> usize {
        PAGE << self.shape().order
    }

    /// Returns a frame's part of its run.
    pub(super) fn share(self) -> usize {
        self.run_bytes() / self.shape().frames as usize
    }
}

/// Number of a page in the region; `NIL` ends a list.
type PageId = u32;
const NIL: PageId = PageId::MAX;

/// What begins at a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing: it lies within what begins before it.
    Inside,
    /// A free block of this order.
    Free(u8),
    /// A run.
    Run(Class),
}

#[derive(Clone, Copy)]
struct Page {
    state: State,
    /// Of a run: which frames are free.
    free: u16,
    /// Of a run: the clock when a frame was last taken.
    touched: u32,
    prev: PageId,
    next: PageId,
}

const PLAIN: Page = Page { state: State::Inside, free: 0, touched: 0, prev: NIL, next: NIL };

/// A chunk, from its first use on.
#[derive(Clone, Copy, Default)]
struct Chunk {
    /// Pages in runs.
    used: u32,
    /// Takes no new frames.
    closed: bool,
}

/// A ring of runs or of free blocks, by its first element.
#[derive(Clone, Copy)]
struct List(PageId);

/// What giving a frame back has freed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Freed {
    /// The frame alone.
    Frame,
    /// All of its run: a range of bytes of the region.
    Run(Range<usize>),
    /// The same in a closed chunk: nobody is going to need it soon.
    Idle(Range<usize>),
}

/// The map of a region.
pub(super) struct Runs {
    /// Of the chunks that were ever used.
    pages: Vec<Page>,
    chunks: Vec<Chunk>,
    chunks_max: usize,
    /// Chunks that may be open.
    open_max: usize,
    free: [List; ORDER_MAX + 1],
    /// Runs of open chunks by class and number of free frames.
    runs: Box<[[List; FRAMES_MAX + 1]; CLASSES]>,
    /// Which of these lists are not empty.
    some: [u32; CLASSES],
    /// Bytes in runs of open chunks.
    bytes: usize,
    /// Frames taken.
    frames: usize,
    closed: usize,
    /// Counts the frames that were ever taken.
    clock: u32,
}

impl Runs {
    /// Returns the map of a region of so many bytes, without a frame.
    pub(super) fn new(len: usize) -> Runs {
        Runs {
            pages: Vec::new(),
            chunks: Vec::new(),
            // Page numbers have 32 bits: 16 TiB are enough.
            chunks_max: (len / CHUNK).min(NIL as usize / CHUNK_PAGES),
            open_max: usize::MAX,
            free: [List(NIL); ORDER_MAX + 1],
            runs: Box::new([[List(NIL); FRAMES_MAX + 1]; CLASSES]),
            some: [0; CLASSES],
            bytes: 0,
            frames: 0,
            closed: 0,
            clock: 0,
        }
    }

    /// Puts all chunks to use, for a region that is backed whatever is used of it: what is not needed
    /// can then be closed.
    pub(super) fn add_all(&mut self) {
        while self.add_chunk().is_some() {}
    }

    /// Returns the bytes in runs of open chunks. What is left in closed ones readers hold.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the frames that are taken.
    pub(super) fn frames(&self) -> usize {
        self.frames
    }

    /// Takes a frame; a new run is made only if it fits into `room` bytes. Returns the frame's offset.
    pub(super) fn take(&mut self, class: Class, room: usize) -> Option<usize> {
        let shape = class.shape();
        let with_room = self.some[class.0 as usize] >> 1;
        let run = if with_room != 0 {
            // The fullest: those with one free frame stand in the first list.
            self.runs[class.0 as usize][with_room.trailing_zeros() as usize + 1].0
        } else {
            if class.run_bytes() > room {
                return None;
            }
            let at = self.take_block(shape.order as usize)?;
            let all = u16::MAX >> (FRAMES_MAX - shape.frames as usize);
            self.pages[at as usize] = Page { state: State::Run(class), free: all, ..PLAIN };
            self.chunk_of(at).used += 1 << shape.order;
            self.bytes += class.run_bytes();
            self.link_run(at);
            at
        };
        self.unlink_run(run);
        self.clock = self.clock.wrapping_add(1);
        let page = &mut self.pages[run as usize];
        page.touched = self.clock;
        let n = page.free.trailing_zeros() as usize;
        page.free &= page.free - 1;
        self.link_run(run);
        self.frames += 1;
        Some(run as usize * PAGE + n * shape.bytes as usize)
    }

    /// Gives a frame back that was taken with this class.
    pub(super) fn give(&mut self, offset: usize, class: Class) -> Freed {
        let shape = class.shape();
        let run = (offset / class.run_bytes() * class.run_bytes() / PAGE) as PageId;
        let bit = 1 << ((offset - run as usize * PAGE) / shape.bytes as usize);
        let closed = self.chunk_of(run).closed;
        if !closed {
            self.unlink_run(run);
        }
        let page = &mut self.pages[run as usize];
        debug_assert!(page.state == State::Run(class) && page.free & bit == 0, "given back twice");
        page.free |= bit;
        self.frames -= 1;
        if page.free.count_ones() < u32::from(shape.frames) {
            if !closed {
                self.link_run(run);
            }
            return Freed::Frame;
        }
        *page = PLAIN;
        let chunk = self.chunk_of(run);
        chunk.used -= 1 << shape.order;
        let start = run as usize * PAGE;
        let range = start..start + class.run_bytes();
        if closed {
            return Freed::Idle(range);
        }
        self.bytes -= class.run_bytes();
        self.give_block(run, shape.order as usize);
        Freed::Run(range)
    }

    /// Returns the offsets of the frames in the run that is worth the least. As in the cleaner of a
    /// log-structured file system that is not simply the emptiest, which is often one that has just been
    /// begun: what counts is how much it gives, by what it takes, and for how long it was left alone.
    pub(super) fn cheapest(&self) -> Option<Vec<usize>> {
        let mut best = None;
        for (class, shape) in SHAPES.iter().enumerate() {
            let mut lists = self.some[class];
            while lists != 0 {
                let free = lists.trailing_zeros();
                lists &= lists - 1;
                // The last of its list is the one that has stood there for the longest.
                let run = self.pages[self.runs[class][free as usize].0 as usize].prev;
                let age = u64::from(self.clock.wrapping_sub(self.pages[run as usize].touched)) + 1;
                let score =
                    age * u64::from(free + 1) * 64 / u64::from(shape.frames as u32 - free + 1);
                best = best.max(Some((score, run)));
            }
        }
        best.map(|(_, run)| self.taken_in(run).collect())
    }

    /// Closes chunks, those with the fewest pages in runs first, until at most so many are open, and
    /// opens closed ones up to that. Returns what became idle, what was opened and is to be restored,
    /// and the frames that are in the way.
    pub(super) fn set_open(&mut self, open: usize) -> Turned {
        let mut turned = Turned::default();
        let range = |chunk: usize| chunk * CHUNK..(chunk + 1) * CHUNK;
        while self.open_chunks() > open {
            let candidates = (0..self.chunks.len()).filter(|&n| !self.chunks[n].closed);
            let Some(n) = candidates.min_by_key(|&n| self.chunks[n].used) else { break };
            self.close(n, &mut turned);
        }
        while self.open_chunks() < open {
            let Some(n) = self.chunks.iter().position(|chunk| chunk.closed) else { break };
            self.open(n);
            turned.opened.push(range(n));
        }
        self.open_max = open;
        turned
    }

    fn close(&mut self, n: usize, turned: &mut Turned) {
        self.closed += 1;
        for at in self.starts(n) {
            match self.pages[at as usize].state {
                State::Inside => {}
                State::Free(order) => {
                    self.unlink_block(at, order as usize);
                    self.pages[at as usize].state = State::Inside;
                    let start = at as usize * PAGE;
                    turned.idle.push(start..start + (PAGE << order));
                }
                State::Run(class) => {
                    self.unlink_run(at);
                    self.bytes -= class.run_bytes();
                    turned.in_the_way.extend(self.taken_in(at));
                }
            }
        }
        self.chunks[n].closed = true;
    }

    fn open(&mut self, n: usize) {
        self.closed -= 1;
        self.chunks[n].closed = false;
        // What lies between the runs that readers have kept is free again, in the largest blocks.
        let (mut at, end) = (n * CHUNK_PAGES, (n + 1) * CHUNK_PAGES);
        while at < end {
            match self.pages[at].state {
                State::Run(class) => {
                    self.link_run(at as PageId);
                    self.bytes += class.run_bytes();
                    at += 1 << class.shape().order;
                }
                _ => {
                    self.give_block(at as PageId, 0);
                    at += 1;
                }
            }
        }
    }

    /// Returns how many chunks are open and in use.
    fn open_chunks(&self) -> usize {
        self.chunks.len() - self.closed
    }

    fn starts(&self, chunk: usize) -> Range<PageId> {
        (chunk * CHUNK_PAGES) as PageId..((chunk + 1) * CHUNK_PAGES) as PageId
    }

    fn chunk_of(&mut self, page: PageId) -> &mut Chunk {
        &mut self.chunks[page as usize / CHUNK_PAGES]
    }

    /// Returns the offsets of the frames that are taken in a run.
    fn taken_in(&self, run: PageId) -> impl Iterator<Item = usize> + use<> {
        let Page { state, free, .. } = self.pages[run as usize];
        let (frames, bytes) = match state {
            State::Run(class) => (class.shape().frames as usize, class.shape().bytes as usize),
            _ => (0, 0),
        };
        let taken = (0..frames).filter(move |n| free >> n & 1 == 0);
        taken.map(move |n| run as usize * PAGE + n * bytes)
    }

    /// Takes a free block of 2^order pages.
    fn take_block(&mut self, order: usize) -> Option<PageId> {
        let larger = (order..=ORDER_MAX).find(|&order| self.free[order].0 != NIL);
        let mut has = match larger {
            Some(order) => order,
            None => {
                self.add_chunk()?;
                ORDER_MAX
            }
        };
        let at = self.free[has].0;
        self.unlink_block(at, has);
        self.pages[at as usize].state = State::Inside;
        while has > order {
            has -= 1;
            self.link_block(at + (1 << has), has);
        }
        Some(at)
    }

    /// Puts the next chunk to use.
    fn add_chunk(&mut self) -> Option<()> {
        if self.chunks.len() >= self.chunks_max || self.open_chunks() >= self.open_max {
            return None;
        }
        let at = self.pages.len();
        self.chunks.push(Chunk::default());
        self.pages.resize(at + CHUNK_PAGES, PLAIN);
        self.link_block(at as PageId, ORDER_MAX);
        Some(())
    }

    /// Gives a block back and joins it with its free neighbours.
    fn give_block(&mut self, mut at: PageId, mut order: usize) {
        while order < ORDER_MAX {
            let buddy = at ^ (1 << order);
            if self.pages[buddy as usize].state != State::Free(order as u8) {
                break;
            }
            self.unlink_block(buddy, order);
            self.pages[buddy as usize].state = State::Inside;
            at &= !(1 << order);
            order += 1;
        }
        self.link_block(at, order);
    }

    fn link_block(&mut self, at: PageId, order: usize) {
        self.pages[at as usize].state = State::Free(order as u8);
        self.free[order] = link(&mut self.pages, self.free[order], at);
    }

    fn unlink_block(&mut self, at: PageId, order: usize) {
        self.free[order] = unlink(&mut self.pages, self.free[order], at);
    }

    /// Returns the list that a run of an open chunk stands in.
    fn list_of(&self, run: PageId) -> (usize, usize) {
        let Page { state, free, .. } = self.pages[run as usize];
        let State::Run(class) = state else { unreachable!("invariant: only runs are in lists") };
        (class.0 as usize, free.count_ones() as usize)
    }

    fn link_run(&mut self, run: PageId) {
        let (class, free) = self.list_of(run);
        self.runs[class][free] = link(&mut self.pages, self.runs[class][free], run);
        self.some[class] |= 1 << free;
    }

    fn unlink_run(&mut self, run: PageId) {
        let (class, free) = self.list_of(run);
        let list = unlink(&mut self.pages, self.runs[class][free], run);
        self.runs[class][free] = list;
        if list.0 == NIL {
            self.some[class] &= !(1 << free);
        }
    }

    #[cfg(test)]
    fn ring(&self, list: List) -> impl Iterator<Item = PageId> + '_ {
        let mut next = Some(list.0).filter(|&first| first != NIL);
        std::iter::from_fn(move || {
            let at = next?;
            next = Some(self.pages[at as usize].next).filter(|&after| after != list.0);
            Some(at)
        })
    }
}

/// What opening and closing chunks led to, as ranges of bytes and offsets of frames.
#[derive(Debug, Default)]
pub(super) struct Turned {
    /// What is free in chunks that were closed.
    pub(super) idle: Vec<Range<usize>>,
    /// Chunks that were closed until now.
    pub(super) opened: Vec<Range<usize>>,
    /// Frames in closed chunks.
    pub(super) in_the_way: Vec<usize>,
}

/// Makes `at` the first of a ring.
fn link(pages: &mut [Page], list: List, at: PageId) -> List {
    let (prev, next) = match list.0 {
        NIL => (at, at),
        first => (pages[first as usize].prev, first),
    };
    pages[at as usize].prev = prev;
    pages[at as usize].next = next;
    pages[prev as usize].next = at;
    pages[next as usize].prev = at;
    List(at)
}

/// Takes `at` out of a ring; returns what is left.
fn unlink(pages: &mut [Page], list: List, at: PageId) -> List {
    let Page { prev, next, .. } = pages[at as usize];
    pages[prev as usize].next = next;
    pages[next as usize].prev = prev;
    match list.0 {
        _ if next == at => List(NIL),
        first if first == at => List(next),
        first => List(first),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use atoll_env::random::Prng;

    use super::*;

    impl Runs {
        /// Checks what holds between calls: blocks and runs tile the chunks, no two free halves lie
        /// side by side, lists and bits say the same.
        fn check(&self) {
            let mut bytes = 0;
            for (n, chunk) in self.chunks.iter().enumerate() {
                let (mut at, mut used) = (n * CHUNK_PAGES, 0);
                while at < (n + 1) * CHUNK_PAGES {
                    match self.pages[at].state {
                        State::Run(class) => {
                            let order = class.shape().order as usize;
                            assert!(at.is_multiple_of(1 << order));
                            used += 1 << order;
                            bytes += if chunk.closed { 0 } else { class.run_bytes() };
                            at += 1 << order;
                        }
                        State::Free(order) => {
                            assert!(at.is_multiple_of(1 << order) && !chunk.closed);
                            let is_joined = order as usize == ORDER_MAX
                                || self.pages[at ^ (1 << order)].state != State::Free(order);
                            assert!(is_joined, "two free halves at {at}");
                            at += 1 << order;
                        }
                        State::Inside => {
                            assert!(chunk.closed, "page {at} belongs to nothing");
                            at += 1;
                        }
                    }
                }
                assert_eq!(used, chunk.used);
            }
            assert_eq!(bytes, self.bytes);
            for class in 0..CLASSES {
                for free in 0..=FRAMES_MAX {
                    let runs: Vec<_> = self.ring(self.runs[class][free]).collect();
                    assert_eq!(self.some[class] >> free & 1 == 1, !runs.is_empty());
                    assert!(runs.iter().all(|&run| self.list_of(run) == (class, free)));
                }
            }
        }
    }

    #[test]
    fn a_class_is_at_most_an_eighth_longer_than_the_one_below() {
        assert_eq!(Class::of(1).unwrap().frame_bytes(), 512);
        assert_eq!(Class::of(1 << 20).unwrap().frame_bytes(), 1 << 20);
        assert_eq!(Class::of((1 << 20) + 1), None);
        for bytes in (512..256 << 10).step_by(7) {
            let class = Class::of(bytes).unwrap();
            assert!(class.frame_bytes() >= bytes && class.share() >= class.frame_bytes());
            assert!((class.share() - bytes) as f64 / class.share() as f64 <= 0.127, "{bytes}");
        }
        for pair in SHAPES.windows(2) {
            assert!(pair[0].bytes < pair[1].bytes);
        }
    }

    /// Fills a map as a cache would: with lengths that `draw` chooses, oldest frames leaving at random.
    fn waste(draw: impl Fn(&mut Prng) -> usize) -> (f64, f64) {
        const BUDGET: usize = 64 << 20;
        let (mut runs, mut prng) = (Runs::new(BUDGET), Prng::new(3));
        let (mut held, mut asked, mut shares) = (Vec::new(), 0, 0);
        for _ in 0..200_000 {
            let bytes = draw(&mut prng);
            let class = Class::of(bytes).unwrap();
            while shares + class.share() > BUDGET / 32 * 31 {
                let (offset, class, bytes): (usize, Class, usize) =
                    held.swap_remove(prng.index(held.len()));
                runs.give(offset, class);
                asked -= bytes;
                shares -= class.share();
            }
            let room = BUDGET - runs.bytes();
            if let Some(offset) = runs.take(class, room) {
                held.push((offset, class, bytes));
                asked += bytes;
                shares += class.share();
            }
        }
        runs.check();
        (1.0 - asked as f64 / shares as f64, 1.0 - shares as f64 / runs.bytes() as f64)
    }

    #[test]
    fn blocks_of_usual_lengths_waste_little() {
        // As they come out of tables of a block size of 4 KiB, and as packed ones would be.
        for (what, low, high) in [("raw", 4096, 4300), ("packed", 1200, 4200), ("any", 600, 30_000)]
        {
            let (inside, between) = waste(|prng| prng.range(low..high) as usize);
            eprintln!("{what}: {:.1} % inside, {:.1} % between", inside * 100.0, between * 100.0);
            assert!(inside <= 0.12 && between <= 0.06, "{what}: {inside} {between}");
        }
    }

    /// Everything that can happen, in any order, against a list of what is taken.
    #[test]
    fn frames_never_overlap_and_all_of_them_come_back() {
        for seed in 0..30 {
            let (mut runs, mut prng) = (Runs::new(8 * CHUNK), Prng::new(seed));
            let mut taken: BTreeMap<usize, (usize, Class)> = BTreeMap::new();
            for step in 0..6000 {
                match prng.below(100) {
                    0 => {
                        let open = prng.index(9);
                        let turned = runs.set_open(open);
                        assert!(runs.open_chunks() <= open);
                        assert!(turned.in_the_way.iter().all(|at| taken.contains_key(at)));
                        for idle in turned.idle {
                            assert!(taken.range(idle).next().is_none());
                        }
                        for at in turned.in_the_way.into_iter().filter(|_| prng.below(10) > 0) {
                            let (_, class) = taken.remove(&at).unwrap();
                            runs.give(at, class);
                        }
                    }
                    1 => {
                        for at in runs.cheapest().unwrap_or_default() {
                            let (_, class) = taken.remove(&at).expect("what is taken");
                            runs.give(at, class);
                        }
                    }
                    n if n < 60 => {
                        let bytes = 1 << prng.range(6..20);
                        let bytes = prng.range(bytes / 2..bytes + 1) as usize;
                        let class = Class::of(bytes).unwrap();
                        let Some(at) = runs.take(class, 12 << 20) else { continue };
                        let before = taken.range(..=at).next_back();
                        assert!(before.is_none_or(|(start, (len, _))| start + len <= at));
                        let behind = taken.range(at..).next();
                        assert!(behind.is_none_or(|(&start, _)| at + bytes <= start));
                        assert!(at + bytes <= 8 * CHUNK && at.is_multiple_of(ALIGN));
                        taken.insert(at, (bytes, class));
                    }
                    _ => {
                        let from = prng.index(8 * CHUNK);
                        let Some((&at, _)) = taken.range(from..).next() else { continue };
                        let (_, class) = taken.remove(&at).unwrap();
                        match runs.give(at, class) {
                            Freed::Frame => {}
                            Freed::Run(range) | Freed::Idle(range) => {
                                assert!(range.contains(&at));
                                assert!(taken.range(range).next().is_none());
                            }
                        }
                    }
                }
                if step % 50 == 0 {
                    runs.check();
                    assert_eq!(runs.frames(), taken.len());
                }
            }
            for (at, (_, class)) in std::mem::take(&mut taken) {
                runs.give(at, class);
            }
            runs.set_open(8);
            runs.check();
            assert_eq!((runs.bytes(), runs.frames()), (0, 0));
            let free = runs.ring(runs.free[ORDER_MAX]).count();
            assert_eq!(free, runs.chunks.len(), "seed {seed}: every chunk is whole again");
        }
    }

    #[test]
    fn the_cheapest_run_is_named_and_the_fullest_is_filled() {
        let mut runs = Runs::new(CHUNK);
        let class = Class::of(4096).unwrap();
        let frames: Vec<_> = (0..32).map(|_| runs.take(class, CHUNK).unwrap()).collect();
        assert_eq!(runs.bytes(), 128 << 10);
        assert_eq!(runs.cheapest().unwrap(), frames[..16], "of full ones, the older");
        runs.give(frames[3], class);
        (20..30).for_each(|n| _ = runs.give(frames[n], class));
        for _ in 0..1000 {
            let other = Class::of(100).unwrap();
            let at = runs.take(other, CHUNK).unwrap();
            runs.give(at, other);
        }
        assert_eq!(runs.cheapest().unwrap().len(), 6);
        assert_eq!(runs.take(class, 0), Some(frames[3]));
        for n in (16..20).chain(30..31) {
            assert_eq!(runs.give(frames[n], class), Freed::Frame);
        }
        assert_eq!(runs.give(frames[31], class), Freed::Run(64 << 10..128 << 10));
        assert_eq!(runs.take(Class::of(100).unwrap(), 0), None, "no room for another run");
    }
}
