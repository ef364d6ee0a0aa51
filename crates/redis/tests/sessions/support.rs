//! What the tests of this crate share: a store in memory, a clock that stands still, and clients
//! that are strings.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::ops::{Bound, ControlFlow};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atoll_env::{Clock, Instant, WallTime, block_on};
use atoll_redis::layout;
use atoll_redis::store::{DATABASES, Visitor};
use atoll_redis::{
    ClientId, Config, Durability, Executor, Identity, Numbering, Progress, Record, Store,
    StoreError, Writes,
};

/// A store in memory. Clones share their content, as two handles of one engine do.
#[derive(Clone, Default)]
pub struct MemStore {
    databases: Rc<RefCell<[Database; DATABASES]>>,
    numbering: Rc<Cell<Option<Numbering>>>,
    /// Why the next commits fail.
    pub failure: Rc<RefCell<Option<String>>>,
    /// Why reads fail.
    pub unreadable: Rc<RefCell<Option<String>>>,
    /// Commits so far, and the mode of the last one.
    pub commits: Rc<Cell<(usize, Durability)>>,
}

#[derive(Default)]
struct Database {
    /// Records and their deadlines, by storage key.
    records: BTreeMap<Vec<u8>, Planted>,
    subs: BTreeMap<Vec<u8>, Rc<[u8]>>,
}

/// A record and its deadline.
type Planted = (Rc<[u8]>, Option<u64>);

impl MemStore {
    /// Returns how many sub-records there are, in all databases.
    pub fn subs(&self) -> usize {
        self.databases.borrow().iter().map(|database| database.subs.len()).sum()
    }

    /// Puts a record as it is, as an earlier version has left it.
    pub fn plant(&self, key: &str, record: &[u8], deadline_ms: Option<u64>) {
        let mut storage_key = Vec::new();
        layout::storage_key(&mut storage_key, key.as_bytes());
        self.databases.borrow_mut()[0].records.insert(storage_key, (record.into(), deadline_ms));
    }

    fn check_readable(&self) -> Result<(), StoreError> {
        self.unreadable.borrow().clone().map_or(Ok(()), |why| Err(StoreError(why)))
    }
}

impl Store for MemStore {
    type Value = Rc<[u8]>;

    async fn get(&self, db: usize, key: &[u8]) -> Result<Option<Record<Rc<[u8]>>>, StoreError> {
        self.check_readable()?;
        let databases = self.databases.borrow();
        let found = databases[db].records.get(key).cloned();
        Ok(found.map(|(value, deadline_ms)| Record { value, deadline_ms }))
    }

    async fn get_sub(&self, db: usize, key: &[u8]) -> Result<Option<Rc<[u8]>>, StoreError> {
        self.check_readable()?;
        Ok(self.databases.borrow()[db].subs.get(key).cloned())
    }

    fn has_subs(&self, db: usize) -> bool {
        !self.databases.borrow()[db].subs.is_empty()
    }

    fn numbering(&self) -> Numbering {
        self.numbering.get().unwrap_or(std::array::from_fn(|db| db as u8))
    }

    async fn visit(
        &self,
        db: usize,
        from: Bound<&[u8]>,
        visitor: Visitor<'_>,
    ) -> Result<(), StoreError> {
        self.check_readable()?;
        let databases = self.databases.borrow();
        for (key, (_, deadline_ms)) in
            databases[db].records.range::<[u8], _>((from, Bound::Unbounded))
        {
            if let ControlFlow::Break(()) = visitor(key, *deadline_ms) {
                break;
            }
        }
        Ok(())
    }

    async fn commit(&self, writes: &Writes, durability: Durability) -> Result<(), StoreError> {
        if let Some(why) = self.failure.borrow().clone() {
            return Err(StoreError(why));
        }
        self.commits.set((self.commits.get().0 + 1, durability));
        if let Some(numbering) = writes.numbering() {
            self.numbering.set(Some(*numbering));
        }
        let mut databases = self.databases.borrow_mut();
        for (db, database) in databases.iter_mut().enumerate() {
            let changes = writes.changes(db);
            if changes.cleared() {
                *database = Database::default();
            }
            for prefix in changes.dropped() {
                database.subs.retain(|key, _| !key.starts_with(prefix));
            }
            for (key, staged) in changes.iter() {
                match staged {
                    Some(staged) => {
                        let value = Rc::from(&**staged.record);
                        database.records.insert(key.to_vec(), (value, staged.deadline_ms));
                    }
                    None => {
                        database.records.remove(key);
                    }
                }
            }
            for (key, value) in changes.subs() {
                database.subs.insert(key.to_vec(), value.into());
            }
        }
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        0
    }
}

