//! What a store keeps beside versions: intents, transaction records, fences, the lane's bound.
//!
//! ```text
//!   intent    | version | flags | txn 16 | min_commit_ts 8 | primary | extra | value ...
//!   record    | version | written 8 | kind | ...
//!   fence     | version | start 8 |
//!   bound     | version | epoch 8 |
//! ```
//!
//! Integers are little-endian; `primary`, `extra` and the keys of a record are a varint length and
//! bytes. The first byte is the version of the format (docs/formats/shard.md). What is decoded came
//! from a disk: bytes that make no sense are an error, whatever they say.
//!
//! An intent ends with its value, without a length: the value of a stored intent is a piece of the
//! stored bytes, and it is written from where it is ([`Intent::put_head`]) without a copy.

use atoll_encoding::{Malformed, Reader, varint};

use crate::request::{Isolation, Record, TxnId};
use crate::timestamp::{Epoch, Timestamp};

/// Version of all formats here.
const VERSION: u8 = 1;

/// A value whose transaction is not decided where the value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intent<'a> {
    /// Whose it is.
    pub txn: TxnId,
    /// Where the record of that transaction is.
    pub primary: &'a [u8],
    /// The lowest timestamp it can become a version at. A reader below may pass it by.
    pub min_commit_ts: Timestamp,
    /// What the shard wants to know when the intent becomes a version (the change of a count, the
    /// deadline before): its own business.
    pub extra: &'a [u8],
    /// The value, `None` to delete.
    pub value: Option<&'a [u8]>,
}

/// Set if the intent has a value.
const HAS_VALUE: u8 = 1;

impl<'a> Intent<'a> {
    /// Appends everything but the value, which must follow.
    pub fn put_head(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        out.push(if self.value.is_some() { HAS_VALUE } else { 0 });
        out.extend_from_slice(&self.txn.0.to_le_bytes());
        put_ts(out, self.min_commit_ts);
        varint::put_bytes(out, self.primary);
        varint::put_bytes(out, self.extra);
    }

    /// Returns all of it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.put_head(&mut out);
        out.extend_from_slice(self.value.unwrap_or_default());
        out
    }

    /// Decodes an intent; nothing is copied.
    ///
    /// # Errors
    /// The bytes are none, or of a newer version.
    pub fn decode(bytes: &'a [u8]) -> Result<Intent<'a>, Malformed> {
        let mut input = open(bytes)?;
        let at_flags = input.malformed("the flags of an intent");
        let flags = input.u8("the flags of an intent")?;
        let txn = TxnId(u128::from_le_bytes(input.array("a transaction")?));
        let min_commit_ts = Timestamp(input.u64("a timestamp")?);
        let primary = input.bytes("a primary key")?;
        let extra = input.bytes("what the shard keeps with an intent")?;
        let value = match flags {
            HAS_VALUE => Some(input.rest()),
            0 => {
                input.finish("no value behind a deletion")?;
                None
            }
            _ => return Err(at_flags),
        };
        Ok(Intent { txn, primary, min_commit_ts, extra, value })
    }
}

/// The state of a transaction, as the shard of its primary key keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnRecord {
    /// When it was written. Its coordinator is given up for dead some time after this and its last
    /// sign of life; the record of an aborted one goes when the safepoint has passed this.
    pub written: Epoch,
    /// How far it has come.
    pub state: Record,
}

const STAGED: u8 = 1;
const COMMITTED: u8 = 2;
const ABORTED: u8 = 3;

impl TxnRecord {
    /// Returns the record's bytes. The keys of a staged one ascend.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.push(VERSION);
        out.extend_from_slice(&self.written.0.to_le_bytes());
        match &self.state {
            Record::Staged { commit_ts, isolation, keys } => {
                debug_assert!(keys.is_sorted(), "keys of a staged record ascend");
                out.push(STAGED);
                put_ts(&mut out, *commit_ts);
                out.push(isolation_number(*isolation));
                varint::put(&mut out, keys.len() as u64);
                for key in keys.iter() {
                    varint::put_bytes(&mut out, key);
                }
            }
            Record::Committed(ts) => {
                out.push(COMMITTED);
                put_ts(&mut out, *ts);
            }
            Record::Aborted => out.push(ABORTED),
        }
        out
    }

    /// Decodes a record.
    ///
    /// # Errors
    /// The bytes are none, or of a newer version.
    pub fn decode(bytes: &[u8]) -> Result<TxnRecord, Malformed> {
        let mut input = open(bytes)?;
        let written = epoch(&mut input)?;
        let at_kind = input.malformed("a known kind of record");
        let state = match input.u8("a kind of record")? {
            STAGED => {
                let commit_ts = Timestamp(input.u64("a timestamp")?);
                let isolation = isolation(&mut input)?;
                let count = input.varint("how many keys follow")?;
                // No room is made for an announced number: each key has to be there.
                let mut keys = Vec::new();
                for _ in 0..count {
                    keys.push(input.bytes("a key")?.to_vec());
                }
                Record::Staged { commit_ts, isolation, keys: keys.into() }
            }
            COMMITTED => Record::Committed(Timestamp(input.u64("a timestamp")?)),
            ABORTED => Record::Aborted,
            _ => return Err(at_kind),
        };
        input.finish("nothing behind a record")?;
        Ok(TxnRecord { written, state })
    }
}

