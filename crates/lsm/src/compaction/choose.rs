//! What to compact next: a pure function of the levels.
//!
//! Level sizes are dynamic: the targets are counted back from the level that holds most, so that
//! the last level holds nine tenths of the bytes however large the database is, and dead bytes
//! stay near a tenth of the live ones (Dong et al., *Optimizing Space Amplification in RocksDB*,
//! CIDR 2017).
//!
//! ```text
//!   bytes in the last level   targets (ratio 10, base 128 MiB)
//!   50 MiB                    L6 is the base level: L0 merges straight into it
//!   1 GiB                     L5 100 MiB, L6 1 GiB
//!   100 GiB                   L4 102 MiB, L5 1 GiB, L6 ...
//! ```
//!
//! The order of preference: tables that can be dropped unread; the level that exceeds its target
//! most; tables whose records have mostly expired, are mostly tombstones, or mostly versions that
//! nobody can read any more, or that have many tombstones side by side (`weight.rs`), L0 as a whole if
//! it is mostly tombstones; tables that point most into value files that should go
//! (`values/collect.rs`), which are written again in their place with the values moved.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::events::CompactionReason;
use crate::key::SeqNo;
use crate::mutants;
use crate::tombstone::RangeTombstone;
use crate::version::{LEVELS, TableDesc};

/// A table as the choice sees it.
#[derive(Clone)]
pub(crate) struct Candidate {
    pub(crate) desc: TableDesc,
    /// Quarantined: may not be an input.
    pub(crate) blocked: bool,
    /// Its range tombstones.
    pub(crate) range_tombstones: Arc<[RangeTombstone]>,
}

/// What the choice is made from.
pub(crate) struct View {
    /// L0 newest first, the others by key.
    pub(crate) levels: [Vec<Candidate>; LEVELS],
    /// Sequence numbers of the live snapshots, ascending; the last is the present.
    pub(crate) snapshots: Vec<SeqNo>,
    /// Records with a deadline at or below this are dead (milliseconds since the Unix epoch).
    pub(crate) expire_before: u64,
    /// Nobody reads versions at a stamp below it.
    pub(crate) horizon: u64,
    /// Value files that should go.
    pub(crate) leaving: BTreeSet<u64>,
}

impl View {
    /// Returns the sequence number of the oldest snapshot: what is above it, somebody may still need to
    /// tell from what is below.
    fn oldest_snapshot(&self) -> SeqNo {
        self.snapshots.first().copied().unwrap_or(SeqNo::MAX)
    }

    /// Returns the bytes of each level.
    pub(crate) fn bytes(&self) -> [u64; LEVELS] {
        std::array::from_fn(|level| self.levels[level].iter().map(|c| c.desc.size).sum())
    }
}

/// The sizes at which compaction starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Targets {
    pub(crate) level0_tables: usize,
    pub(crate) level_base_size: u64,
    pub(crate) level_ratio: u64,
    pub(crate) value_file_size: u64,
}

/// Tables at most that are written again together for the values they point to.
const COLLECTED_TOGETHER: usize = 8;
/// Tombstones side by side that are worth a merge, if they are also one of so many records.
const DENSE_MIN: u64 = 1024;
const DENSE_PARTS: u64 = 20;
/// Tombstones of L0 are worth a merge of their own if they are one to so many records of the base level.
const DELETED_PARTS: u64 = 8;

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Remove tables without reading them: everything in them is deleted or expired.
    Drop { tables: Vec<u64> },
    /// Hang a table one or more levels lower, as it is.
    Move { table: u64, to: usize },
    /// Merge tables, in order of age (newest first), into new ones of a level.
    Merge { inputs: Vec<(usize, u64)>, to: usize },
}

/// Returns the most useful thing to do, if anything is due.
pub(crate) fn choose(view: &View, targets: Targets) -> Option<Plan> {
    drop_dead(view)
        .or_else(|| shrink_fullest(view, targets))
        .or_else(|| sink_deletions(view, targets))
        .or_else(|| rewrite_dead_weight(view))
        .or_else(|| collect(view, targets))
}

