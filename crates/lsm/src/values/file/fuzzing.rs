//! The decoders of value files with a door for bytes from anywhere. See [`crate::fuzzing`].

use std::path::Path;

use atoll_env::sim::Sim;

use super::*;
use crate::key::{Kind, Trailer};

const ID: u64 = 7;
const SALT: u64 = 9;
const KEY: &[u8] = b"\0\0\0\x01key";

/// Decodes the pointers of records of every kind.
pub(crate) fn pointer(bytes: &[u8]) {
    for kind in (0..=u8::MAX).filter_map(Kind::from_u8) {
        let trailer = Trailer::new(1, kind).separated();
        let found = Pointer::of(trailer, bytes);
        if !kind.has_value() {
            assert_eq!((trailer.kind(), found), (None, None), "{kind:?} is never separated");
        } else if let Some(pointer) = found {
            assert_eq!(pointer.encode()[..], bytes[kind.head_len()..]);
        }
    }
}

/// Verifies a value file and reads its records: of these bytes as they are, and of records that verify
/// and say what the bytes tell them to.
pub(crate) fn file(bytes: &[u8]) {
    verify_and_read(bytes, &[]);
    let (sealed, pointers) = sealed(bytes);
    verify_and_read(&sealed, &pointers);
}

/// Returns a file of records cut from `bytes`, with right checksums, and pointers to them.
fn sealed(bytes: &[u8]) -> (Vec<u8>, Vec<Pointer>) {
    let mut file = HEADER.encode(ID, SALT);
    let (mut rest, mut pointers) = (bytes, Vec::new());
    while rest.len() >= RECORD_HEADER {
        let Some(header) = Header::decode(rest) else { break };
        // Some say another length than they have.
        let size = (RECORD_HEADER + header.stored).min(rest.len());
        let (record, behind) = rest.split_at(size);
        let offset = file.len() as u64;
        let check = seeded(Place { file: ID, salt: SALT, offset }, &[&record[4..]]);
        file.extend_from_slice(&check.to_le_bytes());
        file.extend_from_slice(&record[4..]);
        let len = header.len as u32;
        pointers.push(Pointer { file: ID, offset, size: size as u32, len, check });
        rest = behind;
    }
    let end = file.len() as u64;
    file.extend_from_slice(&encode_footer(ID, SALT, pointers.len() as u64, end));
    (file, pointers)
}

fn verify_and_read(bytes: &[u8], pointers: &[Pointer]) {
    let sim = Sim::new(1);
    let node = sim.node("a");
    let (env, path) = (node.env(), Path::new("/7.val"));
    node.disk().write_file("/7.val", bytes).expect("the disk is empty");
    let desc = ValueDesc { id: ID, salt: SALT, size: bytes.len() as u64 };
    let read = sim.block_on(&node, async {
        let verified = verify(&env, path.to_owned(), desc).await;
        let Ok(file) = ValueFile::open(&env, path.to_owned(), desc).await else {
            assert!(verified.is_err(), "what verifies opens");
            return;
        };
        let mut values = 0;
        for pointer in pointers {
            let at = pointer.offset as usize;
            let header = Header::decode(&bytes[at..]).expect("it was cut so");
            let ahead = Ahead::default();
            let mut lens = Vec::new();
            for key in [KEY, b"another"] {
                let seqno = header.tag >> 8;
                let one = file.read(key, seqno, *pointer, IoClass::Read).await;
                let of_scan = file.read_ahead(key, seqno, *pointer, &ahead, IoClass::Read).await;
                assert_eq!(one.is_ok(), of_scan.is_ok());
                let mine = header.hash == hash64(key);
                assert!(mine || one.is_err(), "the value of another key");
                if let Some(value) = one.ok().and_then(|stored| stored.into_value().ok()) {
                    assert_eq!(value.len(), pointer.len as usize);
                    lens.push(value.len());
                }
            }
            values += usize::from(!lens.is_empty());
        }
        let mine = |p: &&Pointer| bytes[p.offset as usize + 20..][..8] == hash64(KEY).to_le_bytes();
        if verified.is_ok() && pointers.iter().filter(mine).count() == pointers.len() {
            assert_eq!(values, pointers.len(), "what verifies can be read");
        }
    });
    read.done();
}

/// A pointer behind a deadline.
pub(crate) fn sample_pointer() -> Vec<u8> {
    let pointer = Pointer { file: ID, offset: 32, size: 60, len: 100, check: 0x1234_5678 };
    [&99u64.to_le_bytes()[..], &pointer.encode()].concat()
}

/// Records as they stand in a file, and a whole file.
pub(crate) fn sample_files() -> [Vec<u8>; 2] {
    let mut records = Vec::new();
    let mut packed = Vec::new();
    let mut lz4 = CompressTable::default();
    for (seqno, value) in [(5u64, &[7; 300][..]), (6, b"short"), (9, b"")] {
        let codec = pack_lz4(value, &mut packed, &mut lz4);
        let stored = if codec == LZ4 { &packed[..] } else { value };
        records.extend_from_slice(&[0; 4]);
        records.extend_from_slice(&(stored.len() as u32).to_le_bytes());
        records.extend_from_slice(&(value.len() as u32).to_le_bytes());
        records.extend_from_slice(&(seqno << 8 | u64::from(codec)).to_le_bytes());
        records.extend_from_slice(&hash64(KEY).to_le_bytes());
        records.extend_from_slice(stored);
    }
    let (whole, _) = sealed(&records);
    [records, whole]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_sample_records_verifies_and_is_read() {
        let [records, whole] = sample_files();
        let (sealed, pointers) = sealed(&records);
        assert_eq!((sealed == whole, pointers.len()), (true, 3));
        verify_and_read(&whole, &pointers);
        let sim = Sim::new(1);
        let node = sim.node("a");
        node.disk().write_file("/7.val", &whole).unwrap();
        let desc = ValueDesc { id: ID, salt: SALT, size: whole.len() as u64 };
        let env = node.env();
        let verified = sim.block_on(&node, verify(&env, "/7.val".into(), desc)).done();
        assert_eq!(verified.unwrap().records, 3);
    }
}
