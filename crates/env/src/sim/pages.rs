//! The content of one file: what a reader sees, and what would be left after a power cut.
//!
//! ```text
//!   pages     the volatile content, 4 KiB pages; an absent page is zeros (sparse files are free)
//!   unsynced  for each page written since the last sync: which sectors, and the durable page
//!
//!   write     copies the page aside on its first change (pages are shared), then changes it
//!   sync      forgets `unsynced`: the volatile pages are the durable ones
//!   power cut per unsynced sector: the new bytes, the old ones, or a torn mixture
//! ```
//!
//! Costs are by what changed, never by the length of the file, and a clone shares all pages: the
//! crash harness takes a copy of the whole disk per crash point.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::random::Prng;
use crate::sim::CrashMode;

/// The unit that survives a power cut or not, in bytes.
pub(super) const SECTOR: usize = 512;
const PAGE: usize = 4096;

/// How often a write over unsynced sectors sets their present bytes aside as survivors: the kernel
/// writes pages back whenever it likes, so versions between two syncs may reach the medium too.
const WRITEBACK: f64 = 0.25;

type Page = Arc<[u8; PAGE]>;

/// A file's content.
#[derive(Clone, Default)]
pub(super) struct Content {
    len: u64,
    durable_len: u64,
    /// Space set aside by `reserve`.
    reserved: u64,
    pages: BTreeMap<u64, Page>,
    unsynced: BTreeMap<u64, Unsynced>,
    /// Pages that differ from the medium although the kernel calls them clean: no sync stores them
    /// before they are written again.
    forgotten: BTreeMap<u64, Unsynced>,
}

/// A page that differs, or may differ, from the medium.
#[derive(Clone)]
struct Unsynced {
    /// Bit per sector.
    sectors: u8,
    /// The page at the last sync; `None` is zeros.
    durable: Option<Page>,
    /// Sectors in versions between the sync and now, with a bit for each.
    between: Option<(u8, Page)>,
}

impl Unsynced {
    fn of(durable: Option<Page>) -> Unsynced {
        Unsynced { sectors: 0, durable, between: None }
    }
}

impl Content {
    pub(super) fn durable(bytes: &[u8]) -> Content {
        let mut content = Content { len: bytes.len() as u64, ..Content::default() };
        content.put(0, bytes);
        content.sync();
        content
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Returns whether a power cut would change nothing.
    pub(super) fn is_durable(&self) -> bool {
        let same = self.unsynced.is_empty() && self.forgotten.is_empty();
        same && self.len == self.durable_len
    }

    /// Bytes of the medium the file occupies.
    pub(super) fn space(&self) -> u64 {
        let written = (self.pages.len() * PAGE) as u64;
        written.max(self.reserved.next_multiple_of(PAGE as u64))
    }

    /// Copies from `offset` into `out`, which lies within the file.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) {
        for (number, within, range) in segments(offset, out.len()) {
            match self.pages.get(&number) {
                Some(page) => {
                    out[range.clone()].copy_from_slice(&page[within..within + range.len()])
                }
                None => out[range].fill(0),
            }
        }
    }

