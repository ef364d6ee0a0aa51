//! Memory straight from the machine: one region of addresses, backed by pages as they are used.
//!
//! ```text
//!   |  chunk  |  chunk  |  chunk  |  ...  2 MiB each, which is a huge page where there are any
//!      used      used     address space only: the kernel backs what is touched
//! ```
//!
//! What a region is asked to be is a wish: huge pages and locking depend on settings and limits of the
//! machine, and what was not granted is said in [`Grants`]. Its bytes are zero at first and again after
//! a discard. A region is left out of core dumps, which would be as large as it is, and of forked
//! children, whose copies would cost a page fault for each page that the parent writes.
//!
//! A region behaves alike whatever backs it, so code of the core may use one without losing its
//! determinism; the simulator needs none of its own.

use std::fmt;
use std::io;
use std::ops::Range;
use std::ptr::{NonNull, null_mut};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munlock, munmap};
use rustix::process::{Resource, getrlimit};

/// Size and alignment of a chunk: that of a huge page on most machines.
pub const CHUNK: usize = 2 << 20;

/// What a region is to be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Small pages, as they are touched.
    Small,
    /// Huge pages, as they are touched, where the kernel makes them.
    Huge,
    /// Huge pages, all of them now, and locked into memory: reserved ones if there are enough, else such
    /// as the kernel makes.
    Pinned,
}

/// How a wish was answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Grant {
    /// Nobody asked.
    #[default]
    Unasked,
    /// It was granted; the text says in which form.
    Granted(&'static str),
    /// It was not, for this reason.
    Refused(String),
}

impl Grant {
    /// Returns the reason for which it was refused, if it was.
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Grant::Refused(why) => Some(why),
            Grant::Unasked | Grant::Granted(_) => None,
        }
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Grant::Unasked => write!(f, "not asked for"),
            Grant::Granted(form) => write!(f, "yes ({form})"),
            Grant::Refused(why) => write!(f, "no ({why})"),
        }
    }
}

/// What of a region's wishes was granted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Huge pages.
    pub huge_pages: Grant,
    /// All of it in memory from the start, and never swapped out.
    pub lock: Grant,
}

/// A region of memory of its own.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    /// Locked pages are discarded and got back in other ways.
    locked: bool,
    populated: bool,
    grants: Grants,
}

// SAFETY: a region is memory and nothing else; who may touch it is the business of its owner.
unsafe impl Send for Region {}
// SAFETY: as above; a shared region gives out nothing but its address.
unsafe impl Sync for Region {}

impl Region {
    /// Maps a region of `len` bytes, rounded up to whole chunks.
    ///
    /// # Errors
    /// The machine has no room for it at all. Wishes that are not granted are no errors.
    pub fn map(len: usize, backing: Backing) -> io::Result<Region> {
        let len = len.max(1).checked_next_multiple_of(CHUNK);
        let len = len.ok_or(io::ErrorKind::OutOfMemory)?;
        let reserved = match backing {
            Backing::Pinned => Some(map_reserved_huge(len)),
            Backing::Small | Backing::Huge => None,
        };
        let (base, huge_pages) = match reserved {
            Some(Ok(base)) => (base, Grant::Granted("reserved")),
            _ => {
                let base = map_aligned(len)?;
                let grant = match backing {
                    Backing::Small => Grant::Unasked,
                    Backing::Huge | Backing::Pinned => advise_huge(base, len),
                };
                (base, grant)
            }
        };
        let grants = Grants { huge_pages, lock: Grant::Unasked };
        let mut region = Region { base, len, locked: false, populated: false, grants };
        // Without them a dump is large and a fork slow: no reason to refuse the region.
        _ = region.advise(0..len, Advice::LinuxDontDump);
        _ = region.advise(0..len, Advice::LinuxDontFork);
        if backing == Backing::Pinned {
            region.pin();
        }
        Ok(region)
    }

    /// Locks all of it, or at least has all of it backed.
    fn pin(&mut self) {
        // SAFETY: the range is this region's mapping; locking changes no contents.
        let locked = unsafe { mlock(self.base.as_ptr().cast(), self.len) };
        self.locked = locked.is_ok();
        self.populated = true;
        self.grants.lock = match locked {
            Ok(()) => Grant::Granted("all of it"),
            Err(error) => {
                let limit = getrlimit(Resource::Memlock).current;
                let limit =
                    limit.map_or("unlimited".into(), |bytes| format!("{} KiB", bytes >> 10));
                Grant::Refused(format!(
                    "{} KiB to lock, and RLIMIT_MEMLOCK is {limit}: {error}",
                    self.len >> 10
                ))
            }
        };
        if !self.locked {
            // An old kernel has no such advice: pages come as they are touched.
            _ = self.advise(0..self.len, Advice::LinuxPopulateWrite);
        }
    }

