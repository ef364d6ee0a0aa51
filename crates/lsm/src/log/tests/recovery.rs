//! What opening a lane accepts, cuts and refuses, each case as a sentence.

use atoll_env::block_on;

use super::support::*;
use crate::log::*;

/// Appends entries `1..=count` of group 0 and syncs after each.
fn synced_lane(count: u64) -> Lane {
    let lane = Lane::new();
    let (mut log, _) = lane.open();
    for index in 1..=count {
        log.append(id(0, index, 1), &[format!("entry {index}").as_bytes()]).unwrap();
        block_on(log.sync()).unwrap();
    }
    lane
}

fn indexes(ids: &[EntryId]) -> Vec<u64> {
    ids.iter().map(|e| e.index).collect()
}

/// Asserts that an error names a corruption in `file` at `offset`.
fn assert_corruption(error: &Error, file: &std::path::Path, offset: u64) {
    match error {
        Error::Corruption { file: f, offset: o, .. } => {
            assert_eq!((f.as_path(), *o), (file, offset), "{error}");
        }
        other => panic!("not a corruption: {other}"),
    }
}

#[test]
fn an_empty_directory_becomes_a_lane_and_what_is_written_comes_back() {
    let lane = Lane::new();
    let (mut log, entries) = lane.open();
    assert!(entries.is_empty());
    let first = log.append(id(0, 1, 1), &[b"he", b"", b"llo"]).unwrap();
    let second = log.append(id(12, 1, 5), &[]).unwrap();
    assert!(second > first);
    block_on(log.write(FRAME_WRITE)).unwrap();
    drop(log);
    let (log, entries) = lane.open();
    assert_eq!(
        entries,
        [(id(0, 1, 1), first, b"hello".to_vec()), (id(12, 1, 5), second, vec![])],
        "written but unsynced survives the end of the process"
    );
    assert!(log.end() > second && log.synced() == log.end());
}

#[test]
fn staged_but_unwritten_entries_do_not_survive_the_process() {
    let lane = synced_lane(1);
    let (mut log, _) = lane.open();
    log.append(id(0, 2, 1), &[b"staged"]).unwrap();
    drop(log);
    assert_eq!(indexes(&lane.replayed()), [1]);
}

#[test]
fn a_torn_tail_is_cut_and_the_lane_goes_on_behind_it() {
    let lane = synced_lane(1);
    let (mut log, _) = lane.open();
    let mut places = Vec::new();
    for index in 2..=4 {
        places.push(log.append(id(0, index, 1), &[&[index as u8; 100]]).unwrap());
    }
    block_on(log.write(FRAME_WRITE)).unwrap();
    drop(log);
    // Entry 3 was written without a sync; a power cut tore it and left entry 4 whole.
    flip(&lane.segment(2), places[1] - CAPACITY + 70, 3);
    let (mut log, entries) = lane.open();
    assert_eq!(entries.len(), 2);
    assert_eq!(log.group(0).unwrap().next, 3);
    log.append(id(0, 3, 1), &[b"again"]).unwrap();
    block_on(log.sync()).unwrap();
    drop(log);
    let (_, entries) = lane.open();
    assert_eq!(entries.last().unwrap().2, b"again");
    assert_eq!(entries.len(), 3, "entry 4 of the torn tail does not come back");
}

#[test]
fn a_hole_below_synced_to_is_corruption_named_with_file_and_offset() {
    let lane = synced_lane(3);
    flip(&lane.segment(1), 2 * 4096 + 65, 0);
    // The frame before ends at 4096 + 64 + 8.
    assert_corruption(&lane.refused(0), &lane.segment(1), 4096 + 72);
}

#[test]
fn the_last_synced_entry_is_a_torn_tail_unless_the_owner_knows_better() {
    let lane = synced_lane(3);
    let end = 3 * 4096 + 72;
    flip(&lane.segment(1), 3 * 4096 + 65, 0);
    assert_corruption(&lane.refused(end), &lane.segment(1), 2 * 4096 + 72);
    assert_eq!(indexes(&lane.replayed()), [1, 2], "nothing in the lane proves entry 3");
}

