//! What waits to be written on a connection, and how it becomes bytes. Pure.
//!
//! ```text
//!   pings, grants, ends -> [urgent] --+
//!                                     +-- gather, 64 KiB at a time --> segments --> the network
//!   messages, calls, chunks -> [data] +
//! ```
//!
//! Frames get their header when they are gathered: until then they can be taken back, and a call that
//! is taken back was *not sent*. Short parts are copied next to each other, so that a turn's frames
//! leave in one write; a long part stays where it is and is written from there.
//!
//! # Invariants
//! - Whoever queues data asks for room before; what is urgent is short and counted: a peer that makes
//!   us queue more than [`URGENT_MAX`] of it does not read, and the connection is closed.
//! - Data keeps its order.

use std::collections::VecDeque;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::frame::{Encoder, HEADER_LEN, Kind, Lane};

/// What is gathered at once, in bytes.
const GATHER: usize = 64 << 10;
/// From this length on, a part of a payload is not copied.
const LONG: usize = 16 << 10;
/// Urgent frames that may wait: twice what one read of a peer that asks as much as it may brings.
pub(crate) const URGENT_MAX: usize = 8192;

/// The parts of a payload.
pub(crate) type Parts = SmallVec<[Bytes; 2]>;

struct Queued {
    kind: Kind,
    stream: u32,
    parts: Parts,
}

impl Queued {
    fn len(&self) -> usize {
        HEADER_LEN + self.parts.iter().map(Bytes::len).sum::<usize>()
    }
}

/// What waits to be written on one connection.
pub(crate) struct Outbox {
    encoder: Encoder,
    urgent: VecDeque<Queued>,
    data: VecDeque<Queued>,
    /// Bytes of all of them, headers counted.
    queued: usize,
    segments: VecDeque<Bytes>,
    /// How much of the first segment was written.
    written: usize,
    /// Bytes of segments that were not written.
    gathered: usize,
    /// Gathered since somebody asked.
    frames: u64,
}

impl Outbox {
    pub(crate) fn new(lane: Lane) -> Outbox {
        Outbox {
            encoder: Encoder::new(lane),
            urgent: VecDeque::new(),
            data: VecDeque::new(),
            queued: 0,
            segments: VecDeque::new(),
            written: 0,
            gathered: 0,
            frames: 0,
        }
    }

    /// Returns the bytes that wait, gathered or not.
    pub(crate) fn bytes(&self) -> usize {
        self.queued + self.gathered
    }

