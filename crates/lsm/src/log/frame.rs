//! Frames: what one append puts into the lane.
//!
//! ```text
//!       0      4      8          16         24      32      40     48         52     56      60    64
//!       +------+------+----------+----------+-------+-------+------+----------+------+-------+-----+--------
//!       | crc  | len  | position | origin   | group | index | term | unsynced | prev | epoch | kfr | payload
//!       +------+------+----------+----------+-------+-------+------+----------+------+-------+-----+--------
//!         u32    u32    u64        u64        u64     u64     u64    u32        u32    u32     u8 u8 u16
//! ```
//!
//! The checksum covers everything after itself, payload included, and is seeded with the segment's
//! number, its salt and the frame's offset: bytes that were meant for another place, or for an
//! earlier use of this file, do not verify. `position` repeats the place in clear, so that a search
//! for frames may look at eight bytes before it pays for a checksum. `prev`, the checksum of the
//! frame before, makes the frames a chain: whoever follows it knows that nothing is missing.
//!
//! `unsynced` is the distance back to the lane position that was known durable when the frame was
//! written (`synced_to`). It is a distance and not a position because it is bounded by two segments
//! while a position is not, which leaves room for `origin` in a header of one cache line.

use atoll_encoding::Reader;
use atoll_encoding::checksum::{Place, seeded};
use atoll_env::IoBuf;

/// Length of a frame header in bytes.
pub(super) const HEADER_LEN: usize = 64;
/// Largest frame in bytes, header included. It bounds what a reader must hold to verify one.
pub(super) const MAX_FRAME: usize = 1 << 20;
/// Frames start at multiples of this.
pub(super) const ALIGN: u64 = 8;
/// The unit that is never rewritten once it was acknowledged as synced, in bytes.
pub(super) const BLOCK: u64 = 4096;

/// What a frame says about its group. The numbers are on disk: never change one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// An entry. It drops the group's entries at and above its index.
    Append = 1,
    /// An entry copied forward from an old segment. It drops nothing.
    Rewrite = 2,
    /// Term, vote, commit index and first needed index. The last one of a group holds.
    State = 3,
}

/// The fixed part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Checksum of the frame; the `prev` of the next one.
    pub checksum: u32,
    /// Payload length in bytes, without padding.
    pub len: u32,
    /// Lane position of the frame.
    pub position: u64,
    /// Lane position at which the entry was first appended (that of its first fragment). For a
    /// `rewrite` it is older than `position`; it is the base of the entry's sequence numbers.
    pub origin: u64,
    /// The group.
    pub group: u64,
    /// Index of the entry; the commit index in a `state`.
    pub index: u64,
    /// Term of the entry; the current term in a `state`.
    pub term: u64,
    /// Distance from `position` back to the position known durable at the time of writing.
    pub unsynced: u32,
    /// Checksum of the frame before this one in the lane.
    pub prev: u32,
    /// How often the lane had been opened when the frame was written.
    pub epoch: u32,
    /// What the frame says.
    pub kind: FrameKind,
    /// Whether the entry begins here.
    pub first: bool,
    /// Whether the entry ends here. Without its last fragment an entry does not exist.
    pub last: bool,
}

impl FrameHeader {
    /// Returns the lane position known durable when the frame was written.
    pub fn synced_to(&self) -> u64 {
        self.position.saturating_sub(u64::from(self.unsynced))
    }

    /// Returns how many bytes the frame takes in the lane: header, payload and padding.
    pub(super) fn extent(&self) -> u64 {
        extent(self.len as usize)
    }

