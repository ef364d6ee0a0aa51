//! Locks that a transaction takes before it knows whether it commits.
//!
//! ```text
//!   key a   held: T1 shared, T2 shared     queue: T3 exclusive, T4 shared
//!   key b   held: T3 exclusive             queue: T1 shared
//!
//!   who waits for whom:  T3 -> T1, T2 (holders)    T4 -> T3 (in front of it)    T1 -> T3
//!                        T3 -> T1 -> T3: somebody would wait for ever
//! ```
//!
//! The table is a state machine of one shard: [`LockTable::acquire`] answers at once, and what a
//! release sets free comes back as [`Grant`]s for the caller to deliver. Locks are memory only: a
//! commit validates without them, so a crash that loses them loses time and no isolation.
//!
//! # Rules
//! - **First come, first served** per key: a request waits if anybody waits in front of it, even if
//!   the holders would not mind. So a stream of readers cannot starve a writer.
//! - A holder may ask again: for what it has, at once; for more (shared, and now exclusive), in front
//!   of the queue, because everybody in the queue waits for it anyway.
//! - **A wait that would close a circle is not begun:** the asker is told [`Acquired::Deadlock`] and
//!   nothing changes. A circle is always closed by a request, never by a release, so looking once is
//!   enough. Circles over several shards cannot be seen here: [`LockTable::edges`] is what somebody
//!   who sees all shards needs.
//! - Equal calls give equal answers in equal order; hash maps are only ever looked into by key.
//!
//! A request waits for the holders and for the requests in front of it that do not go with its mode;
//! those of its mode in front of it wait for whatever it waits for.
//!
//! Who asks last is the victim. Wounding by age was rejected here: a victim that is not the asker
//! must be told in the middle of something else, and age says little about the work that is lost.

use std::collections::VecDeque;

use atoll_encoding::hash::{HashMap, HashSet, hash64};

use crate::request::{Key, TxnId};

/// What a lock lets others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// Nobody else may write.
    Shared,
    /// Nobody else may lock.
    Exclusive,
}

impl Mode {
    /// Returns whether two transactions may hold these at once.
    fn goes_with(self, other: Mode) -> bool {
        self == Mode::Shared && other == Mode::Shared
    }
}

/// Names a request that waits. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// It has the lock.
    Granted,
    /// It will get the lock: a [`Grant`] with this ticket.
    Waiting(Ticket),
    /// It would wait for itself. It keeps what it has and waits for nothing new.
    Deadlock,
}

/// A request that waited and has its lock now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Whose.
    pub txn: TxnId,
    /// Which request.
    pub ticket: Ticket,
}

/// See the module.
#[derive(Debug, Default)]
pub struct LockTable {
    /// Transactions that hold or wait for something.
    txns: HashMap<TxnId, Txn>,
    /// Hash of a key -> its place in `keys`, or the first of those with this hash.
    index: HashMap<u64, usize>,
    /// Keys with a holder, and unused places whose memory is kept.
    keys: Vec<Locked>,
    unused: Vec<usize>,
    next_ticket: u64,
}

/// A key that somebody holds.
#[derive(Debug, Default)]
struct Locked {
    key: Key,
    /// Next key with the same hash.
    next: Option<usize>,
    /// In the order of the grants. Empty only while the place is unused.
    holders: Vec<Holder>,
    /// Ascending by rank.
    queue: VecDeque<Waiter>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holder {
    txn: TxnId,
    mode: Mode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiter {
    txn: TxnId,
    mode: Mode,
    rank: Rank,
}

/// What a queue is sorted by: who holds the key already and wants more (there is one at most: two
/// would wait for each other, and the second is refused), then by arrival.
type Rank = (Newcomer, Ticket);
/// Does not hold the key yet.
type Newcomer = bool;

/// What a transaction is concerned with: places in `keys`, in the order of its requests.
#[derive(Debug, Default)]
struct Txn {
    holds: Vec<usize>,
    waits: Vec<Wait>,
}

/// Where in which queue a transaction waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wait {
    at: usize,
    rank: Rank,
}

/// Unused places beyond this give their memory back.
const UNUSED_KEPT: usize = 256;
/// Longest key whose memory an unused place keeps.
const KEY_KEPT: usize = 256;

impl LockTable {
    /// Returns a table without locks.
    pub fn new() -> LockTable {
        LockTable::default()
    }

