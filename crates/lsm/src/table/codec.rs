//! Sealed blocks: compression, and the trailer that says what the bytes are and that they are right.
//!
//! ```text
//!   +----------------+--------+---------+-----------+-----------+
//!   | stored bytes   | kind   | codec   | raw len   | crc32c    |
//!   | n              | u8     | u8      | u32       | u32       |
//!   +----------------+--------+---------+-----------+-----------+
//!                    '------------- seal, 10 bytes ------------'
//! ```
//!
//! The checksum covers stored bytes, kind, codec and raw length, seeded with table id, salt and
//! offset. It is checked before anything is decompressed, so a decompressor only ever sees bytes
//! that this program wrote, and a length is only believed once it verified.

use std::cell::RefCell;

use atoll_encoding::checksum::{Place, seeded};
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use super::BLOCK_MAX;
use crate::pool::{Frame, Pool};

/// Bytes of the seal behind each block.
pub(super) const SEAL_LEN: usize = 10;
/// A block never unpacks to more than this many times its stored size: a bound on what one read
/// can allocate, and just above the best LZ4 can do.
pub(crate) const RATIO_MAX: usize = 256;

/// Compression of a table's blocks. A block that shrinks by less than an eighth is stored as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// No compression.
    None,
    /// LZ4: fast, for levels that are rewritten often.
    Lz4,
    /// Zstandard at the given level (3 is usual): denser, for the last level.
    Zstd(i32),
}

/// Codec numbers on disk, of blocks and of values in value files (which know the first two).
pub(crate) const RAW: u8 = 0;
pub(crate) const LZ4: u8 = 1;
const ZSTD: u8 = 2;

/// What a block is. The numbers are on disk: never change one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum BlockKind {
    Data = 1,
    Index = 2,
    Filter = 3,
    RangeTombstones = 4,
    Properties = 5,
    TopIndex = 6,
}

impl BlockKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            BlockKind::Data => "data block",
            BlockKind::Index => "index partition",
            BlockKind::Filter => "filter partition",
            BlockKind::RangeTombstones => "range tombstone block",
            BlockKind::Properties => "properties block",
            BlockKind::TopIndex => "top index",
        }
    }
}

/// Compresses and seals blocks, reusing its tables and buffers.
pub(super) struct Sealer {
    codec: Codec,
    lz4: CompressTable,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    packed: Vec<u8>,
}

/// A block's bytes as they go to the file.
pub(super) struct Sealed<'a> {
    pub(super) stored: &'a [u8],
    pub(super) seal: [u8; SEAL_LEN],
}

impl Sealer {
    pub(super) fn new(codec: Codec) -> Sealer {
        // Without memory for a context the blocks are stored as they are: larger, not wrong.
        let zstd = match codec {
            Codec::Zstd(level) => zstd::bulk::Compressor::new(level).ok(),
            Codec::None | Codec::Lz4 => None,
        };
        Sealer { codec, lz4: CompressTable::default(), zstd, packed: Vec::new() }
    }

    pub(super) fn seal<'a>(
        &'a mut self,
        place: Place,
        kind: BlockKind,
        raw: &'a [u8],
    ) -> Sealed<'a> {
        debug_assert!(raw.len() <= BLOCK_MAX);
        let codec = match kind {
            BlockKind::Data | BlockKind::Index => self.pack(raw),
            // Filters are noise; the others are few and read once.
            _ => RAW,
        };
        let stored = if codec == RAW { raw } else { &self.packed[..] };
        let mut seal = [0; SEAL_LEN];
        seal[0] = kind as u8;
        seal[1] = codec;
        seal[2..6].copy_from_slice(&(raw.len() as u32).to_le_bytes());
        let crc = seeded(place, &[stored, &seal[..6]]);
        seal[6..].copy_from_slice(&crc.to_le_bytes());
        Sealed { stored, seal }
    }

    /// Packs `raw` into `self.packed` and returns the codec used.
    fn pack(&mut self, raw: &[u8]) -> u8 {
        if let Some(zstd) = &mut self.zstd {
            self.packed.resize(raw.len() - raw.len() / 8, 0);
            // An error means that the result does not fit, hence does not pay.
            match zstd.compress_to_buffer(raw, &mut self.packed[..]) {
                Err(_) => return RAW,
                Ok(len) if len.saturating_mul(RATIO_MAX) >= raw.len() => {
                    self.packed.truncate(len);
                    return ZSTD;
                }
                // Denser than readers accept: LZ4 cannot be.
                Ok(_) => {}
            }
        }
        if self.codec == Codec::None {
            return RAW;
        }
        pack_lz4(raw, &mut self.packed, &mut self.lz4)
    }
}

/// Packs `raw` into `packed` if that saves an eighth; returns the codec used.
pub(crate) fn pack_lz4(raw: &[u8], packed: &mut Vec<u8>, table: &mut CompressTable) -> u8 {
    packed.resize(get_maximum_output_size(raw.len()), 0);
    let pays =
        |len: usize| len <= raw.len() - raw.len() / 8 && len.saturating_mul(RATIO_MAX) >= raw.len();
    match compress_into_with_table(raw, packed, table) {
        Ok(len) if pays(len) => {
            packed.truncate(len);
            LZ4
        }
        _ => RAW,
    }
}