    /// Returns the first address, a multiple of [`CHUNK`]. All [`Region::len`] bytes from there may be
    /// read and written as long as the region lives.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Returns the length in bytes, a multiple of [`CHUNK`].
    #[expect(clippy::len_without_is_empty, reason = "a region is at least a chunk")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns what was granted.
    pub fn grants(&self) -> &Grants {
        &self.grants
    }

    /// Gives the pages of `range` back to the machine. They are zero when they are used again. Does
    /// nothing where the kernel cannot.
    ///
    /// # Safety
    /// `range` is made of whole pages of the region, and until this returns nobody refers to its bytes.
    pub unsafe fn discard(&self, range: Range<usize>) {
        if self.locked {
            // SAFETY: the range lies in this region's mapping by the contract.
            let unlocked = unsafe { munlock(self.at(range.start), range.len()) };
            debug_assert!(unlocked.is_ok(), "what was locked can be unlocked");
        }
        // Reserved huge pages stay where the kernel is older than this advice for them.
        _ = self.advise(range, Advice::LinuxDontNeed);
    }

    /// Takes what was discarded back in use: pages of a pinned region are backed and locked again.
    pub fn restore(&self, range: Range<usize>) {
        if !self.populated || range.end > self.len || range.is_empty() {
            return;
        }
        // SAFETY: the range lies in this region's mapping; locking changes no contents.
        let locked = self.locked && unsafe { mlock(self.at(range.start), range.len()) }.is_ok();
        if !locked {
            _ = self.advise(range, Advice::LinuxPopulateWrite);
        }
    }

    fn at(&self, offset: usize) -> *mut std::ffi::c_void {
        self.base.as_ptr().wrapping_add(offset).cast()
    }

    /// Gives an advice for a range of the region.
    fn advise(&self, range: Range<usize>, advice: Advice) -> rustix::io::Result<()> {
        // SAFETY: the callers pass ranges of this mapping. Of the advices they give only DontNeed
        // changes contents, and `discard` has its caller's word for it.
        unsafe { madvise(self.at(range.start), range.len(), advice) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping, which is unmapped only here.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "a whole mapping can be unmapped");
    }
}

fn map(len: usize, flags: MapFlags) -> rustix::io::Result<NonNull<u8>> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: without a fixed address, a new mapping overlaps nothing.
    let base = unsafe { mmap_anonymous(null_mut(), len, protection, MapFlags::PRIVATE | flags) }?;
    NonNull::new(base.cast()).ok_or(rustix::io::Errno::NOMEM)
}

/// Maps huge pages that the administrator has set aside. Touches them all: where a control group
/// forbids them, the first touch of one would end the process, and this way it is an error here.
fn map_reserved_huge(len: usize) -> rustix::io::Result<NonNull<u8>> {
    let base = map(len, MapFlags::HUGETLB | MapFlags::HUGE_2MB)?;
    // SAFETY: the range is the mapping made above, which nobody else knows.
    unsafe {
        if let Err(error) = madvise(base.as_ptr().cast(), len, Advice::LinuxPopulateWrite) {
            munmap(base.as_ptr().cast(), len)?;
            return Err(error);
        }
    }
    Ok(base)
}

/// Maps address space that begins at a multiple of [`CHUNK`].
fn map_aligned(len: usize) -> io::Result<NonNull<u8>> {
    let wide = len.checked_add(CHUNK).ok_or(io::ErrorKind::OutOfMemory)?;
    let start = map(wide, MapFlags::NORESERVE)?;
    let skip = start.as_ptr().align_offset(CHUNK);
    let base = start.as_ptr().wrapping_add(skip);
    for (at, surplus) in [(start.as_ptr(), skip), (base.wrapping_add(len), CHUNK - skip)] {
        if surplus > 0 {
            // SAFETY: both ends lie in the mapping made above, and nobody else knows it.
            unsafe { munmap(at.cast(), surplus) }?;
        }
    }
    NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory.into())
}