    /// Returns the whole content.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes =
            vec![0; usize::try_from(self.len).expect("invariant: a simulated file fits")];
        self.read(0, &mut bytes);
        bytes
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8], prng: &mut Prng) {
        for (number, within, range) in segments(offset, bytes.len()) {
            if let Some(unsynced) = self.unsynced.get_mut(&number)
                && let again = unsynced.sectors & sector_mask(within, range.len())
                && again != 0
                && prng.chance(WRITEBACK)
                && let Some(current) = self.pages.get(&number)
            {
                let (sectors, between) = unsynced.between.get_or_insert_with(|| (0, zeros()));
                *sectors |= again;
                copy_sectors(again, current, Arc::make_mut(between));
            }
        }
        self.put(offset, bytes);
        self.len = self.len.max(offset + bytes.len() as u64);
    }

    /// Writes pages and marks their sectors.
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        for (number, within, range) in segments(offset, bytes.len()) {
            let page = self.pages.entry(number);
            let durable = match &page {
                std::collections::btree_map::Entry::Occupied(page) => Some(page.get().clone()),
                std::collections::btree_map::Entry::Vacant(_) => None,
            };
            // The kernel writes whole pages back: what it forgot goes along.
            let forgotten = self.forgotten.remove(&number);
            let unsynced = forgotten.unwrap_or_else(|| Unsynced::of(durable));
            let unsynced = self.unsynced.entry(number).or_insert(unsynced);
            unsynced.sectors |= sector_mask(within, range.len());
            let page = Arc::make_mut(page.or_insert_with(zeros));
            page[within..within + range.len()].copy_from_slice(&bytes[range]);
        }
    }

    /// Sets the length; new bytes are zero.
    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            let first_gone = len.div_ceil(PAGE as u64);
            for (number, page) in self.pages.split_off(&first_gone) {
                let forgotten = self.forgotten.remove(&number);
                let unsynced = forgotten.unwrap_or_else(|| Unsynced::of(Some(page)));
                self.unsynced.entry(number).or_insert(unsynced).sectors = u8::MAX;
            }
            let kept = (len % PAGE as u64) as usize;
            if kept != 0 && self.pages.contains_key(&(len / PAGE as u64)) {
                self.put(len, &[0; PAGE][kept..]);
            }
            self.reserved = self.reserved.min(len);
        }
        self.len = len;
    }

    /// Sets space aside and extends the file to at least `len`.
    pub(super) fn reserve(&mut self, len: u64) {
        self.reserved = self.reserved.max(len);
        self.len = self.len.max(len);
    }

    /// Makes everything durable.
    pub(super) fn sync(&mut self) {
        self.unsynced.clear();
        self.durable_len = self.len;
    }

    /// Makes some of the unsynced sectors durable: a sync that was interrupted by a power cut.
    pub(super) fn sync_partly(&mut self, prng: &mut Prng) {
        for (number, unsynced) in &mut self.unsynced {
            let reached = unsynced.sectors & prng.next_u64() as u8;
            if reached == 0 {
                continue;
            }
            let current = self.pages.get(number).cloned().unwrap_or_else(zeros);
            let durable = Arc::make_mut(unsynced.durable.get_or_insert_with(zeros));
            copy_sectors(reached, &current, durable);
        }
    }

    /// Throws the unsynced sectors away and calls the rest clean, as Linux does with pages whose
    /// writeback failed. The length, which the inode keeps, stays.
    pub(super) fn lose_unsynced(&mut self) {
        for (number, unsynced) in std::mem::take(&mut self.unsynced) {
            match unsynced.durable {
                Some(page) => _ = self.pages.insert(number, page),
                None => _ = self.pages.remove(&number),
            }
        }
        self.cut_beyond(self.len);
    }

    /// Calls the unsynced pages clean without storing them.
    pub(super) fn forget_unsynced(&mut self) {
        self.forgotten.append(&mut self.unsynced);
    }

    /// Leaves what the medium holds after a power cut. `torn` is the chance of a torn sector.
    pub(super) fn power_cut(&mut self, mode: CrashMode, torn: f64, prng: &mut Prng) {
        if mode == CrashMode::KeepAll {
            // The kernel lives on, with what it has not written back.
            return;
        }
        for (number, Unsynced { durable, .. }) in std::mem::take(&mut self.forgotten) {
            match durable {
                Some(page) => _ = self.pages.insert(number, page),
                None => _ = self.pages.remove(&number),
            }
        }
        // One chance per file and crash: a fair coin per sector alone would never show a file of
        // which all but one sector arrived.
        let keep = [0.05, 0.5, 0.95][prng.index(3)];
        for (number, Unsynced { sectors, durable, between }) in std::mem::take(&mut self.unsynced) {
            let left = match mode {
                CrashMode::KeepAll | CrashMode::DropAll => durable,
                CrashMode::Random => {
                    let new = self.pages.get(&number).cloned().unwrap_or_else(zeros);
                    let mut left = durable.unwrap_or_else(zeros);
                    if let Some((older, between)) = between {
                        let reached = older & prng.next_u64() as u8;
                        copy_sectors(reached, &between, Arc::make_mut(&mut left));
                    }
                    mix_sectors(sectors, &new, Arc::make_mut(&mut left), keep, torn, prng);
                    Some(left)
                }
            };
            match left {
                Some(page) => _ = self.pages.insert(number, page),
                None => _ = self.pages.remove(&number),
            }
        }
        let (old, new) = (self.durable_len, self.len);
        self.len = match mode {
            CrashMode::KeepAll | CrashMode::DropAll => old,
            // A file that grew by several writes may have any length between.
            CrashMode::Random if new > old && prng.chance(0.2) => prng.range(old..new + 1),
            CrashMode::Random if prng.chance(keep) => new,
            CrashMode::Random => old,
        };
        self.cut_beyond(self.len);
        self.reserved = self.reserved.min(self.len);
        self.durable_len = self.len;
    }

    /// Inverts a bit everywhere it is stored. Returns whether the file reaches that far.
    pub(super) fn flip(&mut self, offset: u64, bit: u32) -> bool {
        if offset >= self.len {
            return false;
        }
        let (number, within) = (offset / PAGE as u64, (offset % PAGE as u64) as usize);
        Arc::make_mut(self.pages.entry(number).or_insert_with(zeros))[within] ^= 1 << (bit % 8);
        let stored = self.unsynced.get_mut(&number).or(self.forgotten.get_mut(&number));
        if let Some(unsynced) = stored {
            let durable = Arc::make_mut(unsynced.durable.get_or_insert_with(zeros));
            durable[within] ^= 1 << (bit % 8);
            if let Some((_, between)) = &mut unsynced.between {
                Arc::make_mut(between)[within] ^= 1 << (bit % 8);
            }
        }
        true
    }

    /// Zeroes what lies beyond the length, so that a longer file reads zeros there.
    fn cut_beyond(&mut self, len: u64) {
        self.pages.split_off(&len.div_ceil(PAGE as u64));
        let kept = (len % PAGE as u64) as usize;
        if kept != 0
            && let Some(page) = self.pages.get_mut(&(len / PAGE as u64))
            && page[kept..].iter().any(|b| *b != 0)
        {
            Arc::make_mut(page)[kept..].fill(0);
        }
    }
}