/// A transaction can never place an intent on a key: recovery found none there and gave it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// A timestamp at or above the start of the transaction. Once the safepoint has passed it, a
    /// late prewrite is refused for its age and the fence may go.
    pub start: Timestamp,
}

impl Fence {
    /// Returns the fence's bytes.
    pub fn encode(self) -> [u8; 9] {
        versioned(self.start.0)
    }

    /// Decodes a fence.
    ///
    /// # Errors
    /// The bytes are none, or of a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Fence, Malformed> {
        let mut input = open(bytes)?;
        let start = Timestamp(input.u64("a timestamp")?);
        input.finish("nothing behind a fence")?;
        Ok(Fence { start })
    }
}

/// No entry of the lane has a timestamp above this epoch: where the oracle starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneBound(pub Epoch);

impl LaneBound {
    /// Returns the bound's bytes.
    pub fn encode(self) -> [u8; 9] {
        versioned(self.0.0)
    }

    /// Decodes a bound.
    ///
    /// # Errors
    /// The bytes are none, or of a newer version.
    pub fn decode(bytes: &[u8]) -> Result<LaneBound, Malformed> {
        let mut input = open(bytes)?;
        let bound = epoch(&mut input)?;
        input.finish("nothing behind a bound")?;
        Ok(LaneBound(bound))
    }
}

/// Checks the version.
fn open(bytes: &[u8]) -> Result<Reader<'_>, Malformed> {
    let mut input = Reader::new(bytes);
    match input.u8("a format version")? {
        VERSION => Ok(input),
        _ => {
            Err(Malformed { offset: 0, expected: "format version 1; a newer program may know it" })
        }
    }
}

fn versioned(number: u64) -> [u8; 9] {
    let mut out = [VERSION; 9];
    out[1..].copy_from_slice(&number.to_le_bytes());
    out
}

fn put_ts(out: &mut Vec<u8>, ts: Timestamp) {
    out.extend_from_slice(&ts.0.to_le_bytes());
}

fn epoch(input: &mut Reader<'_>) -> Result<Epoch, Malformed> {
    let too_high = input.malformed("an epoch of 52 bits");
    let epoch = Epoch(input.u64("an epoch")?);
    if epoch > Epoch::MAX { Err(too_high) } else { Ok(epoch) }
}

/// The number of a level on disk and on the wire: never change one.
pub(crate) fn isolation_number(isolation: Isolation) -> u8 {
    match isolation {
        Isolation::Serializable => 1,
        Isolation::Snapshot => 2,
        Isolation::ReadCommitted => 3,
    }
}

pub(crate) fn isolation(input: &mut Reader<'_>) -> Result<Isolation, Malformed> {
    let unknown = input.malformed("a known isolation level");
    match input.u8("an isolation level")? {
        1 => Ok(Isolation::Serializable),
        2 => Ok(Isolation::Snapshot),
        3 => Ok(Isolation::ReadCommitted),
        _ => Err(unknown),
    }
}

#[cfg(test)]
mod tests {
    use atoll_env::random::Prng;

    use super::*;