    /// Returns whether nobody holds anything: one comparison, for those who ask on every command.
    pub fn is_empty(&self) -> bool {
        self.txns.is_empty()
    }

    /// Returns whether somebody else's lock on `key` keeps `txn` from using it in this mode: from
    /// writing (exclusive), or from reading what must not change (shared).
    pub fn blocks(&self, key: &[u8], txn: Option<TxnId>, mode: Mode) -> bool {
        if self.is_empty() {
            return false;
        }
        let Some(at) = self.find(key) else { return false };
        let others = self.keys[at].holders.iter().filter(|holder| Some(holder.txn) != txn);
        others.into_iter().any(|holder| !holder.mode.goes_with(mode))
    }

    /// Returns what a transaction holds on a key.
    pub fn held(&self, key: &[u8], txn: TxnId) -> Option<Mode> {
        self.keys[self.find(key)?].held(txn)
    }

    /// Takes a lock, or begins to wait for it.
    ///
    /// A transaction that already waits for the key gets the same ticket again; if it wants more
    /// than before, it keeps its place and waits for more.
    pub fn acquire(&mut self, txn: TxnId, key: &[u8], mode: Mode) -> Acquired {
        let Some(at) = self.find(key) else {
            let at = self.add(key);
            self.keys[at].holders.push(Holder { txn, mode });
            self.txns.entry(txn).or_default().holds.push(at);
            return Acquired::Granted;
        };
        let locked = &mut self.keys[at];
        let held = locked.held(txn);
        if held.is_some_and(|held| held >= mode) {
            return Acquired::Granted;
        }
        let waits = self.txns.get(&txn).and_then(|txn| txn.waits.iter().find(|w| w.at == at));
        if let Some(&wait) = waits {
            return self.wait_for_more(wait, mode);
        }
        if locked.admits(txn, mode) && (locked.queue.is_empty() || held.is_some()) {
            locked.admit(txn, mode);
            if held.is_none() {
                self.txns.entry(txn).or_default().holds.push(at);
            }
            return Acquired::Granted;
        }
        let rank = (held.is_none(), Ticket(self.next_ticket));
        self.next_ticket += 1;
        let place = locked.queue.partition_point(|waiter| waiter.rank < rank);
        locked.queue.insert(place, Waiter { txn, mode, rank });
        self.txns.entry(txn).or_default().waits.push(Wait { at, rank });
        if self.waits_for_itself(txn) {
            self.keys[at].queue.remove(place);
            self.forget_wait(txn, at);
            return Acquired::Deadlock;
        }
        Acquired::Waiting(rank.1)
    }

    /// Ends a transaction: gives back what it holds, and waits for nothing any more. Returns who
    /// has a lock now, key by key in the order in which they were taken.
    pub fn release_all(&mut self, txn: TxnId) -> Vec<Grant> {
        let mut grants = Vec::new();
        let Some(Txn { holds, waits }) = self.txns.remove(&txn) else { return grants };
        // All of it goes before anybody is let in: a key may be in both lists.
        for wait in &waits {
            self.keys[wait.at].remove_waiter(wait.rank);
        }
        for &at in &holds {
            self.keys[at].holders.retain(|holder| holder.txn != txn);
        }
        let only_waited = waits.iter().map(|wait| wait.at).filter(|at| !holds.contains(at));
        for at in holds.iter().copied().chain(only_waited) {
            self.let_in(at, &mut grants);
        }
        grants
    }

    /// Gives back what a transaction holds or waits for on one key. Returns who has a lock now.
    pub fn release(&mut self, txn: TxnId, key: &[u8]) -> Vec<Grant> {
        let mut grants = Vec::new();
        let Some(at) = self.find(key) else { return grants };
        let Some(state) = self.txns.get_mut(&txn) else { return grants };
        state.holds.retain(|held| *held != at);
        state.waits.retain(|wait| wait.at != at);
        if state.waits.is_empty() && state.holds.is_empty() {
            self.txns.remove(&txn);
        }
        self.keys[at].queue.retain(|waiter| waiter.txn != txn);
        self.keys[at].holders.retain(|holder| holder.txn != txn);
        self.let_in(at, &mut grants);
        grants
    }

    /// Returns whether a transaction holds or waits for anything.
    pub fn knows(&self, txn: TxnId) -> bool {
        self.txns.contains_key(&txn)
    }