#[test]
fn a_damaged_end_of_a_segment_is_corruption_because_rotation_syncs() {
    let lane = Lane::new();
    let (mut log, _) = lane.open();
    for index in 1..=5 {
        log.append(id(0, index, 1), &[&[1; 4000]]).unwrap();
    }
    block_on(log.write(FRAME_WRITE)).unwrap();
    let end = log.end();
    assert!(end > CAPACITY, "a second segment was begun without a sync by the owner");
    drop(log);
    let third = 4096 + 2 * 4064;
    flip(&lane.segment(1), third + 3000, 7);
    assert_corruption(&lane.refused(0), &lane.segment(1), third);
}

#[test]
fn fragments_without_the_last_do_not_count() {
    let lane = synced_lane(1);
    let (mut log, _) = lane.open();
    let start = log.append(id(0, 2, 1), &[&[2; 30_000]]).unwrap();
    block_on(log.write(FRAME_WRITE)).unwrap();
    let number = log.end() / CAPACITY + 1;
    let last = (log.end() - 100) % CAPACITY;
    drop(log);
    assert!(start / CAPACITY + 1 < number, "the entry spans segments");
    let whole = lane.files();
    let (_, entries) = lane.open();
    assert_eq!(entries[1], (id(0, 2, 1), start, vec![2; 30_000]));

    lane.restore(&whole);
    flip(&lane.segment(number), last, 1);
    let (mut log, entries) = lane.open();
    assert_eq!(entries.len(), 1);
    log.append(id(0, 2, 1), &[b"short"]).unwrap();
    block_on(log.sync()).unwrap();
    drop(log);
    assert_eq!(lane.open().1[1].2, b"short", "the open chain does not swallow what follows");
}

#[test]
fn a_prepared_empty_segment_is_legal_at_the_end() {
    let lane = synced_lane(2);
    let (mut log, _) = lane.open();
    block_on(log.prepare_next()).unwrap();
    assert_eq!(log.stats().segments, 3);
    drop(log);
    assert_eq!(indexes(&lane.replayed()), [1, 2]);
    assert_eq!(indexes(&lane.replayed()), [1, 2], "nor does opening twice change anything");
}

#[test]
fn a_preparation_that_comes_too_late_becomes_a_spare() {
    let lane = Lane::new();
    let (mut log, _) = lane.open();
    let prepared = block_on(log.prepare().unwrap().run()).unwrap();
    for index in 1..=4 {
        log.append(id(0, index, 1), &[&[1; 4000]]).unwrap();
    }
    block_on(log.sync()).unwrap();
    assert_eq!(log.stats().segments, 2, "the writer did not wait");
    block_on(log.adopt(prepared)).unwrap();
    assert_eq!((log.stats().segments, log.stats().spares), (2, 1));
    drop(log);
    assert_eq!(indexes(&lane.replayed()), [1, 2, 3, 4]);
}

#[test]
fn a_recycled_segments_old_frames_are_never_adopted() {
    let lane = Lane::new();
    let (mut log, _) = lane.open();
    for index in 1..=20 {
        log.append(id(0, index, 1), &[&[1; 4000]]).unwrap();
    }
    log.release(0, 21).unwrap();
    block_on(log.sync()).unwrap();
    assert!(block_on(log.reclaim()).unwrap() > 2);
    for index in 21..=28 {
        log.append(id(0, index, 1), &[&[2; 4000]]).unwrap();
        block_on(log.sync()).unwrap();
        block_on(log.prepare_next()).unwrap();
    }
    assert!(lane.files().values().any(|f| f[4096 + 64 + 3999] == 1), "old bytes are still there");
    drop(log);
    let (_, entries) = lane.open();
    assert!(entries.iter().all(|(e, _, payload)| e.index > 20 && payload[0] == 2));
    assert_eq!(entries.len(), 8);
}