/// Returns the rewrite of the table that has most to move out of value files that should go.
///
/// Those of L0 wait until they are merged: written again they would take a newer table's place.
pub(crate) fn collect(view: &View, targets: Targets) -> Option<Plan> {
    let to_move = |c: &Candidate| -> u64 {
        let refs = c.desc.values.iter().filter(|(file, _)| view.leaving.contains(file));
        refs.map(|(_, bytes)| bytes).sum()
    };
    let tables = view.levels.iter().enumerate().skip(1);
    let (_, level, at) = tables
        .flat_map(|(level, tables)| tables.iter().enumerate().map(move |(at, t)| (level, at, t)))
        .filter(|(_, _, table)| !table.blocked)
        .map(|(level, at, table)| (to_move(table), level, at))
        .filter(|(bytes, ..)| *bytes > 0)
        .max_by_key(|(bytes, level, at)| (*bytes, *level, std::cmp::Reverse(*at)))?;
    // Neighbours come along, so that what is moved makes files of a good size.
    let mut bytes = 0;
    let together = view.levels[level][at..].iter().take(COLLECTED_TOGETHER).take_while(|table| {
        let joins = !table.blocked && to_move(table) > 0 && bytes < targets.value_file_size;
        bytes += to_move(table);
        joins
    });
    let inputs = together.map(|table| (level, table.desc.id)).collect();
    Some(Plan::Merge { inputs, to: level })
}

/// Returns why a plan that [`choose`] made was made.
pub(crate) fn reason(view: &View, plan: &Plan) -> CompactionReason {
    let level0 = |id: &u64| view.levels[0].iter().any(|c| c.desc.id == *id);
    match plan {
        Plan::Drop { .. } => CompactionReason::DeadWeight,
        Plan::Move { table, .. } if level0(table) => CompactionReason::Level0,
        Plan::Merge { inputs, .. } if inputs.iter().any(|(level, _)| *level == 0) => {
            CompactionReason::Level0
        }
        _ if rewrite_dead_weight(view).as_ref() == Some(plan) => CompactionReason::DeadWeight,
        // Nothing else writes a table again in its place.
        Plan::Merge { inputs, to } if inputs.iter().all(|(level, _)| level == to) => {
            CompactionReason::Collection
        }
        _ => CompactionReason::LevelSize,
    }
}

/// Returns the level that L0 merges into and the target size of each level from there on.
pub(crate) fn level_targets(view: &View, targets: Targets) -> (usize, [u64; LEVELS]) {
    targets_of(&view.bytes(), targets)
}

/// Returns the same of levels that hold so many bytes.
pub(crate) fn targets_of(bytes: &[u64; LEVELS], targets: Targets) -> (usize, [u64; LEVELS]) {
    let last = LEVELS - 1;
    let first = (1..LEVELS).find(|&l| bytes[l] > 0).unwrap_or(last);
    let biggest = bytes[1..].iter().copied().max().unwrap_or(0);
    let mut size = (first..last).fold(biggest, |size, _| size / targets.level_ratio);
    let mut base = first;
    while base > 1 && size > targets.level_base_size {
        base -= 1;
        size /= targets.level_ratio;
    }
    let mut sizes = [0; LEVELS];
    let mut size =
        size.clamp(targets.level_base_size / targets.level_ratio + 1, targets.level_base_size);
    for target in &mut sizes[base..] {
        *target = size;
        size = size.saturating_mul(targets.level_ratio);
    }
    (base, sizes)
}

/// Returns the tables whose every record is hidden: by one newer range tombstone that every
/// snapshot sees, or by the clock with nothing below that could come back.
fn drop_dead(view: &View) -> Option<Plan> {
    let mut dead = Vec::new();
    let oldest = view.oldest_snapshot();
    for (level, tables) in view.levels.iter().enumerate() {
        for (at, table) in tables.iter().enumerate() {
            if table.blocked {
                continue;
            }
            let desc = &table.desc;
            // A transaction as old as its snapshot has to find out that a key it read was written,
            // also if that has expired.
            let seen = desc.seqnos.1 <= oldest || mutants::is("expired-dropped-early");
            let expired = level == LEVELS - 1
                && seen
                && desc.expiring == desc.entries
                && desc.expiring > 0
                && desc.deadline_max <= view.expire_before;
            // Tombstones that can cover the table stand in newer sources: any upper level, or
            // earlier in L0.
            let newer = view.levels[..level]
                .iter()
                .flatten()
                .chain(view.levels[0].iter().take(if level == 0 { at } else { 0 }));
            let covered = || {
                newer.flat_map(|c| c.range_tombstones.iter()).any(|t| {
                    t.seqno > desc.seqnos.1
                        && desc.within(&t.start, &t.end)
                        && !view.snapshots.iter().any(|s| (desc.seqnos.0..t.seqno).contains(s))
                })
            };
            if expired || covered() {
                dead.push(desc.id);
            }
        }
    }
    (!dead.is_empty()).then_some(Plan::Drop { tables: dead })
}

