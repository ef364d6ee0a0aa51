//! The frame: what a connection consists of once its handshake is done.
//!
//! ```text
//!   +------------+---------+----------+-------------+------------+------------+---------
//!   | length u32 | kind u8 | flags u8 | version u16 | stream u32 | crc32c u32 | payload
//!   +------------+---------+----------+-------------+------------+------------+---------
//!                 4         5          6             8            12           16
//! ```
//!
//! Pure: bytes in, frames out. The checksum covers header and payload, and the *place* of the frame:
//! its connection, its direction and its offset there ([`Lane`]). So a frame that is good and
//! elsewhere (sent twice, left out, of another connection) does not verify either.
//!
//! A payload gets an allocation of its own, of its own length, filled from the buffer of the read.
//! Slices of that buffer would save an allocation for each frame, but then one small message that is
//! kept for long would keep all its neighbours, and what a peer can make us hold would be a multiple
//! of what it may send. From here on a payload is passed on without copies.
//!
//! # Invariants
//! - Length, kind, flags and version are checked before anything is allocated; then memory grows as
//!   bytes arrive, never by the announced length.
//! - The result does not depend on how the stream is cut into reads.
//! - After an error a decoder yields nothing more.
//!
//! The format is described in docs/formats/link.md.

use std::fmt;

use atoll_encoding::checksum::{self, Place};
use bytes::Bytes;
use smallvec::SmallVec;

use crate::id::{Class, Role};
use crate::refusal::{Code, cut};

/// Bytes before the payload.
pub const HEADER_LEN: usize = 16;
/// What of the header the checksum covers: all before it.
const CHECKED_LEN: usize = 12;

/// What a frame is. The numbers are on the wire: do not change them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Any class: are you there? Its stream is the number of the question.
    Ping = 1,
    /// Answer to it, with its number.
    Pong = 2,
    /// The last frame of whoever sends it: a code and a sentence that say why.
    Close = 3,
    /// Raft: a message.
    Message = 16,
    /// Rpc: a question; milliseconds that are left for it (u32), then the bytes.
    Request = 32,
    /// The answer to it.
    Answer = 33,
    /// There is no answer to it: a code that says what that means, and a sentence.
    Decline = 34,
    /// Nobody waits for the answer any more.
    Cancel = 35,
    /// Bulk: a stream begins; its header.
    Open = 48,
    /// A chunk of it.
    Chunk = 49,
    /// Its end: all of it was sent.
    Finish = 50,
    /// Its sender gives up: a sentence.
    Abort = 51,
    /// Its receiver allows so many more bytes (u32).
    Grant = 52,
    /// Its receiver gives up: a sentence.
    Stop = 53,
    /// Its receiver has taken all of it, the end too.
    Done = 54,
}

const KINDS: [Kind; 15] = [
    Kind::Ping,
    Kind::Pong,
    Kind::Close,
    Kind::Message,
    Kind::Request,
    Kind::Answer,
    Kind::Decline,
    Kind::Cancel,
    Kind::Open,
    Kind::Chunk,
    Kind::Finish,
    Kind::Abort,
    Kind::Grant,
    Kind::Stop,
    Kind::Done,
];

impl Kind {
    /// Returns the kind of a number on the wire, if connections of `class` carry it.
    fn from_byte(byte: u8, class: Class) -> Option<Kind> {
        let kind = KINDS.into_iter().find(|kind| *kind as u8 == byte)?;
        let carried = match byte {
            0..16 => true,
            16..32 => class == Class::Raft,
            32..48 => class == Class::Rpc,
            _ => class == Class::Bulk,
        };
        carried.then_some(kind)
    }

    /// Returns the longest payload of the kind: what only says how something ended is short.
    const fn payload_max(self, class: Class) -> usize {
        match self {
            Kind::Ping | Kind::Pong | Kind::Cancel | Kind::Finish | Kind::Done => 0,
            Kind::Grant => 4,
            Kind::Close | Kind::Decline | Kind::Abort | Kind::Stop => 1 + SENTENCE_MAX,
            _ => class.payload_max(),
        }
    }
}

/// The longest sentence that engines send each other, in bytes.
pub const SENTENCE_MAX: usize = 1024;

/// Returns the payload of a [`Kind::Close`]; a verdict of a handshake has the same.
pub(crate) fn close_payload(code: Code, sentence: &str) -> Bytes {
    [&[code as u8], cut(sentence).as_bytes()].concat().into()
}

/// Where frames belong: one direction of one connection. Part of every checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    /// What the connection is for.
    pub class: Class,
    /// The version of the protocol that the handshake agreed on.
    pub version: u16,
    /// What the handshake drew for this connection.
    pub salt: u64,
    /// Who sends.
    pub sender: Role,
}