#[test]
fn a_missing_segment_in_the_middle_is_named() {
    let lane = Lane::new();
    let (mut log, _) = lane.open();
    for index in 1..=12 {
        log.append(id(0, index, 1), &[&[1; 4000]]).unwrap();
    }
    block_on(log.sync()).unwrap();
    drop(log);
    let whole = lane.files();
    block_on(lane.env.disk.remove(FRAME_WRITE, &lane.segment(2))).unwrap();
    assert_corruption(&lane.refused(0), &lane.segment(2), 0);

    lane.restore(&whole);
    block_on(lane.env.disk.remove(FRAME_WRITE, &lane.segment(1))).unwrap();
    let error = lane.refused(0);
    assert_corruption(&error, &lane.segment(2), 0);
    assert!(error.to_string().contains("entries of group 0 from index 1 on"), "{error}");
    let repair = block_on(repair_cut(&lane.env, &lane.path(), options(), 0)).unwrap_err();
    assert_eq!(repair.to_string(), error.to_string(), "cutting the end does not mend the front");
}

#[test]
fn renamed_swapped_and_foreign_segments_are_refused() {
    let lane = Lane::new();
    let (mut log, _) = lane.open();
    for index in 1..=9 {
        log.append(id(0, index, 1), &[&[1; 4000]]).unwrap();
    }
    block_on(log.sync()).unwrap();
    drop(log);
    let whole = lane.files();
    let (one, two) = (read(&lane.segment(1)), read(&lane.segment(2)));
    write(&lane.segment(1), 0, &two);
    write(&lane.segment(2), 0, &one);
    assert_corruption(&lane.refused(0), &lane.segment(1), 24);

    lane.restore(&whole);
    let other = LogOptions { lane: 8, ..options() };
    let refused = block_on(Log::open(&lane.env, &lane.path(), other, 0)).map(|_| ());
    let refused = refused.unwrap_err();
    assert!(matches!(refused, Error::Foreign { .. }), "{refused}");
}

#[test]
fn a_stale_copy_of_a_segment_is_refused() {
    let lane = synced_lane(1);
    drop(lane.open());
    let older = read(&lane.segment(2));
    let (mut log, _) = lane.open();
    let empty = read(&lane.segment(2));
    assert_ne!(older, empty, "the same number, made anew");
    log.append(id(0, 2, 1), &[b"two"]).unwrap();
    block_on(log.sync()).unwrap();
    drop(log);
    drop(lane.open());
    // Their headers verify and name the right number; what was synced in between is gone.
    for stale in [older, empty] {
        write(&lane.segment(2), 0, &stale);
        assert_corruption(&lane.refused(0), &lane.segment(2), 4096);
    }
}

#[test]
fn a_newer_version_is_refused_with_a_sentence() {
    let lane = synced_lane(1);
    let mut header = read(&lane.segment(1))[..80].to_vec();
    header[8..12].copy_from_slice(&2u32.to_le_bytes());
    let place = atoll_encoding::checksum::Place { file: 0, salt: 0, offset: 0 };
    let sum = atoll_encoding::checksum::seeded(place, &[&header[..12], &header[16..]]);
    header[12..16].copy_from_slice(&sum.to_le_bytes());
    write(&lane.segment(1), 0, &header);
    let refused = lane.refused(0);
    assert!(matches!(refused, Error::Foreign { .. }), "{refused}");
    assert!(refused.to_string().contains("format version 2, this program reads 1"), "{refused}");
}

#[test]
fn a_damaged_segment_header_is_corruption_even_in_the_newest_segment() {
    for number in [1, 2] {
        let lane = synced_lane(4);
        drop(lane.open());
        flip(&lane.segment(number), 50, 2);
        assert_corruption(&lane.refused(0), &lane.segment(number), 0);
    }
}