    /// Returns whom a request of `txn` for `key` waits for: the holders and those in front of it.
    /// Nothing if it does not wait there.
    pub fn waits_at(&self, txn: TxnId, key: &[u8]) -> Vec<TxnId> {
        let Some(at) = self.find(key) else { return Vec::new() };
        let locked = &self.keys[at];
        let Some(place) = locked.queue.iter().position(|waiter| waiter.txn == txn) else {
            return Vec::new();
        };
        let mut blockers: Vec<TxnId> = locked.blockers(place, Looked::default()).collect();
        blockers.sort_unstable();
        blockers.dedup();
        blockers
    }

    /// Gives up one wait; the transaction keeps what it holds. Returns who has a lock now.
    pub fn give_up(&mut self, txn: TxnId, ticket: Ticket) -> Vec<Grant> {
        let mut grants = Vec::new();
        let waits = self.txns.get(&txn).map_or(&[][..], |txn| &txn.waits);
        if let Some(&Wait { at, rank }) = waits.iter().find(|wait| wait.rank.1 == ticket) {
            self.keys[at].remove_waiter(rank);
            self.forget_wait(txn, at);
            self.let_in(at, &mut grants);
        }
        grants
    }

    /// Returns who waits for whom, each pair once, ascending.
    pub fn edges(&self) -> Vec<(TxnId, TxnId)> {
        let mut edges = Vec::new();
        for locked in &self.keys {
            for (place, waiter) in locked.queue.iter().enumerate() {
                edges.extend(
                    locked.blockers(place, Looked::default()).map(|blocker| (waiter.txn, blocker)),
                );
            }
        }
        edges.sort_unstable();
        edges.dedup();
        edges
    }

    /// Waits in the same place for a stronger lock.
    fn wait_for_more(&mut self, Wait { at, rank }: Wait, mode: Mode) -> Acquired {
        let place = self.keys[at].place_of(rank);
        let waiter = &mut self.keys[at].queue[place];
        let Waiter { txn, mode: before, .. } = *waiter;
        if mode > before {
            waiter.mode = mode;
            if self.waits_for_itself(txn) {
                self.keys[at].queue[place].mode = before;
                return Acquired::Deadlock;
            }
        }
        Acquired::Waiting(rank.1)
    }

    /// Grants what can be granted on a key, front first, and drops the key if nobody wants it.
    fn let_in(&mut self, at: usize, grants: &mut Vec<Grant>) {
        let locked = &mut self.keys[at];
        while let Some(&Waiter { txn, mode, rank }) = locked.queue.front()
            && locked.admits(txn, mode)
        {
            locked.queue.pop_front();
            let is_new = locked.admit(txn, mode);
            let state = self.txns.get_mut(&txn).expect("who waits is known");
            state.waits.retain(|wait| wait.at != at);
            if is_new {
                state.holds.push(at);
            }
            grants.push(Grant { txn, ticket: rank.1 });
        }
        if locked.holders.is_empty() {
            debug_assert!(
                locked.queue.is_empty(),
                "a key that nobody holds admits its first waiter"
            );
            self.remove(at);
        }
    }

    /// Removes one wait of a transaction from its list.
    fn forget_wait(&mut self, txn: TxnId, at: usize) {
        let state = self.txns.get_mut(&txn).expect("who waits is known");
        state.waits.retain(|wait| wait.at != at);
        if state.waits.is_empty() && state.holds.is_empty() {
            self.txns.remove(&txn);
        }
    }

    /// Returns whether a chain of waits leads from a transaction to itself.
    fn waits_for_itself(&self, txn: TxnId) -> bool {
        // Mostly nobody waits for it: it took its locks in order and has come to the end of them.
        let own = &self.txns[&txn];
        let is_last = |at: usize| self.keys[at].queue.back().is_none_or(|w| w.txn == txn);
        if own.waits.iter().all(|wait| is_last(wait.at))
            && own.holds.iter().all(|&at| is_last(at) && self.keys[at].queue.len() <= 1)
        {
            return false;
        }
        let mut seen = HashSet::default();
        let mut open = vec![txn];
        // Per key and mode. A queue of thousands is looked through once, not once for each of its
        // waiters: those of one mode wait for the same ones, as far as they are in front of them.
        let mut looked: HashMap<usize, [Looked; 2]> = HashMap::default();
        while let Some(next) = open.pop() {
            let waits = self.txns.get(&next).map_or(&[][..], |txn| &txn.waits);
            for &Wait { at, rank } in waits {
                let locked = &self.keys[at];
                let place = locked.place_of(rank);
                let mode = locked.queue[place].mode;
                let looked = &mut looked.entry(at).or_default()[mode as usize];
                for blocker in locked.blockers(place, *looked) {
                    if blocker == txn {
                        return true;
                    }
                    if seen.insert(blocker) {
                        open.push(blocker);
                    }
                }
                looked.in_front = place.max(looked.in_front);
                // A holder that waits for more is an obstacle for others and not for itself.
                looked.holders |= rank.0;
            }
        }
        false
    }