    /// Appends the frame with `payload` to `out` and returns its checksum. `self.checksum` is
    /// ignored.
    pub(super) fn encode(&self, place: Place, payload: &[&[u8]], out: &mut IoBuf) -> u32 {
        let mut bytes = [0; HEADER_LEN];
        bytes[4..8].copy_from_slice(&self.len.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.position.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.origin.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.group.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.index.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.term.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.unsynced.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.prev.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[60] = self.kind as u8;
        bytes[61] = u8::from(self.first) | u8::from(self.last) << 1;
        let start = out.len();
        out.extend_from_slice(&bytes);
        for part in payload {
            out.extend_from_slice(part);
        }
        let checksum = seeded(place, &[&out[start + 4..]]);
        out[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
        out.resize((out.len() as u64).next_multiple_of(ALIGN) as usize);
        checksum
    }

    /// Decodes a header, or returns `None` if the bytes cannot be one. Nothing is verified yet.
    pub(super) fn decode(bytes: &[u8]) -> Option<FrameHeader> {
        let mut reader = Reader::new(bytes.get(..HEADER_LEN)?);
        let mut u32 = || reader.u32("frame header").ok();
        let (checksum, len) = (u32()?, u32()?);
        let mut u64 = || reader.u64("frame header").ok();
        let (position, origin, group, index, term) = (u64()?, u64()?, u64()?, u64()?, u64()?);
        let mut u32 = || reader.u32("frame header").ok();
        let (unsynced, prev, epoch) = (u32()?, u32()?, u32()?);
        let kind = match reader.u8("frame kind").ok()? {
            1 => FrameKind::Append,
            2 => FrameKind::Rewrite,
            3 => FrameKind::State,
            _ => return None,
        };
        let flags = reader.u8("fragment flags").ok()?;
        if flags > 3 || len as usize > MAX_FRAME - HEADER_LEN {
            return None;
        }
        Some(FrameHeader {
            checksum,
            len,
            position,
            origin,
            group,
            index,
            term,
            unsynced,
            prev,
            epoch,
            kind,
            first: flags & 1 != 0,
            last: flags & 2 != 0,
        })
    }
}

/// Returns whether `frame` (header and payload, without padding) carries its own checksum.
pub(super) fn verifies(place: Place, frame: &[u8]) -> bool {
    frame.len() >= HEADER_LEN && frame[..4] == seeded(place, &[&frame[4..]]).to_le_bytes()
}

/// Returns the bytes a frame of `payload_len` takes in the lane.
pub(super) fn extent(payload_len: usize) -> u64 {
    ((HEADER_LEN + payload_len) as u64).next_multiple_of(ALIGN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { file: 3, salt: 0x5a17, offset: 4096 };

    fn frame(len: u32) -> FrameHeader {
        FrameHeader {
            checksum: 0,
            len,
            position: 0x1_0000_1000,
            origin: 0x1_0000_0000,
            group: 2,
            index: 7,
            term: 5,
            unsynced: 0x1000,
            prev: 0xaabb_ccdd,
            epoch: 9,
            kind: FrameKind::Rewrite,
            first: false,
            last: true,
        }
    }

    fn encoded(header: &FrameHeader, payload: &[&[u8]]) -> IoBuf {
        let mut out = IoBuf::new();
        header.encode(PLACE, payload, &mut out);
        out
    }

    #[test]
    fn a_frame_has_the_bytes_of_the_format() {
        let bytes = encoded(&frame(5), &[b"he", b"llo"]);
        let hex: Vec<String> =
            bytes.chunks(8).map(|word| word.iter().map(|b| format!("{b:02x}")).collect()).collect();
        let expected = [
            "2f1c537b05000000",
            "0010000001000000",
            "0000000001000000",
            "0200000000000000",
            "0700000000000000",
            "0500000000000000",
            "00100000ddccbbaa",
            "0900000002020000",
            "68656c6c6f000000",
        ];
        assert_eq!(hex, expected, "a change needs a new format version");
    }

    #[test]
    fn a_frame_verifies_only_whole_unchanged_and_in_its_place() {
        let header = frame(11);
        let bytes = encoded(&header, &[b"eleven byte"]);
        let decoded = FrameHeader::decode(&bytes).unwrap();
        assert_eq!(FrameHeader { checksum: 0, ..decoded }, header);
        assert_eq!(decoded.synced_to(), 0x1_0000_0000);
        assert_eq!(decoded.extent(), bytes.len() as u64);

        let frame = &bytes[..HEADER_LEN + 11];
        assert!(verifies(PLACE, frame));
        for elsewhere in [
            Place { file: 4, ..PLACE },
            Place { salt: 0x5a18, ..PLACE },
            Place { offset: 8192, ..PLACE },
        ] {
            assert!(!verifies(elsewhere, frame), "{elsewhere:?}");
        }
        for bit in 0..8 * frame.len() {
            let mut flipped = frame.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!verifies(PLACE, &flipped), "bit {bit}");
        }
        assert!(!verifies(PLACE, &frame[..frame.len() - 1]));
        assert!(!verifies(PLACE, &[]));
    }

    #[test]
    fn bytes_that_cannot_be_a_header_are_refused() {
        let good = encoded(&frame(0), &[]);
        assert!(FrameHeader::decode(&good).is_some());
        assert!(FrameHeader::decode(&good[..63]).is_none(), "short");
        for (offset, byte) in [(60, 0), (60, 4), (61, 4), (7, 1)] {
            let mut bytes = good.to_vec();
            bytes[offset] = byte;
            assert!(FrameHeader::decode(&bytes).is_none(), "byte {offset} is {byte}");
        }
    }
}