impl Lane {
    fn checksum(&self, offset: u64, header: &[u8], payload: &[Bytes]) -> u32 {
        let file = (self.class as u64) << 1 | u64::from(self.sender == Role::Acceptor);
        let place = Place { file, salt: self.salt, offset };
        let mut parts: SmallVec<[&[u8]; 8]> = SmallVec::new();
        parts.push(header);
        parts.extend(payload.iter().map(|part| &part[..]));
        checksum::seeded(place, &parts)
    }
}

/// A frame that arrived whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// The call, bulk stream or ping it belongs to; 0 where there is none.
    pub stream: u32,
    /// What it carries.
    pub payload: Bytes,
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// No frame of this kind and class is so long.
    Length {
        /// What the header says.
        found: u32,
        /// What is allowed.
        max: usize,
    },
    /// No connection of this class carries such a frame.
    Kind(u8),
    /// Flags that this version of the protocol does not know; it knows none.
    Flags(u8),
    /// Another version than the one agreed on.
    Version(u16),
    /// Header, payload or place are not what they were.
    Checksum,
}

/// Bytes that are no frame, and where their frame begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadFrame {
    /// Bytes of the connection before the frame, its handshake not counted.
    pub offset: u64,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for BadFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the frame at byte {} ", self.offset)?;
        match self.problem {
            Problem::Length { found, max } => {
                write!(f, "announces {found} bytes where at most {max} are allowed")
            }
            Problem::Kind(kind) => write!(f, "is of kind {kind}, which has no place here"),
            Problem::Flags(flags) => write!(f, "has unknown flags {flags:#04x}"),
            Problem::Version(version) => {
                write!(f, "is of version {version}, which was not agreed on")
            }
            Problem::Checksum => f.write_str("does not verify"),
        }
    }
}

impl std::error::Error for BadFrame {}

/// Writes the headers of one direction.
#[derive(Debug)]
pub struct Encoder {
    lane: Lane,
    offset: u64,
}

impl Encoder {
    /// Starts at the first frame.
    pub fn new(lane: Lane) -> Encoder {
        Encoder { lane, offset: 0 }
    }

    /// Returns the header of the next frame, which is to be followed by `payload`.
    ///
    /// # Panics
    /// The payload is longer than its kind allows: whoever queued it had to refuse it.
    pub fn header(&mut self, kind: Kind, stream: u32, payload: &[Bytes]) -> [u8; HEADER_LEN] {
        let len: usize = payload.iter().map(Bytes::len).sum();
        assert!(len <= kind.payload_max(self.lane.class), "a frame of {len} bytes was queued");
        let mut header = [0; HEADER_LEN];
        header[..4].copy_from_slice(&(len as u32).to_le_bytes());
        header[4] = kind as u8;
        header[6..8].copy_from_slice(&self.lane.version.to_le_bytes());
        header[8..12].copy_from_slice(&stream.to_le_bytes());
        let sum = self.lane.checksum(self.offset, &header[..CHECKED_LEN], payload);
        header[12..].copy_from_slice(&sum.to_le_bytes());
        self.offset += (HEADER_LEN + len) as u64;
        header
    }

    /// Appends a whole frame. For tests and short frames; connections keep long payloads apart.
    pub fn frame(&mut self, out: &mut Vec<u8>, kind: Kind, stream: u32, payload: &[Bytes]) {
        out.extend_from_slice(&self.header(kind, stream, payload));
        payload.iter().for_each(|part| out.extend_from_slice(part));
    }
}

/// Reads the frames of one direction, as their bytes come.
#[derive(Debug)]
pub struct Decoder {
    lane: Lane,
    /// Where the frame under way begins.
    offset: u64,
    header: [u8; HEADER_LEN],
    /// How much of the header is there.
    filled: usize,
    /// What is there of the payload, once the header is whole.
    payload: Vec<u8>,
    failed: Option<BadFrame>,
}

impl Decoder {
    /// Starts at the first frame.
    pub fn new(lane: Lane) -> Decoder {
        Decoder {
            lane,
            offset: 0,
            header: [0; HEADER_LEN],
            filled: 0,
            payload: Vec::new(),
            failed: None,
        }
    }

