//! A transfer: one read, write or sync of a file, whatever carries it out.
//!
//! ```text
//!                 +------ Again ------+        pread, pwrite, fdatasync  (`run`)
//!                 v                   |        or entries of a ring      (`uring`)
//!   Transfer --> what to do --> outcome --> Done(buffer | error)
//! ```
//!
//! Both back ends ask the same state machine what to do next and tell it how the kernel answered, so
//! short transfers, interruptions, ends of files and full disks mean the same in both. It owns buffer
//! and file: whoever holds the transfer may let the kernel work on them, and whoever wants it cancelled
//! drops his end of the channel and nothing else.
//!
//! # Direct I/O
//! A file may have a second descriptor with `O_DIRECT`. It takes what is aligned to blocks of
//! [`ALIGNMENT`] bytes; a read that is not is widened to blocks and copied out of a *bounce* buffer, a
//! write that is not goes through the page cache. The kernel keeps the two coherent: before a direct
//! transfer it writes back, and after a direct write it drops what the page cache has of the range. A
//! file system that accepts the flag and refuses the transfer gets no second one.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use crate::buf::{ALIGNMENT, IoBuf};

const BLOCK: u64 = ALIGNMENT as u64;
/// The most that one call is asked for; the kernel's own bound is a page below 2 GiB.
const CALL_MAX: usize = 1 << 30;

/// An open file: the descriptor for everything, and perhaps one past the page cache.
pub(super) struct Handle {
    pub(super) file: fs::File,
    pub(super) direct: Option<Direct>,
}

/// A descriptor with `O_DIRECT`.
pub(super) struct Direct {
    pub(super) file: fs::File,
    /// The file system refused a direct transfer: no more of them.
    pub(super) refused: AtomicBool,
    /// Whether all aligned transfers go this way, or only writes that are synced at once.
    pub(super) all: bool,
}

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Fill the buffer.
    Read,
    /// Write the buffer.
    Write,
    /// Write the buffer, then sync.
    WriteSync,
    /// Make durable what was written.
    Sync,
}

/// A kernel that gives calls back untried for so often cannot carry them out.
const CANCELED_MAX: u32 = 1_000;

/// What the kernel is to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// Read `len` bytes at `offset` into the memory from `from` on.
    Read { from: usize, len: usize, offset: u64 },
    /// Write them; then sync, if that is the last of it and `sync` is set.
    Write { from: usize, len: usize, offset: u64, sync: bool },
    /// Sync.
    Sync,
}

/// How the kernel answered a [`Call`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Bytes, or the error. Of a sync alone, its result.
    pub(super) result: Result<usize, Errno>,
    /// How the sync behind a write ended, if the write was done in full.
    pub(super) synced: Option<Result<(), Errno>>,
}

/// What follows from it.
#[derive(Debug)]
pub(super) enum Next {
    /// Ask again what to do.
    Again,
    /// The transfer is over.
    Done(io::Result<IoBuf>),
}

/// A transfer under way.
pub(super) struct Transfer {
    action: Action,
    handle: Arc<Handle>,
    /// Where the caller's bytes begin in the file.
    offset: u64,
    buf: IoBuf,
    /// Bytes of the memory that are done.
    done: usize,
    /// All is written; the sync is left.
    written: bool,
    direct: bool,
    /// How often the kernel gave a call back untried.
    canceled: u32,
    /// What a widened read goes into.
    pub(super) bounce: Option<Bounce>,
}

/// The memory of a widened read.
pub(super) struct Bounce {
    pub(super) buf: IoBuf,
    /// Index among a ring's registered buffers, if it is one of them.
    pub(super) fixed: Option<u16>,
}

impl Transfer {
    pub(super) fn new(handle: Arc<Handle>, action: Action, offset: u64, buf: IoBuf) -> Transfer {
        let action = match action {
            Action::WriteSync if buf.is_empty() => Action::Sync,
            action => action,
        };
        let mut transfer = Transfer {
            action,
            handle,
            offset,
            buf,
            done: 0,
            written: false,
            direct: false,
            canceled: 0,
            bounce: None,
        };
        transfer.direct = transfer.may_go_direct();
        transfer
    }

    /// Answers what needs no kernel: nothing to do, and places that no file has. A ring would take some
    /// of these for the file's current position.
    pub(super) fn settled(&mut self) -> Option<io::Result<IoBuf>> {
        if self.action == Action::Sync {
            return None;
        }
        if self.buf.is_empty() {
            return Some(Ok(std::mem::take(&mut self.buf)));
        }
        let end = self.offset.checked_add(self.buf.len() as u64);
        let exists = end.is_some_and(|end| i64::try_from(end).is_ok());
        (!exists).then(|| Err(Errno::INVAL.into()))
    }