/// Returns the step that brings the level that exceeds its target most closer to it.
fn shrink_fullest(view: &View, targets: Targets) -> Option<Plan> {
    let (base, sizes) = level_targets(view, targets);
    let mut scores: Vec<(f64, usize)> = (base..LEVELS - 1)
        .map(|level| {
            let bytes: u64 = view.levels[level].iter().map(|c| c.desc.size).sum();
            (bytes as f64 / sizes[level] as f64, level)
        })
        .collect();
    scores.push((view.levels[0].len() as f64 / targets.level0_tables as f64, 0));
    scores.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    scores.into_iter().filter(|(score, _)| *score >= 1.0).find_map(|(_, level)| {
        if level == 0 { empty_level0(view, base) } else { lower_one(view, level) }
    })
}

/// Returns the step that moves the oldest tables of L0 into the base level.
fn empty_level0(view: &View, base: usize) -> Option<Plan> {
    let tables = &view.levels[0];
    // A table may go only when every older one it overlaps goes too: count from the oldest, stop
    // being able to take what overlaps a blocked one.
    let mut stuck: Vec<&TableDesc> = Vec::new();
    let mut free: Vec<&Candidate> = Vec::new();
    for table in tables.iter().rev() {
        let base_blocked =
            view.levels[base].iter().any(|c| c.blocked && c.desc.overlaps(&table.desc));
        if table.blocked || base_blocked || stuck.iter().any(|s| s.overlaps(&table.desc)) {
            stuck.push(&table.desc);
        } else {
            free.push(table);
        }
    }
    let oldest = free.first()?;
    let alone =
        !tables.iter().any(|t| t.desc.id != oldest.desc.id && t.desc.overlaps(&oldest.desc));
    if alone && !view.levels[base].iter().any(|t| t.desc.overlaps(&oldest.desc)) {
        return Some(Plan::Move { table: oldest.desc.id, to: base });
    }
    let mut inputs: Vec<(usize, u64)> = free.iter().rev().map(|t| (0, t.desc.id)).collect();
    let below = overlapping(&view.levels[base], free.iter().map(|t| &t.desc));
    if below.iter().any(|c| c.blocked) {
        return None;
    }
    inputs.extend(below.iter().map(|c| (base, c.desc.id)));
    Some(Plan::Merge { inputs, to: base })
}

/// Returns the step that takes the cheapest table of `level` one level down.
fn lower_one(view: &View, level: usize) -> Option<Plan> {
    let cheapest = view.levels[level]
        .iter()
        .filter(|c| !c.blocked)
        .filter_map(|c| {
            let below = overlapping(&view.levels[level + 1], [&c.desc]);
            if below.iter().any(|b| b.blocked) {
                return None;
            }
            let bytes: u64 = below.iter().map(|b| b.desc.size).sum();
            Some((bytes as f64 / c.desc.size.max(1) as f64, c, below))
        })
        .min_by(|a, b| a.0.total_cmp(&b.0));
    let (_, table, below) = cheapest?;
    Some(take_down(table, level, &below))
}

/// Returns the plan that takes `table` to the level under it.
fn take_down(table: &Candidate, level: usize, below: &[&Candidate]) -> Plan {
    if below.is_empty() {
        return Plan::Move { table: table.desc.id, to: level + 1 };
    }
    let mut inputs = vec![(level, table.desc.id)];
    inputs.extend(below.iter().map(|c| (level + 1, c.desc.id)));
    Plan::Merge { inputs, to: level + 1 }
}

