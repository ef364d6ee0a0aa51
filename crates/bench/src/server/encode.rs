//! Requests, encoded once and patched before each sending.
//!
//! ```text
//!   *3 $3 SET $16 key:000000000042 $64 <32 bytes of noise><32 dots>
//!                     ^ 12 digits       ^ fresh noise
//!                     patched           patched
//! ```
//!
//! A batch is what a connection sends in one write: `pipeline` operations of one kind. Its bytes
//! stay from one sending to the next, only keys and values are overwritten; a mix, whose requests
//! differ in length, is put together anew. Names are those of redis-benchmark, so that what one tool
//! has loaded the other can read: `key:` or `counter:` and 12 digits, or where all requests name one
//! key, the 12 letters `__rand_int__`.
//!
//! A value's first half is noise of its own, the second half is not: a server that compresses gains
//! what it would gain on such data, not all of it.

use std::cell::Cell;
use std::rc::Rc;

use super::zipf::{Random, Zipf};

/// Keys of an MSET.
pub const MSET_KEYS: usize = 10;
/// Commands of a transaction, without MULTI and EXEC.
pub const MULTI_COMMANDS: usize = 5;
/// The share of reads in a mix, in percent.
const READS_OF_MIX: u64 = 90;

/// Characters of a key that say which one it is.
const DIGITS: usize = 12;
/// What stands there if there is one key only.
const ONE_KEY: &[u8; DIGITS] = b"__rand_int__";

/// What an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One SET.
    Set,
    /// One GET.
    Get,
    /// One INCR.
    Incr,
    /// One MSET of [`MSET_KEYS`].
    Mset,
    /// MULTI, [`MULTI_COMMANDS`] SETs, EXEC.
    Multi,
    /// A GET nine times of ten, else a SET.
    Mix,
}

impl Kind {
    /// Returns how many replies answer one operation.
    pub fn replies(self) -> u64 {
        if self == Kind::Multi { MULTI_COMMANDS as u64 + 2 } else { 1 }
    }
}

/// Which keys requests name.
#[derive(Clone, Debug)]
pub enum Keys {
    /// Always the same.
    One,
    /// Any of this many.
    Uniform(u64),
    /// Any, a few of them most often.
    Zipf(Rc<Zipf>),
    /// One after the other, each once over all that share the counter.
    InTurn(Rc<Cell<u64>>),
}

/// The place of a key, and of the noise of its value, in a batch.
#[derive(Clone, Copy)]
struct Slot {
    key: usize,
    noise: Option<usize>,
}

/// The batches of one connection.
pub struct Batches {
    kind: Kind,
    keys: Keys,
    value_size: usize,
    random: Random,
    bytes: Vec<u8>,
    slots: Vec<Slot>,
    /// Operations in `bytes`.
    operations: u64,
}

impl Batches {
    /// Prepares batches; the seed names the sequence of keys and values.
    pub fn new(kind: Kind, keys: Keys, value_size: usize, seed: u64) -> Batches {
        let (bytes, slots) = (Vec::new(), Vec::new());
        Batches { kind, keys, value_size, random: Random::new(seed), bytes, slots, operations: 0 }
    }

    /// Returns what an operation is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Makes the next batch.
    pub fn next(&mut self, operations: u64) {
        if self.operations != operations || self.kind == Kind::Mix {
            self.operations = operations;
            self.bytes.clear();
            self.slots.clear();
            for _ in 0..operations {
                self.push_operation();
            }
        }
        for i in 0..self.slots.len() {
            self.patch(self.slots[i]);
        }
    }

    /// Returns the bytes of the batch.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn push_operation(&mut self) {
        match self.kind {
            Kind::Set => self.push_set(),
            Kind::Get => self.push_get(),
            Kind::Mix if self.random.below(100) < READS_OF_MIX => self.push_get(),
            Kind::Mix => self.push_set(),
            Kind::Incr => {
                self.push_words(2, "INCR");
                self.push_key("counter:");
            }
            Kind::Mset => {
                self.push_words(1 + 2 * MSET_KEYS, "MSET");
                (0..MSET_KEYS).for_each(|_| self.push_pair());
            }
            Kind::Multi => {
                self.push_words(1, "MULTI");
                (0..MULTI_COMMANDS).for_each(|_| self.push_set());
                self.push_words(1, "EXEC");
            }
        }
    }

    fn push_set(&mut self) {
        self.push_words(3, "SET");
        self.push_pair();
    }

    fn push_get(&mut self) {
        self.push_words(2, "GET");
        self.push_key("key:");
    }

    fn push_pair(&mut self) {
        self.push_key("key:");
        self.bytes.extend_from_slice(format!("${}\r\n", self.value_size).as_bytes());
        let at = self.bytes.len();
        self.bytes.resize(at + self.value_size, b'.');
        self.bytes.extend_from_slice(b"\r\n");
        if let Some(slot) = self.slots.last_mut() {
            slot.noise = Some(at);
        }
    }

    /// The head of a request of `words` words, and the first of them.
    fn push_words(&mut self, words: usize, command: &str) {
        let head = format!("*{words}\r\n${}\r\n{command}\r\n", command.len());
        self.bytes.extend_from_slice(head.as_bytes());
    }

    fn push_key(&mut self, prefix: &str) {
        let head = format!("${}\r\n{prefix}", prefix.len() + DIGITS);
        self.bytes.extend_from_slice(head.as_bytes());
        self.slots.push(Slot { key: self.bytes.len(), noise: None });
        self.bytes.extend_from_slice(ONE_KEY);
        self.bytes.extend_from_slice(b"\r\n");
    }

    fn patch(&mut self, slot: Slot) {
        let number = match &self.keys {
            Keys::One => None,
            Keys::Uniform(keys) => Some(self.random.below(*keys)),
            Keys::Zipf(zipf) => Some(zipf.draw(&mut self.random)),
            Keys::InTurn(next) => Some(next.replace(next.get() + 1)),
        };
        if let Some(mut number) = number {
            for digit in self.bytes[slot.key..slot.key + DIGITS].iter_mut().rev() {
                *digit = b'0' + (number % 10) as u8;
                number /= 10;
            }
        }
        if let Some(at) = slot.noise {
            for part in self.bytes[at..at + self.value_size / 2].chunks_mut(8) {
                let word = self.random.next().to_le_bytes();
                part.copy_from_slice(&word[..part.len()]);
            }
        }
    }
}