    fn may_go_direct(&self) -> bool {
        let Some(direct) = &self.handle.direct else { return false };
        if direct.refused.load(Ordering::Relaxed) || self.buf.is_empty() {
            return false;
        }
        match self.action {
            Action::Read => direct.all,
            Action::Write => direct.all && self.is_aligned(),
            Action::WriteSync => self.is_aligned(),
            Action::Sync => false,
        }
    }

    fn is_aligned(&self) -> bool {
        self.offset.is_multiple_of(BLOCK) && self.buf.len().is_multiple_of(ALIGNMENT)
    }

    /// Returns whether the page cache is left out.
    pub(super) fn is_direct(&self) -> bool {
        self.direct
    }

    /// Sends the transfer through the page cache, before its first call.
    pub(super) fn through_cache(mut self) -> Transfer {
        self.direct = false;
        self
    }

    /// Returns whether it waits for stable storage.
    pub(super) fn syncs(&self) -> bool {
        matches!(self.action, Action::WriteSync | Action::Sync)
    }

    /// Returns the bytes it moves.
    pub(super) fn bytes(&self) -> u64 {
        self.buf.len() as u64
    }

    /// Returns the descriptor that the next call is for.
    pub(super) fn file(&self) -> &fs::File {
        match &self.handle.direct {
            Some(direct) if self.direct => &direct.file,
            _ => &self.handle.file,
        }
    }

    /// Returns how much memory a widened read needs that has none yet.
    pub(super) fn wants_bounce(&self) -> Option<usize> {
        let wants = self.direct && self.action == Action::Read && !self.is_aligned();
        (wants && self.bounce.is_none()).then(|| self.widened().1)
    }

    /// Returns the bytes to skip and the length of the blocks around what is wanted.
    fn widened(&self) -> (usize, usize) {
        let skip = (self.offset % BLOCK) as usize;
        (skip, (skip + self.buf.len()).next_multiple_of(ALIGNMENT))
    }

    /// Returns what to do next. A widened read has been given its memory.
    pub(super) fn call(&self) -> Call {
        let (skip, whole) = if self.is_widened() { self.widened() } else { (0, self.buf.len()) };
        let (from, len) = (self.done, (whole - self.done).min(CALL_MAX));
        let offset = (self.offset - skip as u64).saturating_add(self.done as u64);
        match self.action {
            Action::Read => Call::Read { from, len, offset },
            Action::WriteSync if self.written => Call::Sync,
            Action::Write | Action::WriteSync => {
                let sync = self.action == Action::WriteSync && len == whole - self.done;
                Call::Write { from, len, offset, sync }
            }
            Action::Sync => Call::Sync,
        }
    }

    /// Returns the memory that the kernel writes or reads.
    pub(super) fn memory(&mut self) -> &mut [u8] {
        match &mut self.bounce {
            Some(bounce) if self.direct => &mut bounce.buf,
            _ => &mut self.buf,
        }
    }

    /// Takes the memory of a widened read out if the transfer is over, or goes on without.
    pub(super) fn spent_bounce(&mut self, over: bool) -> Option<Bounce> {
        if over || !self.direct { self.bounce.take() } else { None }
    }

    fn is_widened(&self) -> bool {
        self.direct && self.bounce.is_some()
    }

    /// Takes in how the kernel answered the last call.
    pub(super) fn advance(&mut self, outcome: Outcome) -> Next {
        let call = self.call();
        // A sync that failed in any way is over: the kernel tells once that pages were lost, and the
        // next one succeeds without them. Canceled is one behind a write that was short, or that no
        // worker was there for: it was never tried.
        if let Some(Err(error)) = outcome.synced
            && error != Errno::CANCELED
        {
            return Next::Done(Err(error.into()));
        }
        let moved = match outcome.result {
            Ok(moved) => moved,
            Err(Errno::INTR | Errno::AGAIN) if call != Call::Sync => return Next::Again,
            Err(Errno::CANCELED) if self.canceled < CANCELED_MAX => {
                self.canceled += 1;
                return Next::Again;
            }
            Err(Errno::INVAL | Errno::OPNOTSUPP) if self.direct => {
                self.give_up_direct();
                return Next::Again;
            }
            Err(error) => return Next::Done(Err(error.into())),
        };
        match call {
            Call::Sync => self.finish(),
            Call::Read { len, .. } => {
                self.done += moved;
                let skip = if self.is_widened() { self.widened().0 } else { 0 };
                if self.done >= skip + self.buf.len() {
                    return self.finish();
                }
                // A direct read that ends inside a block has met the end of the file.
                let ends = moved == 0 || (self.direct && !self.done.is_multiple_of(ALIGNMENT));
                if ends {
                    let message = "the file ends before the bytes that were asked for";
                    return Next::Done(Err(io::Error::new(io::ErrorKind::UnexpectedEof, message)));
                }
                debug_assert!(moved <= len, "the kernel read more than it was asked for");
                Next::Again
            }
            Call::Write { len, sync, .. } => {
                if moved == 0 && len > 0 {
                    let message = "the kernel wrote nothing and named no reason";
                    return Next::Done(Err(io::Error::new(io::ErrorKind::WriteZero, message)));
                }
                self.done += moved;
                if self.direct && !self.done.is_multiple_of(ALIGNMENT) {
                    // What is left is no whole block any more: the page cache takes the rest.
                    self.direct = false;
                }
                if self.done < self.buf.len() {
                    return Next::Again;
                }
                self.written = true;
                match outcome.synced {
                    _ if self.action == Action::Write => self.finish(),
                    Some(Ok(())) if sync => self.finish(),
                    _ => Next::Again,
                }
            }
        }
    }