/// Asks for huge pages where the kernel makes them out of free memory.
fn advise_huge(base: NonNull<u8>, len: usize) -> Grant {
    const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    // SAFETY: the range is a mapping of this module; the advice changes no contents.
    let advised = unsafe { madvise(base.as_ptr().cast(), len, Advice::LinuxHugepage) };
    match (advised, std::fs::read_to_string(SETTING)) {
        (Err(error), _) => Grant::Refused(format!("the kernel makes none: {error}")),
        (Ok(()), Ok(setting)) if setting.contains("[never]") => {
            Grant::Refused(format!("{SETTING} is never"))
        }
        (Ok(()), _) => Grant::Granted("transparent"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a figure of the mapping that `region` is, in bytes, or its flags.
    fn smaps(region: &Region, field: &str) -> String {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", region.base().as_ptr() as usize);
        let of_region = smaps.lines().skip_while(|line| !line.starts_with(&start));
        let line = of_region.skip(1).find_map(|line| line.strip_prefix(field));
        line.expect("the region is a mapping").trim().to_owned()
    }

    fn kib(region: &Region, field: &str) -> usize {
        smaps(region, field).trim_end_matches(" kB").parse().unwrap()
    }

    fn touch(region: &Region, at: usize) {
        assert!(at < region.len());
        // SAFETY: `at` lies in the region, which nobody else touches.
        unsafe { region.base().as_ptr().add(at).write(7) };
    }

    #[test]
    fn a_region_begins_at_a_chunk_and_costs_nothing_before_it_is_touched() {
        let region = Region::map(64 * CHUNK - 5, Backing::Small).unwrap();
        assert_eq!(region.base().as_ptr() as usize % CHUNK, 0);
        assert_eq!(region.len(), 64 * CHUNK);
        assert_eq!(kib(&region, "Rss:"), 0);
        touch(&region, 5 * CHUNK);
        touch(&region, 5 * CHUNK + 4096);
        assert_eq!(kib(&region, "Rss:"), 8);
        // SAFETY: nobody refers to the bytes.
        unsafe { region.discard(5 * CHUNK..6 * CHUNK) };
        assert_eq!(kib(&region, "Rss:"), 0);
    }

    #[test]
    fn a_region_is_left_out_of_dumps_and_of_children() {
        for backing in [Backing::Small, Backing::Huge, Backing::Pinned] {
            let region = Region::map(CHUNK, backing).unwrap();
            let flags = smaps(&region, "VmFlags:");
            let has = |flag| flags.split(' ').any(|has| has == flag);
            assert!(has("dd") && has("dc"), "{backing:?}: {flags}");
            let grants = region.grants();
            let granted = |grant: &Grant| matches!(grant, Grant::Granted(_));
            assert_eq!(has("hg") || has("ht"), granted(&grants.huge_pages), "{flags} {grants:?}");
            assert_eq!(has("lo"), granted(&grants.lock), "{flags} {grants:?}");
        }
    }

    #[test]
    fn a_pinned_region_is_all_there_and_gives_back_what_is_discarded() {
        let region = Region::map(3 * CHUNK, Backing::Pinned).unwrap();
        if region.grants().huge_pages == Grant::Granted("reserved") {
            return;
        }
        assert_eq!(kib(&region, "Rss:"), region.len() >> 10, "{:?}", region.grants());
        // SAFETY: nobody refers to the bytes.
        unsafe { region.discard(CHUNK..2 * CHUNK) };
        // The mapping is cut where its flags differ, so the second chunk is looked at from the end.
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let base = region.base().as_ptr() as usize;
            let mut inside = false;
            let mut sum = 0;
            for line in status.lines() {
                if let Some((start, _)) = line.split_once('-')
                    && let Ok(start) = usize::from_str_radix(start, 16)
                {
                    inside = (base..base + region.len()).contains(&start);
                }
                if let Some(rss) = line.strip_prefix("Rss:").filter(|_| inside) {
                    sum += rss.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10;
                }
            }
            sum
        };
        assert_eq!(resident(), 2 * CHUNK);
        region.restore(CHUNK..2 * CHUNK);
        assert_eq!(resident(), 3 * CHUNK);
    }

    #[test]
    fn grants_read_as_sentences() {
        assert_eq!(Grant::Unasked.to_string(), "not asked for");
        assert_eq!(Grant::Granted("transparent").to_string(), "yes (transparent)");
        assert_eq!(Grant::Refused("no room".into()).to_string(), "no (no room)");
    }
}
