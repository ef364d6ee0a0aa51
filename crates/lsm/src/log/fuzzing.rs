//! The log's decoders with a door for bytes from anywhere. See [`crate::fuzzing`].

use std::path::Path;

use atoll_env::IoBuf;
use atoll_env::sim::Sim;

use super::frame::{BLOCK, FrameHeader, FrameKind, verifies};
use super::segment::{FIRST_FRAME, SegmentHeader};
use super::{Log, LogOptions, repair_cut, verify};

/// Decodes frame and segment headers.
pub(crate) fn headers(bytes: &[u8]) {
    let header = SegmentHeader {
        lane: 0,
        number: 1,
        base: 0,
        capacity: 4 * BLOCK,
        salt: 9,
        epoch: 1,
        cut: None,
    };
    if let Some(frame) = FrameHeader::decode(bytes) {
        let _ = (frame.synced_to(), frame.extent());
    }
    let _ = verifies(header.place(0), bytes);
    if bytes.len() >= BLOCK as usize {
        let _ = SegmentHeader::decode(bytes, Path::new("fuzz.log"));
    }
}

/// Opens, verifies and repairs a lane whose frames verify and say what `bytes` tell them to.
pub(crate) fn lane(bytes: &[u8]) {
    open(&lane_of(bytes));
}

/// Returns a segment of frames that verify.
fn lane_of(bytes: &[u8]) -> IoBuf {
    let header = SegmentHeader {
        lane: 0,
        number: 1,
        base: 0,
        capacity: 8 * BLOCK,
        salt: 9,
        epoch: 1,
        cut: None,
    };
    let mut file = header.encode();
    let mut prev = 0;
    // Small numbers, and those at the end of the range.
    let number = |byte: u8| match byte {
        0..=247 => u64::from(byte % 16),
        _ => u64::MAX - u64::from(byte - 248),
    };
    for step in bytes.chunks_exact(8) {
        let offset = file.len() as u64;
        let payload = vec![step[6]; usize::from(step[7])];
        let frame = FrameHeader {
            checksum: 0,
            len: payload.len() as u32,
            position: offset,
            origin: if step[0] & 4 == 0 { offset } else { number(step[4]) },
            group: u64::from(step[0] >> 3 & 1),
            index: number(step[1]),
            term: number(step[2]),
            unsynced: u32::from(step[5]) * 64,
            prev: if step[3] == 255 { 0 } else { prev },
            epoch: 1,
            kind: [FrameKind::Append, FrameKind::Rewrite, FrameKind::State]
                [usize::from(step[0] % 3)],
            first: step[0] & 16 == 0,
            last: step[0] & 32 == 0,
        };
        if offset + frame.extent() > header.capacity {
            break;
        }
        prev = frame.encode(header.place(offset), &[&payload], &mut file);
    }
    assert!(file.len() as u64 >= FIRST_FRAME);
    file.resize(header.capacity as usize);
    file
}

/// Opens, verifies and repairs a lane of one segment with these bytes.
pub(crate) fn segment(file: &[u8]) {
    open(file);
}

/// Returns whether the lane opened.
fn open(file: &[u8]) -> bool {
    let sim = Sim::new(1);
    let node = sim.node("a");
    let dir = Path::new("/log");
    node.disk().write_file("/log/0000000001.log", file).expect("the disk is empty");
    let env = node.env();
    let options =
        LogOptions { segment_capacity: 4 * BLOCK, indexed: |g| g == 1, ..LogOptions::default() };
    let opened = sim.block_on(&node, async {
        let verified = verify(&env, dir, 0, |_, _, _| {}).await;
        let Ok(mut recovery) = Log::open(&env, dir, options, 0).await else { return false };
        assert!(verified.is_ok(), "what opens verifies: {verified:?}");
        loop {
            match recovery.next_entry().await {
                Ok(Some(entry)) => assert!(entry.payload.len() <= file.len()),
                Ok(None) => break,
                Err(_) => return false,
            }
        }
        recovery.finish().await.is_ok()
    });
    let opened = opened.done();
    if !opened {
        let _ = sim.block_on(&node, repair_cut(&env, dir, options, 0)).done();
    }
    opened
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_of_plain_entries_opens_and_one_with_a_hole_does_not() {
        let entry = |index: u8| [0, index, 1, 0, 0, 0, 0, 40];
        let plain: Vec<u8> = (1..=9).flat_map(entry).collect();
        assert!(open(&lane_of(&plain)));
        let hole: Vec<u8> = (2..=9).flat_map(entry).collect();
        assert!(!open(&lane_of(&hole)), "the first entry is needed and missing");
    }
}