/// Verifies and unpacks a block read from `place` into memory of `pool`, or says what is wrong.
pub(super) fn unseal(
    pool: &dyn Pool,
    place: Place,
    kind: BlockKind,
    sealed: &[u8],
) -> Result<Frame, String> {
    let Some((stored, seal)) = sealed.split_last_chunk::<SEAL_LEN>() else {
        return Err(format!("{} is shorter than its seal", kind.name()));
    };
    let [found_kind, codec, l0, l1, l2, l3, crc @ ..] = *seal;
    if seeded(place, &[stored, &seal[..6]]) != u32::from_le_bytes(crc) {
        return Err(format!("checksum mismatch in {}", kind.name()));
    }
    if found_kind != kind as u8 {
        return Err(format!("expected {}, found block of kind {found_kind}", kind.name()));
    }
    let raw_len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if raw_len > BLOCK_MAX || raw_len > stored.len().saturating_mul(RATIO_MAX) {
        return Err(format!("{} claims {raw_len} bytes in {}", kind.name(), stored.len()));
    }
    let mut frame = match codec {
        RAW if raw_len != stored.len() => None,
        RAW | LZ4 | ZSTD => Some(pool.frame(raw_len)),
        _ => return Err(format!("{} has unknown codec {codec}", kind.name())),
    };
    let unpacked = frame.as_deref_mut().and_then(|frame| match codec {
        RAW => {
            frame.copy_from_slice(stored);
            Some(raw_len)
        }
        LZ4 => lz4_flex::block::decompress_into(stored, frame).ok(),
        _ => unpack_zstd(stored, frame),
    });
    frame
        .filter(|_| unpacked == Some(raw_len))
        .ok_or_else(|| format!("{} does not unpack to {raw_len} bytes", kind.name()))
}

fn unpack_zstd(stored: &[u8], frame: &mut [u8]) -> Option<usize> {
    thread_local! {
        // A context is 160 KiB and dearer to make than to use.
        static CONTEXT: RefCell<Option<zstd::bulk::Decompressor<'static>>> =
            const { RefCell::new(None) };
    }
    CONTEXT.with_borrow_mut(|context| {
        if context.is_none() {
            *context = zstd::bulk::Decompressor::new().ok();
        }
        context.as_mut()?.decompress_to_buffer(stored, frame).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::HeapPool;

    const PLACE: Place = Place { file: 1, salt: 2, offset: 3 };

    fn seal(codec: Codec, raw: &[u8]) -> Vec<u8> {
        let mut sealer = Sealer::new(codec);
        let sealed = sealer.seal(PLACE, BlockKind::Data, raw);
        [sealed.stored, &sealed.seal].concat()
    }

    #[test]
    fn every_codec_round_trips_dense_sparse_and_empty_blocks() {
        let pool = HeapPool::new(0);
        let noise: Vec<u8> =
            (0..5000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let text = b"the same words again and ".repeat(200);
        let zeros = vec![0; 3 << 20];
        for codec in [Codec::None, Codec::Lz4, Codec::Zstd(3)] {
            for raw in [&noise[..], &text, &zeros, b"", b"x"] {
                let sealed = seal(codec, raw);
                let frame = unseal(&pool, PLACE, BlockKind::Data, &sealed).unwrap();
                assert_eq!(&frame[..], raw);
                if codec != Codec::None && raw.len() > 10_000 {
                    assert!(sealed.len() < raw.len() / 100);
                }
            }
            assert!(seal(codec, &noise).len() <= noise.len() + SEAL_LEN);
        }
    }

    #[test]
    fn every_bit_flip_cut_and_foreign_place_is_named() {
        let pool = HeapPool::new(0);
        let sealed = seal(Codec::Lz4, &b"abcabcabc".repeat(20));
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal(&pool, PLACE, BlockKind::Data, &bad).is_err(), "bit {bit}");
        }
        for cut in 0..sealed.len() {
            assert!(unseal(&pool, PLACE, BlockKind::Data, &sealed[..cut]).is_err(), "cut {cut}");
        }
        let elsewhere = Place { offset: 4, ..PLACE };
        assert!(unseal(&pool, elsewhere, BlockKind::Data, &sealed).is_err());
        assert!(unseal(&pool, PLACE, BlockKind::Index, &sealed).is_err());
    }

    #[test]
    fn a_length_that_verifies_but_cannot_be_true_is_refused() {
        let pool = HeapPool::new(0);
        for (codec, raw_len) in [(RAW, 5u32), (LZ4, u32::MAX), (ZSTD, 1000), (LZ4, 900), (9, 4)] {
            let stored = b"abcd";
            let mut seal = [0; SEAL_LEN];
            seal[0] = BlockKind::Data as u8;
            seal[1] = codec;
            seal[2..6].copy_from_slice(&raw_len.to_le_bytes());
            let crc = seeded(PLACE, &[stored, &seal[..6]]);
            seal[6..].copy_from_slice(&crc.to_le_bytes());
            let sealed = [&stored[..], &seal].concat();
            assert!(unseal(&pool, PLACE, BlockKind::Data, &sealed).is_err(), "{codec} {raw_len}");
        }
    }
}