    /// Takes bytes off the front of `input` up to the end of a frame and returns it; `None` once all
    /// of them were taken.
    ///
    /// # Errors
    /// The bytes are no frame. The connection cannot be used any more: where the next frame begins
    /// is not known. Further calls say the same.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, BadFrame> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        let frame = self.advance(input);
        self.failed = frame.as_ref().err().copied();
        frame
    }

    /// Returns the bytes of the frame under way that are held.
    pub fn held(&self) -> usize {
        self.filled + self.payload.len()
    }

    fn advance(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, BadFrame> {
        if self.filled < HEADER_LEN {
            let part = input.len().min(HEADER_LEN - self.filled);
            self.header[self.filled..self.filled + part].copy_from_slice(&input[..part]);
            self.filled += part;
            *input = &input[part..];
            self.check_header()?;
            if self.filled < HEADER_LEN {
                return Ok(None);
            }
        }
        let len = self.announced() as usize;
        let missing = len - self.payload.len();
        let part = missing.min(input.len());
        if self.payload.capacity() - self.payload.len() < part {
            // All of it if it is there, else twice what came so far.
            let room = part.max(self.payload.len()).min(missing);
            self.payload.reserve_exact(room);
        }
        self.payload.extend_from_slice(&input[..part]);
        *input = &input[part..];
        if part < missing {
            return Ok(None);
        }
        let payload = Bytes::from(std::mem::take(&mut self.payload));
        let found = u32::from_le_bytes(self.field(12));
        let header = &self.header[..CHECKED_LEN];
        if self.lane.checksum(self.offset, header, std::slice::from_ref(&payload)) != found {
            return Err(self.bad(Problem::Checksum));
        }
        let kind = Kind::from_byte(self.header[4], self.lane.class);
        let kind = kind.ok_or_else(|| self.bad(Problem::Kind(self.header[4])))?;
        let frame = Frame { kind, stream: u32::from_le_bytes(self.field(8)), payload };
        self.filled = 0;
        self.offset += (HEADER_LEN + len) as u64;
        Ok(Some(frame))
    }

    /// Checks what is there of the header, so that nonsense is noticed by its first bytes.
    fn check_header(&self) -> Result<(), BadFrame> {
        let class = self.lane.class;
        let found = self.announced();
        let above = |max: usize| {
            if self.filled >= 4 && found as usize > max {
                Err(self.bad(Problem::Length { found, max }))
            } else {
                Ok(())
            }
        };
        above(class.payload_max())?;
        if self.filled > 4 {
            let kind = Kind::from_byte(self.header[4], class);
            let kind = kind.ok_or_else(|| self.bad(Problem::Kind(self.header[4])))?;
            above(kind.payload_max(class))?;
        }
        if self.filled > 5 && self.header[5] != 0 {
            return Err(self.bad(Problem::Flags(self.header[5])));
        }
        let version = u16::from_le_bytes(self.field(6));
        if self.filled >= 8 && version != self.lane.version {
            return Err(self.bad(Problem::Version(version)));
        }
        Ok(())
    }

    fn announced(&self) -> u32 {
        u32::from_le_bytes(self.field(0))
    }

    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|n| self.header[at + n])
    }

    fn bad(&self, problem: Problem) -> BadFrame {
        BadFrame { offset: self.offset, problem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_env::random::Prng;

    const LANE: Lane = Lane { class: Class::Rpc, version: 1, salt: 0x5a17, sender: Role::Dialler };

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn some_frames() -> Vec<Frame> {
        let frame = |kind, stream, payload| Frame { kind, stream, payload };
        vec![
            frame(Kind::Ping, 7, Bytes::new()),
            frame(Kind::Request, 1, bytes("\0\0\0\0how many?")),
            frame(Kind::Answer, 0xffff_ffff, Bytes::from(vec![7; 3000])),
            frame(Kind::Decline, 2, bytes("\x02no")),
        ]
    }

    fn encode(lane: Lane, frames: &[Frame]) -> Vec<u8> {
        let (mut encoder, mut out) = (Encoder::new(lane), Vec::new());
        for frame in frames {
            let payload = std::slice::from_ref(&frame.payload);
            encoder.frame(&mut out, frame.kind, frame.stream, payload);
        }
        out
    }

    /// Decodes all of `bytes`, fed in steps of `step`.
    fn decode(lane: Lane, bytes: &[u8], step: usize) -> (Vec<Frame>, Option<BadFrame>) {
        let (mut decoder, mut frames) = (Decoder::new(lane), Vec::new());
        for mut piece in bytes.chunks(step) {
            loop {
                match decoder.next(&mut piece) {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(bad) => return (frames, Some(bad)),
                }
            }
        }
        (frames, None)
    }

    #[test]
    fn the_bytes_of_a_frame_never_change() {
        let request = Frame { kind: Kind::Request, stream: 3, payload: bytes("\x64\0\0\0hi") };
        let hex: String = encode(LANE, &[request]).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "0600000020000100030000001a1de6e6640000006869");
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_the_stream_is_cut() {
        let frames = some_frames();
        let bytes = encode(LANE, &frames);
        for step in [1, 2, 3, 5, 15, 16, 17, 100, bytes.len()] {
            assert_eq!(decode(LANE, &bytes, step), (frames.clone(), None), "steps of {step}");
        }
    }

    #[test]
    fn the_parts_of_a_payload_are_joined() {
        let (mut encoder, mut out) = (Encoder::new(LANE), Vec::new());
        encoder.frame(&mut out, Kind::Answer, 1, &[bytes("to"), Bytes::new(), bytes("gether")]);
        assert_eq!(decode(LANE, &out, 9).0[0].payload, bytes("together"));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let frames = &some_frames()[1..2];
        let good = encode(LANE, frames);
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            // A length that grew makes the decoder wait: what follows is taken for the payload.
            bytes.resize(good.len() + (1 << 20) * 9, 0);
            let (frames, bad) = decode(LANE, &bytes, bytes.len());
            assert!(frames.is_empty(), "bit {bit} changes nothing");
            assert_eq!(bad.map(|bad| bad.offset), Some(0), "bit {bit}");
        }
    }

    #[test]
    fn a_cut_stream_has_no_more_than_the_frames_before_the_cut() {
        let frames = some_frames();
        let bytes = encode(LANE, &frames);
        let mut ends = vec![0];
        for frame in &frames {
            ends.push(ends.last().unwrap() + HEADER_LEN + frame.payload.len());
        }
        for cut in 0..bytes.len() {
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            assert_eq!(decode(LANE, &bytes[..cut], 64), (frames[..whole].to_vec(), None));
        }
    }

    #[test]
    fn a_frame_in_another_place_does_not_verify() {
        let frames = some_frames();
        let bytes = encode(LANE, &frames);
        let first = HEADER_LEN + frames[0].payload.len();
        let twice = [&bytes[..first], &bytes].concat();
        let (seen, bad) = decode(LANE, &twice, 64);
        assert_eq!((seen.len(), bad.map(|b| b.problem)), (1, Some(Problem::Checksum)), "repeated");
        let (seen, bad) = decode(LANE, &bytes[first..], 64);
        assert_eq!((seen.len(), bad.map(|b| b.problem)), (0, Some(Problem::Checksum)), "left out");
        for lane in [Lane { salt: 1, ..LANE }, Lane { sender: Role::Acceptor, ..LANE }] {
            let (seen, bad) = decode(lane, &bytes, 64);
            assert_eq!((seen.len(), bad.map(|b| b.problem)), (0, Some(Problem::Checksum)));
        }
    }

    #[test]
    fn nonsense_is_noticed_by_its_header_and_said_again() {
        let header = |len: u32, kind: u8, flags: u8, version: u16| {
            let mut bytes = len.to_le_bytes().to_vec();
            bytes.extend([kind, flags]);
            bytes.extend(version.to_le_bytes());
            bytes
        };
        let max = Class::Rpc.payload_max();
        let found = max as u32 + 1;
        for (bytes, problem) in [
            (header(found, 33, 0, 1), Problem::Length { found, max }),
            (header(5, Kind::Grant as u8, 0, 1), Problem::Kind(Kind::Grant as u8)),
            (header(1, Kind::Ping as u8, 0, 1), Problem::Length { found: 1, max: 0 }),
            (header(0, 0, 0, 1), Problem::Kind(0)),
            (header(0, 33, 0x80, 1), Problem::Flags(0x80)),
            (header(0, 33, 0, 2), Problem::Version(2)),
        ] {
            let mut decoder = Decoder::new(LANE);
            let bad = BadFrame { offset: 0, problem };
            assert_eq!(decoder.next(&mut &bytes[..]), Err(bad));
            assert_eq!(decoder.next(&mut &bytes[..]), Err(bad), "it stays so");
        }
    }

    #[test]
    fn an_announced_length_takes_no_memory() {
        let mut decoder = Decoder::new(LANE);
        let mut bytes = encode(
            LANE,
            &[Frame {
                kind: Kind::Answer,
                stream: 0,
                payload: Bytes::from(vec![1; Class::Rpc.payload_max()]),
            }],
        );
        bytes.truncate(HEADER_LEN + 100);
        assert_eq!(decoder.next(&mut &bytes[..]), Ok(None));
        assert!(decoder.payload.capacity() <= 200, "{}", decoder.payload.capacity());
        assert_eq!(decoder.held(), HEADER_LEN + 100);
    }

    #[test]
    fn random_bytes_are_refused_without_a_panic() {
        for seed in 0..2000 {
            let mut prng = Prng::new(seed);
            let mut bytes = vec![0; prng.index(200)];
            prng.fill(&mut bytes);
            if let [_, _, low, high, ..] = &mut bytes[..] {
                (*low, *high) = (0, 0); // a length that is allowed
            }
            assert_eq!(decode(LANE, &bytes, 1), decode(LANE, &bytes, 1000), "seed {seed}");
        }
    }
}