    /// Returns whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes() == 0
    }

    /// Returns whether waiting for more before a write is pointless.
    pub(crate) fn is_full_write(&self) -> bool {
        self.gathered > 0 || self.queued >= GATHER
    }

    /// Returns how many frames became bytes since the last call.
    pub(crate) fn take_frames(&mut self) -> u64 {
        std::mem::take(&mut self.frames)
    }

    /// Queues data.
    pub(crate) fn push(&mut self, kind: Kind, stream: u32, parts: Parts) {
        let queued = Queued { kind, stream, parts };
        self.queued += queued.len();
        self.data.push_back(queued);
    }

    /// Queues what is to leave before data; `false` if too much of it waits, and it was not queued.
    #[must_use]
    pub(crate) fn push_urgent(&mut self, kind: Kind, stream: u32, payload: Bytes) -> bool {
        if self.urgent.len() >= URGENT_MAX {
            return false;
        }
        let queued = Queued { kind, stream, parts: SmallVec::from_iter([payload]) };
        self.queued += queued.len();
        self.urgent.push_back(queued);
        true
    }

    /// Takes frames of a stream back that were not gathered, of one kind; returns how many.
    pub(crate) fn take_back(&mut self, kind: Kind, stream: u32) -> usize {
        let before = self.data.len();
        let mut bytes = 0;
        self.data.retain(|queued| {
            let taken = queued.kind == kind && queued.stream == stream;
            bytes += if taken { queued.len() } else { 0 };
            !taken
        });
        self.queued -= bytes;
        before - self.data.len()
    }

    /// Returns the streams of frames of a kind that were not gathered.
    pub(crate) fn waiting(&self, kind: Kind) -> impl Iterator<Item = u32> {
        self.data.iter().filter(move |queued| queued.kind == kind).map(|queued| queued.stream)
    }

    /// Drops what was not gathered, and returns how many frames of data that were.
    pub(crate) fn clear(&mut self) -> usize {
        let dropped = self.data.len();
        self.urgent.clear();
        self.data.clear();
        self.queued = 0;
        dropped
    }

    /// Returns bytes to write, gathering more if there are none; empty if nothing waits.
    pub(crate) fn next_bytes(&mut self) -> &[u8] {
        if self.segments.is_empty() {
            self.gather();
        }
        self.segments.front().map_or(&[], |segment| &segment[self.written..])
    }

    /// Notes that the network took `len` of [`Outbox::next_bytes`].
    pub(crate) fn advance(&mut self, len: usize) {
        let Some(segment) = self.segments.front() else { return };
        self.written += len;
        self.gathered -= len;
        if self.written >= segment.len() {
            self.segments.pop_front();
            self.written = 0;
        }
    }

    /// Returns the last bytes of the connection: what had begun to leave, which has to leave whole
    /// since the other side reads frames, and one more frame. Everything else is dropped.
    pub(crate) fn last_bytes(&mut self, kind: Kind, payload: Bytes) -> Vec<u8> {
        self.clear();
        self.push(kind, 0, SmallVec::from_iter([payload]));
        let mut bytes = Vec::with_capacity(self.bytes());
        loop {
            let next = self.next_bytes();
            let len = next.len();
            if len == 0 {
                return bytes;
            }
            bytes.extend_from_slice(next);
            self.advance(len);
        }
    }

    fn gather(&mut self) {
        let mut short = Vec::with_capacity(self.queued.min(GATHER));
        while self.gathered < GATHER {
            let Some(next) = self.urgent.pop_front().or_else(|| self.data.pop_front()) else {
                break;
            };
            self.queued -= next.len();
            self.gathered += next.len();
            self.frames += 1;
            short.extend_from_slice(&self.encoder.header(next.kind, next.stream, &next.parts));
            for part in next.parts {
                if part.len() < LONG {
                    short.extend_from_slice(&part);
                } else {
                    // An empty segment would look like the end of what waits.
                    if !short.is_empty() {
                        self.segments.push_back(std::mem::take(&mut short).into());
                    }
                    self.segments.push_back(part);
                }
            }
        }
        if !short.is_empty() {
            self.segments.push_back(short.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Decoder;
    use crate::id::{Class, Role};

    const LANE: Lane = Lane { class: Class::Raft, version: 1, salt: 1, sender: Role::Dialler };

    fn message(outbox: &mut Outbox, stream: u32, len: usize) {
        let part = Bytes::from(vec![stream as u8; len]);
        outbox.push(Kind::Message, stream, SmallVec::from_iter([part]));
    }

    /// Writes in steps of `step` bytes; returns all bytes and how many times there were some.
    fn write(outbox: &mut Outbox, step: usize) -> (Vec<u8>, usize) {
        let (mut all, mut writes) = (Vec::new(), 0);
        loop {
            let next = outbox.next_bytes();
            let len = next.len().min(step);
            if len == 0 {
                return (all, writes);
            }
            all.extend_from_slice(&next[..len]);
            outbox.advance(len);
            writes += 1;
        }
    }

    fn streams(bytes: &[u8]) -> Vec<u32> {
        let (mut decoder, mut input, mut seen) = (Decoder::new(LANE), bytes, Vec::new());
        while let Some(frame) = decoder.next(&mut input).unwrap() {
            seen.push(frame.stream);
        }
        seen
    }

    #[test]
    fn what_waits_leaves_in_one_piece_and_in_order() {
        let mut outbox = Outbox::new(LANE);
        (1..=100).for_each(|n| message(&mut outbox, n, 100));
        assert_eq!(outbox.bytes(), 100 * (HEADER_LEN + 100));
        let (bytes, writes) = write(&mut outbox, usize::MAX);
        assert_eq!((streams(&bytes), writes), ((1..=100).collect(), 1));
        assert!(outbox.is_empty());
    }

    #[test]
    fn long_parts_and_short_writes_change_nothing_of_the_stream() {
        for step in [1, 7, 1000, 20_000, usize::MAX] {
            let mut outbox = Outbox::new(LANE);
            for (n, len) in [10, LONG, 3 * GATHER, 0, LONG - 1, 5].into_iter().enumerate() {
                message(&mut outbox, n as u32, len);
            }
            let bytes = write(&mut outbox, step).0;
            assert_eq!(streams(&bytes), [0, 1, 2, 3, 4, 5], "steps of {step}");
            assert_eq!((outbox.bytes(), outbox.take_frames()), (0, 6));
        }
    }

    #[test]
    fn two_long_parts_of_one_message_follow_each_other() {
        let mut outbox = Outbox::new(LANE);
        let parts = [Bytes::from(vec![1; LONG]), Bytes::from(vec![2; LONG])];
        outbox.push(Kind::Message, 5, SmallVec::from_iter(parts));
        assert_eq!(streams(&write(&mut outbox, usize::MAX).0), [5]);
    }

    #[test]
    fn what_is_urgent_leaves_first_and_is_bounded() {
        let mut outbox = Outbox::new(LANE);
        message(&mut outbox, 1, 10);
        assert!(outbox.push_urgent(Kind::Ping, 2, Bytes::new()));
        assert_eq!(streams(&write(&mut outbox, 9).0), [2, 1]);
        let pushed = (0..10_000).filter(|n| outbox.push_urgent(Kind::Pong, *n, Bytes::new()));
        assert_eq!(pushed.count(), URGENT_MAX);
    }

    #[test]
    fn a_frame_can_be_taken_back_until_it_is_gathered() {
        let mut outbox = Outbox::new(LANE);
        message(&mut outbox, 1, 10);
        message(&mut outbox, 2, 10);
        assert_eq!(outbox.take_back(Kind::Message, 1), 1);
        assert_eq!(outbox.take_back(Kind::Message, 1), 0);
        assert_eq!(outbox.bytes(), HEADER_LEN + 10);
        outbox.next_bytes();
        assert_eq!(outbox.take_back(Kind::Message, 2), 0, "it may be on its way");
        assert_eq!(streams(&write(&mut outbox, 100).0), [2]);
    }
}