    fn find(&self, key: &[u8]) -> Option<usize> {
        let mut at = *self.index.get(&hash(key))?;
        while self.keys[at].key != key {
            at = self.keys[at].next?;
        }
        Some(at)
    }

    /// Gives a key a place.
    fn add(&mut self, key: &[u8]) -> usize {
        let at = self.unused.pop().unwrap_or_else(|| {
            self.keys.push(Locked::default());
            self.keys.len() - 1
        });
        self.keys[at].key.extend_from_slice(key);
        self.keys[at].next = self.index.insert(hash(key), at);
        at
    }

    /// Takes the place of a key that nobody holds.
    fn remove(&mut self, at: usize) {
        let hash = hash(&self.keys[at].key);
        let next = self.keys[at].next.take();
        let first = self.index.get_mut(&hash).expect("every key in use is in the index");
        if *first != at {
            let mut before = *first;
            while self.keys[before].next != Some(at) {
                before = self.keys[before].next.expect("every key in use is in its chain");
            }
            self.keys[before].next = next;
        } else if let Some(next) = next {
            *first = next;
        } else {
            self.index.remove(&hash);
        }
        let locked = &mut self.keys[at];
        locked.key.clear();
        if self.unused.len() >= UNUSED_KEPT || locked.key.capacity() > KEY_KEPT {
            *locked = Locked::default();
        }
        self.unused.push(at);
        if self.unused.len() == self.keys.len() && self.keys.len() > UNUSED_KEPT {
            self.unused.clear();
            self.keys = Vec::new();
        }
    }
}

impl Locked {
    fn held(&self, txn: TxnId) -> Option<Mode> {
        self.holders.iter().find(|holder| holder.txn == txn).map(|holder| holder.mode)
    }

    /// Returns whether the holders let `txn` in.
    fn admits(&self, txn: TxnId, mode: Mode) -> bool {
        self.holders.iter().all(|holder| holder.txn == txn || holder.mode.goes_with(mode))
    }

    /// Makes `txn` a holder; returns whether it was none.
    fn admit(&mut self, txn: TxnId, mode: Mode) -> bool {
        match self.holders.iter_mut().find(|holder| holder.txn == txn) {
            Some(holder) => {
                holder.mode = mode;
                false
            }
            None => {
                self.holders.push(Holder { txn, mode });
                true
            }
        }
    }

    /// Returns the place of a waiter in the queue.
    fn place_of(&self, rank: Rank) -> usize {
        let place = self.queue.binary_search_by_key(&rank, |waiter| waiter.rank);
        place.expect("a wait that is noted is in its queue")
    }

    fn remove_waiter(&mut self, rank: Rank) {
        self.queue.remove(self.place_of(rank));
    }