#[test]
fn repair_cuts_at_the_first_bad_frame_and_says_what_it_drops() {
    let lane = Lane::new();
    let (mut log, _) = lane.open();
    for index in 1..=12 {
        log.append(id(0, index, 1), &[&[1; 4000]]).unwrap();
        block_on(log.sync()).unwrap();
    }
    let flushed = log.synced();
    drop(log);
    let clean = block_on(repair_cut(&lane.env, &lane.path(), options(), flushed)).unwrap();
    assert!(clean.problem.is_none());
    flip(&lane.segment(2), 4096 + 4096 + 9, 5);
    assert!(lane.refused(flushed).is_corruption());

    let report = block_on(repair_cut(&lane.env, &lane.path(), options(), flushed)).unwrap();
    assert!(report.problem.is_some_and(|p| p.is_corruption()));
    assert_eq!((report.dropped_frames, report.dropped_bytes), (7, 7 * 4064));
    for _ in 0..2 {
        let (mut log, entries) = lane.try_open(flushed).unwrap();
        assert_eq!(entries.iter().map(|(e, ..)| e.index).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert!(log.end() <= flushed);
        let position = log.append(id(0, 5, 1), &[b"new"]).unwrap();
        assert!(position >= flushed, "a dropped position is not used again");
    }
}

#[test]
fn repair_drops_what_lies_behind_an_unreadable_segment() {
    let lane = Lane::new();
    let (mut log, _) = lane.open();
    for index in 1..=12 {
        log.append(id(0, index, 1), &[&[1; 4000]]).unwrap();
    }
    block_on(log.sync()).unwrap();
    drop(log);
    let whole = lane.files();
    for (number, kept, dropped) in [(1, 0, 9), (2, 3, 6), (4, 9, 0)] {
        lane.restore(&whole);
        flip(&lane.segment(number), 30, 0);
        assert!(lane.refused(0).is_corruption());
        let report = block_on(repair_cut(&lane.env, &lane.path(), options(), 0)).unwrap();
        assert_eq!(report.dropped_frames, dropped, "segment {number}");
        assert_eq!(lane.replayed().len(), kept, "segment {number}");
    }
}

#[test]
fn verify_shows_every_frame_and_changes_nothing() {
    let lane = synced_lane(3);
    let before = lane.files();
    let mut seen = Vec::new();
    let summary = block_on(verify(&lane.env, &lane.path(), 7, |_, frame, payload| {
        seen.push((frame.index, payload.to_vec()));
    }))
    .unwrap();
    assert_eq!((summary.frames, summary.torn_frames), (3, 0));
    assert_eq!(seen[2], (3, b"entry 3".to_vec()));
    assert_eq!(lane.files(), before);
}

#[test]
fn an_idle_group_never_pins_the_log() {
    let lane = Lane::new();
    let (mut log, _) = lane.open();
    let state = GroupState { term: 3, vote: 2, commit: 1 };
    log.set_state(5, state).unwrap();
    let idle = log.append(id(5, 1, 3), &[b"idle"]).unwrap();
    for index in 1..=200 {
        log.append(id(0, index, 1), &[&[0; 1000]]).unwrap();
        log.release(0, index).unwrap();
        block_on(log.sync()).unwrap();
        if log.stats().segments > 4 {
            block_on(log.copy_forward(500)).unwrap();
            assert!(block_on(log.reclaim()).unwrap() > 0, "at {index}");
        }
    }
    assert!(log.stats().segments <= 5, "{:?}", log.stats());
    drop(log);
    let (log, entries) = lane.open();
    assert_eq!(entries[0], (id(5, 1, 3), idle, b"idle".to_vec()), "oldest first, origin kept");
    assert_eq!(log.group(5).unwrap().state, state);
    assert_eq!(entries.len(), 2);
}

#[test]
fn wrong_appends_are_refused_and_change_nothing() {
    let lane = Lane::new();
    let (mut log, _) = lane.open();
    log.append(id(10, 1, 2), &[b"a"]).unwrap();
    log.append(id(10, 2, 4), &[b"b"]).unwrap();
    log.release(10, 2).unwrap();
    for wrong in [id(10, 4, 4), id(10, 1, 4), id(10, 0, 4), id(10, 3, 3), id(11, 2, 1)] {
        let end = log.end();
        let refused = log.append(wrong, &[b"x"]).unwrap_err();
        assert!(matches!(refused, Error::InvalidInput(_)), "{refused}");
        assert_eq!(log.end(), end);
    }
    // A new leader's entry may have a lower term than the uncommitted one it replaces.
    log.append(id(10, 2, 3), &[b"c"]).unwrap();
    block_on(log.sync()).unwrap();
    assert_eq!(block_on(log.entries(10, 2..3)).unwrap()[0].payload, b"c");
    assert_eq!([0, 1, 2, 3].map(|index| log.term(10, index)), [None, Some(2), Some(3), None]);
    assert!(block_on(log.entries(10, 1..3)).is_err(), "released");
}

#[test]
fn the_term_before_the_first_entry_outlives_the_entry_and_its_segment() {
    let lane = Lane::new();
    let (mut log, _) = lane.open();
    for (index, term) in [(1, 2), (2, 4), (3, 4), (4, 7)] {
        log.append(id(10, index, term), &[b"x"]).unwrap();
    }
    for first in 1..=5 {
        log.release(10, first).unwrap();
        block_on(log.sync()).unwrap();
        let expected = [None, Some(2), Some(4), Some(4), Some(7)][first as usize - 1];
        assert_eq!(log.term(10, first - 1), expected);
        drop(log);
        log = lane.open().0;
        assert_eq!(log.term(10, first - 1), expected, "after reopening");
    }
    for index in 1..=200 {
        log.append(id(12, index, 1), &[&[0; 1000]]).unwrap();
        log.release(12, index + 1).unwrap();
        block_on(log.write(FRAME_WRITE)).unwrap();
        if index % 20 == 0 {
            let before = log.newest_segments(0);
            assert!(block_on(log.move_forward(before, 1 << 20)).unwrap());
            block_on(log.reclaim()).unwrap();
        }
    }
    block_on(log.sync()).unwrap();
    assert!(log.stats().segments <= 3, "{:?}", log.stats());
    drop(log);
    let (mut log, _) = lane.open();
    assert_eq!((log.term(10, 4), log.group(10).unwrap().next), (Some(7), 5));
    assert!(log.append(id(10, 5, 6), &[b"x"]).is_err(), "the entry before it has term 7");
    log.append(id(10, 5, 7), &[b"x"]).unwrap();
}

#[test]
fn what_idle_groups_need_is_moved_forward_without_the_rest() {
    let lane = Lane::new();
    let (mut log, _) = lane.open();
    let state = GroupState { term: 3, vote: 2, commit: 1 };
    log.set_state(11, state).unwrap();
    let mut idle = Vec::new();
    for index in 1..=3 {
        idle.push(log.append(id(11, index, 3), &[format!("idle {index}").as_bytes()]).unwrap());
    }
    for index in 1..=400 {
        log.append(id(10, index, 1), &[&[0; 1000]]).unwrap();
        log.release(10, index).unwrap();
        block_on(log.write(FRAME_WRITE)).unwrap();
        let before = log.newest_segments(4 * log.stats().segment_bytes / log.segments() as u64);
        if log.segments() > 5 {
            // A piece at a time: an entry or two.
            while !block_on(log.move_forward(before, 1)).unwrap() {}
            assert!(block_on(log.reclaim()).unwrap() > 0, "at {index}");
        }
    }
    let stats = log.stats();
    assert!(stats.segments <= 6 && stats.copied_bytes < stats.appended_bytes / 50, "{stats:?}");
    let read = block_on(log.entries(11, 1..4)).unwrap();
    assert!(read.iter().zip(&idle).all(|(entry, position)| entry.position == *position));
    block_on(log.sync()).unwrap();
    drop(log);
    let (log, entries) = lane.open();
    for (index, position) in (1..=3).zip(idle) {
        let payload = format!("idle {index}").into_bytes();
        assert!(entries.contains(&(id(11, index, 3), position, payload)), "{index}");
    }
    assert_eq!(log.group(11).unwrap().state, state);
}