/// Returns the step that empties L0 although it is not full: if it has mostly tombstones, and so many
/// that the merge drops a good part of what it reads. Few tables of them are not many bytes, but hide
/// several times as many below: every scan would walk over both until more tables have come.
fn sink_deletions(view: &View, targets: Targets) -> Option<Plan> {
    let (level0, oldest) = (&view.levels[0], view.oldest_snapshot());
    let entries: u64 = level0.iter().map(|table| table.desc.entries).sum();
    let tombstones: u64 = level0.iter().map(|table| table.desc.tombstones).sum();
    // What a snapshot still needs would only be written again.
    let droppable = level0.iter().all(|table| table.desc.seqnos.1 <= oldest);
    if tombstones == 0 || tombstones * 2 < entries || !droppable {
        return None;
    }
    let (base, _) = level_targets(view, targets);
    let below = overlapping(&view.levels[base], level0.iter().map(|table| &table.desc));
    let read: u64 = below.iter().map(|table| table.desc.entries).sum();
    if tombstones * DELETED_PARTS < read { None } else { empty_level0(view, base) }
}

/// Returns a rewrite of a table that is mostly tombstones, mostly expired or mostly versions that
/// the horizon has passed, or that has many tombstones side by side.
fn rewrite_dead_weight(view: &View) -> Option<Plan> {
    let oldest = view.oldest_snapshot();
    for level in 1..LEVELS {
        for table in view.levels[level].iter().filter(|c| !c.blocked) {
            let desc = &table.desc;
            let expired_by = |deadline: u64| deadline > 0 && deadline <= view.expire_before;
            let expired = match () {
                () if expired_by(desc.deadline_max) => desc.expiring,
                () if expired_by(desc.half_expired) => desc.entries.div_ceil(2),
                () => 0,
            };
            // Some of them may be dead earlier; but one that is not would only be written again.
            let passed = desc.passing_stamp <= view.horizon;
            let dead = desc.tombstones
                + desc.range_tombstones
                + expired
                + if passed { desc.passing } else { 0 };
            // Tombstones that a snapshot still needs would only be written again.
            let droppable = desc.seqnos.1 <= oldest;
            let mostly = dead > 0 && dead * 2 >= desc.entries;
            if !(mostly || is_dense(desc)) || !droppable {
                continue;
            }
            if level == LEVELS - 1 {
                return Some(Plan::Merge { inputs: vec![(level, desc.id)], to: level });
            }
            let below = overlapping(&view.levels[level + 1], [desc]);
            if below.iter().any(|c| c.blocked) {
                continue;
            }
            return Some(take_down(table, level, &below));
        }
    }
    None
}

/// Returns whether scans of the table walk over long rows of tombstones. Below a share, taking a table
/// down for them costs more than walking (Pebble's issue 4052: too eager a rule rewrites whole levels).
fn is_dense(desc: &TableDesc) -> bool {
    desc.dense >= DENSE_MIN && desc.dense * DENSE_PARTS >= desc.entries
}

