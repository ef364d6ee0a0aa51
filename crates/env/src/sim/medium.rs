//! How operations change a disk, and how they fail.
//!
//! An operation's effect is one call here, with the fault that hits it, if one does. `interrupted`
//! says that the power goes while it happens: then only a part of it is done.

use std::io;

use rustix::io::Errno;

use crate::sim::disk::State;
use crate::sim::faults::FaultKind;
use crate::sim::pages::SECTOR;
use crate::sim::tree::{InodeId, Tree};

/// What an effect works on.
pub(super) struct Medium<'a> {
    pub(super) state: &'a mut State,
    pub(super) fault: Option<FaultKind>,
    /// Power goes while it happens.
    pub(super) interrupted: bool,
}

impl Medium<'_> {
    /// The error of the fault, if it stops the operation before its effect.
    pub(super) fn check(&self) -> io::Result<()> {
        match self.fault {
            Some(
                FaultKind::Error | FaultKind::Short | FaultKind::SyncLoses | FaultKind::SyncForgets,
            ) => Err(Errno::IO.into()),
            Some(FaultKind::NoSpace) => Err(Errno::NOSPC.into()),
            _ => Ok(()),
        }
    }

    /// Whether success is to be reported without an effect.
    fn is_lost(&self) -> bool {
        self.fault == Some(FaultKind::Lost)
    }

    pub(super) fn read(&mut self, inode: InodeId, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check()?;
        let content = self.state.tree.content(inode)?;
        let end = offset.checked_add(buf.len() as u64);
        if !buf.is_empty() && end.is_none_or(|end| end > content.len()) {
            let message = "failed to fill whole buffer";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        content.read(offset, buf);
        if self.fault == Some(FaultKind::Flip) && !buf.is_empty() {
            let at = self.state.prng.index(buf.len());
            buf[at] ^= 1 << self.state.prng.index(8);
        }
        Ok(())
    }

    pub(super) fn write(&mut self, inode: InodeId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let content = self.state.tree.content(inode)?;
        if bytes.is_empty() || self.is_lost() {
            return self.check();
        }
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > i64::MAX as u64) {
            return Err(Errno::INVAL.into());
        }
        if self.fault == Some(FaultKind::Misdirected) {
            return self.misdirect(inode, offset, bytes);
        }
        let mut stored = bytes.len();
        let mut result = Ok(());
        match self.fault {
            Some(FaultKind::Error | FaultKind::SyncLoses | FaultKind::SyncForgets) => {
                return self.check();
            }
            Some(FaultKind::Short | FaultKind::NoSpace) => {
                stored = self.state.prng.index(bytes.len());
                result = self.check();
            }
            _ => {}
        }
        // What lies in space the file has needs no room. The rest is counted from the start of its
        // page, as pages are what a file occupies.
        let end = offset + bytes.len() as u64;
        if self.state.options.capacity.is_some() && end > content.space() {
            let needed = (end - content.space().max(offset)) + offset % 4096;
            if needed > self.state.room() {
                stored = stored.min(self.state.prng.index(bytes.len()));
                stored = stored.min(usize::try_from(self.state.room()).unwrap_or(usize::MAX));
                result = Err(Errno::NOSPC.into());
            }
        }
        if self.interrupted {
            stored = stored.min(self.state.prng.index(bytes.len() + 1));
        }
        if stored > 0 {
            let State { tree, prng, .. } = &mut *self.state;
            tree.content_mut(inode)?.write(offset, &bytes[..stored], prng);
        }
        result
    }

    /// Stores the right bytes in the wrong place.
    fn misdirect(&mut self, inode: InodeId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let State { tree, prng, .. } = &mut *self.state;
        let files = tree.named_files();
        let victim = match prng.choose(&files) {
            Some(other) if prng.chance(0.5) => *other,
            _ => inode,
        };
        let content = tree.content_mut(victim)?;
        let sectors = content.len() / SECTOR as u64 + 1;
        let mut at = prng.below(sectors) * SECTOR as u64;
        if victim == inode && at == offset {
            at += SECTOR as u64;
        }
        content.write(at, bytes, prng);
        Ok(())
    }

    pub(super) fn sync(&mut self, inode: InodeId) -> io::Result<()> {
        let State { tree, prng, .. } = &mut *self.state;
        let content = tree.content_mut(inode)?;
        match self.fault {
            Some(FaultKind::SyncLoses) => content.lose_unsynced(),
            Some(FaultKind::SyncForgets) => content.forget_unsynced(),
            Some(FaultKind::Error | FaultKind::NoSpace | FaultKind::Short | FaultKind::Lost) => {}
            _ if self.interrupted => content.sync_partly(prng),
            _ => content.sync(),
        }
        self.check()
    }

    pub(super) fn set_len(&mut self, inode: InodeId, len: u64) -> io::Result<()> {
        self.check()?;
        if len > i64::MAX as u64 {
            return Err(Errno::INVAL.into());
        }
        if !self.is_lost() {
            self.state.tree.content_mut(inode)?.set_len(len);
        }
        Ok(())
    }

    pub(super) fn allocate(&mut self, inode: InodeId, len: u64) -> io::Result<()> {
        self.check()?;
        if len > i64::MAX as u64 {
            return Err(Errno::INVAL.into());
        }
        let more =
            len.next_multiple_of(4096).saturating_sub(self.state.tree.content(inode)?.space());
        if more > self.state.room() {
            return Err(Errno::NOSPC.into());
        }
        if len > 0 && !self.is_lost() {
            self.state.tree.content_mut(inode)?.reserve(len);
        }
        Ok(())
    }

    /// Applies an operation on names.
    pub(super) fn names(
        &mut self,
        change: impl FnOnce(&mut Tree) -> io::Result<()>,
    ) -> io::Result<()> {
        self.check()?;
        let skipped = self.is_lost() || (self.interrupted && self.state.prng.chance(0.5));
        if skipped { Ok(()) } else { change(&mut self.state.tree) }
    }
}