/// Returns the name of key `number`, as the requests write it.
pub fn key_name(number: u64) -> String {
    format!("key:{number:012}")
}

#[cfg(test)]
mod tests {
    use super::*;

    use atoll_resp::{Limits, RequestParser};

    /// Parses a batch as a server does.
    fn parsed(mut bytes: &[u8]) -> Vec<Vec<Vec<u8>>> {
        let mut requests = Vec::new();
        while !bytes.is_empty() {
            let mut parser = RequestParser::new();
            let len = parser.parse(bytes, &Limits::CLIENT).unwrap().expect("a whole request");
            let request = parser.request(bytes);
            requests.push((0..request.len()).map(|i| request.get(i).unwrap().to_vec()).collect());
            bytes = &bytes[len..];
        }
        requests
    }

    fn batch(kind: Kind, keys: Keys, operations: u64) -> Vec<Vec<Vec<u8>>> {
        let mut batches = Batches::new(kind, keys, 10, 1);
        batches.next(operations);
        parsed(batches.bytes())
    }

    fn names(requests: &[Vec<Vec<u8>>]) -> Vec<&str> {
        requests.iter().map(|request| str::from_utf8(&request[0]).unwrap()).collect()
    }

    #[test]
    fn each_kind_is_what_a_server_expects() {
        let set = batch(Kind::Set, Keys::Uniform(1), 2);
        assert_eq!(names(&set), ["SET", "SET"]);
        assert_eq!(set[0][1], key_name(0).as_bytes());
        assert_eq!((set[0].len(), set[0][2].len(), &set[0][2][5..]), (3, 10, &b"....."[..]));

        let incr = batch(Kind::Incr, Keys::One, 1);
        assert_eq!(incr, [[b"INCR".to_vec(), b"counter:__rand_int__".to_vec()]]);

        let mset = batch(Kind::Mset, Keys::Uniform(1000), 3);
        assert!(mset.iter().all(|request| request.len() == 21 && request[0] == b"MSET"));

        let multi = batch(Kind::Multi, Keys::Uniform(1000), 1);
        assert_eq!(names(&multi), ["MULTI", "SET", "SET", "SET", "SET", "SET", "EXEC"]);
        assert_eq!(multi.len() as u64, Kind::Multi.replies());
    }

    #[test]
    fn a_mix_has_a_read_nine_times_of_ten() {
        let mix = batch(Kind::Mix, Keys::Zipf(Rc::new(Zipf::new(100))), 1000);
        let reads = names(&mix).iter().filter(|&&name| name == "GET").count();
        assert!((860..940).contains(&reads), "{reads}");
        assert_eq!(mix.len(), 1000);
    }

    #[test]
    fn keys_and_values_change_from_batch_to_batch_and_stay_in_the_key_space() {
        let mut batches = Batches::new(Kind::Set, Keys::Uniform(50), 16, 1);
        let mut make = |operations| {
            batches.next(operations);
            parsed(batches.bytes())
        };
        let (first, second, short) = (make(16), make(16), make(3));
        assert_ne!(first, second);
        assert_eq!(short.len(), 3);
        for request in first.iter().chain(&second).chain(&short) {
            let digits = str::from_utf8(request[1].strip_prefix(b"key:").unwrap()).unwrap();
            assert!(digits.len() == 12 && digits.parse::<u64>().unwrap() < 50);
        }
        assert_ne!(first[0][2], first[1][2]);
    }

    #[test]
    fn connections_that_load_name_each_key_once() {
        let next = Rc::new(Cell::new(0));
        let mut loaders =
            [1, 2].map(|seed| Batches::new(Kind::Set, Keys::InTurn(Rc::clone(&next)), 8, seed));
        let mut seen = Vec::new();
        for operations in [4, 2] {
            for loader in &mut loaders {
                loader.next(operations);
                seen.extend(parsed(loader.bytes()).into_iter().map(|request| request[1].clone()));
            }
        }
        let expected: Vec<_> = (0..12).map(|key| key_name(key).into_bytes()).collect();
        assert_eq!(seen, expected);
    }
}