    fn give_up_direct(&mut self) {
        if let Some(direct) = &self.handle.direct {
            direct.refused.store(true, Ordering::Relaxed);
        }
        self.direct = false;
        self.done = 0;
    }

    fn finish(&mut self) -> Next {
        if let Some(bounce) = self.bounce.as_ref().filter(|_| self.direct) {
            let skip = (self.offset % BLOCK) as usize;
            let wanted = skip..skip + self.buf.len();
            self.buf.copy_from_slice(&bounce.buf[wanted]);
        }
        Next::Done(Ok(std::mem::take(&mut self.buf)))
    }

    /// Carries the transfer out by blocking calls.
    pub(super) fn run(mut self) -> io::Result<IoBuf> {
        loop {
            if let Some(len) = self.wants_bounce() {
                self.bounce = Some(Bounce { buf: IoBuf::zeroed(len), fixed: None });
            }
            let (call, handle, direct) = (self.call(), self.handle.clone(), self.direct);
            let file = match &handle.direct {
                Some(past) if direct => &past.file,
                _ => &handle.file,
            };
            let outcome = match call {
                Call::Read { from, len, offset } => {
                    let memory = &mut self.memory()[from..from + len];
                    Outcome { result: rustix::io::pread(file, memory, offset), synced: None }
                }
                Call::Write { from, len, offset, .. } => {
                    let memory = &self.memory()[from..from + len];
                    // The sync comes as a call of its own.
                    Outcome { result: rustix::io::pwrite(file, memory, offset), synced: None }
                }
                Call::Sync => {
                    let result = rustix::fs::fdatasync(&handle.file).map(|()| 0);
                    Outcome { result, synced: None }
                }
            };
            if let Next::Done(result) = self.advance(outcome) {
                return result;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(direct: bool) -> Arc<Handle> {
        let file = || tempfile::tempfile().unwrap();
        let direct =
            direct.then(|| Direct { file: file(), refused: AtomicBool::new(false), all: true });
        Arc::new(Handle { file: file(), direct })
    }

    fn transfer(action: Action, direct: bool, offset: u64, len: usize) -> Transfer {
        let buf = IoBuf::from(&vec![7; len][..]);
        Transfer::new(handle(direct), action, offset, buf)
    }

    fn answered(result: Result<usize, Errno>) -> Outcome {
        Outcome { result, synced: None }
    }

    fn kind(next: &Next) -> Option<io::ErrorKind> {
        match next {
            Next::Done(Err(error)) => Some(error.kind()),
            _ => None,
        }
    }

    #[test]
    fn a_short_write_goes_on_where_it_stopped_and_syncs_only_at_its_end() {
        let mut t = transfer(Action::WriteSync, false, 100, 50);
        assert_eq!(t.call(), Call::Write { from: 0, len: 50, offset: 100, sync: true });
        // The kernel cancels what is linked behind a short write.
        let short = Outcome { result: Ok(20), synced: Some(Err(Errno::CANCELED)) };
        assert!(matches!(t.advance(short), Next::Again));
        assert_eq!(t.call(), Call::Write { from: 20, len: 30, offset: 120, sync: true });
        // One that did not cancel it has synced the wrong bytes: again, as a whole.
        let early = Outcome { result: Ok(10), synced: Some(Ok(())) };
        assert!(matches!(t.advance(early), Next::Again));
        assert!(matches!(t.advance(answered(Err(Errno::INTR))), Next::Again));
        assert_eq!(t.call(), Call::Write { from: 30, len: 20, offset: 130, sync: true });
        let interrupted = Outcome { result: Ok(20), synced: Some(Err(Errno::CANCELED)) };
        assert!(matches!(t.advance(interrupted), Next::Again));
        assert_eq!(t.call(), Call::Sync, "all is written");
        assert!(matches!(t.advance(answered(Ok(0))), Next::Done(Ok(buf)) if buf[..] == [7; 50]));
    }

    #[test]
    fn errors_keep_their_kind_and_a_sync_that_failed_is_never_tried_again() {
        for (error, expected) in [
            (Errno::NOSPC, io::ErrorKind::StorageFull),
            (Errno::DQUOT, io::ErrorKind::QuotaExceeded),
            (Errno::ROFS, io::ErrorKind::ReadOnlyFilesystem),
        ] {
            let mut write = transfer(Action::WriteSync, false, 0, 10);
            assert_eq!(kind(&write.advance(answered(Err(error)))), Some(expected));
            let mut synced = transfer(Action::WriteSync, false, 0, 10);
            let failed = Outcome { result: Ok(10), synced: Some(Err(error)) };
            assert_eq!(kind(&synced.advance(failed)), Some(expected));
            let mut sync = transfer(Action::Sync, false, 0, 0);
            assert_eq!(kind(&sync.advance(answered(Err(error)))), Some(expected));
        }
        let mut write = transfer(Action::Write, false, 0, 10);
        assert_eq!(kind(&write.advance(answered(Ok(0)))), Some(io::ErrorKind::WriteZero));
    }

    #[test]
    fn a_short_read_goes_on_and_the_end_of_the_file_is_an_error() {
        let mut t = transfer(Action::Read, false, 5, 10);
        assert!(matches!(t.advance(answered(Ok(4))), Next::Again));
        assert_eq!(t.call(), Call::Read { from: 4, len: 6, offset: 9 });
        assert_eq!(kind(&t.advance(answered(Ok(0)))), Some(io::ErrorKind::UnexpectedEof));
    }

    #[test]
    fn a_direct_read_is_widened_to_blocks_and_its_middle_comes_back() {
        let mut t = transfer(Action::Read, true, 5000, 4000);
        let len = t.wants_bounce().unwrap();
        assert_eq!(len, 8192);
        let bytes: Vec<u8> = (0..len).map(|n| (n / 32) as u8).collect();
        t.bounce = Some(Bounce { buf: IoBuf::from(&bytes[..]), fixed: None });
        assert_eq!(t.call(), Call::Read { from: 0, len: 8192, offset: 4096 });
        // The file ends in its third block, behind what is wanted.
        let Next::Done(Ok(buf)) = t.advance(answered(Ok(4910))) else { panic!("it is all there") };
        assert!(buf[..] == bytes[904..4904]);
        let mut t = transfer(Action::Read, true, 5000, 4000);
        t.bounce = Some(Bounce { buf: IoBuf::zeroed(len), fixed: None });
        assert!(matches!(t.advance(answered(Ok(4096))), Next::Again), "whole blocks");
        assert_eq!(t.call(), Call::Read { from: 4096, len: 4096, offset: 8192 });
        assert_eq!(kind(&t.advance(answered(Ok(100)))), Some(io::ErrorKind::UnexpectedEof));
    }

    #[test]
    fn only_whole_blocks_are_written_directly() {
        for (offset, len, direct) in
            [(0, 4096, true), (8192, 8192, true), (1, 4096, false), (0, 100, false)]
        {
            assert_eq!(transfer(Action::Write, true, offset, len).is_direct(), direct);
            assert_eq!(transfer(Action::WriteSync, true, offset, len).is_direct(), direct);
        }
        let mut t = transfer(Action::WriteSync, true, 0, 8192);
        assert!(matches!(t.advance(answered(Ok(4096))), Next::Again));
        assert!(t.is_direct());
        assert!(matches!(t.advance(answered(Ok(100))), Next::Again));
        assert!(!t.is_direct());
    }

    #[test]
    fn a_file_system_that_refuses_a_direct_transfer_is_not_asked_again() {
        let mut t = transfer(Action::Read, true, 5000, 4000);
        let handle = t.handle.clone();
        t.bounce = Some(Bounce { buf: IoBuf::zeroed(8192), fixed: None });
        assert!(matches!(t.advance(answered(Err(Errno::INVAL))), Next::Again));
        assert_eq!(t.call(), Call::Read { from: 0, len: 4000, offset: 5000 });
        assert!(t.wants_bounce().is_none());
        let next = Transfer::new(handle, Action::Write, 0, IoBuf::zeroed(4096));
        assert!(!next.is_direct());
        // Through the page cache it is an error like any other.
        assert_eq!(
            kind(&t.advance(answered(Err(Errno::INVAL)))),
            Some(io::ErrorKind::InvalidInput)
        );
    }
}