    fn intents() -> Vec<Intent<'static>> {
        let intent = Intent {
            txn: TxnId(0x0102_0304 << 96 | 7),
            primary: b"\0\0\0\x01primary",
            min_commit_ts: Timestamp::commit_at(Epoch(9)),
            extra: b"about",
            value: Some(b"value"),
        };
        vec![
            intent,
            Intent { value: Some(b""), ..intent },
            Intent { value: None, extra: b"", ..intent },
        ]
    }

    fn records() -> Vec<TxnRecord> {
        let staged = |isolation, keys: &[&[u8]]| Record::Staged {
            commit_ts: Timestamp::commit_at(Epoch(77)),
            isolation,
            keys: keys.iter().map(|key| key.to_vec()).collect(),
        };
        [
            staged(Isolation::Serializable, &[b"a", b"a\0", b"b"]),
            staged(Isolation::Snapshot, &[b""]),
            staged(Isolation::ReadCommitted, &[]),
            Record::Committed(Timestamp::MAX),
            Record::Aborted,
        ]
        .into_iter()
        .map(|state| TxnRecord { written: Epoch(1_234_567), state })
        .collect()
    }

    /// Decodes `bytes` as everything; what decodes must be what was meant.
    fn decode_all(bytes: &[u8]) -> bool {
        let mut any = false;
        if let Ok(intent) = Intent::decode(bytes) {
            assert_eq!(Intent::decode(&intent.encode()), Ok(intent));
            any = true;
        }
        if let Ok(record) = TxnRecord::decode(bytes)
            && !matches!(&record.state, Record::Staged { keys, .. } if !keys.is_sorted())
        {
            assert_eq!(TxnRecord::decode(&record.encode()), Ok(record));
            any = true;
        }
        if let Ok(fence) = Fence::decode(bytes) {
            assert_eq!(fence.encode(), bytes);
            any = true;
        }
        if let Ok(bound) = LaneBound::decode(bytes) {
            assert_eq!(bound.encode(), bytes);
            any = true;
        }
        any
    }

    #[test]
    fn what_is_written_is_read_back() {
        for intent in intents() {
            let bytes = intent.encode();
            assert_eq!(Intent::decode(&bytes), Ok(intent));
            let mut head = Vec::new();
            intent.put_head(&mut head);
            assert_eq!([&head, intent.value.unwrap_or_default()].concat(), bytes);
        }
        for record in records() {
            assert_eq!(TxnRecord::decode(&record.encode()), Ok(record));
        }
        let fence = Fence { start: Timestamp::read_at(Epoch(5)) };
        assert_eq!(Fence::decode(&fence.encode()), Ok(fence));
        let bound = LaneBound(Epoch::MAX);
        assert_eq!(LaneBound::decode(&bound.encode()), Ok(bound));
    }

    #[test]
    fn the_bytes_of_version_1_never_change() {
        let intent = Intent {
            txn: TxnId(2),
            primary: b"pp",
            min_commit_ts: Timestamp(3),
            extra: b"e",
            value: Some(b"vvv"),
        };
        let mut expected = vec![1, 1, 2];
        expected.extend([0; 15]);
        expected.extend([3, 0, 0, 0, 0, 0, 0, 0, 2, b'p', b'p', 1, b'e', b'v', b'v', b'v']);
        assert_eq!(intent.encode(), expected);
        let keys = [b"k".to_vec()].into();
        let state =
            Record::Staged { commit_ts: Timestamp(4), isolation: Isolation::Snapshot, keys };
        let record = TxnRecord { written: Epoch(5), state };
        let expected = [1, 5, 0, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0, 0, 0, 0, 0, 2, 1, 1, b'k'];
        assert_eq!(record.encode(), expected);
    }

    #[test]
    fn no_cut_decodes_as_anything_it_is_not() {
        for intent in intents() {
            let bytes = intent.encode();
            let head = bytes.len() - intent.value.unwrap_or_default().len();
            for cut in 0..head {
                assert!(Intent::decode(&bytes[..cut]).is_err(), "cut at {cut}");
            }
        }
        for record in records() {
            let bytes = record.encode();
            for cut in 0..bytes.len() {
                assert!(TxnRecord::decode(&bytes[..cut]).is_err(), "{record:?} cut at {cut}");
            }
            assert!(TxnRecord::decode(&[&bytes[..], &[0]].concat()).is_err());
        }
        for cut in 0..9 {
            assert!(Fence::decode(&[1; 9][..cut]).is_err());
            assert!(LaneBound::decode(&[1; 9][..cut]).is_err());
        }
        assert!(Fence::decode(&[1; 10]).is_err());
    }

    #[test]
    fn a_newer_version_is_refused_in_words() {
        let error = Intent::decode(&[2; 40]).unwrap_err().to_string();
        assert_eq!(error, "expected format version 1; a newer program may know it at byte 0");
        assert!(LaneBound::decode(&[1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
    }

    #[test]
    fn an_announced_number_of_keys_takes_no_memory() {
        let mut bytes = vec![VERSION];
        bytes.extend([0; 8]);
        bytes.push(STAGED);
        bytes.extend([0; 8]);
        bytes.push(1);
        varint::put(&mut bytes, u64::MAX);
        assert!(TxnRecord::decode(&bytes).is_err());
    }

    #[test]
    fn random_bytes_decode_to_something_sound_or_to_an_error() {
        let mut prng = Prng::new(1);
        let samples: Vec<Vec<u8>> = intents()
            .iter()
            .map(Intent::encode)
            .chain(records().iter().map(TxnRecord::encode))
            .chain([Fence { start: Timestamp(1) }.encode().to_vec()])
            .collect();
        let (mut sound, mut refused) = (0, 0);
        for _ in 0..100_000 {
            let mut bytes = prng.choose(&samples).unwrap().clone();
            for _ in 0..prng.range(1..4) {
                let at = prng.index(bytes.len());
                match prng.below(3) {
                    0 => bytes[at] = prng.next_u64() as u8,
                    1 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, prng.next_u64() as u8),
                }
            }
            *(if decode_all(&bytes) { &mut sound } else { &mut refused }) += 1;
        }
        assert!(sound > 1_000 && refused > 1_000, "{sound} {refused}");
    }
}