/// Returns the tables of a sorted level that lie between the first and the last key of `with`, also
/// in its gaps: an output of the merge may reach over a gap, and must not straddle a table that
/// stays.
fn overlapping<'v, 'd>(
    level: &'v [Candidate],
    with: impl IntoIterator<Item = &'d TableDesc> + Clone,
) -> Vec<&'v Candidate> {
    let between = |c: &&Candidate| {
        let mut starts = with.clone().into_iter();
        let mut ends = with.clone().into_iter();
        starts.any(|d| c.desc.ends_at_or_after(&d.smallest))
            && ends.any(|d| d.ends_at_or_after(&c.desc.smallest))
    };
    level.iter().filter(between).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::edit::tests::desc;

    const TARGETS: Targets = Targets {
        level0_tables: 2,
        level_base_size: 4000,
        level_ratio: 4,
        value_file_size: 1 << 20,
    };

    /// Draws levels from text: `L0 5:a-m 4:c-z*` is table 5 from a to m and table 4, quarantined.
    /// A suffix `=900` sets the size, `!d-f@20` adds a range tombstone of sequence number 20.
    fn draw(picture: &str) -> View {
        let mut levels: [Vec<Candidate>; LEVELS] = Default::default();
        for line in picture.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let mut words = line.split_whitespace();
            let level: usize = words.next().unwrap()[1..].parse().unwrap();
            for word in words {
                let (id, rest) = word.split_once(':').unwrap();
                let (rest, tombstone) = match rest.split_once('!') {
                    Some((rest, t)) => (rest, Some(t)),
                    None => (rest, None),
                };
                let blocked = rest.ends_with('*');
                let (range, size) = match rest.trim_end_matches('*').split_once('=') {
                    Some((range, size)) => (range, size.parse().unwrap()),
                    None => (rest.trim_end_matches('*'), 1000),
                };
                let (a, b) = range.split_once('-').unwrap();
                let mut desc = desc(id.parse().unwrap(), a, b);
                desc.size = size;
                let range_tombstones: Vec<_> = tombstone
                    .map(|t| {
                        let (range, seqno) = t.split_once('@').unwrap();
                        let (start, end) = range.split_once('-').unwrap();
                        RangeTombstone {
                            start: start.into(),
                            end: end.into(),
                            seqno: seqno.parse().unwrap(),
                        }
                    })
                    .into_iter()
                    .collect();
                let range_tombstones = range_tombstones.into();
                levels[level].push(Candidate { desc, blocked, range_tombstones });
            }
        }
        View {
            levels,
            snapshots: vec![100],
            expire_before: 0,
            horizon: 0,
            leaving: BTreeSet::new(),
        }
    }

    fn merge(inputs: &[(usize, u64)], to: usize) -> Option<Plan> {
        Some(Plan::Merge { inputs: inputs.to_vec(), to })
    }

    #[test]
    fn nothing_is_due_in_an_empty_or_balanced_tree() {
        assert_eq!(choose(&draw(""), TARGETS), None);
        assert_eq!(choose(&draw("L0 1:a-z\nL6 2:a-z"), TARGETS), None);
    }

    #[test]
    fn level_0_merges_into_the_base_level_newest_first() {
        let view = draw("L0 5:a-m 4:c-z\nL6 1:a-c 2:d-f 3:zz-zzz");
        assert_eq!(choose(&view, TARGETS), merge(&[(0, 5), (0, 4), (6, 1), (6, 2)], 6));
    }

    #[test]
    fn a_table_in_the_gap_between_those_of_level_0_joins_their_merge() {
        let view = draw("L0 6:b-e 5:x-z 4:a-c\nL6 1:m-n");
        assert_eq!(choose(&view, TARGETS), merge(&[(0, 6), (0, 5), (0, 4), (6, 1)], 6));
    }

    #[test]
    fn a_level_0_of_deletions_is_emptied_before_it_is_full() {
        let mut view = draw("L0 5:a-m\nL6 1:a-c 2:d-f 3:zz-zzz");
        let delete = |view: &mut View, tombstones| {
            let desc = &mut view.levels[0][0].desc;
            (desc.entries, desc.tombstones) = (100, tombstones);
        };
        view.levels[6].iter_mut().for_each(|table| table.desc.entries = 400);
        delete(&mut view, 99);
        assert_eq!(choose(&view, TARGETS), None, "of 800 records 99 would go");
        delete(&mut view, 100);
        assert_eq!(choose(&view, TARGETS), merge(&[(0, 5), (6, 1), (6, 2)], 6));
        view.snapshots = vec![view.levels[0][0].desc.seqnos.1 - 1, 100];
        assert_eq!(choose(&view, TARGETS), None, "a snapshot sees what was deleted");
        view.snapshots = vec![100];
        view.levels[6][0].desc.entries = 1;
        delete(&mut view, 49);
        assert_eq!(choose(&view, TARGETS), None, "more than half is not deleted");
    }

    #[test]
    fn disjoint_tables_of_level_0_move_unread() {
        let view = draw("L0 5:m-z 4:a-c");
        assert_eq!(choose(&view, TARGETS), Some(Plan::Move { table: 4, to: 6 }));
    }

    #[test]
    fn targets_are_counted_back_from_the_fullest_level() {
        let view = draw("L6 1:a-b=60000 2:c-d=4000");
        // 64000 / 4 = 16000 / 4 = 4000: the base fits two levels above the last.
        assert_eq!(level_targets(&view, TARGETS), (4, [0, 0, 0, 0, 4000, 16000, 64000]));
    }

    #[test]
    fn the_table_with_the_least_overlap_goes_down() {
        let view = draw("L5 1:a-c=4000 2:d-f=4000\nL6 3:a-b=9000 4:b-c=9000 5:d-d=9000");
        assert_eq!(choose(&view, TARGETS), merge(&[(5, 2), (6, 5)], 6));
    }

    #[test]
    fn nothing_moves_past_a_quarantined_table() {
        let view = draw("L0 6:a-c 5:b-d* 4:x-z\nL6 1:a-z");
        assert_eq!(choose(&view, TARGETS), merge(&[(0, 4), (6, 1)], 6), "6 overlaps 5 and stays");
        let view = draw("L0 6:a-c 5:b-d\nL6 1:a-z*");
        assert_eq!(choose(&view, TARGETS), None);
    }

    #[test]
    fn a_table_under_a_newer_range_tombstone_is_dropped_unread() {
        let mut view = draw("L0 5:a-f!a-g@50\nL6 1:b-c 2:d-z");
        assert_eq!(choose(&view, TARGETS), Some(Plan::Drop { tables: vec![1] }));
        view.snapshots = vec![5, 100];
        assert_eq!(choose(&view, TARGETS), None, "a snapshot at 5 still sees table 1");
    }

    #[test]
    fn a_range_tombstone_in_an_older_table_drops_nothing_newer() {
        let view = draw("L0 5:a-f 4:a-g!a-g@50");
        assert!(matches!(choose(&view, TARGETS), Some(Plan::Merge { .. })));
    }

    #[test]
    fn an_expired_table_is_dropped_in_the_last_level_and_pushed_down_above_it() {
        let mut view = draw("L5 1:a-c=10\nL6 2:a-b 3:x-z");
        for table in view.levels.iter_mut().flatten() {
            table.desc.expiring = table.desc.entries;
            table.desc.deadline_max = 77;
        }
        view.levels[6][0].desc.expiring = 1;
        view.expire_before = 76;
        assert_eq!(choose(&view, TARGETS), None);
        view.expire_before = 77;
        assert_eq!(choose(&view, TARGETS), Some(Plan::Drop { tables: vec![3] }));
        view.levels[6].pop();
        assert_eq!(choose(&view, TARGETS), merge(&[(5, 1), (6, 2)], 6));
    }

    #[test]
    fn a_table_of_passed_versions_is_rewritten_once_the_horizon_is_beyond_all_of_them() {
        let mut view = draw("L6 2:a-b 3:c-d");
        let desc = &mut view.levels[6][1].desc;
        (desc.passing, desc.passing_stamp) = (5, 30);
        view.horizon = 29;
        assert_eq!(choose(&view, TARGETS), None);
        view.horizon = 30;
        assert_eq!(choose(&view, TARGETS), merge(&[(6, 3)], 6));
        view.levels[6][1].desc.passing = 4;
        assert_eq!(choose(&view, TARGETS), None, "less than half");
    }

    #[test]
    fn a_table_of_which_half_has_expired_is_pushed_down_whatever_the_rest_is() {
        let mut view = draw("L5 1:a-c=10\nL6 2:a-b");
        let desc = &mut view.levels[5][0].desc;
        (desc.expiring, desc.deadline_max, desc.half_expired) = (desc.entries, 900, 77);
        view.expire_before = 76;
        assert_eq!(choose(&view, TARGETS), None);
        view.expire_before = 77;
        assert_eq!(choose(&view, TARGETS), merge(&[(5, 1), (6, 2)], 6));
    }

    #[test]
    fn a_twentieth_of_tombstones_is_pushed_down_if_they_lie_side_by_side() {
        let mut view = draw("L5 1:a-c=10\nL6 2:a-b");
        let desc = &mut view.levels[5][0].desc;
        (desc.entries, desc.tombstones) = (40_000, 2000);
        assert_eq!(choose(&view, TARGETS), None, "here and there");
        view.levels[5][0].desc.dense = 2000;
        assert_eq!(choose(&view, TARGETS), merge(&[(5, 1), (6, 2)], 6));
        view.levels[5][0].desc.entries = 40_001;
        assert_eq!(choose(&view, TARGETS), None, "less than a twentieth");
        let desc = &mut view.levels[5][0].desc;
        (desc.entries, desc.dense) = (10_000, 1023);
        assert_eq!(choose(&view, TARGETS), None, "few");
    }

    #[test]
    fn a_table_of_tombstones_is_pushed_down_once_no_snapshot_needs_them() {
        let mut view = draw("L5 1:a-c=10\nL6 2:a-b");
        view.levels[5][0].desc.tombstones = 6;
        assert_eq!(choose(&view, TARGETS), merge(&[(5, 1), (6, 2)], 6));
        view.snapshots = vec![3, 100];
        assert_eq!(choose(&view, TARGETS), None);
    }
}