fn zeros() -> Page {
    Arc::new([0; PAGE])
}

/// Cuts a range of a file at page borders: page number, offset in the page, range of the buffer.
fn segments(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let within = (at % PAGE as u64) as usize;
        let range = done..len.min(done + PAGE - within);
        done = range.end;
        Some((at / PAGE as u64, within, range))
    })
}

/// The sectors of a page that `len` bytes at `within` touch.
fn sector_mask(within: usize, len: usize) -> u8 {
    let (first, last) = (within / SECTOR, (within + len - 1) / SECTOR);
    (first..=last).fold(0, |mask, sector| mask | 1 << sector)
}

fn copy_sectors(sectors: u8, from: &[u8; PAGE], to: &mut [u8; PAGE]) {
    for sector in (0..PAGE / SECTOR).filter(|s| sectors & (1 << s) != 0) {
        let range = sector * SECTOR..(sector + 1) * SECTOR;
        to[range.clone()].copy_from_slice(&from[range]);
    }
}

/// Decides the fate of each sector: `page` holds the old bytes and receives what is left.
fn mix_sectors(
    sectors: u8,
    new: &[u8; PAGE],
    page: &mut [u8; PAGE],
    keep: f64,
    torn: f64,
    prng: &mut Prng,
) {
    for sector in (0..PAGE / SECTOR).filter(|s| sectors & (1 << s) != 0) {
        let arrived = if prng.chance(torn) {
            1 + prng.index(SECTOR - 1)
        } else if prng.chance(keep) {
            SECTOR
        } else {
            0
        };
        let range = sector * SECTOR..sector * SECTOR + arrived;
        page[range.clone()].copy_from_slice(&new[range]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(bytes: &[u8]) -> Content {
        Content::durable(bytes)
    }

    #[test]
    fn a_power_cut_keeps_drops_or_tears_each_unsynced_sector() {
        let (mut kept, mut dropped, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            let mut prng = Prng::new(seed);
            let mut file = content(&[1; 8 * SECTOR]);
            file.write(2 * SECTOR as u64, &[2; 4 * SECTOR], &mut prng);
            file.power_cut(CrashMode::Random, 0.2, &mut prng);
            let left = file.bytes();
            assert!(left[..2 * SECTOR].iter().chain(&left[6 * SECTOR..]).all(|b| *b == 1));
            for sector in left[2 * SECTOR..6 * SECTOR].chunks(SECTOR) {
                let new = sector.iter().take_while(|b| **b == 2).count();
                assert!(sector[new..].iter().all(|b| *b == 1), "a prefix of the new bytes");
                match new {
                    0 => dropped += 1,
                    SECTOR => kept += 1,
                    _ => torn += 1,
                }
            }
        }
        assert!(kept > 100 && dropped > 100 && torn > 50, "{kept} {dropped} {torn}");
    }

    #[test]
    fn synced_bytes_survive_every_mode() {
        for mode in [CrashMode::KeepAll, CrashMode::DropAll, CrashMode::Random] {
            let mut prng = Prng::new(1);
            let mut file = Content::default();
            file.write(100, b"synced", &mut prng);
            file.sync();
            file.power_cut(mode, 1.0, &mut prng);
            assert_eq!(file.bytes()[100..], b"synced"[..]);
        }
    }

    #[test]
    fn an_unsynced_length_is_old_new_or_between_and_hides_nothing() {
        let mut lengths = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let mut prng = Prng::new(seed);
            let mut file = content(&[7; 1000]);
            file.write(1000, &[8; 5000], &mut prng);
            file.power_cut(CrashMode::Random, 0.1, &mut prng);
            lengths.insert(file.len());
            assert!((1000..=6000).contains(&file.len()));
            assert!(file.bytes()[..1000].iter().all(|b| *b == 7));
            let cut = file.len() as usize;
            file.set_len(9000);
            assert!(file.bytes()[cut..].iter().all(|b| *b == 0), "old bytes behind the end");
        }
        assert!(lengths.contains(&1000) && lengths.contains(&6000) && lengths.len() > 5);
    }

    #[test]
    fn a_truncation_that_is_not_synced_may_be_undone() {
        let mut undone = 0;
        for seed in 0..50 {
            let mut prng = Prng::new(seed);
            let mut file = content(&[7; 10_000]);
            file.set_len(0);
            file.power_cut(CrashMode::Random, 0.0, &mut prng);
            assert!(file.len() == 0 || file.len() == 10_000);
            undone += u32::from(file.bytes().contains(&7));
        }
        assert!(undone > 5);
        let mut file = content(&[7; 10_000]);
        file.set_len(0);
        file.power_cut(CrashMode::DropAll, 0.0, &mut Prng::new(0));
        assert_eq!(file.bytes(), [7; 10_000]);
    }

    #[test]
    fn an_older_version_of_a_sector_may_be_the_one_that_survives() {
        let survivors: std::collections::BTreeSet<u8> = (0..100)
            .map(|seed| {
                let mut prng = Prng::new(seed);
                let mut file = content(&[1; SECTOR]);
                file.write(0, &[2; SECTOR], &mut prng);
                file.write(0, &[3; SECTOR], &mut prng);
                file.power_cut(CrashMode::Random, 0.0, &mut prng);
                file.bytes()[0]
            })
            .collect();
        assert_eq!(survivors.into_iter().collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn sparse_space_costs_nothing_and_reads_zero() {
        let mut file = Content::default();
        file.reserve(1 << 40);
        let mut bytes = [1; 100];
        file.read((1 << 40) - 100, &mut bytes);
        assert_eq!((bytes, file.pages.len()), ([0; 100], 0));
        file.set_len(10);
        assert_eq!(file.space(), PAGE as u64);
    }

    #[test]
    fn lost_pages_go_back_to_the_medium_and_a_flip_hits_both_copies() {
        let mut prng = Prng::new(0);
        let mut file = content(b"old");
        file.write(0, b"new and longer", &mut prng);
        assert!(file.flip(0, 0) && !file.flip(99, 0));
        file.lose_unsynced();
        assert_eq!(file.bytes(), b"nld\0\0\0\0\0\0\0\0\0\0\0");
    }

    /// The model: all contents since the last sync, oldest (the synced one) first.
    #[test]
    fn every_surviving_sector_held_those_bytes_at_some_time_since_the_sync() {
        const SECTORS: usize = 40;
        for seed in 0..300 {
            let mut prng = Prng::new(seed);
            let mut file = Content::default();
            let mut versions = vec![Vec::new()];
            for step in 0..30u8 {
                let offset = prng.below((SECTORS * SECTOR / 2) as u64);
                match prng.below(10) {
                    0 => file.set_len(offset),
                    1 => file.reserve(offset),
                    2 => {
                        file.sync();
                        versions.clear();
                    }
                    _ => {
                        let len = 1 + prng.index(SECTORS * SECTOR / 2);
                        file.write(offset, &vec![step + 1; len], &mut prng);
                    }
                }
                versions.push(file.bytes());
            }
            let (mut dropped, mut kept) = (file.clone(), file.clone());
            dropped.power_cut(CrashMode::DropAll, 0.0, &mut prng);
            kept.power_cut(CrashMode::KeepAll, 0.0, &mut prng);
            assert!(versions.first() == Some(&dropped.bytes()), "seed {seed}");
            assert!(versions.last() == Some(&kept.bytes()), "seed {seed}");
            file.power_cut(CrashMode::Random, 0.0, &mut prng);
            let left = file.bytes();
            let held = |version: &Vec<u8>, start: usize, sector: &[u8]| {
                let mut padded = version.clone();
                padded.resize(version.len().max(start + SECTOR), 0);
                padded[start..].starts_with(sector)
            };
            for (number, sector) in left.chunks(SECTOR).enumerate() {
                let start = number * SECTOR;
                assert!(versions.iter().any(|v| held(v, start, sector)), "seed {seed} @{start}");
            }
            let lengths = versions.iter().map(Vec::len);
            assert!(lengths.clone().min() <= Some(left.len()), "seed {seed}");
            assert!(lengths.max() >= Some(left.len()), "seed {seed}");
        }
    }
}