    /// Returns for whom the waiter at `place` of the queue waits: holders, and those in front of it.
    fn blockers(&self, place: usize, looked: Looked) -> impl Iterator<Item = TxnId> {
        let waiter = self.queue[place];
        let holders = if looked.holders { &[] } else { &self.holders[..] };
        let holders = holders.iter().map(|holder| (holder.txn, holder.mode));
        let in_front = self.queue.range(looked.in_front.min(place)..place);
        holders
            .chain(in_front.map(|other| (other.txn, other.mode)))
            .filter(move |(txn, mode)| *txn != waiter.txn && !mode.goes_with(waiter.mode))
            .map(|(txn, _)| txn)
    }
}

/// Who need not be looked at again as an obstacle on a key.
#[derive(Clone, Copy, Debug, Default)]
struct Looked {
    /// The holders.
    holders: bool,
    /// So many at the front of the queue.
    in_front: usize,
}

/// Tests make nearly all keys collide.
fn hash(key: &[u8]) -> u64 {
    if cfg!(test) { hash64(key) % 4 } else { hash64(key) }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use atoll_env::random::Prng;

    use super::Mode::{Exclusive, Shared};
    use super::*;

    /// Tells a story: `1:a!` transaction 1 wants `a` exclusively, `1:a` shared, `-1` it ends. Returns
    /// what each step answered: `+` granted, `.` waits, `X` deadlock, `[2 3]` who was let in.
    fn tell(story: &str) -> String {
        let mut table = LockTable::new();
        let mut answers = Vec::new();
        for step in story.split_whitespace() {
            if let Some(txn) = step.strip_prefix('-') {
                let grants = table.release_all(TxnId(txn.parse().unwrap()));
                let names: Vec<String> = grants.iter().map(|g| g.txn.0.to_string()).collect();
                answers.push(format!("[{}]", names.join(" ")));
                continue;
            }
            let (txn, key) = step.split_once(':').unwrap();
            let (key, mode) = match key.strip_suffix('!') {
                Some(key) => (key, Exclusive),
                None => (key, Shared),
            };
            let answer = table.acquire(TxnId(txn.parse().unwrap()), key.as_bytes(), mode);
            answers.push(match answer {
                Acquired::Granted => "+".to_owned(),
                Acquired::Waiting(_) => ".".to_owned(),
                Acquired::Deadlock => "X".to_owned(),
            });
        }
        answers.join(" ")
    }

    #[test]
    fn locks_are_granted_by_these_rules() {
        for (what, story, expected) in [
            ("readers share", "1:a 2:a 3:a", "+ + +"),
            ("a writer is alone", "1:a! 2:a 3:a!", "+ . ."),
            ("different keys do not meet", "1:a! 2:b!", "+ +"),
            ("first come, first served", "1:a! 2:a! 3:a! -1 -2 -3", "+ . . [2] [3] []"),
            ("readers behind a writer wait", "1:a 2:a! 3:a -1 -2", "+ . . [2] [3]"),
            (
                "readers in a row enter together",
                "1:a! 2:a 3:a 4:a! -1 -2 -3",
                "+ . . . [2 3] [] [4]",
            ),
            ("what is held is granted again", "1:a! 1:a! 1:a 2:a", "+ + + ."),
            ("a reader alone becomes the writer", "1:a 1:a! 2:a", "+ + ."),
            ("even if somebody waits", "1:a 2:a! 1:a! -1", "+ . + [2]"),
            ("of two readers one must go first", "1:a 2:a 1:a! -2", "+ + . [1]"),
            ("who wants more is in front", "1:a 2:a 3:a! 1:a! -2 -1", "+ + . . [1] [3]"),
            ("who waits may want more", "1:a! 2:a 2:a! 3:a -1", "+ . . . [2]"),
            ("the end of a waiter lets in who is behind it", "1:a 2:a! 3:a -2", "+ . . [3]"),
            ("all keys come free", "1:a! 1:b! 2:a! 3:b! -1", "+ + . . [2 3]"),
            ("an end without locks is none", "-1 1:a -2 2:a!", "[] + [] ."),
        ] {
            assert_eq!(tell(story), expected, "{what}: {story}");
        }
    }

    #[test]
    fn a_wait_that_would_close_a_circle_is_refused() {
        for (what, story, expected) in [
            ("two, crosswise", "1:a! 2:b! 1:b! 2:a!", "+ + . X"),
            ("three", "1:a! 2:b! 3:c! 1:b! 2:c! 3:a!", "+ + + . . X"),
            ("two readers that both want to write", "1:a 2:a 1:a! 2:a!", "+ + . X"),
            ("through the queue", "1:a! 2:b! 3:a! 2:a! 1:b!", "+ + . . X"),
            ("through one in front of the queue", "1:b! 2:a 3:a! 1:a 3:b!", "+ + . . X"),
            ("who wants more while it waits", "9:a 8:b! 1:b 2:a! 9:b 1:b!", "+ + . . . ."),
            ("after a wait was granted", "1:a! 2:a! 3:b! -1 3:a! 2:b!", "+ . + [2] . X"),
            ("a reader in front of a reader is no obstacle", "1:a 2:b! 3:a! 2:a 3:b", "+ + . . X"),
            ("no circle: all point one way", "1:a! 2:a! 3:a! 1:b! 2:b! 3:b!", "+ . . + . ."),
            ("the victim keeps what it has", "1:a! 2:b! 1:b! 2:a! 3:b! -2 -1", "+ + . X . [1] [3]"),
            ("and may go on", "1:a! 2:b! 1:b! 2:a! 2:c! -2", "+ + . X + [1]"),
        ] {
            assert_eq!(tell(story), expected, "{what}: {story}");
        }
    }

    #[test]
    fn a_wait_can_be_given_up() {
        let mut table = LockTable::new();
        let [one, two, three] = [1, 2, 3].map(TxnId);
        table.acquire(one, b"a", Shared);
        let Acquired::Waiting(ticket) = table.acquire(two, b"a", Exclusive) else { panic!() };
        let Acquired::Waiting(behind) = table.acquire(three, b"a", Shared) else { panic!() };
        assert_eq!(table.edges(), [(two, one), (three, two)]);
        assert_eq!(table.give_up(three, ticket), [], "it is another's");
        assert_eq!(table.give_up(two, ticket), [Grant { txn: three, ticket: behind }]);
        assert_eq!(table.give_up(two, ticket), []);
        assert_eq!(table.edges(), []);
        assert!(table.release_all(one).is_empty() && table.release_all(three).is_empty());
        assert!(table.is_empty());
    }

    #[test]
    fn a_lock_keeps_others_from_the_key_and_not_its_owner() {
        let mut table = LockTable::new();
        assert!(!table.blocks(b"a", None, Exclusive));
        table.acquire(TxnId(1), b"a", Shared);
        for (key, txn, mode, blocked) in [
            (b"a", None, Exclusive, true),
            (b"a", None, Shared, false),
            (b"a", Some(TxnId(2)), Exclusive, true),
            (b"a", Some(TxnId(1)), Exclusive, false),
            (b"b", None, Exclusive, false),
        ] {
            assert_eq!(table.blocks(key, txn, mode), blocked);
        }
        assert_eq!(table.held(b"a", TxnId(1)), Some(Shared));
        assert_eq!(table.held(b"a", TxnId(2)), None);
    }

    /// The same rules, as one list of requests per key in order of grant and arrival, searched and
    /// copied without a thought for speed.
    #[derive(Clone, Default)]
    struct Model {
        /// (key, txn, mode, granted)
        requests: BTreeMap<u8, Vec<(u128, Mode, bool)>>,
    }

    impl Model {
        fn edges(&self) -> BTreeSet<(u128, u128)> {
            let mut edges = BTreeSet::new();
            for list in self.requests.values() {
                for (n, (txn, mode, granted)) in list.iter().enumerate() {
                    for (other, other_mode, other_granted) in list {
                        let in_front = list[..n].contains(&(*other, *other_mode, *other_granted));
                        let conflict = (*mode, *other_mode) != (Shared, Shared);
                        if !granted && other != txn && conflict && (*other_granted || in_front) {
                            edges.insert((*txn, *other));
                        }
                    }
                }
            }
            edges
        }

        fn in_a_circle(&self, txn: u128) -> bool {
            let edges = self.edges();
            let mut reached: BTreeSet<u128> = BTreeSet::from([txn]);
            loop {
                let next: BTreeSet<u128> =
                    edges.iter().filter(|(from, _)| reached.contains(from)).map(|e| e.1).collect();
                if next.contains(&txn) {
                    return true;
                }
                let before = reached.len();
                reached.extend(next);
                if reached.len() == before {
                    return false;
                }
            }
        }

        /// Grants what can be granted; returns to whom.
        fn settle(&mut self, key: u8) -> Vec<u128> {
            let mut granted = Vec::new();
            let list = self.requests.entry(key).or_default();
            while let Some(n) = list.iter().position(|request| !request.2) {
                let (txn, mode, _) = list[n];
                let conflict = |held: &&(u128, Mode, bool)| {
                    held.2 && held.0 != txn && (held.1, mode) != (Shared, Shared)
                };
                if list.iter().find(conflict).is_some() {
                    break;
                }
                list.remove(n);
                list.retain(|request| request.0 != txn); // its weaker lock
                let holders = list.iter().filter(|request| request.2).count();
                list.insert(holders, (txn, mode, true));
                granted.push(txn);
            }
            granted
        }

        fn acquire(&mut self, txn: u128, key: u8, mode: Mode) -> &'static str {
            let before = self.clone();
            let list = self.requests.entry(key).or_default();
            let holds = list.iter().any(|request| request.0 == txn && request.2);
            if list.iter().any(|r| r.0 == txn && r.2 && r.1 >= mode) {
                return "granted";
            }
            if let Some(waiting) = list.iter_mut().find(|r| r.0 == txn && !r.2) {
                waiting.1 = waiting.1.max(mode);
            } else {
                let holders: Vec<u128> = list.iter().filter(|r| r.2).map(|r| r.0).collect();
                let wants_more = list.iter().filter(|r| !r.2 && holders.contains(&r.0)).count();
                let place = if holds { holders.len() + wants_more } else { list.len() };
                list.insert(place, (txn, mode, false));
            }
            if self.in_a_circle(txn) {
                *self = before;
                return "deadlock";
            }
            if self.settle(key).contains(&txn) { "granted" } else { "waiting" }
        }

        fn release(&mut self, txn: u128) -> BTreeSet<u128> {
            let mut granted = BTreeSet::new();
            for key in self.requests.keys().copied().collect::<Vec<_>>() {
                self.requests.get_mut(&key).unwrap().retain(|request| request.0 != txn);
                granted.extend(self.settle(key));
            }
            granted
        }
    }