/// A clock that moves when told to: both of its faces, in milliseconds.
pub struct HandClock(AtomicU64, u64);

impl HandClock {
    pub fn advance(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::Relaxed);
    }
}

impl Clock for HandClock {
    fn now(&self) -> Instant {
        Instant(self.0.load(Ordering::Relaxed) * 1_000_000)
    }
    fn wall(&self) -> WallTime {
        WallTime(self.1 + self.0.load(Ordering::Relaxed))
    }
    fn sleep(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::pending())
    }
}

/// An executor with its store, its clock and its clients.
pub struct Bench {
    pub store: MemStore,
    pub clock: Arc<HandClock>,
    pub executor: Executor<MemStore>,
    clients: Vec<ClientId>,
}

impl Bench {
    pub fn new(config: Config) -> Bench {
        Bench::at(1_700_000_000_000, config)
    }

    /// Starts at a time of the wall clock, in milliseconds of the Unix epoch.
    pub fn at(wall_ms: u64, config: Config) -> Bench {
        let store = MemStore::default();
        let clock = Arc::new(HandClock(AtomicU64::new(0), wall_ms));
        let identity = Identity {
            version: "0.1.0",
            process_id: 4242,
            run_id: 7,
            measure: None,
            allocator: "",
        };
        let executor = Executor::new(store.clone(), clock.clone(), config, identity);
        Bench { store, clock, executor, clients: Vec::new() }
    }

    /// Returns client `number`, counted from 1; connects it and those before it at first.
    pub fn client(&mut self, number: usize) -> ClientId {
        while self.clients.len() < number {
            let port = 50_001 + self.clients.len() as u16;
            let peer = SocketAddr::from(([127, 0, 0, 1], port));
            let local = SocketAddr::from(([127, 0, 0, 1], 7379));
            self.clients.push(self.executor.connect(peer, local));
        }
        self.clients[number - 1]
    }

    /// Runs one turn over inputs of clients; returns what each client receives and whether its
    /// connection closes then.
    pub fn turn(&mut self, inputs: &[(usize, Vec<u8>)]) -> Vec<(usize, Vec<u8>, bool)> {
        let mut order: Vec<usize> = Vec::new();
        for (number, input) in inputs {
            let id = self.client(*number);
            self.executor.feed(id, &mut input.clone());
            if !order.contains(number) {
                order.push(*number);
            }
        }
        let mut outputs = vec![Vec::new(); order.len()];
        let mut closed = vec![false; order.len()];
        let mut more = true;
        while more {
            more = false;
            self.executor.begin_turn();
            for &number in &order {
                let id = self.client(number);
                more |= block_on(self.executor.execute(id)) == Progress::More;
            }
            block_on(self.executor.commit());
            for (i, &number) in order.iter().enumerate() {
                let id = self.client(number);
                closed[i] = self.executor.take_output(id, &mut outputs[i]);
            }
        }
        let replies = order.into_iter().zip(outputs).zip(closed);
        replies.map(|((number, output), closed)| (number, output, closed)).collect()
    }

    /// Runs one turn of client 1 alone; returns its replies, line ends shown as spaces.
    pub fn ask(&mut self, input: &str) -> String {
        let mut replies = self.turn(&[(1, format!("{input}\r\n").into_bytes())]);
        let (_, output, _) = replies.remove(0);
        replies_of(&output).join(" | ")
    }
}

/// A seeded generator (splitmix64), so that a failing case has a name.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
    pub fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len() as u64) as usize]
    }
}

/// Splits a stream into its replies and shows each in one line: bytes as they are, CR LF as a
/// space, other unprintable bytes escaped.
pub fn replies_of(stream: &[u8]) -> Vec<String> {
    let mut replies = Vec::new();
    let mut at = 0;
    while at < stream.len() {
        let end = end_of_reply(stream, at);
        let shown = stream[at..end].escape_ascii().to_string();
        let shown = shown.trim_end_matches("\\r\\n").replace("\\r\\n", " ");
        replies.push(shown.replace("\\\"", "\"").replace("\\'", "'"));
        at = end;
    }
    replies
}

fn end_of_reply(stream: &[u8], at: usize) -> usize {
    let line = stream[at..].windows(2).position(|w| w == b"\r\n").expect("a reply ends") + at;
    let len = || std::str::from_utf8(&stream[at + 1..line]).unwrap().parse::<i64>().unwrap();
    match stream[at] {
        b'$' | b'=' if len() >= 0 => line + 2 + len() as usize + 2,
        b'*' | b'~' | b'>' => (0..len()).fold(line + 2, |at, _| end_of_reply(stream, at)),
        b'%' => (0..2 * len()).fold(line + 2, |at, _| end_of_reply(stream, at)),
        _ => line + 2,
    }
}