    #[test]
    fn random_requests_are_answered_as_the_rules_say() {
        let (mut granted, mut waiting, mut deadlocks) = (0, 0, 0);
        for seed in 0..300 {
            let mut prng = Prng::new(seed);
            let (mut table, mut model) = (LockTable::new(), Model::default());
            let (txns, keys) = (2 + prng.below(6), 1 + prng.below(5));
            for step in 0..300 {
                let txn = u128::from(prng.below(txns)) + 1;
                let context = format!("seed {seed}, step {step}");
                if prng.chance(0.15) {
                    let grants = table.release_all(TxnId(txn));
                    let names: BTreeSet<u128> = grants.iter().map(|grant| grant.txn.0).collect();
                    assert_eq!(names, model.release(txn), "{context}");
                } else {
                    let key = prng.below(keys) as u8;
                    let mode = if prng.chance(0.4) { Exclusive } else { Shared };
                    let answer = match table.acquire(TxnId(txn), &[key], mode) {
                        Acquired::Granted => "granted",
                        Acquired::Waiting(_) => "waiting",
                        Acquired::Deadlock => "deadlock",
                    };
                    assert_eq!(answer, model.acquire(txn, key, mode), "{context}");
                    match answer {
                        "granted" => granted += 1,
                        "waiting" => waiting += 1,
                        _ => deadlocks += 1,
                    }
                }
                let edges: BTreeSet<(u128, u128)> =
                    table.edges().iter().map(|(a, b)| (a.0, b.0)).collect();
                assert_eq!(edges, model.edges(), "{context}");
                let idle = model.requests.values().all(Vec::is_empty);
                assert_eq!(table.is_empty(), idle, "{context}");
            }
            for txn in 1..=u128::from(txns) {
                table.release_all(TxnId(txn));
            }
            assert!(table.is_empty() && table.index.is_empty());
            assert_eq!(table.unused.len(), table.keys.len());
        }
        assert!(granted > 5_000 && waiting > 1_000 && deadlocks > 1_000);
    }

    #[test]
    fn a_queue_of_thousands_is_no_work_for_who_waits_behind_it() {
        let mut table = LockTable::new();
        table.acquire(TxnId(0), b"hot", Exclusive);
        for n in 1..2_000 {
            // Each holds something that others may wait for.
            table.acquire(TxnId(n), &n.to_be_bytes(), Exclusive);
            let mode = if n % 3 == 0 { Exclusive } else { Shared };
            assert!(matches!(table.acquire(TxnId(n), b"hot", mode), Acquired::Waiting(_)));
        }
        let last = 1_999u128.to_be_bytes();
        assert_eq!(table.acquire(TxnId(0), &last, Shared), Acquired::Deadlock);
    }

    #[test]
    fn memory_of_a_burst_is_given_back() {
        let mut table = LockTable::new();
        for n in 0..2_000u32 {
            table.acquire(TxnId(1), &n.to_be_bytes(), Exclusive);
        }
        assert!(table.release_all(TxnId(1)).is_empty());
        assert!(table.is_empty());
        assert!(table.keys.capacity() <= UNUSED_KEPT && table.unused.len() <= UNUSED_KEPT);
    }
}
